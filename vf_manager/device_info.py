"""Pure: what a device information file says of a VF (Network Plumbing Working Group, device information
specification 1.1.0). One is written for the kubelet's device, another for the pod's interface; Multus copies
either into the pod's network status."""

import msgspec

from vf_manager.model import IfName, PciAddress

VERSION = "1.1.0"


class PciInfo(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True):
    """`None`: it has none, or it is not known. `vhost_net`: path of the device node."""

    pci_address: PciAddress
    vhost_net: str | None = None
    rdma_device: str | None = None
    pf_pci_address: PciAddress | None = None
    representor_device: IfName | None = None


class DeviceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    type: str = "pci"
    version: str = VERSION
    pci: PciInfo


def render_device_info(pci: PciInfo) -> bytes:
    return msgspec.json.encode(DeviceInfo(pci=pci))
