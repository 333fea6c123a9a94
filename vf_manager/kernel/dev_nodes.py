"""Adapter: which device nodes userspace drivers have made (Documentation/driver-api/vfio.rst)."""

import os
from pathlib import Path


def read_vfio_nodes(dev: Path = Path("/dev")) -> frozenset[str]:
    """Below /dev/vfio: IOMMU groups ("12") and, since Linux 6.2, single devices ("devices/vfio3")."""
    return frozenset(_list(dev / "vfio")) | {f"devices/{name}" for name in _list(dev / "vfio/devices")}


def _list(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
