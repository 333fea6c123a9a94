"""Orchestrator: attachments by other CNI plugins, for pods that requested no VF (CNI SPEC.md, section 3).

Decisions:
- The chain runs in the version of the call if its list declares that one, else in the newest that it
  declares; what it answers is then converted. Below 0.4.0 plugins know no CHECK and get no prevResult at DEL,
  below 1.1.0 no GC and no STATUS.
- DEL halts at the first plugin that fails, as the specification wants: a plugin may need what an earlier one
  made until it has taken back its own. The record stays, and the next DEL begins anew with the last plugin.
- A failed ADD is followed by the DEL of the whole list at once, without prevResult: there is none. If that
  fails too, the record stays for the runtime's DEL.
- CHECK and DEL go by the list, the variables and the runtimeConfig of the ADD, which the record keeps: the
  list may have changed since. CNI_PATH is the call's, if it has one.
- GC names to the plugins, besides the attachments that are valid in the network that was called, those that
  other networks made with the same list: the plugins know them all by the list's name.
- An ADD that is repeated gets the recorded result if the attachment stands and passes CHECK.
"""

import copy
import os
import threading
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec
from structlog.typing import FilteringBoundLogger

from sriov_cni.attachment import attachment_key
from sriov_cni.chain_cache import ChainRecord
from sriov_cni.chain_conflist import Conflist
from sriov_cni.chain_result import RawResult, convert_result
from sriov_cni.chain_run import ChainRun, Timeouts
from sriov_cni.environment import Environment
from sriov_cni.exec import PluginRunner
from sriov_cni.executor import Checkpoint, no_checkpoint
from sriov_cni.netconf import CniCall
from sriov_cni.spec import CheckFailed, NotReady, PluginFailure
from vf_manager.errors import Busy, InvalidInput, KernelError, SriovError
from vf_manager.kernel.api import NetnsId
from vf_manager.records import RecordStore

_LOCK_TIMEOUT_S = 30.0


