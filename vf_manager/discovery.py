"""Orchestrator: reads PFs and VFs from the kernel into the model.

One netlink dump for all interfaces, one for all routes, and one request per PF for the attributes of its VFs,
whatever their number; the rest is sysfs.
"""

from collections.abc import Callable

from msgspec.structs import replace

from vf_manager.errors import KernelError, NotFound, Refused
from vf_manager.host_links import HostLinks, is_representor
from vf_manager.kernel.api import Kernel, LinkInfo, Links, PciFunction
from vf_manager.model import IfName, Inventory, Netdev, PciAddress, Pf, Vf, VfAttributes

_VIRTIO_DRIVER = "virtio-pci"


def read_inventory(kernel: Kernel) -> Inventory:
    """Every PF of the node with its VFs, and what may be VFs without a PF, in address order, as generation 0.
    A device that goes away meanwhile is left out."""
    functions = {function.pci: function for function in kernel.read_functions()}
    if not functions:
        return Inventory()
    with kernel.links() as host:
        look = _Look(kernel, host, functions)
        pfs = tuple(look.read_pf(function) for function in functions.values() if function.total_vfs)
        lone = tuple(look.read_lone(function) for function in functions.values() if function.lone)
    return Inventory(pfs=pfs, lone=lone)


def read_pfs(kernel: Kernel) -> tuple[Pf, ...]:
    return read_inventory(kernel).pfs


def read_lone(kernel: Kernel) -> tuple[Vf, ...]:
    return read_inventory(kernel).lone


class _Look:
    """One pass over the node: what is asked once for all functions, and what each of them is made of."""

    def __init__(self, kernel: Kernel, host: Links, functions: dict[PciAddress, PciFunction]) -> None:
        self._kernel = kernel
        self._host = host
        self._functions = functions
        self._links = HostLinks(host.dump())
        self._default_routes = host.default_route_links()
        self._modes = kernel.eswitch_modes()
        self._sick = kernel.sick_reporters()

    def read_pf(self, function: PciFunction) -> Pf:
        own = self._links.own(function)
        link_type = own.link_type if own and own.link_type else function.link_type
        attributes = self._vf_attributes(own) if own and function.virtfns else {}
        representors = self._links.representors(function)
        vfs = []
        for index, address in function.virtfns:
            if address in self._functions:
                vf = self._read_vf(self._functions[address], function.pci, index, link_type)
                vfs.append(replace(vf, attributes=attributes.get(index), representor=representors.get(index)))
        return Pf(
            pci=function.pci,
            vendor=function.vendor,
            device=function.device,
            driver=function.driver,
            netdev=own.netdev if own else None,
            numa_node=function.numa_node,
            iommu_group=function.iommu_group,
            total_vfs=function.total_vfs,
            num_vfs=function.num_vfs,
            autoprobe=function.autoprobe,
            eswitch_mode=self._modes.get(function.pci),
            permanent_mac=own.permanent_mac if own else None,
            acpi_index=function.acpi_index,
            link_type=link_type,
            pcie_root=function.pcie_root,
            rdma_devices=function.rdma_devices,
            sick_reporters=self._sick.get(function.pci, ()),
            vfs=tuple(vfs),
        )

    def read_lone(self, function: PciFunction) -> Vf:
        return self._read_vf(function, None, 0, None)

    def _read_vf(
        self, function: PciFunction, pf: PciAddress | None, index: int, pf_link_type: str | None
    ) -> Vf:
        vf = _vf(function, pf, index, self._links.own(function), pf_link_type)
        return replace(vf, unusable=_why_unusable(vf, self._kernel.uppers, self._default_routes.__contains__))

    def _vf_attributes(self, pf: LinkInfo) -> dict[int, VfAttributes]:
        """One question for all its VFs, whatever their number."""
        try:
            with_vfs = self._host.read(ifindex=pf.netdev.ifindex, with_vfs=True)
        except KernelError:  # the driver does not answer for its VFs: they are shown without attributes
            return {}
        return with_vfs.vfs if with_vfs else {}


def why_unusable(kernel: Kernel, host: Links, vf: Vf) -> str | None:
    """Why no pod may have it: the host would miss it, or the pod find nothing in it. None: one may."""
    return _why_unusable(vf, kernel.uppers, host.has_default_route)


