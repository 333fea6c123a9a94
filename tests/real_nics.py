"""Adapter: NICs as their drivers show them: a tree of files for the sysfs adapter, interfaces in memory."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fake_kernel import FakeFunction, FakeKernel, FakeLinks
from tests.sysfs_tree import SysfsTree
from vf_manager.discovery import read_inventory
from vf_manager.kernel.api import LinkInfo, Links, NetnsHandle, PciFunction
from vf_manager.kernel.linux import LinuxKernel
from vf_manager.kernel.meter import Meter
from vf_manager.kernel.sysfs import Sysfs
from vf_manager.model import Inventory, Mac, PciAddress, VfAttributes


@dataclasses.dataclass(frozen=True)
class Nic:
    """A product: PCI ids of PF and VF (https://pci-ids.ucw.cz), drivers, class code."""

    vendor: str
    pf_device: str
    vf_device: str
    pf_driver: str
    vf_driver: str
    pci_class: str = "0x020000"
    link_type: str = "ether"


X710 = Nic("8086", "1572", "154c", "i40e", "iavf")
E810 = Nic("8086", "1592", "1889", "ice", "iavf")
CONNECTX6_DX = Nic("15b3", "101d", "101e", "mlx5_core", "mlx5_core")
CONNECTX6_IB = Nic("15b3", "101b", "101c", "mlx5_core", "mlx5_core", "0x020700", "infiniband")
BCM57414 = Nic("14e4", "16d7", "16dc", "bnxt_en", "bnxt_en")


class CountedLinks(FakeLinks):
    def __init__(self, kernel: FakeKernel, asked: Counter[str]) -> None:
        super().__init__(kernel, 1)
        self._asked = asked

    def dump(self) -> list[LinkInfo]:
        self._asked["dump"] += 1
        return super().dump()

    def read(self, *, ifindex: int = 0, name: str = "", with_vfs: bool = False) -> LinkInfo | None:
        self._asked["read with VFs" if with_vfs else "read"] += 1
        return super().read(ifindex=ifindex, name=name, with_vfs=with_vfs)

    def default_route_links(self) -> frozenset[int]:
        self._asked["default routes"] += 1
        return super().default_route_links()

    def has_default_route(self, ifindex: int) -> bool:
        self._asked["has default route"] += 1
        return super().has_default_route(ifindex)


class NicWorld(LinuxKernel):
    """A node with NICs. `memory` has its interfaces, `asked` what was asked about them."""

    def __init__(self, root: Path) -> None:
        self.tree = SysfsTree(root)
        self.memory = FakeKernel()
        self.meter = Meter()
        self.asked: Counter[str] = Counter()
        self.modes: dict[PciAddress, str] = {}
        super().__init__(Sysfs(root, self.meter), self.meter)

    def add_pf(
        self, nic: Nic, pci: str, name: str | None, *, total_vfs: int = 64, root: str = "pci0000:00"
    ) -> PciAddress:
        """`root`: what is above its bus. Without a name its driver is not loaded."""
        self.tree.roots[_bus(pci)] = root
        driver = nic.pf_driver if name else None
        self.tree.add_pf(pci, total_vfs, driver, name or "", nic.pci_class)
        self.tree.set(pci, vendor=f"0x{nic.vendor}", device=f"0x{nic.pf_device}")
        address = PciAddress(pci)
        known = PciFunction(pci=address, vendor=nic.vendor, device=nic.pf_device)
        self.memory.functions[address] = FakeFunction(known)
        if name:
            self._add_link(nic, name, address)
        return address

    def add_vf(
        self, nic: Nic, pf: PciAddress, index: int, pci: str, name: str | None, driver: str | None = ""
    ) -> PciAddress:
        """`driver`: None for none; by default that of the NIC. Without a name it has no interface."""
        self.tree.roots[_bus(pci)] = self.tree.roots[_bus(pf)]
        driver = nic.vf_driver if driver == "" else driver
        self.tree.add_vf(pf, index, pci, driver, (name,) if name else ())
        self.tree.set(pci, vendor=f"0x{nic.vendor}", device=f"0x{nic.vf_device}")
        self.tree.set(pci, **{"class": nic.pci_class})
        address = PciAddress(pci)
        attributes = VfAttributes(mac=Mac(f"02:00:00:00:{index >> 8:02x}:{index & 255:02x}"), trust=False)
        self.memory.functions[pf].attributes[index] = attributes
        if name:
            self._add_link(nic, name, address)
        return address

    def add_representor(self, pf: PciAddress, name: str, port: str) -> None:
        """An interface of the PF's own device."""
        (self.tree.folder(pf) / "net" / name).mkdir()
        self.memory.add_link(name, parent=pf).phys_port_name = port

    def inventory(self) -> Inventory:
        self.asked.clear()
        self.meter.netlink_requests = self.meter.sysfs_reads = 0
        return read_inventory(self)

    @contextmanager
    def links(self, netns: NetnsHandle | None = None) -> Iterator[Links]:
        yield CountedLinks(self.memory, self.asked)

    def eswitch_modes(self) -> dict[PciAddress, str]:
        return self.modes

    def sick_reporters(self) -> dict[PciAddress, tuple[str, ...]]:
        return self.memory.sick_reporters()

    def _add_link(self, nic: Nic, name: str, parent: PciAddress) -> None:
        self.memory.add_link(name, parent=parent).type = nic.link_type


def _bus(pci: str) -> str:
    return pci.rpartition(":")[0]


def vf_pci(pf: str, index: int, offset: int = 16) -> str:
    """The routing id of a VF: `offset` behind its PF's, as First VF Offset of the capability says."""
    number = int(pf[8:10], 16) * 8 + int(pf[11]) + offset + index
    bus = int(pf[5:7], 16) + number // 256
    return f"{pf[:5]}{bus:02x}:{number % 256 // 8:02x}.{number % 8}"
