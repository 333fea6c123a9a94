"""Orchestrator: one CNI call from request to reply. The only place where errors become CNI codes."""

import os
import secrets
from collections import deque
from collections.abc import Callable
from typing import assert_never

import msgspec
from structlog.contextvars import bound_contextvars
from structlog.typing import FilteringBoundLogger

from sriov_cni.attach import Attacher
from sriov_cni.attachment import attachment_key
from sriov_cni.chain import FallbackChain
from sriov_cni.environment import Command, name_call
from sriov_cni.messages import CniReply, CniRequest
from sriov_cni.netconf import CniCall, parse_call, version_of
from sriov_cni.pod_attach import PodAttacher
from sriov_cni.spec import BadEnvironment, ErrorCode, code_of, error_json, render_result
from vf_manager.errors import InvalidInput, Refused, SriovError

_REMEMBERED = 512


class CniHandler:
    """`fallback`: who attaches pods that requested no VF, if it has a list; what it attached under another
    config it takes back in any case. `refuse_unready`: raises NotReady
    with the reason why an ADD could not succeed now (for STATUS)."""

    def __init__(
        self,
        pods: PodAttacher,
        attacher: Attacher,
        fallback: FallbackChain | None,
        refuse_unready: Callable[[], None],
        log: FilteringBoundLogger,
    ) -> None:
        self._pods = pods
        self._attacher = attacher
        self._fallback = fallback
        self._refuse_unready = refuse_unready
        self._log = log
        self._detached: deque[str] = deque(maxlen=_REMEMBERED)  # container ids are never used again

    def __call__(self, request: CniRequest) -> CniReply:
        """Every line that is logged on the way says which call it belongs to."""
        with bound_contextvars(request=secrets.token_hex(4), **name_call(request.env)):
            return self._reply(request)

    def _reply(self, request: CniRequest) -> CniReply:
        self._log.debug("call")
        try:
            stdout = self._serve(request)
            self._log.debug("answer")
            return CniReply(0, stdout)
        except SriovError as e:
            code, message = code_of(e), str(e)
        except OSError as e:
            code, message = ErrorCode.IO_FAILURE, f"{e.strerror or e}: {e.filename}" if e.filename else str(e)
        self._log.warning("call failed", code=int(code), error=message)
        return CniReply(1, error_json(version_of(request.stdin), code, message))

    def _serve(self, request: CniRequest) -> bytes:
        call = parse_call(request.env, request.stdin)
        match call.command:
            case Command.ADD:
                return self._add(call, _netns_fd(request))
            case Command.DEL:
                self._delete(call, request.netns_fd)
            case Command.STATUS:
                self._status(call)
            case Command.CHECK:
                self._check(call, _netns_fd(request))
            case Command.GC:
                self._collect(call)
            case _:
                assert_never(call.command)
        return b""

    def _add(self, call: CniCall, netns_fd: int) -> bytes:
        wanted = self._pods.plan(call)
        if wanted:
            return render_result(self._pods.add(call, wanted, netns_fd), call.conf.cni_version)
        if self._fallback is not None and self._fallback.has_list:
            return msgspec.json.encode(self._fallback.add(call, call.runtime_config, netns_fd))
        if (pod := call.pod) is not None:
            raise Refused(
                f"pod {pod.namespace}/{pod.name} requests no VF, and the agent's config has no fallback for"
                " such pods; nor does the network configuration name a VF by deviceID"
            )
        ways = "the PCI address of a VF, a pod that requests one, or a fallback in the agent's config"
        raise InvalidInput("deviceID", None, f"{ways} (the call names no pod)")

    def _delete(self, call: CniCall, netns_fd: int | None) -> None:
        assert call.ifname is not None
        key = attachment_key(call.container_id, call.ifname)
        chained = self._fallback is not None and self._fallback.delete(call, netns_fd)
        if chained or self._pods.delete(call, netns_fd):
            self._detached.append(key)
            return
        # Runtimes send a second DEL for each pod; the chain's plugins need not run for that.
        chain = self._fallback if self._fallback is not None and self._fallback.has_list else None
        if chain is not None and not call.names_device and key not in self._detached:
            chain.delete_unknown(call, call.runtime_config, netns_fd)
        self._attacher.release_leases(call.conf.name, call.conf.ipam, call.container_id, call.ifname)
        self._log.info("nothing to detach", container=call.container_id, ifname=call.ifname)

    def _check(self, call: CniCall, netns_fd: int) -> None:
        if self._fallback is not None and self._fallback.holds(call.container_id, str(call.ifname)):
            self._fallback.check(call, netns_fd)
        else:
            self._pods.check(call, netns_fd)

    def _collect(self, call: CniCall) -> None:
        """Each part gets its chance; the first error comes out. Without a list nothing is done."""
        if call.conf.valid_attachments is None:
            return
        valid = frozenset(call.conf.valid_attachments)
        try:
            self._attacher.collect(call.conf.name, call.conf.ipam, valid)
        finally:
            if self._fallback is not None:
                self._fallback.collect(call, valid)

    def _status(self, call: CniCall) -> None:
        self._refuse_unready()
        self._pods.ask_ipam(call)
        if self._fallback is not None:
            self._fallback.status(call)


def _netns_fd(request: CniRequest) -> int:
    if request.netns_fd is None:
        why = os.strerror(request.netns_errno) if request.netns_errno else "no descriptor came with the call"
        raise BadEnvironment(
            "CNI_NETNS", request.env.get("CNI_NETNS", ""), f"a network namespace that exists ({why})"
        )
    return request.netns_fd
