"""Adapter: PCI functions and their SR-IOV controls in sysfs.

Sources: Documentation/ABI/testing/sysfs-bus-pci (sriov_totalvfs, sriov_numvfs, sriov_drivers_autoprobe,
driver_override, reset), drivers/pci/iov.c (virtfnN and physfn links), include/linux/pci_ids.h (class codes),
net/core/dev.c netdev_adjacent_sysfs_add (upper_NAME links).
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vf_manager.errors import KernelError
from vf_manager.kernel.api import PciFunction
from vf_manager.model import IfName, PciAddress

_NETWORK_CLASS = "0x02"  # PCI_BASE_CLASS_NETWORK
_ATTRIBUTE_MAX = 4096  # Documentation/filesystems/sysfs.rst: a page


class Sysfs:
    """PCI functions under one sysfs mount. Reads never raise for a function that is going away: they
    answer None; writes raise KernelError with the errno of the write."""

    def __init__(self, root: Path = Path("/sys")) -> None:
        self._devices = root / "bus/pci/devices"
        self._probe = root / "bus/pci/drivers_probe"
        self._net = root / "class/net"

    def pf_addresses(self) -> list[PciAddress]:
        """Every function that has the SR-IOV capability, in address order."""
        return [pci for pci in self._addresses() if self._number(pci, "sriov_totalvfs")]

    def lone_addresses(self) -> list[PciAddress]:
        """Every network function that is neither a VF of a PF here nor able to have VFs, in address order."""
        return [pci for pci in self._addresses() if self._is_lone(pci)]

    def read(self, pci: str) -> PciFunction | None:
        """One function, or None if there is no such device."""
        vendor = self._text(pci, "vendor")
        if vendor is None:
            return None
        numa = self._number(pci, "numa_node")
        group = self._link(pci, "iommu_group")
        physfn = self._link(pci, "physfn")
        total = 0 if physfn else self._number(pci, "sriov_totalvfs") or 0  # a VF has no VFs
        count = self._number(pci, "sriov_numvfs") or 0 if total else 0
        return PciFunction(
            pci=PciAddress(pci),
            vendor=vendor.removeprefix("0x"),
            device=(self._text(pci, "device") or "").removeprefix("0x"),
            driver=self._link(pci, "driver"),
            numa_node=numa if numa is not None and numa >= 0 else None,
            iommu_group=int(group) if group and group.isdigit() else None,
            netdev_names=tuple(_list(f"{self._devices}/{pci}/net")),
            physfn=PciAddress(physfn) if physfn else None,
            total_vfs=total,
            num_vfs=count,
            autoprobe=not total or self._number(pci, "sriov_drivers_autoprobe") != 0,
            virtfns=self._virtfns(pci, count),
            lone=physfn is None and self._is_lone(pci),
        )

    def uppers(self, name: IfName) -> tuple[str, ...]:
        """The interfaces that stand on this one; none for an interface that is not there."""
        entries = _list(f"{self._net}/{name}")
        return tuple(e.removeprefix("upper_") for e in entries if e.startswith("upper_"))

    def ifindex(self, name: str) -> int | None:
        text = _read(f"{self._net}/{name}/ifindex")
        return int(text) if text else None

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

    def reset_function(self, pci: PciAddress) -> None:
        """Write reset, by the first method that the device has (reset_method): of a VF that is FLR. Without a
        method there is no such file (drivers/pci/pci-sysfs.c pci_dev_reset_attr_is_visible)."""
        self._write(pci, "reset", "1")

    def _addresses(self) -> list[PciAddress]:
        return [PciAddress(name) for name in _list(str(self._devices))]

    def _is_lone(self, pci: str) -> bool:
        """A function whose driver wants no VFs has the capability all the same: 0 of them."""
        folder = self._devices / pci
        return (
            (self._text(pci, "class") or "").startswith(_NETWORK_CLASS)
            and not os.path.lexists(folder / "physfn")
            and not os.path.lexists(folder / "sriov_totalvfs")
        )

    def _virtfns(self, pci: str, count: int) -> tuple[tuple[int, PciAddress], ...]:
        found = []
        for index in range(count):
            target = self._link(pci, f"virtfn{index}")
            if target:
                found.append((index, PciAddress(target)))
        return tuple(found)

    def _text(self, pci: str, name: str) -> str | None:
        return _read(f"{self._devices}/{pci}/{name}")

    def _number(self, pci: str, name: str) -> int | None:
        text = self._text(pci, name)
        try:
            return int(text) if text else None
        except ValueError:
            return None

    def _link(self, pci: str, name: str) -> str | None:
        try:
            return os.readlink(f"{self._devices}/{pci}/{name}").rpartition("/")[2]
        except OSError:
            return None

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


def _list(folder: str) -> list[str]:
    """The names in a folder, in order; none where it is absent."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


@contextmanager
def _sysfs_errors(operation: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise KernelError(operation, e.errno or errno.EIO) from e
