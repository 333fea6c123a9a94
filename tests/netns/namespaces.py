"""Adapter: throw-away network namespaces and links for tests, on the running kernel."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from tests.kernel_contract import Space
from vf_manager.kernel.linux import LinuxKernel
from vf_manager.model import IfName

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class LinuxWorld:
    """The running kernel as a `World`; a context manager, at whose end the namespaces it made are gone.

    Each is held by a process that ends when our end of its pipe closes: they are gone, too, if we are killed.
    """

    def __init__(self, spare: str = "") -> None:
        self.kernel = LinuxKernel()
        self.spare = IfName(spare)
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._fds: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in tuple(self._fds):
            self._close(fd)
        for path in tuple(self._holders):
            self._end(path)

    def new_space(self) -> Space:
        command = ["unshare", "--net", "sh", "-c", "echo ready && exec cat"]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        path = f"/proc/{holder.pid}/ns/net"
        self._holders[path] = holder
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n", "unshare failed: see its message on stderr"
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._fds.add(fd)
        return Space(fd, path)

    def delete_space(self, space: Space, *, close: bool = True) -> None:
        self._end(space.path)
        if close:
            self._close(space.fd)

    def _end(self, path: str) -> None:
        with self._holders.pop(path) as holder:
            holder.kill()

    def _close(self, fd: int) -> None:
        os.close(fd)
        self._fds.remove(fd)


@contextmanager
def private_host() -> Iterator[None]:
    """The calling thread in a fresh namespace, which stands for the host's: nothing that a test does can
    reach an interface of the machine."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(_CLONE_NEWNET), "unshare")
        yield
    finally:
        _check(_libc.setns(home, _CLONE_NEWNET), "setns")
        os.close(home)


@contextmanager
def entered(space: Space) -> Iterator[None]:
    """The calling thread in that namespace. Sockets that it opens there stay there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(space.fd, _CLONE_NEWNET), "setns")
        yield
    finally:
        _check(_libc.setns(home, _CLONE_NEWNET), "setns")
        os.close(home)


def ip(*words: str, space: Space | None = None) -> None:
    """`ip ...` in the namespace of the calling thread, or in a given one."""
    enter = ["nsenter", f"--net={space.path}"] if space else []
    subprocess.run([*enter, "ip", *words], check=True)


def add_veth(name: str, peer: str, *, peer_space: Space | None = None) -> None:
    """A pair of links in the namespace of the calling thread; `peer` may be put into another one."""
    elsewhere = ["netns", peer_space.path] if peer_space else []
    ip("link", "add", name, "type", "veth", "peer", "name", peer, *elsewhere)


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
