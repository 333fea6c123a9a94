"""Pure: VFs in the words of the kubelet: devices, and what a container needs to use them."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from device_plugin.nodes import VfNodes
from vf_manager.errors import NotFound, shorten
from vf_manager.model import PciAddress, Vf, parse_pci_address

HEALTHY = "Healthy"
UNHEALTHY = "Unhealthy"


def list_devices(
    vfs: Iterable[Vf], unhealthy: Collection[PciAddress], *, topology: bool
) -> pb.ListAndWatchResponse:
    """The whole list, in the order given. Without `topology` the kubelet may take any, whatever their NUMA
    node."""
    return pb.ListAndWatchResponse(
        devices=[
            pb.Device(
                id=vf.pci,
                health=UNHEALTHY if vf.pci in unhealthy else HEALTHY,
                topology=_topology(vf) if topology else None,
            )
            for vf in vfs
        ]
    )


def _topology(vf: Vf) -> pb.TopologyInfo | None:
    return None if vf.numa_node is None else pb.TopologyInfo(nodes=[pb.NumaNode(id=vf.numa_node)])


def find_vfs(vfs: Iterable[Vf], ids: Iterable[str], resource: str) -> list[Vf]:
    """The VFs with these ids, each once, in the order in which Multus hands them to its networks. Raises
    InvalidInput (not a PCI address) and NotFound (not a VF of this resource)."""
    by_id: dict[str, Vf] = {vf.pci: vf for vf in vfs}
    return [_find(by_id, id_, resource) for id_ in sorted(set(ids))]


def _find(by_id: dict[str, Vf], device_id: str, resource: str) -> Vf:
    vf = by_id.get(device_id)
    if vf is None:
        parse_pci_address(device_id, f"device of {resource}")
        raise NotFound(f"allocate {resource}: device {shorten(device_id)} is not (or no longer) a VF of it")
    return vf


def render_answer(
    nodes: Mapping[PciAddress, VfNodes],
    envs: Iterable[str],
    additional_info: Mapping[str, Mapping[str, str]],
    cdi_names: Sequence[str] | None,
) -> pb.ContainerAllocateResponse:
    """What one container is given with its VFs. `cdi_names`: how it gets at their nodes; None: by path."""
    info = {pci: _info(pci, of_vf, additional_info) for pci, of_vf in nodes.items()}
    answer = pb.ContainerAllocateResponse()
    for env in envs:
        answer.envs[env] = ",".join(nodes)
        answer.envs[f"{env}_INFO"] = msgspec.json.encode(info).decode()
    if cdi_names is not None:
        answer.cdi_devices.extend(pb.CdiDevice(name=name) for name in cdi_names)
        return answer
    for node in sorted({node for of_vf in nodes.values() for node in of_vf.nodes}):
        answer.devices.add(container_path=node.container, host_path=node.host, permissions="rw")
    return answer


def _info(
    pci: PciAddress, nodes: VfNodes, additional: Mapping[str, Mapping[str, str]]
) -> dict[str, Mapping[str, str]]:
    """By provider. Of what the administrator adds, what is said of this VF goes before what is of all."""
    extra = {**additional.get("*", {}), **additional.get(pci, {})}
    return {"generic": {"deviceID": pci}, **nodes.info, **({"extra": extra} if extra else {})}
