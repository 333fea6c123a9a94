"""Orchestrator: one pool on its way to the kubelet: its socket is served, it is registered, and it stays so.

Level-triggered: each `step` looks at the socket, the registration and the kubelet's stream as they are now,
does what is missing, and waits for nobody. What goes wrong is tried again, at longer and longer intervals.
"""

from abc import ABC, abstractmethod
from pathlib import Path

import grpc
import msgspec
from structlog.typing import FilteringBoundLogger

from device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from device_plugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from device_plugin.api import pluginregistration_v1_pb2_grpc as registration_rpc
from device_plugin.endpoint import ServedSocket
from device_plugin.registration import (
    API_VERSION,
    RegisterCall,
    RegistrationFailed,
    Verdict,
    WatchedPlugin,
    Way,
)
from device_plugin.service import WORKERS, PoolService
from vf_manager.errors import SriovError

_LOST = "the kubelet stopped listening"


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds.

    `interval_s`: between two looks. A look is a stat(2) for each socket, so ten a second cost nothing that
    an inotify descriptor would save; and they see what no event of a folder tells: a stream that ended.
    `unwatched_s`: how long the kubelet may be without a ListAndWatch stream after a registration.
    `register_s`: how long it may take for an answer to Register, which it gives once it has called back.
    `unanswered_s`: how long its watcher may take for a socket; it has 10 s for the connection alone.
    `regain_s`: how long a watcher whose stream has ended may take to ask again by itself, as one that was
    restarted does, before it is shown a new file.
    `fallback_s`: how long a kubelet that is there may leave all sockets unasked until it is called instead.
    `farewell_s`: how long a removed pool is still there, with no devices.
    """

    interval_s: float = 0.1
    unwatched_s: float = 2.0
    register_s: float = 10.0
    unanswered_s: float = 15.0
    regain_s: float = 0.3
    fallback_s: float = 5.0
    farewell_s: float = 0.5
    max_backoff_s: float = 5.0


class Announcement(ABC):
    """Not thread-safe: its owner holds a lock. `reason`: why the pool is not registered, None if it is."""

    def __init__(self, service: PoolService, path: Path, timing: Timing, log: FilteringBoundLogger) -> None:
        """Raises InvalidInput: the path is too long."""
        self.socket = ServedSocket(path, self._add_services, WORKERS)
        self.registered = False
        self.reason: str | None = "not registered yet"
        self._service = service
        self._timing = timing
        self._log = log.bind(resource=service.resource)
        self._backoff_s = 0.0
        self._retry_at = 0.0
        self.served_at = 0.0
        self._registered_at = 0.0
        self._watched = False

    def serve(self, now: float) -> None:
        """Raises SriovError."""
        self.socket.serve()
        self.served_at = now

    def step(self, now: float, kubelet_there: bool) -> None:
        """Does what is due. `now`: time.monotonic."""
        if now < self._retry_at:
            return
        try:
            self._step(now)
        except SriovError as error:
            self._back_off(str(error), now)

    def start_over(self, reason: str) -> None:
        """The kubelet is another one: it knows nothing of us, and what the old one refused is forgotten."""
        self._backoff_s = self._retry_at = 0.0

    def close(self) -> None:
        """Ends the streams and removes the socket: the kubelet takes that for the plugin's end."""
        self.registered = False
        self.socket.close()

    def was_asked(self) -> bool:
        """Whether the kubelet has found the socket by itself."""
        return False

    @abstractmethod
    def _is_taken(self, now: float) -> bool:
        """Asks for the registration where that is due. Whether the kubelet has taken it; raises
        RegistrationFailed if it has not and will not."""

    @abstractmethod
    def _withdraw(self) -> None:
        """Forget a registration that failed or was lost, so that it begins anew."""

    def _step(self, now: float) -> None:
        if not self.socket.is_served():
            if self.socket.is_open():
                self._log.warning("own socket vanished", socket=str(self.socket.path))
                self._forget("its socket vanished")
            self.serve(now)
        if self.registered:
            self._check_watched(now)
        elif self._is_taken(now):
            self.registered, self.reason = True, None
            self._registered_at, self._watched = now, False
            self._log.info("registered", devices=self._service.device_count())

    def _check_watched(self, now: float) -> None:
        """The end of its stream means to the kubelet that the plugin is gone."""
        age = now - self._registered_at
        if self._service.stream_count():
            self._watched = True
            if age > self._timing.unwatched_s:  # it holds: the next failure is a new one
                self._backoff_s = 0.0
        elif self._watched or age > self._timing.unwatched_s:
            self._lose(now)

    def _lose(self, now: float) -> None:
        """Raises RegistrationFailed: the kubelet does not come back by itself."""
        raise RegistrationFailed(_LOST)

    def _back_off(self, reason: str, now: float) -> None:
        least, most = self._timing.interval_s, self._timing.max_backoff_s
        self._backoff_s = min(max(2 * self._backoff_s, least), most)
        self._retry_at = now + self._backoff_s
        if reason != self.reason:
            self._log.warning("not registered", reason=reason)
        self._forget(reason)

    def _forget(self, reason: str) -> None:
        self.registered, self.reason = False, reason
        self._withdraw()

    def _add_services(self, server: grpc.Server) -> None:
        rpc.add_DevicePluginServicer_to_server(self._service, server)