class FallbackChain:
    """All attachments by chains. Thread-safe; the records are the truth. `conflist` is asked anew by each
    call that begins something; None: there is no chain now, and what there was can only be taken back.
    `runtime_config`: of the call; each plugin gets what it declares of it."""

    def __init__(
        self,
        conflist: Callable[[], Conflist] | None,
        records: RecordStore[ChainRecord],
        log: FilteringBoundLogger,
        *,
        plugins: PluginRunner | None = None,
        timeouts: Timeouts | None = None,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> None:
        self._conflist = conflist
        self._records = records
        self._log = log
        self._checkpoint = checkpoint
        self._run = ChainRun(plugins or PluginRunner(log), timeouts or Timeouts(), checkpoint)
        self._locks = _Locks()

    def with_list(self, conflist: Callable[[], Conflist] | None) -> Self:
        """The same attachments under the same locks, with another list for what begins from now on."""
        other = copy.copy(self)
        other._conflist = conflist
        return other

    @property
    def has_list(self) -> bool:
        """Whether anything can be attached, or asked of a list."""
        return self._conflist is not None

    def holds(self, container_id: str, ifname: str) -> bool:
        """Whether this attachment is the chain's, be it half-done."""
        return self._records.read(attachment_key(container_id, ifname)) is not None

    def add(self, call: CniCall, runtime_config: dict[str, Any], netns_fd: int) -> RawResult:
        """The last plugin's result, in the version of the call. Raises SriovError; what can be taken back is
        taken back by then."""
        with self._locks.one(_key(call.env)):
            wanted = self._plan(call, runtime_config, netns_fd)
            standing = self._records.read(_key(call.env))
            if standing is not None:
                if self._stands(standing, wanted, netns_fd):
                    return convert_result(standing.result or {}, call.conf.cni_version)
                self._take_back(standing, call.env, netns_fd, brief=True)
            self._run.refuse_missing(wanted.conflist, call.env)
            return convert_result(self._attach(wanted, netns_fd), call.conf.cni_version)

    def delete(self, call: CniCall, netns_fd: int | None) -> bool:
        """Take an attachment back. False: there is no record of it, and nothing was done."""
        with self._locks.one(_key(call.env)):
            record = self._records.read(_key(call.env))
            if record is not None:
                self._take_back(record, call.env, netns_fd)
        return record is not None

    def delete_unknown(self, call: CniCall, runtime_config: dict[str, Any], netns_fd: int | None) -> None:
        """DEL by the list of today for what there is no record of: a pod that was attached while the list was
        the node's configuration itself."""
        with self._locks.one(_key(call.env)):
            self._run.delete(self._plan(call, runtime_config, netns_fd), call.env, netns_fd, brief=False)

    def check(self, call: CniCall, netns_fd: int) -> None:
        """Raises CheckFailed, or what a plugin answers."""
        with self._locks.one(_key(call.env)):
            record = self._records.read(_key(call.env))
            if record is None or not record.attached or record.network != call.conf.name:
                where = f"network {call.conf.name}"
                raise CheckFailed(f"nothing of {where} is attached as {call.ifname} here")
            self._run.check(record, call.env, netns_fd)

    def collect(self, call: CniCall, valid: Set[tuple[str, str]]) -> None:
        """GC: take back every attachment of the called network that is not valid, then let the plugins
        collect. Goes on past errors and raises them at the end."""
        conflist = self._conflist() if self._conflist is not None else None
        if conflist is not None and conflist.disable_gc:
            return
        with self._locks.all():
            records = [record for key in self._records.list_keys() if (record := self._records.read(key))]
            of_call = [record for record in records if record.network == call.conf.name]
            of_others = [record for record in records if record.network != call.conf.name]
            failures = self._take_back_all([r for r in of_call if _holder(r) not in valid], call.env)
            if conflist is not None:
                others = {_holder(record) for record in of_others if record.conflist.name == conflist.name}
                version = conflist.version_for(call.conf.cni_version)
                failures += self._run.collect(conflist, version, call.env, valid | others)
        if failures:
            raise failures[0] if len(failures) == 1 else PluginFailure("; ".join(map(str, failures)))

    def status(self, call: CniCall) -> None:
        """Raises NotReady if an ADD could not succeed now, or what a plugin answers."""
        if self._conflist is None:
            return
        try:
            conflist = self._conflist()
        except (InvalidInput, KernelError) as e:
            raise NotReady(str(e)) from e
        self._run.status(conflist, conflist.version_for(call.conf.cni_version), call.env)

    def recover(self) -> None:
        """Take back what an earlier process or call left half-done, and what nobody will send a DEL for. What
        cannot be taken back yet stays on record, for the runtime's DEL or the next time."""
        for key in self._records.list_keys():
            record = self._records.read(key)
            if record is None or not _is_lost(record):
                continue
            with self._locks.one(key):  # a call may be about to finish it
                record = self._records.read(key)
                if record is not None and _is_lost(record):
                    self._take_back_all([record], record.env)

    def _plan(self, call: CniCall, runtime_config: dict[str, Any], netns_fd: int | None) -> ChainRecord:
        assert self._conflist is not None
        conflist = self._conflist()
        found = os.fstat(netns_fd) if netns_fd is not None else None
        return ChainRecord(
            network=call.conf.name,
            env=call.env,
            sandbox=NetnsId(found.st_dev, found.st_ino) if found else NetnsId(0, 0),
            conflist=conflist,
            cni_version=conflist.version_for(call.conf.cni_version),
            runtime_config=runtime_config,
        )

    def _stands(self, record: ChainRecord, wanted: ChainRecord, netns_fd: int) -> bool:
        if not record.attached or record.sandbox != wanted.sandbox or record.network != wanted.network:
            return False
        try:
            self._run.check(record, wanted.env, netns_fd)
        except SriovError as e:
            self._log.warning("chain is attached anew", error=str(e), **_fields(record))
            return False
        return True

    def _attach(self, record: ChainRecord, netns_fd: int) -> RawResult:
        self._write(record)
        self._checkpoint("intent")
        try:
            result = self._run.add(record, netns_fd)
            self._write(msgspec.structs.replace(record, attached=True, result=result))
        except Exception as e:
            self._log.warning("chain failed", error=str(e), **_fields(record))
            self._take_back_all([record], record.env, netns_fd)
            raise
        self._checkpoint("attached")
        self._log.info("attached by the chain", **_fields(record))
        return result

    def _take_back_all(
        self, records: list[ChainRecord], env: Environment, netns_fd: int | None = None
    ) -> list[SriovError]:
        """Past errors; returns them, and the records they concern stay."""
        failures: list[SriovError] = []
        for record in records:
            try:
                self._take_back(record, env, netns_fd, brief=True)
            except SriovError as e:
                self._log.warning("chain could not be taken back", error=str(e), **_fields(record))
                failures.append(e)
        return failures

    def _take_back(
        self, record: ChainRecord, env: Environment, netns_fd: int | None, *, brief: bool = False
    ) -> None:
        """Raises what the first plugin to fail said; the record then stays, and says that it is half-done."""
        if record.attached:
            self._write(msgspec.structs.replace(record, attached=False))
        self._run.delete(record, env, netns_fd, brief=brief)
        self._records.remove(_key(record.env))
        self._checkpoint("gone")
        self._log.info("detached by the chain", **_fields(record))

    def _write(self, record: ChainRecord) -> None:
        self._records.write(_key(record.env), record)


class _Locks:
    """One call at a time for one attachment; and at times one for all of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken: set[str] = set()
        self._all = False

    @contextmanager
    def one(self, key: str) -> Iterator[None]:
        with self._changed:
            self._wait(lambda: key not in self._taken and not self._all)
            self._taken.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._taken.discard(key)
                self._changed.notify_all()

    @contextmanager
    def all(self) -> Iterator[None]:
        with self._changed:
            self._wait(lambda: not self._taken and not self._all)
            self._all = True
        try:
            yield
        finally:
            with self._changed:
                self._all = False
                self._changed.notify_all()

    def _wait(self, free: Callable[[], bool]) -> None:
        if not self._changed.wait_for(free, _LOCK_TIMEOUT_S):
            raise Busy(f"the chain is still at work for another call after {_LOCK_TIMEOUT_S:g} s; try again")


def _key(env: Environment) -> str:
    return attachment_key(env.container_id, str(env.ifname))


def _is_lost(record: ChainRecord) -> bool:
    """Half-done, or its namespace is gone: some runtimes send the DEL by the configuration that they have by
    then, which may not be ours any more. In doubt it is there: where the folder of the namespaces cannot be
    seen, or where there is a file, which in another mount namespace may be without the namespace."""
    path = Path(record.env.netns)
    return not record.attached or (path.is_absolute() and path.parent.is_dir() and not path.exists())


def _holder(record: ChainRecord) -> tuple[str, str]:
    return record.env.container_id, str(record.env.ifname)


def _fields(record: ChainRecord) -> dict[str, object]:
    pod = record.env.pod
    return {
        **({"pod": f"{pod.namespace}/{pod.name}"} if pod else {}),
        "container": record.env.container_id,
        "ifname": record.env.ifname,
        "network": record.network,
        "chain": record.conflist.name,
    }
