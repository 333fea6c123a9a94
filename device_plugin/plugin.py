"""Orchestrator: the pools of the node as resources of the kubelet that is there now.

Level-triggered: each round looks at the kubelet and at every pool as they are and does what is missing. No
round waits for anybody: a kubelet that hangs over one pool does not keep the others from it.
"""

import dataclasses
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec
from structlog.typing import FilteringBoundLogger

from device_plugin.allocator import Allocator
from device_plugin.announcement import Announcement, Timing, announce, socket_path
from device_plugin.endpoint import FileIdentity, check_socket_path, read_socket_identity
from device_plugin.pools import Pool, assign, check_pools
from device_plugin.registration import Way
from device_plugin.service import PoolService
from vf_manager.model import Inventory, PciAddress

Unhealthy = Mapping[str, Mapping[PciAddress, str]]  # pool -> VF -> reason

_TIMING = Timing()
_CHOICE_OF_VFS = {"select", "without_pf", "shared"}
_NO_KUBELET = "the kubelet's socket is not there"
_NOT_YET = "not registered yet"
_HELD = "its VFs are not ready"


class PoolStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One pool as the kubelet has it. `way` and `socket`: None until one was chosen. `reason`: why it is not
    registered, None if it is."""

    resource: str
    way: Way | None
    socket: str | None
    devices: int
    registered: bool
    reason: str | None = None


@dataclasses.dataclass
class _Resource:
    """`made_of`: what of the pool its service was made of; other pools need other services."""

    pool: Pool
    made_of: dict[str, object]
    service: PoolService
    announcement: Announcement | None = None

    def withdraw(self) -> None:
        if self.announcement is not None:
            self.announcement.close()
            self.announcement = None


class DevicePlugin:
    """`start`, then `watch` on a thread of its own and `update` at each new inventory, then `stop`.

    Nothing is registered before the first `update`: a kubelet that is told of 0 devices after a restart
    of the agent would turn away pods which hold some.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        prefix: str,
        kubelet_dir: Path,
        log: FilteringBoundLogger,
        allocator: Allocator,
        *,
        way: Way | None = None,
        timing: Timing = _TIMING,
    ) -> None:
        """`way` None: Register with a kubelet that takes it, which is at once, else its watcher, which looks
        once a second. Raises InvalidInput."""
        self._kubelet_dir = kubelet_dir
        self._kubelet_socket = kubelet_dir / Way.LEGACY.folder / "kubelet.sock"
        self._log = log
        self._allocator = allocator
        self._asked_way = way
        self._timing = timing
        self._updating = threading.Lock()  # taken before _lock
        self._lock = threading.Lock()  # guards all below
        self._resources = self._make_resources(pools, prefix)
        self._held: frozenset[str] = frozenset()
        self._leaving: list[tuple[Announcement, float]] = []  # and when they are closed
        self._way = way
        self._kubelet: FileIdentity | None = None
        self._kubelet_since = 0.0
        self._waiting = False
        self._inventory: Inventory | None = None
        self._unhealthy: Unhealthy = {}
        self._stopped = threading.Event()

    def start(self) -> None:
        """Serves all pools that are ready, so that what is wrong with the folder shows now. Without the
        folder (no kubelet has ever run here) that is left to `watch`. Raises SriovError."""
        now = time.monotonic()
        with self._lock:
            self._look_for_kubelet(now)
            self._choose_way(now)
            for resource in self._resources.values():
                announcement = self._announcement(resource)
                if announcement is not None and announcement.socket.path.parent.is_dir():
                    announcement.serve(now)

    def update(self, inventory: Inventory, unhealthy: Unhealthy | None = None) -> None:
        """Takes a new inventory and the VFs that are unhealthy in a pool; the kubelet hears of it where a
        pool changed."""
        with self._updating:
            self._inventory, self._unhealthy = inventory, unhealthy or {}
            self._update()

    def reconfigure(self, pools: Sequence[Pool], prefix: str) -> None:
        """Takes other pools. Those that stay, or only take other VFs, keep socket and stream. One that is
        gone has 0 devices before it goes: the kubelet would show its old number for 5 minutes more.

        Raises InvalidInput; then all is as it was."""
        new = self._make_resources(pools, prefix)
        with self._updating:
            with self._lock:
                self._take_over(new)
            if self._inventory is not None:
                self._update()

    def hold(self, pools: Collection[str]) -> None:
        """The pools whose VFs are not set up yet: they are not registered until a call without them. One that
        is registered already stays so."""
        with self._lock:
            self._held = frozenset(pools)

    def watch(self, stop: threading.Event) -> None:
        """Serves and registers whatever is not, until `stop` is set or `stop()` was called."""
        while not self._stopped.is_set():
            self._round(time.monotonic())
            if stop.wait(self._timing.interval_s):
                return

    def stop(self) -> None:
        """Ends the streams and removes our sockets. The kubelet keeps what it allocated.

        Without it the interpreter does not end: it waits for the threads that hold the streams.
        """
        self._stopped.set()
        with self._lock:
            self._see_off(None)
            for resource in self._resources.values():
                resource.withdraw()

    def registered(self) -> tuple[PoolStatus, ...]:
        """How each pool stands, in the order of the pools."""
        with self._lock:
            return tuple(self._status(name) for name in self._resources)

    def _status(self, name: str) -> PoolStatus:
        resource = self._resources[name]
        announcement = resource.announcement
        return PoolStatus(
            resource=resource.service.resource,
            way=self._way if announcement else None,
            socket=str(announcement.socket.path) if announcement else None,
            devices=resource.service.device_count(),
            registered=announcement is not None and announcement.registered,
            reason=announcement.reason if announcement else self._why_not(name),
        )

    def _why_not(self, name: str) -> str:
        if name in self._held:
            return _HELD
        return _NO_KUBELET if self._waiting else _NOT_YET

    # -- a round -----------------------------------------------------------------------------------------

    def _round(self, now: float) -> None:
        with self._lock:
            if self._stopped.is_set():
                return
            self._look_for_kubelet(now)
            self._choose_way(now)
            self._see_off(now)
            for resource in self._resources.values():
                announcement = self._announcement(resource)
                if announcement is not None:
                    announcement.step(now, self._kubelet is not None)

    def _look_for_kubelet(self, now: float) -> None:
        """A kubelet that went or came anew knows nothing of us."""
        found = read_socket_identity(self._kubelet_socket)
        if found is None and not self._waiting:
            self._log.info("waiting for the kubelet", socket=str(self._kubelet_socket))
        self._waiting = found is None
        if found != self._kubelet:
            self._kubelet, self._kubelet_since = found, now
            for resource in self._resources.values():
                if resource.announcement is not None:
                    resource.announcement.start_over(_NO_KUBELET if found is None else "the kubelet is new")

    def _choose_way(self, now: float) -> None:
        """Once, and for all pools: the two ways at once would be two registrations of one resource."""
        if self._way is None:
            if self._kubelet is not None:
                self._way = Way.LEGACY
            elif (self._kubelet_dir / Way.WATCHER.folder).is_dir():
                self._way = Way.WATCHER
        elif self._way is Way.WATCHER and self._asked_way is None and self._is_ignored(now):
            self._log.warning(
                "the kubelet does not look at our sockets: it is called instead",
                folder=str(self._kubelet_dir / Way.WATCHER.folder),
            )
            for resource in self._resources.values():
                resource.withdraw()
            self._way = Way.LEGACY

    def _is_ignored(self, now: float) -> bool:
        """Whether the kubelet had time enough to find a socket of ours, and found none."""
        served = [r.announcement for r in self._resources.values() if r.announcement is not None]
        if self._kubelet is None or not served or any(one.was_asked() for one in served):
            return False
        since = max(self._kubelet_since, min(one.served_at for one in served))
        return now - since > self._timing.fallback_s

    def _announcement(self, resource: _Resource) -> Announcement | None:
        """None as long as the pool is not to be announced."""
        ready = resource.service.is_ready() and resource.pool.name not in self._held
        if resource.announcement is None and ready and self._way is not None:
            self._remove_stale(resource.service.resource, self._way)
            resource.announcement = announce(
                self._way, resource.service, self._kubelet_dir, self._timing, self._log
            )
        return resource.announcement

    def _remove_stale(self, resource: str, way: Way) -> None:
        """What an agent that was killed left behind if it took the other way: the kubelet would dial it for
        ever."""
        for other in Way:
            path = socket_path(other, self._kubelet_dir, resource)
            if other is not way and read_socket_identity(path) is not None:
                path.unlink(missing_ok=True)
                self._log.info("removed the socket of an earlier agent", socket=str(path))

    def _see_off(self, now: float | None) -> None:
        """Close the sockets of removed pools whose time has come; None: of all."""
        for one in [one for one in self._leaving if now is None or now >= one[1]]:
            self._leaving.remove(one)
            one[0].close()

    # -- pools -------------------------------------------------------------------------------------------

    def _update(self) -> None:
        assert self._inventory is not None
        with self._lock:
            resources = list(self._resources.values())
        vfs_of = assign([resource.pool for resource in resources], self._inventory)
        for resource in resources:
            name = resource.pool.name
            resource.service.update(vfs_of[name], self._unhealthy.get(name, {}))
        self._allocator.tidy((one.service.of, vfs_of[one.pool.name]) for one in resources)

    def _make_resources(self, pools: Sequence[Pool], prefix: str) -> dict[str, _Resource]:
        check_pools(pools, prefix)
        made = {}
        for pool in pools:
            service = PoolService(pool, prefix, self._log, self._allocator)
            for way in Way if self._asked_way is None else (self._asked_way,):
                check_socket_path(socket_path(way, self._kubelet_dir, service.resource).absolute())
            of_pool = {k: v for k, v in msgspec.structs.asdict(pool).items() if k not in _CHOICE_OF_VFS}
            made[pool.name] = _Resource(pool, of_pool | {"resource": service.resource}, service)
        return made

    def _take_over(self, new: dict[str, _Resource]) -> None:
        self._see_off(None)  # a pool that comes back needs its path
        for name, old in self._resources.items():
            next_ = new.get(name)
            if next_ is not None and next_.made_of == old.made_of:
                new[name] = dataclasses.replace(old, pool=next_.pool)
            elif next_ is not None and next_.service.resource == old.service.resource:
                old.withdraw()
            elif old.announcement is not None:
                old.service.update((), {})
                self._leaving.append((old.announcement, time.monotonic() + self._timing.farewell_s))
        self._resources = new
