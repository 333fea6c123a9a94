"""Orchestrator: keeps every pool served, registered with the kubelet that is there now, and up to date.

Level-triggered: each round looks at the sockets as they are and does what is missing. A kubelet that
starts removes all sockets of its folder and makes its own anew; both show in the next round.
"""

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from structlog.typing import FilteringBoundLogger

from device_plugin.allocator import Allocator, Resource
from device_plugin.endpoint import FileIdentity, ServedSocket, read_socket_identity, register
from device_plugin.pools import Pool, assign, check_pools
from device_plugin.service import WORKERS, PoolService
from vf_manager.errors import SriovError
from vf_manager.model import Inventory, PciAddress

_MAX_BACKOFF_S = 5.0
_NONE: Mapping[str, Mapping[PciAddress, str]] = {}
_NO_KUBELET = "the kubelet's socket is not there"


class PoolStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One pool as the kubelet has it. `reason`: why it is not registered, None if it is."""

    resource: str
    socket: str
    devices: int
    registered: bool
    reason: str | None = None


@dataclasses.dataclass
class _Endpoint:
    """One pool on its way to the kubelet. Only the watching thread writes what is below `socket`."""

    pool: str
    service: PoolService
    socket: ServedSocket
    registered: bool = False
    reason: str | None = "not registered yet"
    backoff_s: float = 0.0
    retry_at: float = 0.0  # time.monotonic
    watched_at: float = 0.0  # when the kubelet was last seen to hold a stream

    def reset(self, reason: str) -> None:
        self.registered = False
        self.reason = reason
        self.backoff_s = self.retry_at = 0.0


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
        interval_s: float = 0.5,
        unwatched_s: float = 5.0,
    ) -> None:
        """Raises InvalidInput. `unwatched_s`: how long after a registration the kubelet may be without a
        ListAndWatch stream before it is registered with again."""
        check_pools(pools, prefix)
        self._pools = tuple(pools)
        self._prefix = prefix
        self._dir = kubelet_dir / "device-plugins"
        self._kubelet_socket = self._dir / "kubelet.sock"
        self._log = log
        self._allocator = allocator
        self._interval_s = interval_s
        self._unwatched_s = unwatched_s
        self._endpoints = [self._endpoint(prefix, pool) for pool in pools]
        self._kubelet: FileIdentity | None = None
        self._waiting = False
        self._serving = threading.Lock()  # sockets come and go under it
        self._stopped = threading.Event()

    def _endpoint(self, prefix: str, pool: Pool) -> _Endpoint:
        service = PoolService(pool, prefix, self._log, self._allocator)
        path = self._dir / f"{service.resource.replace('/', '_')}.sock"
        return _Endpoint(pool.name, service, ServedSocket(path, service, WORKERS))

    def start(self) -> None:
        """Serves all pools, so that what is wrong with the folder shows now. Without the folder (no
        kubelet has ever run here) that is left to `watch`. Raises SriovError."""
        if self._dir.is_dir():
            for endpoint in self._endpoints:
                self._serve(endpoint)

    def reconfigure(self, pools: Sequence[Pool], prefix: str) -> None:
        """Takes other pools; those that stay are served on. Not while `update` runs. Raises InvalidInput."""
        check_pools(pools, prefix)
        new = [self._endpoint(prefix, pool) for pool in pools]
        with self._serving:
            known = {endpoint.service.resource: endpoint for endpoint in self._endpoints}
            self._pools = tuple(pools)
            self._endpoints = [known.pop(endpoint.service.resource, endpoint) for endpoint in new]
            for endpoint in known.values():
                endpoint.socket.close()

    def update(self, inventory: Inventory, unhealthy: Mapping[str, Mapping[PciAddress, str]] = _NONE) -> None:
        """Takes a new inventory, and the VFs of each pool that are Unhealthy, with the reason; the kubelet
        hears of it where a pool changed. One thread at a time."""
        vfs_of = assign(self._pools, inventory)
        for endpoint in self._endpoints:
            endpoint.service.update(vfs_of[endpoint.pool], unhealthy.get(endpoint.pool, {}))
        self._allocator.tidy((Resource(pool, self._prefix), vfs_of[pool.name]) for pool in self._pools)

    def watch(self, stop: threading.Event) -> None:
        """Serves and registers whatever is not, until `stop` is set or `stop()` was called."""
        while not self._stopped.is_set():
            self._reconcile(stop)
            if stop.wait(self._interval_s):
                return

    def stop(self) -> None:
        """Ends the streams and removes our sockets. The kubelet keeps what it allocated.

        Without it the interpreter does not end: it waits for the threads that hold the streams.
        """
        self._stopped.set()
        with self._serving:
            for endpoint in self._endpoints:
                endpoint.socket.close()

    def registered(self) -> tuple[PoolStatus, ...]:
        """How each pool stands, in the order of the pools."""
        return tuple(
            PoolStatus(
                resource=endpoint.service.resource,
                socket=str(endpoint.socket.path),
                devices=endpoint.service.device_count(),
                registered=endpoint.registered,
                reason=endpoint.reason,
            )
            for endpoint in self._endpoints
        )

    def _reconcile(self, stop: threading.Event) -> None:
        self._look_for_kubelet()
        if self._kubelet is None:
            return
        for endpoint in self._endpoints:
            if stop.is_set() or self._stopped.is_set():
                return
            try:
                self._reconcile_endpoint(endpoint, stop)
            except SriovError as error:
                self._back_off(endpoint, str(error), stop)

    def _look_for_kubelet(self) -> None:
        """A kubelet that went or came anew knows nothing of us."""
        found = read_socket_identity(self._kubelet_socket)
        if found is None and not self._waiting:
            self._log.info("waiting for the kubelet", socket=str(self._kubelet_socket))
        self._waiting = found is None
        if found != self._kubelet:
            self._kubelet = found
            for endpoint in self._endpoints:
                endpoint.reset(_NO_KUBELET if found is None else "the kubelet is new")

    def _reconcile_endpoint(self, endpoint: _Endpoint, stop: threading.Event) -> None:
        if time.monotonic() < endpoint.retry_at:
            return
        if not endpoint.socket.is_served():
            if endpoint.registered:
                self._log.warning("own socket vanished", socket=str(endpoint.socket.path))
                endpoint.reset("its socket vanished")
            self._serve(endpoint)
        if endpoint.registered:
            self._check_watched(endpoint)
        elif endpoint.service.is_ready():
            self._register(endpoint, stop)

    def _serve(self, endpoint: _Endpoint) -> None:
        with self._serving:
            if not self._stopped.is_set() and endpoint in self._endpoints:
                endpoint.socket.serve()

    def _register(self, endpoint: _Endpoint, stop: threading.Event) -> None:
        service = endpoint.service
        name = endpoint.socket.path.name
        register(self._kubelet_socket, service.resource, name, service.options(), stop)
        endpoint.registered, endpoint.reason = True, None
        endpoint.backoff_s = endpoint.retry_at = 0.0
        endpoint.watched_at = time.monotonic()
        self._log.info("registered", resource=service.resource, devices=service.device_count())

    def _check_watched(self, endpoint: _Endpoint) -> None:
        """The end of its stream means to the kubelet that the plugin is gone, and it does not come back."""
        now = time.monotonic()
        if endpoint.service.stream_count():
            endpoint.watched_at = now
        elif now - endpoint.watched_at > self._unwatched_s:
            self._log.warning("the kubelet stopped listening", resource=endpoint.service.resource)
            endpoint.reset("the kubelet stopped listening")

    def _back_off(self, endpoint: _Endpoint, reason: str, stop: threading.Event) -> None:
        if stop.is_set() or self._stopped.is_set():
            return
        endpoint.backoff_s = min(max(2 * endpoint.backoff_s, self._interval_s), _MAX_BACKOFF_S)
        endpoint.retry_at = time.monotonic() + endpoint.backoff_s
        if reason != endpoint.reason:
            self._log.warning("not registered", resource=endpoint.service.resource, reason=reason)
        endpoint.registered, endpoint.reason = False, reason
