"""Adapter: PCI functions and their SR-IOV controls in sysfs.

Sources: Documentation/ABI/testing/sysfs-bus-pci (sriov_totalvfs, sriov_numvfs, sriov_drivers_autoprobe,
driver_override, acpi_index, reset), sysfs-devices-vfio-dev, stable/sysfs-class-infiniband (ports/N/pkeys),
drivers/pci/iov.c (virtfnN and physfn links), include/linux/pci_ids.h (class codes), drivers/uio/uio.c,
net/core/dev.c netdev_adjacent_sysfs_add (upper_NAME links).
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vf_manager.errors import KernelError
from vf_manager.kernel.api import PciFunction
from vf_manager.kernel.meter import Meter
from vf_manager.model import IfName, PciAddress

_NETWORK_CLASS = "0x02"  # PCI_BASE_CLASS_NETWORK
_LINK_TYPE_OF_CLASS = {"0x0200": "ether", "0x0207": "infiniband"}  # PCI_CLASS_NETWORK_ETHERNET, _INFINIBAND
_PCIE_ROOT = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
_ATTRIBUTE_MAX = 4096  # Documentation/filesystems/sysfs.rst: a page


class Sysfs:
    """PCI functions under one sysfs mount. Reads never raise for a function that is going away: they
    answer None; writes raise KernelError with the errno of the write."""

    def __init__(self, root: Path = Path("/sys"), meter: Meter | None = None) -> None:
        self._meter = meter or Meter()
        self._devices = root / "bus/pci/devices"
        self._probe = root / "bus/pci/drivers_probe"
        self._net = root / "class/net"

    def read_functions(self) -> list[PciFunction]:
        """Every function of the network class, in address order."""
        read = (self._read_network(pci) for pci in self._list(f"{self._devices}"))
        return [function for function in read if function is not None]

    def read_function(self, pci: str) -> PciFunction | None:
        """One function of any class, or None if there is no such device."""
        return self._read_as(pci, self._text(pci, "class") or "")

    def is_vf(self, pci: str) -> bool:
        self._meter.sysfs_reads += 1
        return os.path.lexists(self._devices / pci / "physfn")

    def uppers(self, name: IfName) -> tuple[str, ...]:
        """The interfaces that stand on this one; none for an interface that is not there."""
        entries = self._list(f"{self._net}/{name}")
        return tuple(e.removeprefix("upper_") for e in entries if e.startswith("upper_"))

    def set_num_vfs(self, pf: PciAddress, count: int) -> None:
        """Write sriov_numvfs. EBUSY when VFs exist and count is not 0 (drivers/pci/pci-sysfs.c)."""
        self._write(pf, "sriov_numvfs", str(count))

    def set_autoprobe(self, pf: PciAddress, enabled: bool) -> None:
        self._write(pf, "sriov_drivers_autoprobe", "1" if enabled else "0")

    def bind_driver(self, pci: PciAddress, driver: str | None) -> None:
        """Bind one function to `driver` alone (driver_override), or to its default driver with None.

        A function without a matching driver stays unbound: ENODEV.
        """
        wanted = driver or ""
        current = self._link(pci, "driver")
        if driver is not None and current == driver:
            return
        self._write(pci, "driver_override", wanted or "\n")
        if current is not None:
            self._write_path(self._devices / pci / "driver/unbind", pci, f"unbind {pci} from {current}")
        self._write_path(self._probe, pci, f"probe a driver for {pci}")
        bound = self._link(pci, "driver")
        if bound is None or (driver is not None and bound != driver):
            raise KernelError(
                f"bind {pci} to {driver or 'its default driver'}",
                errno.ENODEV,
                f"is the module loaded? the function is now bound to {bound or 'no driver'}",
            )

    def _read_network(self, pci: str) -> PciFunction | None:
        pci_class = self._text(pci, "class") or ""
        return self._read_as(pci, pci_class) if pci_class.startswith(_NETWORK_CLASS) else None

    def reset_function(self, pci: PciAddress) -> None:
        """Write reset, by the first method that the device has (reset_method): of a VF that is FLR. Without a
        method there is no such file (drivers/pci/pci-sysfs.c pci_dev_reset_attr_is_visible)."""
        self._write(pci, "reset", "1")

    def _read_as(self, pci: str, pci_class: str) -> PciFunction | None:
        """One listing tells which files there are: most functions lack most of them."""
        has = frozenset(self._list(f"{self._devices}/{pci}"))
        vendor = self._text(pci, "vendor")
        if vendor is None:
            return None
        is_vf, can_have_vfs = "physfn" in has, "sriov_totalvfs" in has
        physfn = self._link(pci, "physfn") if is_vf else None
        numa = self._number(pci, "numa_node")
        total = self._number(pci, "sriov_totalvfs") or 0 if can_have_vfs and not is_vf else 0
        # Waits for a change of the number that is going on (drivers/pci/iov.c sriov_numvfs_show takes the
        # device's lock), so that the list of VFs behind it is not one that is half made.
        count = self._number(pci, "sriov_numvfs") or 0 if total else 0
        group = self._link(pci, "iommu_group") if "iommu_group" in has else None
        rdma = self._entries(pci, "infiniband", has)
        return PciFunction(
            pci=PciAddress(pci),
            vendor=vendor.removeprefix("0x"),
            device=(self._text(pci, "device") or "").removeprefix("0x"),
            driver=self._link(pci, "driver") if "driver" in has else None,
            numa_node=numa if numa is not None and numa >= 0 else None,
            iommu_group=int(group) if group and group.isdigit() else None,
            netdev_names=self._entries(pci, "net", has),
            physfn=PciAddress(physfn) if physfn else None,
            total_vfs=total,
            num_vfs=count,
            autoprobe=not total or self._number(pci, "sriov_drivers_autoprobe") != 0,
            virtfns=self._virtfns(pci) if total else (),
            # A function whose driver wants no VFs has the capability all the same: 0 of them.
            lone=pci_class.startswith(_NETWORK_CLASS) and not is_vf and not can_have_vfs,
            link_type=_LINK_TYPE_OF_CLASS.get(pci_class[:6]),
            acpi_index=self._number(pci, "acpi_index") if "acpi_index" in has else None,
            pcie_root=self._pcie_root(pci),
            rdma_devices=rdma,
            pkey=self._pkey(pci, rdma),
            vfio_device=next(iter(self._entries(pci, "vfio-dev", has)), None),
            uio_device=next(iter(self._entries(pci, "uio", has)), None),
        )

    def _virtfns(self, pci: str) -> tuple[tuple[int, PciAddress], ...]:
        names = [name[6:] for name in self._list(f"{self._devices}/{pci}") if name.startswith("virtfn")]
        indexes = sorted(int(name) for name in names if name.isdigit())
        links = ((index, self._link(pci, f"virtfn{index}")) for index in indexes)
        return tuple((index, PciAddress(target)) for index, target in links if target)

    def _pcie_root(self, pci: str) -> str | None:
        """The first host bridge on the way to the device: what `resource.kubernetes.io/pcieRoot` is."""
        parts = self._target(f"{self._devices}/{pci}").split("/")
        return next((part for part in parts if _PCIE_ROOT.fullmatch(part)), None)

    def _pkey(self, pci: str, rdma: tuple[str, ...]) -> str | None:
        """Entry 0 of the partition key table: IPoIB's default (ipoib_main.c ipoib_add_port). It is there
        while the interface is in a pod, too. RoCE has no partitions, but such a table all the same."""
        if not rdma:
            return None
        port = f"infiniband/{rdma[0]}/ports/1"
        is_infiniband = self._text(pci, f"{port}/link_layer") == "InfiniBand"
        return self._text(pci, f"{port}/pkeys/0") if is_infiniband else None

    def _entries(self, pci: str, folder: str, has: frozenset[str]) -> tuple[str, ...]:
        return tuple(self._list(f"{self._devices}/{pci}/{folder}")) if folder in has else ()

    def _text(self, pci: str, name: str) -> str | None:
        self._meter.sysfs_reads += 1
        return _read(f"{self._devices}/{pci}/{name}")

    def _number(self, pci: str, name: str) -> int | None:
        text = self._text(pci, name)
        try:
            return int(text) if text else None
        except ValueError:
            return None

    def _link(self, pci: str, name: str) -> str | None:
        return self._target(f"{self._devices}/{pci}/{name}").rpartition("/")[2] or None

    def _target(self, path: str) -> str:
        """Of a symbolic link; empty where there is none."""
        self._meter.sysfs_reads += 1
        try:
            return os.readlink(path)
        except OSError:
            return ""

    def _list(self, folder: str) -> list[str]:
        """The names in a folder, in order; none where it is absent."""
        self._meter.sysfs_reads += 1
        try:
            return sorted(os.listdir(folder))
        except OSError:
            return []

    def _write(self, pci: str, name: str, value: str) -> None:
        self._write_path(self._devices / pci / name, value, f"write {value.strip()!r} to {name} of {pci}")

    def _write_path(self, path: Path, value: str, operation: str) -> None:
        with _sysfs_errors(operation):
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)


def _read(path: str) -> str | None:
    """A sysfs attribute without its newline; None where it is absent, unreadable or its device is going.

    Plain system calls: a dozen of these are read at each look at a VF, and each ADD and DEL takes several.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, _ATTRIBUTE_MAX).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None
    finally:
        os.close(fd)


@contextmanager
def _sysfs_errors(operation: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise KernelError(operation, e.errno or errno.EIO) from e