class LegacyAnnouncement(Announcement):
    """Served in the folder of the kubelet's socket, which is called."""

    def __init__(self, service: PoolService, path: Path, timing: Timing, log: FilteringBoundLogger) -> None:
        super().__init__(service, path, timing, log)
        self._call: RegisterCall | None = None

    def step(self, now: float, kubelet_there: bool) -> None:
        """A kubelet that starts removes the sockets in this folder before it makes its own: without it there
        is nothing to do."""
        if kubelet_there:
            super().step(now, kubelet_there)

    def start_over(self, reason: str) -> None:
        super().start_over(reason)
        self._forget(reason)

    def close(self) -> None:
        self._withdraw()
        super().close()

    def _is_taken(self, now: float) -> bool:
        if self._call is None:
            self._call = self._register()
        if not self._call.is_done():
            return False
        call, self._call = self._call, None
        call.result()
        return True

    def _register(self) -> RegisterCall:
        request = pb.RegisterRequest(
            version=API_VERSION,
            endpoint=self.socket.path.name,
            resource_name=self._service.resource,
            options=self._service.options(),
        )
        kubelet = self.socket.path.with_name("kubelet.sock")
        return RegisterCall(kubelet, request, self._timing.register_s)

    def _withdraw(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None


class WatcherAnnouncement(Announcement):
    """Served in the folder that the kubelet watches. It finds the socket by itself, at its start too; but one
    that it has refused or lost it looks at again only if the file is a new one."""

    def __init__(self, service: PoolService, path: Path, timing: Timing, log: FilteringBoundLogger) -> None:
        super().__init__(service, path, timing, log)
        self._renew(0.0)

    def serve(self, now: float) -> None:
        self._renew(now)
        super().serve(now)

    def was_asked(self) -> bool:
        return self._plugin.asked

    def _renew(self, now: float) -> None:
        """A new socket: what was said on the one before is past."""
        self._plugin = WatchedPlugin(self._service.resource)
        self._seen: Verdict | None = None
        self._since, self._patience_s = now, self._timing.unanswered_s
        self._unasked = f"the kubelet did not ask for {self._patience_s:g} s"

    def _is_taken(self, now: float) -> bool:
        verdict = self._plugin.verdict
        if verdict is None or verdict is self._seen:
            self._check_patience(now)
            return False
        self._seen = verdict
        if not verdict.registered:
            raise RegistrationFailed(f"the kubelet refused it: {verdict.error}")
        return True

    def _check_patience(self, now: float) -> None:
        waited_s, most_s = now - self._since, self._timing.unanswered_s
        if self._plugin.asked and waited_s > most_s:
            raise RegistrationFailed(f"the kubelet asked and then was silent for {most_s:g} s")
        if not self._plugin.asked and waited_s > self._patience_s:
            raise RegistrationFailed(self._unasked)

    def _lose(self, now: float) -> None:
        """A kubelet that was restarted comes by itself. Its verdict may be there already."""
        self.registered, self.reason = False, _LOST
        self._log.warning("not registered", reason=_LOST)
        self._plugin.asked = False
        self._since, self._patience_s, self._unasked = now, self._timing.regain_s, _LOST

    def _withdraw(self) -> None:
        self.socket.close()

    def _add_services(self, server: grpc.Server) -> None:
        super()._add_services(server)
        registration_rpc.add_RegistrationServicer_to_server(self._plugin, server)


def announce(
    way: Way, service: PoolService, kubelet_dir: Path, timing: Timing, log: FilteringBoundLogger
) -> Announcement:
    """Not served yet. Raises InvalidInput: the path of the socket is too long."""
    path = socket_path(way, kubelet_dir, service.resource)
    match way:
        case Way.LEGACY:
            return LegacyAnnouncement(service, path, timing, log)
        case Way.WATCHER:
            return WatcherAnnouncement(service, path, timing, log)


def socket_path(way: Way, kubelet_dir: Path, resource: str) -> Path:
    return kubelet_dir / way.folder / f"{resource.replace('/', '_')}.sock"
