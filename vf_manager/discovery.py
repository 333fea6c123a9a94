"""Orchestrator: reads PFs and VFs from the kernel into the model.

One netlink dump for all interfaces and one request per PF for the attributes of its VFs, whatever their
number; the rest is sysfs.
"""

import re

import msgspec

from vf_manager.errors import KernelError, NotFound, Refused
from vf_manager.kernel.api import Kernel, LinkInfo, Links, PciFunction
from vf_manager.model import Netdev, PciAddress, Pf, Vf, VfAttributes

# drivers/net/*: phys_port_name of representors is "pf0vf3", "c1pf0vf3", "pf0sf88"; of an uplink "p0" or none.
_REPRESENTOR = re.compile(r"(c\d+)?pf\d+(vf|sf)\d+")
_VIRTIO_DRIVER = "virtio-pci"


def read_pfs(kernel: Kernel) -> tuple[Pf, ...]:
    """Every PF of the node with its VFs, in address order. A device that goes away meanwhile is left out."""
    modes = kernel.eswitch_modes()
    with kernel.links() as links:
        all_links = links.dump()
        pfs = []
        for pci in kernel.pf_addresses():
            function = kernel.read_function(pci)
            if function is not None:
                pfs.append(_read_pf(kernel, links, function, all_links, modes.get(pci)))
    return tuple(pfs)


def read_lone(kernel: Kernel) -> tuple[Vf, ...]:
    """Everything that may be a VF without a PF, in address order."""
    addresses = kernel.lone_addresses()
    if not addresses:
        return ()
    with kernel.links() as links:
        all_links = links.dump()
        functions = [f for pci in addresses if (f := kernel.read_function(pci)) is not None]
        vfs = [_vf(f, None, 0, _own_netdev(f, all_links), None) for f in functions]
        return tuple(msgspec.structs.replace(vf, unusable=why_unusable(kernel, links, vf)) for vf in vfs)


def why_unusable(kernel: Kernel, host: Links, vf: Vf) -> str | None:
    """Why no pod may have it: the host would miss it, or the pod find nothing in it. None: one may."""
    if vf.driver == _VIRTIO_DRIVER:
        return f"its driver is {_VIRTIO_DRIVER}, so its network interface is another device's"
    if vf.netdev is None:
        return None
    if uppers := kernel.uppers(vf.netdev.name):
        return f"{', '.join(uppers)} of the host stands on its interface {vf.netdev.name}"
    if vf.netdev.up and host.has_default_route(vf.netdev.ifindex):
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
    """One VF, now. `links` are the host's. Raises NotFound (no such device) and Refused (not a VF)."""
    function = _read_vf_function(kernel, pci)
    if function.physfn is None:
        return _vf(function, None, 0, _function_netdev(links, function), None)
    pf = kernel.read_function(function.physfn)
    index = next((i for i, address in pf.virtfns if address == pci), None) if pf else None
    if pf is None or index is None:
        raise NotFound(f"VF {pci} is going away: its PF does not list it any more")
    attributes = pf_link(kernel, links, pf.pci, with_vfs=True).vfs.get(index) if with_attributes else None
    return _vf(function, pf.pci, index, _function_netdev(links, function), attributes)


def pf_link(kernel: Kernel, links: Links, pf: PciAddress, *, with_vfs: bool = False) -> LinkInfo:
    """The PF's own interface (not a representor). Raises NotFound if it has none in the host's namespace."""
    function = kernel.read_function(pf)
    for name in function.netdev_names if function else ():
        found = links.read(name=name, with_vfs=with_vfs)
        if found is not None and not _is_representor(found):
            return found
    raise NotFound(
        f"PF {pf} has no network interface on the host: without it the attributes of its VFs are out of reach"
    )


def host_link(kernel: Kernel, host: Links, pci: PciAddress) -> Netdev | None:
    """The interface of a VF in the host's namespace, whatever its name is now."""
    function = kernel.read_function(pci)
    return _function_netdev(host, function) if function else None


def find_link(links: Links, pci: PciAddress) -> Netdev | None:
    """The interface of a VF in any namespace: sysfs shows only the host's, rtnetlink tells the device."""
    return next((i.netdev for i in links.dump() if i.parent == pci and not _is_representor(i)), None)


def _read_pf(
    kernel: Kernel, links: Links, function: PciFunction, all_links: list[LinkInfo], eswitch_mode: str | None
) -> Pf:
    own = next((i for i in _of_device(function, all_links) if not _is_representor(i)), None)
    attributes: dict[int, VfAttributes] = {}
    if own and function.virtfns:
        try:
            with_vfs = links.read(ifindex=own.netdev.ifindex, with_vfs=True)
        except KernelError:  # the driver does not answer for its VFs: they are shown without attributes
            with_vfs = None
        attributes = with_vfs.vfs if with_vfs else {}
    vfs = []
    for index, address in function.virtfns:
        vf_function = kernel.read_function(address)
        if vf_function is not None:
            netdev = _own_netdev(vf_function, all_links)
            vfs.append(_vf(vf_function, function.pci, index, netdev, attributes.get(index)))
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
        eswitch_mode=eswitch_mode,
        permanent_mac=own.permanent_mac if own else None,
        vfs=tuple(vfs),
    )


def _vf(
    function: PciFunction,
    pf: PciAddress | None,
    index: int,
    netdev: Netdev | None,
    attributes: VfAttributes | None,
) -> Vf:
    return Vf(
        pci=function.pci,
        pf_pci=pf,
        index=index,
        vendor=function.vendor,
        device=function.device,
        driver=function.driver,
        netdev=netdev,
        numa_node=function.numa_node,
        iommu_group=function.iommu_group,
        attributes=attributes,
    )


def _own_netdev(function: PciFunction, links: list[LinkInfo]) -> Netdev | None:
    return next((link.netdev for link in _of_device(function, links)), None)


def _of_device(function: PciFunction, links: list[LinkInfo]) -> list[LinkInfo]:
    """By IFLA_PARENT_DEV_NAME; on kernels before 5.14, which lack it, by the names in sysfs."""
    return [
        link
        for link in links
        if link.parent == function.pci or (link.parent is None and link.netdev.name in function.netdev_names)
    ]


def _function_netdev(links: Links, function: PciFunction) -> Netdev | None:
    for name in function.netdev_names:
        found = links.read(name=name)
        if found is not None and found.parent in (None, function.pci):
            return found.netdev
    # udev renames interfaces at any moment: between the name in sysfs and the look at it, too.
    return find_link(links, function.pci) if function.netdev_names else None


def _is_representor(link: LinkInfo) -> bool:
    return bool(link.phys_port_name and _REPRESENTOR.fullmatch(link.phys_port_name))
