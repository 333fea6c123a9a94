"""Adapter: veth pairs that stand in for VFs, and a kernel that tells the agent so.

The running kernel has no SR-IOV, so sysfs answers are read from a tree of files with the layout of the real
one. Everything else (links, namespaces, addresses, routes) is the running kernel's own, by the adapters that
production uses. A veth is known by its MAC, wherever it is.
"""

import socket
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from tests.sysfs_tree import SysfsTree
from vf_manager.kernel.api import LinkInfo, Links, NetnsHandle, PciFunction
from vf_manager.kernel.linux import LinuxKernel
from vf_manager.kernel.netns import Netns, own
from vf_manager.kernel.rtnl import Rtnl
from vf_manager.kernel.sysfs import Sysfs
from vf_manager.model import Mac, PciAddress


class Veth(msgspec.Struct, frozen=True):
    pci: PciAddress
    name: str
    mac: Mac


class VethKernel(LinuxKernel):
    def __init__(self, tree: Path, veths: tuple[Veth, ...]) -> None:
        super().__init__(Sysfs(tree))
        self._veths = {veth.pci: veth for veth in veths}
        self._parents = {veth.mac: veth.pci for veth in veths}

    def read_function(self, pci: str) -> PciFunction | None:
        found = super().read_function(pci)
        veth = self._veths.get(PciAddress(pci))
        return msgspec.structs.replace(found, netdev_names=_names_of(veth)) if found and veth else found

    def links(self, netns: NetnsHandle | None = None) -> AbstractContextManager[Links]:
        return VethLinks(own(netns) if netns else None, self._parents)


class VethLinks(Rtnl):
    def __init__(self, netns: Netns | None, parents: dict[Mac, PciAddress]) -> None:
        super().__init__(netns)
        self._parents = parents

    def dump(self) -> list[LinkInfo]:
        return [self._with_parent(link) for link in super().dump()]

    def read(self, *, ifindex: int = 0, name: str = "", with_vfs: bool = False) -> LinkInfo | None:
        found = super().read(ifindex=ifindex, name=name, with_vfs=with_vfs)
        return self._with_parent(found) if found else None

    def _with_parent(self, link: LinkInfo) -> LinkInfo:
        parent = self._parents.get(link.netdev.mac)
        return msgspec.structs.replace(link, parent=parent) if parent else link


def make_tree(root: Path, pfs: dict[str, str], veths: dict[str, tuple[Veth, ...]]) -> None:
    """`pfs`: PCI address -> interface; `veths`: the VFs of each."""
    tree = SysfsTree(root)
    for pci, name in pfs.items():
        tree.add_pf(pci, name=name)
        for index, veth in enumerate(veths[pci]):
            tree.add_vf(pci, index, veth.pci, net=(veth.name,))


def _names_of(veth: Veth) -> tuple[str, ...]:
    """Its own name if it is on the host: a look that is as cheap as the one into sysfs, which may be that of
    another namespace."""
    try:
        socket.if_nametoindex(veth.name)
    except OSError:
        return ()
    return (veth.name,)