def _why_unusable(
    vf: Vf, uppers_of: Callable[[IfName], tuple[str, ...]], has_default_route: Callable[[int], bool]
) -> str | None:
    """What its PF carries does not count: VFs are there to be given away beside the host's own traffic."""
    if vf.driver == _VIRTIO_DRIVER:
        return f"its driver is {_VIRTIO_DRIVER}, so its network interface is another device's"
    if vf.netdev is None:
        return None
    if uppers := uppers_of(vf.netdev.name):
        return f"{', '.join(uppers)} of the host stands on its interface {vf.netdev.name}"
    if vf.netdev.up and has_default_route(vf.netdev.ifindex):
        return f"the host's default route goes by its interface {vf.netdev.name}"
    return None


def find_pf_of(kernel: Kernel, pci: PciAddress) -> PciAddress | None:
    """The PF of a VF, by sysfs alone; None for what may be a VF without one. Raises NotFound (no such device)
    and Refused (not a VF)."""
    return _read_vf_function(kernel, pci).physfn


def _read_vf_function(kernel: Kernel, pci: PciAddress) -> PciFunction:
    function = kernel.read_function(pci)
    if function is None:
        raise NotFound(f"there is no PCI device {pci} on this node")
    if function.physfn is None and not function.lone:
        kind = "a physical function" if function.total_vfs else "not an SR-IOV virtual function"
        raise Refused(f"{pci} is {kind}; only a virtual function (VF) can be given to a pod")
    return function


def read_vf(kernel: Kernel, links: Links, pci: PciAddress, *, with_attributes: bool = True) -> Vf:
    """One VF, now. `links` are the host's. Its representor and why it may be unusable are not looked for.
    Raises NotFound (no such device) and Refused (not a VF)."""
    function = _read_vf_function(kernel, pci)
    own = _function_link(links, function)
    if function.physfn is None:
        return _vf(function, None, 0, own, None)
    pf = kernel.read_function(function.physfn)
    index = next((i for i, address in pf.virtfns if address == pci), None) if pf else None
    if pf is None or index is None:
        raise NotFound(f"VF {pci} is going away: its PF does not list it any more")
    if not with_attributes:
        return _vf(function, pf.pci, index, own, None)
    at_pf = pf_link(kernel, links, pf.pci, with_vfs=True)
    return replace(_vf(function, pf.pci, index, own, at_pf.link_type), attributes=at_pf.vfs.get(index))


def pf_link(kernel: Kernel, links: Links, pf: PciAddress, *, with_vfs: bool = False) -> LinkInfo:
    """The PF's own interface (not a representor). Raises NotFound if it has none in the host's namespace."""
    function = kernel.read_function(pf)
    for name in function.netdev_names if function else ():
        found = links.read(name=name, with_vfs=with_vfs)
        if found is not None and not is_representor(found):
            return found
    raise NotFound(
        f"PF {pf} has no network interface on the host: without it the attributes of its VFs are out of reach"
    )


def host_link(kernel: Kernel, host: Links, pci: PciAddress) -> Netdev | None:
    """The interface of a VF in the host's namespace, whatever its name is now."""
    function = kernel.read_function(pci)
    found = _function_link(host, function) if function else None
    return found.netdev if found else None


def find_link(links: Links, pci: PciAddress) -> Netdev | None:
    """The interface of a VF in any namespace: sysfs shows only the host's, rtnetlink tells the device."""
    found = _find(links, pci)
    return found.netdev if found else None


def _vf(
    function: PciFunction, pf: PciAddress | None, index: int, own: LinkInfo | None, pf_link_type: str | None
) -> Vf:
    """The type of its link stays the same when its interface leaves: it is its PF's, or that of its class."""
    return Vf(
        pci=function.pci,
        pf_pci=pf,
        index=index,
        vendor=function.vendor,
        device=function.device,
        driver=function.driver,
        netdev=own.netdev if own else None,
        numa_node=function.numa_node,
        iommu_group=function.iommu_group,
        acpi_index=function.acpi_index,
        link_type=(own.link_type if own else None) or pf_link_type or function.link_type,
        pcie_root=function.pcie_root,
        rdma_devices=function.rdma_devices,
        pkey=function.pkey,
        vfio_device=function.vfio_device,
        uio_device=function.uio_device,
    )


def _function_link(links: Links, function: PciFunction) -> LinkInfo | None:
    for name in function.netdev_names:
        found = links.read(name=name)
        if found is not None and found.parent in (None, function.pci):
            return found
    # udev renames interfaces at any moment: between the name in sysfs and the look at it, too.
    return _find(links, function.pci) if function.netdev_names else None


def _find(links: Links, pci: PciAddress) -> LinkInfo | None:
    return next((link for link in links.dump() if link.parent == pci and not is_representor(link)), None)
