"""Adapter: our CDI spec files, in the folder where the container runtime looks for them.

A device stays in its file until it is dropped: a container that has it may start again when it is in no pool.
"""

import errno
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from device_plugin.cdi import CdiDevice, CdiSpec, is_spec_file, parse_spec, render_spec
from vf_manager.atomic_file import sync_folder, write_atomically
from vf_manager.errors import KernelError

_MODE = 0o644


class CdiFiles:
    """`folder` may not be there yet. Others have specs in it too. Methods raise KernelError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, kind: str, devices: Iterable[CdiDevice], known: Set[str]) -> None:
        """These devices, and those that are there and are not `known`."""
        spec = self._read(name)
        former = [device for device in spec.devices if device.name not in known] if spec else []
        self._write(name, render_spec(kind, [*devices, *former]))

    def drop(self, name: str, devices: Set[str]) -> None:
        """Without these; without any left there is no file."""
        spec = self._read(name)
        kept = [device for device in spec.devices if device.name not in devices] if spec else []
        self._write(name, render_spec(spec.kind, kept) if spec else None)

    def devices(self) -> dict[str, set[str]]:
        """The names of the devices in each file of ours; none in one that is damaged."""
        if not self._folder.is_dir():
            return {}
        with _named(f"read {self._folder}"):
            names = [path.name for path in self._folder.iterdir() if is_spec_file(path.name)]
        specs = {name: self._read(name) for name in names}
        return {name: {d.name for d in spec.devices} if spec else set() for name, spec in specs.items()}

    def _read(self, name: str) -> CdiSpec | None:
        path = self._folder / name
        with _named(f"read {path}"):
            return parse_spec(path.read_bytes()) if path.is_file() else None

    def _write(self, name: str, spec: bytes | None) -> None:
        """Nothing, if it says so already."""
        path = self._folder / name
        with _named(f"write {path}"):
            if spec is None:
                self._remove(path)
            elif not path.is_file() or path.read_bytes() != spec:
                self._folder.mkdir(parents=True, exist_ok=True)
                write_atomically(path, spec, _MODE)

    def _remove(self, path: Path) -> None:
        if path.exists():
            path.unlink()
            sync_folder(self._folder)


@contextmanager
def _named(operation: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise KernelError(operation, e.errno or errno.EIO) from e
