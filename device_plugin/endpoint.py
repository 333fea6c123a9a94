"""Adapter: unix sockets that speak gRPC: one that we serve, and the call to the kubelet's own."""

import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import grpc

from device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from device_plugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from vf_manager.errors import InvalidInput, SriovError

API_VERSION = "v1beta1"

_MAX_PATH_BYTES = 107  # sun_path holds 108 with the final NUL, unix(7)
_SERVER_OPTIONS = (("grpc.so_reuseport", 0),)
CHANNEL_OPTIONS = (
    # Go servers refuse the escaped socket path that would be the authority otherwise.
    ("grpc.default_authority", "localhost"),
    # No connection state shared between attempts: a kubelet that has just come up is dialled at once.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class FileIdentity(NamedTuple):
    """Tells a file from another one that took its path. A bare inode number is soon used again."""

    device: int
    inode: int
    mtime_ns: int


class RegistrationFailed(SriovError):
    """The kubelet did not take a registration. It may take the next one."""

    transient = True


def read_socket_identity(path: Path) -> FileIdentity | None:
    """None if there is no socket at this path."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISSOCK(found.st_mode):
        return None
    return FileIdentity(found.st_dev, found.st_ino, found.st_mtime_ns)


def check_socket_path(path: Path) -> None:
    """Raises InvalidInput if the path does not fit into a socket address."""
    length = len(bytes(path))
    if length > _MAX_PATH_BYTES:
        raise InvalidInput(
            "socket path",
            str(path),
            f"at most {_MAX_PATH_BYTES} bytes, this one has {length}: take a shorter pool name or prefix",
        )


def unix_target(path: Path) -> str:
    """The address as gRPC wants it: a URI, so '%' and the like are escaped."""
    return "unix:" + quote(str(path.absolute()))


class ServedSocket:
    """One service on one socket, which can be served again after the file was taken away."""

    def __init__(self, path: Path, service: rpc.DevicePluginServicer, workers: int) -> None:
        check_socket_path(path.absolute())
        self.path = path
        self._service = service
        self._workers = workers
        self._running: tuple[grpc.Server, ThreadPoolExecutor] | None = None
        self._identity: FileIdentity | None = None

    def is_served(self) -> bool:
        """Whether clients that open the path reach us."""
        return self._identity is not None and read_socket_identity(self.path) == self._identity

    def serve(self) -> None:
        """Serves on a new socket; a stale one at the path is replaced. Raises SriovError."""
        # gRPC removes whatever socket is at the path when a server ends, so the old one ends first.
        self.close()
        executor = ThreadPoolExecutor(self._workers, thread_name_prefix=self.path.name)
        server = grpc.server(executor, options=_SERVER_OPTIONS)
        rpc.add_DevicePluginServicer_to_server(self._service, server)
        try:
            server.add_insecure_port(unix_target(self.path))
        except RuntimeError as error:
            executor.shutdown()
            raise SriovError(
                f"serve {self.path}: the socket cannot be bound; is the folder there and writable, and is"
                f" there nothing but a socket in its place?"
            ) from error
        server.start()
        self._running = server, executor
        try:
            self.path.chmod(0o600)
        except OSError as error:  # a kubelet that starts has just removed it
            self.close()
            raise SriovError(f"serve {self.path}: {error.strerror}") from error
        self._identity = read_socket_identity(self.path)

    def close(self) -> None:
        """Ends the streams, waits for the handlers, removes the socket."""
        if self._running is None:
            return
        server, executor = self._running
        self._running = self._identity = None
        server.stop(grace=None).wait()
        executor.shutdown()


def register(
    kubelet_socket: Path,
    resource: str,
    endpoint: str,
    options: pb.DevicePluginOptions,
    stop: threading.Event,
    timeout_s: float = 10.0,
) -> None:
    """Announces a resource that is served already: the kubelet calls back before it answers.

    Raises RegistrationFailed, also when `stop` was set meanwhile.
    """
    request = pb.RegisterRequest(
        version=API_VERSION, endpoint=endpoint, resource_name=resource, options=options
    )
    with grpc.insecure_channel(unix_target(kubelet_socket), options=CHANNEL_OPTIONS) as channel:
        call = rpc.RegistrationStub(channel).Register.future(request, timeout=timeout_s)
        done = threading.Event()
        call.add_done_callback(lambda _: done.set())
        while not done.wait(0.1):
            if stop.is_set():
                call.cancel()
        if call.code() is not grpc.StatusCode.OK:
            raise RegistrationFailed(f"register {resource}: {call.code().name}: {call.details()}")
