"""Pure: a VF by the attributes that Kubernetes' dynamic resource allocation gives to devices.

Standard names are those of k8s.io/dynamic-resource-allocation/deviceattribute. The others have no domain: in
a ResourceSlice they are a driver's own.
"""

from vf_manager.model import Pf, Vf

Attribute = str | int | bool


def device_attributes(vf: Vf, pf: Pf | None) -> dict[str, Attribute]:
    """`pf`: None if it is not on this node. What is not known is left out: no selector may match it."""
    found: dict[str, Attribute | None] = {
        "resource.kubernetes.io/pcieRoot": vf.pcie_root,
        "resource.kubernetes.io/pciBusID": vf.pci,
        "numaNode": vf.numa_node,
        "pfName": pf.netdev.name if pf and pf.netdev else None,
        "vfID": vf.index if pf else None,
        "vendor": vf.vendor,
        "deviceID": vf.device,
        "linkType": vf.link_type,
        "rdmaCapable": bool(vf.rdma_devices),
    }
    return {name: value for name, value in found.items() if value is not None}
