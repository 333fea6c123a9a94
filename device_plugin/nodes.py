"""Pure, but for a look into /dev: the device nodes that a container needs to use a VF.

A node that is missing is an error: the container would start without it and fail later, in ways that say
nothing of the cause.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from vf_manager.errors import Refused
from vf_manager.kernel.device_nodes import DeviceNodes
from vf_manager.model import Vf

VFIO_DRIVER = "vfio-pci"
VHOST_NET = "/dev/vhost-net"

_VFIO = "/dev/vfio/vfio"  # Documentation/driver-api/vfio.rst
_IOMMU = "/dev/iommu"  # Documentation/userspace-api/iommufd.rst
_UIO_DRIVERS = ("uio_pci_generic", "igb_uio")
_CURE = {
    "vfio": "load the module vfio-pci, and see that /dev of the host is where the agent looks",
    "uio": "see that /dev of the host is where the agent looks",
    "rdma": "load the modules ib_uverbs, ib_umad and rdma_ucm, and see that udev has made their nodes",
    "vhost": "load the modules vhost_net and tun",
}


class Node(NamedTuple):
    """A device node by its path in a container, and on the host."""

    container: str
    host: str


class VfNodes(msgspec.Struct, frozen=True):
    """`info`: by provider ("vfio"), what the container is told of them ("mount": "/dev/vfio/vfio")."""

    nodes: tuple[Node, ...]
    info: Mapping[str, Mapping[str, str]]


_Named = list[tuple[str, Node]]  # by their keys in VfNodes.info


def is_vfio(vf: Vf) -> bool:
    """Variant drivers (mlx5-vfio-pci) have a vfio device as well."""
    return vf.driver == VFIO_DRIVER or vf.vfio_device is not None


def find_nodes(vf: Vf, dev: DeviceNodes, *, vhost_net: bool, rdma: bool) -> VfNodes:
    """`vhost_net`: with those that a virtio-user port takes. `rdma`: with those of its RDMA device. Raises
    Refused, which names the node that is missing."""
    named: dict[str, _Named] = {
        "vfio": _vfio(vf, dev),
        "uio": _uio(vf),
        "rdma": _rdma(vf, dev) if rdma else [],
        "vhost": [("net-mount", _node(VHOST_NET)), ("tun-mount", _node("/dev/net/tun"))] if vhost_net else [],
    }
    for provider, nodes in named.items():
        for _, node in nodes:
            if not dev.exists(node.host):
                raise _missing(vf, node.host, _CURE[provider])
    info = {provider: _paths(nodes) for provider, nodes in named.items() if nodes}
    if "rdma" in info:
        info["rdma"]["rdma_dev"] = ",".join(vf.rdma_devices)
    return VfNodes(tuple(sorted({node for nodes in named.values() for _, node in nodes})), info)


def _node(path: str) -> Node:
    return Node(path, path)


def _paths(nodes: _Named) -> dict[str, str]:
    paths: dict[str, str] = {}
    for key, node in nodes:
        paths[key] = f"{paths[key]},{node.container}" if key in paths else node.container
    return paths


def _vfio(vf: Vf, dev: DeviceNodes) -> _Named:
    """The group's node with the container's; beside or, in a kernel without CONFIG_VFIO_GROUP, instead of
    them the device's own with iommufd."""
    if not is_vfio(vf):
        return []
    cdev = [("iommu-mount", _node(_IOMMU)), ("cdev-mount", _node(f"/dev/vfio/devices/{vf.vfio_device}"))]
    if vf.vfio_device is None or not _all_exist(dev, cdev):
        cdev = []
    if cdev and not dev.exists(_VFIO):
        return cdev
    return [("mount", _node(_VFIO)), ("dev-mount", _group(vf, dev)), *cdev]


def _all_exist(dev: DeviceNodes, nodes: Iterable[tuple[str, Node]]) -> bool:
    return all(dev.exists(node.host) for _, node in nodes)


def _group(vf: Vf, dev: DeviceNodes) -> Node:
    """Without an IOMMU the node has another name (drivers/vfio/group.c vfio_create_group); containers look
    for the number."""
    if vf.iommu_group is None:
        raise Refused(
            f"allocate VF {vf.pci}: it is bound to {vf.driver} but has no IOMMU group, so there is no"
            f" /dev/vfio node for the container; switch the IOMMU on (intel_iommu=on or amd_iommu=on)"
        )
    plain, without_iommu = f"/dev/vfio/{vf.iommu_group}", f"/dev/vfio/noiommu-{vf.iommu_group}"
    if not dev.exists(plain) and dev.exists(without_iommu):
        return Node(plain, without_iommu)
    return _node(plain)


def _uio(vf: Vf) -> _Named:
    if vf.uio_device is not None:
        return [("mount", _node(f"/dev/{vf.uio_device}"))]
    if vf.driver in _UIO_DRIVERS:
        raise _missing(vf, "its node /dev/uioN", f"bind it to {vf.driver} again, and see the kernel's log")
    return []


def _rdma(vf: Vf, dev: DeviceNodes) -> _Named:
    found = [(kind, _node(path)) for device in vf.rdma_devices for kind, path in dev.of_rdma(device)]
    if vf.rdma_devices and "uverbs" not in dict(found):
        raise _missing(vf, f"/dev/infiniband/uverbsN of {vf.rdma_devices[0]}", _CURE["rdma"])
    return list(dict.fromkeys(found))  # rdma_cm is there once for all


def _missing(vf: Vf, what: str, cure: str) -> Refused:
    bound = f"bound to {vf.driver}" if vf.driver else "without a driver"
    return Refused(
        f"allocate VF {vf.pci} ({bound}): {what} is not there, and no container may start without it; {cure}"
    )
