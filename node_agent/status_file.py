"""Adapter: what the agent knows and the kernel does not tell, in a file for `sriovctl`.

Written when it changes, and now and then anyway: by its age a reader sees whether the agent still runs. It is
removed when the agent ends; one that was killed leaves it to grow old.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from structlog.typing import FilteringBoundLogger

from device_plugin.plugin import PoolStatus
from vf_manager.apply import Failure
from vf_manager.atomic_file import write_atomically
from vf_manager.errors import CorruptRecord
from vf_manager.model import PciAddress, Vf
from vf_manager.provision import Refusal
from vf_manager.provisioner import Outcome

STATUS_FILE = "status.json"
STALE_S = 30.0  # three heartbeats
_HEARTBEAT_S = 10.0
_LOOK_S = 0.5


class PoolState(msgspec.Struct, frozen=True, kw_only=True):
    """`unhealthy`: of its VFs, with the reason. `registered` with the kubelet, else `reason`."""

    name: str
    resource: str
    vfs: tuple[PciAddress, ...] = ()
    unhealthy: dict[PciAddress, str] = {}
    registered: bool = False
    reason: str | None = None


class Provisioned(msgspec.Struct, frozen=True, kw_only=True):
    """What is left to do on PFs. `missing`: a line about each PF of the config that is not there. `trouble`:
    why nothing can be done now."""

    pending: tuple[Refusal, ...] = ()
    refused: tuple[Refusal, ...] = ()
    failed: tuple[Failure, ...] = ()
    missing: tuple[str, ...] = ()
    trouble: str | None = None

    @property
    def is_held_back(self) -> bool:
        return bool(self.pending or self.refused or self.failed or self.trouble)


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of object of the cluster. `known`: all of it was listed once. `trouble`: why it may be old."""

    kind: str
    known: bool = False
    trouble: str = ""


class InPodState(msgspec.Struct, frozen=True, kw_only=True):
    """Services and policy inside of pods. `late`: why rules are not up to date, by the pod's namespace."""

    pods: int = 0
    late: dict[str, str] = {}
    watched: tuple[Watched, ...] = ()

    @property
    def troubles(self) -> tuple[str, ...]:
        old = (f"{one.kind} are not heard: {one.trouble}" for one in self.watched if one.trouble)
        return (*old, *(f"rules in {path} are not up to date: {why}" for path, why in self.late.items()))


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`config_refused`: why the file, as it is now, is not in force."""

    pid: int
    config: str | None = None
    config_refused: str | None = None
    pools: tuple[PoolState, ...] = ()
    provisioning: Provisioned = Provisioned()
    in_pod: InPodState = InPodState()


class StatusAtTime(msgspec.Struct, frozen=True, kw_only=True):
    """`written_s`: by CLOCK_MONOTONIC, which all processes of a node share and nobody sets."""

    written_s: float
    status: AgentStatus

    def age_s(self, now_s: float) -> float:
        return max(0.0, now_s - self.written_s)


def pool_states(
    members: Mapping[str, Sequence[Vf]],
    unhealthy: Mapping[str, Mapping[PciAddress, str]],
    registered: Sequence[PoolStatus],
) -> tuple[PoolState, ...]:
    """Pools are in one order everywhere: that of the config. While a config is being replaced by one with
    other pools, those that both have."""
    return tuple(
        PoolState(
            name=name,
            resource=kubelet.resource,
            vfs=tuple(vf.pci for vf in vfs),
            unhealthy=dict(unhealthy.get(name, {})),
            registered=kubelet.registered,
            reason=kubelet.reason,
        )
        for (name, vfs), kubelet in zip(members.items(), registered, strict=False)
    )


def provisioned(outcome: Outcome, missing: Sequence[str], trouble: str | None) -> Provisioned:
    return Provisioned(
        pending=outcome.pending,
        refused=outcome.refused,
        failed=outcome.failed,
        missing=tuple(missing),
        trouble=trouble,
    )


class StatusFile:
    """The agent's side. `watch` on a thread of its own."""

    def __init__(
        self,
        path: Path,
        look: Callable[[], AgentStatus],
        log: FilteringBoundLogger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._look = look
        self._log = log
        self._clock = clock
        self._written: StatusAtTime | None = None

    def write(self) -> None:
        """If there is news, or the last writing is long ago."""
        now, status, last = self._clock(), self._look(), self._written
        if last is not None and last.status == status and last.age_s(now) < _HEARTBEAT_S:
            return
        self._written = StatusAtTime(written_s=now, status=status)
        try:
            write_atomically(self._path, msgspec.json.encode(self._written))
        except OSError as e:  # nothing but `sriovctl` is worse off for it
            self._log.warning("the status file could not be written", error=str(e))

    def watch(self, stop: threading.Event) -> None:
        try:
            self.write()
            while not stop.wait(_LOOK_S):
                self.write()
        finally:
            self._path.unlink(missing_ok=True)


def read_status(path: Path) -> StatusAtTime | None:
    """None: no agent has left one. Raises CorruptRecord, and OSError where one may not look."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=StatusAtTime)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise CorruptRecord(
            f"{path} cannot be read: {e}; was it written by an agent of another release?"
        ) from e
