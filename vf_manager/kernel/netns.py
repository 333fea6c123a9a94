"""Adapter: network namespaces by file descriptor.

A namespace is identified by (device, inode) of its nsfs file (man 7 namespaces), entered only by threads
that are thrown away, and its netlink sockets stay bound to it for as long as they are open.
"""

import _thread
import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from vf_manager.errors import InvalidInput, KernelError
from vf_manager.kernel.api import NetnsHandle, NetnsId

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
PROC_SYS = Path("/proc/sys")
_NS_GET_NSTYPE = 0xB703  # include/uapi/linux/nsfs.h
_libc = ctypes.CDLL(None, use_errno=True)


class Netns:
    """An open network namespace. Holds its own duplicate of the descriptor; `close()` it.

    Raises InvalidInput if the descriptor is not a network namespace.
    """

    def __init__(self, fd: int) -> None:
        try:
            kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != CLONE_NEWNET:
            raise InvalidInput("CNI_NETNS", _target(fd), "the path of a network namespace")
        self.fd = os.dup(fd)
        stat = os.fstat(self.fd)
        self.id = NetnsId(stat.st_dev, stat.st_ino)

    @classmethod
    def open(cls, path: Path) -> "Netns":
        """Raises OSError if the path cannot be opened, InvalidInput if it is not a network namespace."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return cls(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def run(self, function: Callable[[], T], *, afterwards: Callable[[T], object] | None = None) -> T:
        """Call `function` inside this namespace, on a thread of its own. Its exception comes out here.

        `afterwards` gets its result on the same thread, and nobody waits for it; it must not fail.
        """
        result: list[T] = []
        failure: list[BaseException] = []

        def inside() -> None:
            try:
                if _libc.setns(self.fd, CLONE_NEWNET):
                    raise KernelError("enter the network namespace", ctypes.get_errno())
                result.append(function())
            except BaseException as e:  # noqa: BLE001 - handed to the caller's thread whole
                failure.append(e)
            finally:
                done.release()
            if result and afterwards is not None:
                afterwards(result[0])

        done = _thread.allocate_lock()
        done.acquire()
        _thread.start_new_thread(
            inside, ()
        )  # not threading.Thread, which waits for the start besides the end
        done.acquire()
        if failure:
            raise failure[0]
        return result[0]


def own(handle: NetnsHandle) -> Netns:
    """The same handle, known to be one of this kernel and not of a test's."""
    if not isinstance(handle, Netns):
        raise TypeError(f"not a namespace of this kernel: {handle!r}")
    return handle


def write_sysctls(values: Sequence[tuple[str, str]], proc_sys: Path = PROC_SYS) -> None:
    """Write sysctls of the calling thread's namespace, e.g. `net/ipv4/conf/eth0/arp_notify`. Wherever
    `proc_sys` is mounted, it has those of the thread that looks (fs/proc/proc_sysctl.c, sysctl_follow_link).

    One that this kernel does not have (ENOENT) is left alone: features come and go with versions.
    """
    for name, value in values:
        _write_sysctl(proc_sys / name, name, value)


def _write_sysctl(path: Path, name: str, value: str) -> None:
    operation = f"write {value!r} to sysctl {name}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as e:
        raise KernelError(operation, e.errno or errno.EIO) from e
    try:
        os.write(fd, value.encode())
    except OSError as e:
        raise KernelError(operation, e.errno or errno.EIO) from e
    finally:
        os.close(fd)


def _target(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return f"descriptor {fd}"
