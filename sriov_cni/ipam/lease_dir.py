"""Adapter: the directory of one network's leases, in the on-disk format of the reference host-local plugin.

`<data dir>/<network>/` holds one file per leased address, named by it, containing `containerID CRLF ifname`;
`last_reserved_ip.<index of the range set>`; and `lock`, held by flock(2) while anything is read or changed.

Added to that format, in ways that the reference plugin does not see:
- A file appears complete or not at all: it is written under another name and linked. A stale one of these
  is removed by the next who takes the lock.
- The extended attribute `user.sriov-underlay.boot` on a lease says in which boot it was made: the directory
  survives a reboot, the containers do not. The same attribute on the directory says that it was swept in
  this boot. Files without the attribute belong to the reference plugin and stay. A file system without user
  attributes gets none, and its leases live until they are released, as with the reference plugin.

Nothing is synced: after a power loss a lease may be empty, and empty leases are swept with those of the
boot before.
"""

import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from vf_manager.errors import Busy, KernelError

BOOT_MARK = "user.sriov-underlay.boot"
TEMPORARY = ".sriov-underlay.new"

_ADDRESS_NAME = re.compile(r"(?=.*[.:])[0-9a-fA-F.:]+")
_MOST_BYTES = 4096  # of a lease; container ids are far shorter


class OwnerCache:
    """Owners of lease files already read: (name, inode) -> content, per directory.

    Only a hint that saves reading every file at every call: a hit is read again before it counts. Shared
    by all engines of a process; one directory's part is used under that directory's lock.
    """

    def __init__(self) -> None:
        self._directories: dict[Path, dict[str, tuple[int, str]]] = {}

    def part(self, directory: Path) -> dict[str, tuple[int, str]]:
        return self._directories.setdefault(directory, {})


