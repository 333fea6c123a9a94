"""Adapter: device information files of the kubelet's devices, by which Multus learns of a device more than
its id. They are there from an allocation on, restarts of ours included, for as long as the device is.
"""

import errno
import re
from collections.abc import Iterator, Set
from pathlib import Path

from vf_manager.atomic_file import sync_folder, write_atomically
from vf_manager.device_info import PciInfo, render_device_info
from vf_manager.errors import KernelError
from vf_manager.model import PciAddress

_MODE = 0o444
_PCI = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"


class DeviceInfoFiles:
    """`folder` may not be there yet. Other device plugins have their files in it too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, resource: str, pci: PciInfo) -> None:
        """Raises KernelError."""
        path = self._folder / f"{_stem(resource)}{pci.pci_address}-device.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, render_device_info(pci), _MODE)
        except OSError as e:
            raise KernelError(f"write {path}", e.errno or errno.EIO) from e

    def devices(self, resource: str) -> set[PciAddress]:
        """Those of this resource that have a file."""
        return set(self._paths(resource))

    def remove(self, resource: str, devices: Set[PciAddress]) -> None:
        """Raises KernelError."""
        paths = [path for pci, path in self._paths(resource).items() if pci in devices]
        try:
            for path in paths:
                path.unlink(missing_ok=True)
            if paths:
                sync_folder(self._folder)
        except OSError as e:
            raise KernelError(f"remove device information of {resource}", e.errno or errno.EIO) from e

    def _paths(self, resource: str) -> dict[PciAddress, Path]:
        """By device. Whole names are compared: `fast` is not `fast-2`, which may be another's."""
        pattern = re.compile(re.escape(_stem(resource)) + rf"({_PCI})-device\.json")
        return {
            PciAddress(found[1]): path for path in self._list() if (found := pattern.fullmatch(path.name))
        }

    def _list(self) -> Iterator[Path]:
        return self._folder.iterdir() if self._folder.is_dir() else iter(())


def _stem(resource: str) -> str:
    return resource.replace("/", "-") + "-"
