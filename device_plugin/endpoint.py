"""Adapter: unix sockets that speak gRPC."""

import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import grpc

from vf_manager.errors import InvalidInput, SriovError

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
    """gRPC services on one socket, which can be served again after the file was taken away. For one thread.

    `add_services` adds them to a server; it is called at each `serve`.
    """

    def __init__(self, path: Path, add_services: Callable[[grpc.Server], None], workers: int) -> None:
        check_socket_path(path.absolute())
        self.path = path
        self._add_services = add_services
        self._workers = workers
        self._running: tuple[grpc.Server, ThreadPoolExecutor] | None = None
        self._identity: FileIdentity | None = None

    def is_open(self) -> bool:
        """Between `serve` and `close`."""
        return self._running is not None

    def is_served(self) -> bool:
        """Whether clients that open the path reach us."""
        return self._identity is not None and read_socket_identity(self.path) == self._identity

    def serve(self) -> None:
        """Serves on a new socket; a stale one at the path is replaced. Raises SriovError."""
        # gRPC removes whatever socket is at the path when a server ends, so the old one ends first.
        self.close()
        executor = ThreadPoolExecutor(self._workers, thread_name_prefix=self.path.name)
        server = grpc.server(executor, options=_SERVER_OPTIONS)
        self._add_services(server)
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
        """Ends the streams and removes the socket. A handler that is at work ends by itself, unheard."""
        if self._running is None:
            return
        server, executor = self._running
        self._running = self._identity = None
        server.stop(grace=None).wait()
        executor.shutdown(wait=False)
