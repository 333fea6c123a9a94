"""Adapter: our CDI spec files, in the folder where the container runtime looks for them."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from device_plugin.cdi import devices_in, is_spec_file
from vf_manager.atomic_file import sync_folder, write_atomically
from vf_manager.errors import KernelError

_MODE = 0o644


class CdiFiles:
    """`folder` may not be there yet. Others have specs in it too. Methods raise KernelError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, name: str, spec: bytes | None) -> None:
        """Nothing is written if it says so already. None: there is to be no such file."""
        path = self._folder / name
        if spec is None:
            return self.remove(name)
        with _named(f"write {path}"):
            if path.is_file() and path.read_bytes() == spec:
                return None
            self._folder.mkdir(parents=True, exist_ok=True)
            return write_atomically(path, spec, _MODE)

    def remove(self, name: str) -> None:
        """One that is not there is no error."""
        path = self._folder / name
        with _named(f"remove {path}"):
            if path.exists():
                path.unlink()
                sync_folder(self._folder)

    def devices(self) -> dict[str, set[str]]:
        """The devices in each file of ours; none in one that cannot be read."""
        if not self._folder.is_dir():
            return {}
        with _named(f"read {self._folder}"):
            paths = [path for path in self._folder.iterdir() if is_spec_file(path.name)]
            return {path.name: _devices_in(path) for path in paths}


def _devices_in(path: Path) -> set[str]:
    try:
        return devices_in(path.read_bytes())
    except msgspec.DecodeError:
        return set()


@contextmanager
def _named(operation: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise KernelError(operation, e.errno or errno.EIO) from e
