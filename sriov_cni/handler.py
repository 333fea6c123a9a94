"""Orchestrator: one CNI call from request to reply. The only place where errors become CNI codes."""

import os
from collections.abc import Callable
from typing import assert_never

from structlog.typing import FilteringBoundLogger

from sriov_cni.attach import Attacher
from sriov_cni.attachment import Wanted
from sriov_cni.environment import Command
from sriov_cni.messages import CniReply, CniRequest
from sriov_cni.netconf import CniCall, parse_call, version_of
from sriov_cni.spec import BadEnvironment, ErrorCode, NotReady, code_of, error_json, render_result
from vf_manager.errors import InvalidInput, SriovError


class CniHandler:
    """`not_ready`: the reason why an ADD could not succeed now, or None (for STATUS)."""

    def __init__(
        self, attacher: Attacher, not_ready: Callable[[], str | None], log: FilteringBoundLogger
    ) -> None:
        self._attacher = attacher
        self._not_ready = not_ready
        self._log = log

    def __call__(self, request: CniRequest) -> CniReply:
        try:
            return CniReply(0, self._serve(request))
        except SriovError as e:
            code, message = code_of(e), str(e)
        except OSError as e:
            code, message = ErrorCode.IO_FAILURE, f"{e.strerror or e}: {e.filename}" if e.filename else str(e)
        self._log.warning(
            "call failed", command=request.env.get("CNI_COMMAND"), code=int(code), error=message
        )
        return CniReply(1, error_json(version_of(request.stdin), code, message))

    def _serve(self, request: CniRequest) -> bytes:
        call = parse_call(request.env, request.stdin)
        match call.command:
            case Command.ADD:
                result = self._attacher.add(_wanted(call), _netns_fd(request))
                return render_result(result, call.conf.cni_version)
            case Command.DEL:
                self._delete(call, request.netns_fd)
                return b""
            case Command.STATUS:
                reason = self._not_ready()
                if reason is not None:
                    raise NotReady(reason)
                return b""
            case Command.CHECK:
                self._attacher.check(call, _netns_fd(request))
                return b""
            case Command.GC:
                if call.conf.valid_attachments is not None:
                    valid = frozenset(call.conf.valid_attachments)
                    self._attacher.collect(call.conf.name, call.conf.ipam, valid)
                return b""
            case _:
                assert_never(call.command)

    def _delete(self, call: CniCall, netns_fd: int | None) -> None:
        assert call.ifname is not None
        self._attacher.delete(call.container_id, call.ifname, netns_fd)
        self._attacher.release_leases(call.conf.name, call.conf.ipam, call.container_id, call.ifname)


def _wanted(call: CniCall) -> Wanted:
    conf = call.conf
    if conf.device_id is None:
        raise InvalidInput("deviceID", None, "the PCI address of a VF, from the device plugin or Multus")
    assert call.ifname is not None
    return Wanted(
        config=conf.name,
        network=conf.name,
        primary=call.ifname,
        container_id=call.container_id,
        ifname=call.ifname,
        netns=call.netns,
        pod=call.pod,
        device=conf.device_id,
        asked=conf.asked,
        ipam=conf.ipam,
        dns=conf.dns,
    )


def _netns_fd(request: CniRequest) -> int:
    if request.netns_fd is None:
        why = os.strerror(request.netns_errno) if request.netns_errno else "no descriptor came with the call"
        raise BadEnvironment(
            "CNI_NETNS", request.env.get("CNI_NETNS", ""), f"a network namespace that exists ({why})"
        )
    return request.netns_fd
