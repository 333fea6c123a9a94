"""Adapter: sysfs trees for tests, in a folder, with the links and files that real NICs have there."""

import os
from pathlib import Path

from vf_manager.model import PciAddress


class SysfsTree:
    """`root` plays /sys. Functions are below a root port, as on a real machine, and linked from the bus."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bus = root / "bus/pci"
        self.roots: dict[str, str] = {}  # "0000:3b" -> "pci0000:3a", what is above a bus; else pci0000:00
        (self.bus / "devices").mkdir(parents=True)
        (self.bus / "drivers").mkdir()
        (self.bus / "drivers_probe").touch()

    def folder(self, pci: str) -> Path:
        above = self.roots.get(pci.rpartition(":")[0], "pci0000:00")
        return self.root / "devices" / above / f"{above.rpartition('pci')[2]}:02.0" / pci

    def add_function(
        self,
        pci: str,
        *,
        device: str = "0x10c9",
        driver: str | None = None,
        net: tuple[str, ...] = (),
        numa_node: int = -1,
        iommu_group: int | None = None,
        pci_class: str = "0x020000",
    ) -> Path:
        """Returns the folder of the function."""
        folder = self.folder(pci)
        folder.mkdir(parents=True)
        link(self.bus / "devices" / pci, folder)
        write(folder / "vendor", "0x8086")
        write(folder / "device", device)
        write(folder / "class", pci_class)
        write(folder / "numa_node", str(numa_node))
        write(folder / "driver_override", "(null)")
        if driver is not None:
            self.bind(pci, driver)
        for name in net:
            (folder / "net" / name).mkdir(parents=True)
        if iommu_group is not None:
            group = self.root / f"kernel/iommu_groups/{iommu_group}"
            group.mkdir(parents=True, exist_ok=True)
            link(folder / "iommu_group", group)
        return folder

    def add_pf(
        self,
        pci: str,
        total_vfs: int = 7,
        driver: str | None = "igb",
        name: str = "",
        pci_class: str = "0x020000",
    ) -> Path:
        folder = self.add_function(pci, driver=driver, net=(name,) if name else (), pci_class=pci_class)
        write(folder / "sriov_totalvfs", str(total_vfs))
        write(folder / "sriov_numvfs", "0")
        write(folder / "sriov_drivers_autoprobe", "1")
        return folder

    def add_vf(
        self, pf: str, index: int, pci: str, driver: str | None = "igbvf", net: tuple[str, ...] = ()
    ) -> Path:
        """Also counts it at its PF."""
        folder = self.add_function(pci, device="0x10ca", driver=driver, net=net, iommu_group=20 + index)
        link(folder / "physfn", self.folder(pf))
        link(self.folder(pf) / f"virtfn{index}", folder)
        write(self.folder(pf) / "sriov_numvfs", str(index + 1))
        return folder

    def set(self, pci: str, **attributes: str) -> None:
        for name, text in attributes.items():
            write(self.folder(pci) / name, text)

    def add_rdma(self, pci: str, name: str, link_layer: str = "Ethernet", pkey: str = "0xffff") -> None:
        """RoCE has a table of partitions, too."""
        port = self.folder(pci) / "infiniband" / name / "ports/1"
        (port / "pkeys").mkdir(parents=True)
        write(port / "link_layer", link_layer)
        write(port / "pkeys/0", pkey)
        write(port / "pkeys/1", "0x0000")

    def add_upper(self, upper: str, *lowers: str) -> None:
        """A bond, a bridge or a VLAN on interfaces."""
        for lower in lowers:
            folder = self.root / "class/net" / lower
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"upper_{upper}").touch()

    def bind(self, pci: str, driver: str | None) -> None:
        """What the kernel does to the links when a driver takes or leaves a function."""
        (self.folder(pci) / "driver").unlink(missing_ok=True)
        if driver is not None:
            self.add_driver(driver)
            link(self.folder(pci) / "driver", self.bus / "drivers" / driver)

    def add_driver(self, name: str) -> None:
        folder = self.bus / "drivers" / name
        folder.mkdir(exist_ok=True)
        (folder / "unbind").touch()

    def text(self, pci: PciAddress, name: str) -> str:
        return (self.folder(pci) / name).read_text()


def link(path: Path, target: Path) -> None:
    """A relative symbolic link, as sysfs has them."""
    path.symlink_to(os.path.relpath(target, path.parent.resolve()))


def write(path: Path, text: str) -> None:
    path.write_text(f"{text}\n")
