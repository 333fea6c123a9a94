"""Adapter: the character devices of the host in /dev, and in sysfs which of them an RDMA device has.

Sources: Documentation/driver-api/vfio.rst, drivers/infiniband/core/uverbs_main.c and user_mad.c (classes
infiniband_verbs and infiniband_mad below the parent of the RDMA device, attribute ibdev), ucma.c beside them
(misc device rdma_cm).
"""

import os
from pathlib import Path


class DeviceNodes:
    """Nodes are named as a container would: `/dev/vfio/42`, wherever the host's /dev is seen from here."""

    def __init__(self, dev: Path = Path("/dev"), sys: Path = Path("/sys")) -> None:
        self._dev = dev
        self._class = sys / "class"

    def exists(self, node: str) -> bool:
        return (self._dev / node.removeprefix("/dev/")).exists()

    def of_vfio(self) -> frozenset[str]:
        """Below /dev/vfio: IOMMU groups ("12") and, since Linux 6.2, single devices ("devices/vfio3")."""
        vfio = self._dev / "vfio"
        return frozenset(_list(vfio)) | {f"devices/{name}" for name in _list(vfio / "devices")}

    def of_rdma(self, device: str) -> list[tuple[str, str]]:
        """What the kernel has for an RDMA device, by kind: `("uverbs", "/dev/infiniband/uverbs3")`. Kinds are
        uverbs, umad, issm (one of each per port) and rdma_cm, which all devices share."""
        found = [("uverbs", name) for name in self._having("infiniband_verbs", "uverbs", device)]
        for kind in ("umad", "issm"):
            found += [(kind, name) for name in self._having("infiniband_mad", kind, device)]
        if (self._class / "misc/rdma_cm").exists():
            found.append(("rdma_cm", "rdma_cm"))
        return [(kind, f"/dev/infiniband/{name}") for kind, name in found]

    def _having(self, class_name: str, kind: str, device: str) -> list[str]:
        parent = self._class / "infiniband" / device / "device"  # may have several RDMA devices
        folders = sorted((parent / class_name).glob(f"{kind}[0-9]*"))
        return [folder.name for folder in folders if _read(folder / "ibdev") == device]


def _list(folder: Path) -> list[str]:
    """Nothing where it is absent."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _read(path: Path) -> str | None:
    """None where it is absent or its device is going."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