def read_boot_id(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    return path.read_text("ascii").strip()


class LeaseDir:
    def __init__(
        self, path: Path, *, boot_id: str, owners: OwnerCache | None = None, lock_timeout_s: float = 10.0
    ) -> None:
        self.path = path
        self._boot_id = boot_id
        self._owners = owners or OwnerCache()
        self._lock_timeout_s = lock_timeout_s

    def exists(self) -> bool:
        return self.path.is_dir()

    def names(self) -> list[str]:
        """The addresses that are leased, for whoever only counts them: without the lock, so as they were at
        some moment. Raises KernelError."""
        with _kernel_errors(f"read the lease directory {self.path}"), suppress(FileNotFoundError):
            return list(_list_leases(self.path))
        return []

    @contextmanager
    def locked(self) -> Iterator["Leases"]:
        """The leases, exclusively. Creates the directory. Raises Busy and KernelError."""
        with _kernel_errors(f"use the lease directory {self.path}"):
            self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd = os.open(self.path / "lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with closing(_Descriptor(fd)):
                _lock(fd, self.path, self._lock_timeout_s)
                (self.path / TEMPORARY).unlink(missing_ok=True)
                yield Leases(self.path, self._boot_id, self._owners.part(self.path))


def sweep_all(data_dir: Path, *, boot_id: str) -> None:
    """Remove our leases of earlier boots from every network's directory, in use or not. Raises Busy and
    KernelError."""
    for lock in sorted(data_dir.glob("*/lock")):
        with LeaseDir(lock.parent, boot_id=boot_id).locked() as leases:
            leases.sweep()


class Leases:
    """The content of a locked lease directory. Names are addresses as text; owners are file contents."""

    def __init__(self, path: Path, boot_id: str, known: dict[str, tuple[int, str]]) -> None:
        self._path = path
        self._boot_id = boot_id
        self._known = known
        self._inodes = _list_leases(path)

    def __contains__(self, name: str) -> bool:
        return name in self._inodes

    def owned_by(self, owner: str, *, use_cache: bool = True) -> list[str]:
        """The names of the leases that `owner` holds."""
        found = [name for name, content in self.owners(use_cache=use_cache).items() if content == owner]
        return [name for name in found if self._read(name) == owner]

    def owners(self, *, use_cache: bool) -> dict[str, str]:
        """Every lease with its owner."""
        if not use_cache:
            self._known.clear()
        fresh = {name: self._content(name, inode) for name, inode in self._inodes.items()}
        self._known.clear()
        self._known.update(fresh)
        return {name: content for name, (_, content) in fresh.items()}

    def publish(self, name: str, owner: str) -> bool:
        """Create a lease. False: somebody has it."""
        temporary = self._write_temporary(owner, mark=True)
        try:
            (self._path / name).hardlink_to(temporary)
        except FileExistsError:
            return False
        self._inodes[name] = 0
        self._known.pop(name, None)
        temporary.unlink()
        return True

    def remove(self, name: str, owner: str) -> None:
        """Remove the lease if `owner` holds it; nothing otherwise."""
        if self._read(name) == owner:
            self._unlink(name)

    def read_last(self, index: int) -> str:
        """The last address given out by range set `index`, as it was written; "" when none was."""
        return self._read(f"last_reserved_ip.{index}") or ""

    def write_last(self, index: int, name: str) -> None:
        self._write_temporary(name, mark=False).replace(self._path / f"last_reserved_ip.{index}")

    def sweep(self, *, force: bool = False) -> None:
        """Remove our leases of earlier boots and empty files; once per boot unless forced.

        An empty file under the lock is what a crash left between open and write: nobody holds it.
        """
        if not force and _mark_of(self._path) in (self._boot_id, _UNSUPPORTED):
            return
        for name in list(self._inodes):
            old = _mark_of(self._path / name) not in (self._boot_id, None, _UNSUPPORTED)
            if old or not self._read(name):
                self._unlink(name)
        _set_mark(self._path, self._boot_id)

    def _content(self, name: str, inode: int) -> tuple[int, str]:
        known = self._known.get(name)
        return known if known and known[0] == inode else (inode, self._read(name) or "")

    def _read(self, name: str) -> str | None:
        """Without the white space around it, as the reference plugin compares. None: no such file."""
        try:
            fd = os.open(self._path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with closing(_Descriptor(fd)):
            return os.read(fd, _MOST_BYTES).decode("utf-8", "replace").strip("\0 \r\n\t")

    def _write_temporary(self, text: str, *, mark: bool) -> Path:
        path = self._path / TEMPORARY
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with closing(_Descriptor(fd)):
            if os.write(fd, text.encode()) != len(text.encode()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if mark:
                _set_mark(fd, self._boot_id)
        return path

    def _unlink(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)
        self._inodes.pop(name, None)
        self._known.pop(name, None)


def _list_leases(path: Path) -> dict[str, int]:
    """Their names and inodes."""
    with os.scandir(path) as entries:
        return {
            entry.name: entry.inode()
            for entry in entries
            if _ADDRESS_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
        }


class _Descriptor:
    """A file descriptor for `closing`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        os.close(self._fd)


_UNSUPPORTED = "?"  # no boot id: they are UUIDs


def _mark_of(path: Path) -> str | None:
    """The boot id on a file; None: it has none; _UNSUPPORTED: the file system cannot have any."""
    try:
        return os.getxattr(path, BOOT_MARK).decode("ascii", "replace")
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOENT):
            return None
        if error.errno == errno.ENOTSUP:
            return _UNSUPPORTED
        raise


def _set_mark(target: Path | int, boot_id: str) -> None:
    try:
        os.setxattr(target, BOOT_MARK, boot_id.encode())
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise


def _lock(fd: int, directory: Path, timeout_s: float) -> None:
    """flock(2) with a deadline: asking again is the only way to wait that can end."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.0005
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() > deadline:
            raise Busy(f"the lock of the lease directory {directory} was not free for {timeout_s:g} s")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.01)


@contextmanager
def _kernel_errors(operation: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KernelError(operation, error.errno or errno.EIO, str(error.filename or "")) from error
