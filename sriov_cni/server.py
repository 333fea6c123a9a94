"""Adapter: the agent's unix socket, where the shim hands in CNI calls.

A fixed number of worker threads wait in accept(2); a call that finds none free waits in the listen backlog,
and when that is full the shim tries again. Nothing but root (and our own user) is served.
"""

import contextlib
import errno
import json
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from sriov_cni import wire
from sriov_cni.messages import CniReply, CniRequest, Handler
from vf_manager.errors import InvalidInput, KernelError, Refused

BACKLOG = 128
WRITE_TIMEOUT_S = 5.0
_SOCKET_PATH_MAX = 103  # 107 (sun_path) less the suffix of the socket that is being made
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid

# CNI error codes (CNI specification 1.1.0, section "Error")
_BAD_ENV = 4
_IO_FAILURE = 5
_TRY_LATER = 11
_INTERNAL = 999


class CniServer:
    """Serves `handler` on the socket at `path`: `listen`, then `serve` in a thread, `stop` from another.

    `read_timeout_s`: how long a client may take to hand in its request. `grace_s`: how long `serve` waits for
    running calls after `stop`. `allowed_uids`: root and our own effective uid if not given.
    The handler must not close `netns_fd`, and must not use it after it has returned.
    """

    def __init__(
        self,
        path: Path,
        handler: Handler,
        *,
        workers: int = 16,
        log: FilteringBoundLogger,
        read_timeout_s: float = 5.0,
        grace_s: float = 10.0,
        allowed_uids: frozenset[int] | None = None,
    ) -> None:
        self._path = path
        self._handler = handler
        self._workers = workers
        self._log = log.bind(socket=str(path))
        self._read_timeout_s = read_timeout_s
        self._grace_s = grace_s
        self._allowed_uids = frozenset({0, os.geteuid()}) if allowed_uids is None else allowed_uids
        self._listener: socket.socket | None = None
        self._inode: tuple[int, int] | None = None
        self._ending = threading.Event()
        self._failure: Exception | None = None

    def listen(self) -> None:
        """Create the socket; calls queue from here on. Raises SriovError. `serve` does it if nobody did."""
        self._listener = open_listener(self._path)
        self._inode = _read_inode(self._path)

    def serve(self) -> None:
        """Answer calls until `stop`. Raises what ended a worker, if one ended by itself."""
        if self._listener is None:
            self.listen()
        listener = self._listener
        assert listener is not None
        with listener, _removed_at_the_end(self._path, self._inode):
            names = [f"cni-{number}" for number in range(self._workers)]
            threads = [
                threading.Thread(target=self._work, args=(listener,), name=n, daemon=True) for n in names
            ]
            for thread in threads:
                thread.start()
            self._ending.wait()
            _wake(listener)
            self._join(threads)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Take no more calls. Returns at once; `serve` returns when running calls are done or out of time."""
        self._ending.set()

    def close(self) -> None:
        """Remove the socket if `serve` never came to do it. Once more is no error."""
        if self._listener is not None:
            with self._listener, _removed_at_the_end(self._path, self._inode):
                self._ending.set()

    def _join(self, threads: list[threading.Thread]) -> None:
        deadline = time.monotonic() + self._grace_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        late = [thread.name for thread in threads if thread.is_alive()]
        if late:
            self._log.warning("cni calls still run after the grace time", workers=late, grace_s=self._grace_s)

    def _work(self, listener: socket.socket) -> None:
        try:
            while (connection := self._accept(listener)) is not None:
                with connection:
                    self._answer(connection)
        except Exception as e:  # noqa: BLE001 - the thread guard: `serve` raises it to the supervisor
            self._failure = e
            self._ending.set()

    def _accept(self, listener: socket.socket) -> socket.socket | None:
        """The next connection; None when the server is ending."""
        while not self._ending.is_set():
            try:
                connection, _ = listener.accept()
            except OSError as e:
                if self._ending.is_set():
                    return None
                if e.errno not in _OUT_OF_RESOURCES:
                    raise
                self._log.error("cannot accept a cni call", error=e.strerror)
                self._ending.wait(0.2)  # the connection stays queued: without a pause this would spin
            else:
                return connection
        return None

    def _answer(self, connection: socket.socket) -> None:
        uid = read_peer_uid(connection)
        if uid not in self._allowed_uids:
            self._log.warning("cni call refused", peer_uid=uid, allowed_uids=sorted(self._allowed_uids))
            return
        try:
            request = wire.read_request(connection, time.monotonic() + self._read_timeout_s)
        except wire.PeerLeft:
            return
        except wire.WireError as e:
            self._log.warning("cni request cannot be read", error=str(e))
            self._reply(connection, _render_error(_error_code(e), str(e)))
            return
        self._reply(connection, self._handle(request), command=request.env.get("CNI_COMMAND", ""))

    def _handle(self, request: CniRequest) -> CniReply:
        try:
            with _closed_at_the_end(request.netns_fd):
                reply = self._handler(request)
            wire.encode_reply(reply)  # one that cannot be sent fails here, where it can still be answered
        except Exception as e:  # noqa: BLE001 - the request boundary: logged, and answered
            context = {
                key: request.env.get(f"CNI_{key.upper()}") for key in ("command", "containerid", "ifname")
            }
            self._log.exception("unexpected error in a cni call", **context)
            return _render_error(
                _INTERNAL, f"internal error ({type(e).__name__}); see the log of the node agent"
            )
        return reply

    def _reply(self, connection: socket.socket, reply: CniReply, **context: str) -> None:
        try:
            wire.write_reply(connection, reply, time.monotonic() + WRITE_TIMEOUT_S)
        except wire.WireError as e:
            self._log.warning("cni reply not delivered", error=str(e), exit_code=reply.exit_code, **context)


def open_listener(path: Path) -> socket.socket:
    """A listening socket at `path`, mode 0600. A socket file that nobody listens on is replaced.

    Made under another name and renamed, so that `path` is never a socket without its mode or a listener.
    """
    if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
        raise InvalidInput("socket path", str(path), f"at most {_SOCKET_PATH_MAX} bytes")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_free(path)
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(str(fresh))
            fresh.chmod(0o600)  # nobody can connect before listen(2)
            listener.listen(BACKLOG)
            fresh.rename(path)
            undo.pop_all()
            return listener
    except OSError as e:
        raise KernelError(f"listen on {path}", e.errno or errno.EIO) from e


def _check_free(path: Path) -> None:
    """Raise Refused if `path` is anything but a socket that nobody listens on, or nothing at all."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Refused(f"listen on {path}: there is a file that is not a socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:  # its backlog is full: somebody listens
            pass
    raise Refused(f"listen on {path}: another agent serves it; only one can run on a node")


def read_peer_uid(connection: socket.socket) -> int:
    """The effective uid of the process at the other end, as it was when it connected."""
    _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


def _read_inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _wake(listener: socket.socket) -> None:
    """End every accept(2) on the listener: after a shutdown it returns EINVAL (Linux net/unix/af_unix.c)."""
    listener.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _removed_at_the_end(path: Path, ours: tuple[int, int] | None) -> Iterator[None]:
    """Remove the socket file, unless it has been replaced by somebody else's."""
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if _read_inode(path) == ours:
                path.unlink()


@contextlib.contextmanager
def _closed_at_the_end(fd: int | None) -> Iterator[None]:
    try:
        yield
    finally:
        if fd is not None:
            os.close(fd)


def _error_code(error: wire.WireError) -> int:
    match error:
        case wire.BadEnvironment():
            return _BAD_ENV
        case wire.WireTimeout():
            return _TRY_LATER
        case _:
            return _IO_FAILURE


def _render_error(code: int, message: str) -> CniReply:
    error = {"cniVersion": "1.1.0", "code": code, "msg": message, "details": ""}
    return CniReply(1, json.dumps(error).encode() + b"\n")
