"""Pure: VFs in the words of the kubelet: devices, and what a container needs to use them."""

from collections.abc import Container, Iterable, Sequence

from device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from vf_manager.errors import InvalidInput, NotFound, Refused, shorten
from vf_manager.model import PciAddress, Vf, parse_pci_address

HEALTHY = "Healthy"
UNHEALTHY = "Unhealthy"

_VFIO_DRIVER = "vfio-pci"
_VFIO_CONTAINER = "/dev/vfio/vfio"  # Documentation/driver-api/vfio.rst


def list_devices(vfs: Iterable[Vf], unhealthy: Container[PciAddress]) -> pb.ListAndWatchResponse:
    """The whole list, in the order given."""
    return pb.ListAndWatchResponse(
        devices=[_device(vf, UNHEALTHY if vf.pci in unhealthy else HEALTHY) for vf in vfs]
    )


def _device(vf: Vf, health: str) -> pb.Device:
    if vf.numa_node is None:
        return pb.Device(id=vf.pci, health=health)
    topology = pb.TopologyInfo(nodes=[pb.NumaNode(id=vf.numa_node)])
    return pb.Device(id=vf.pci, health=health, topology=topology)


def allocate(vfs: Sequence[Vf], request: pb.AllocateRequest, resource: str, env: str) -> pb.AllocateResponse:
    """What each container needs. Raises InvalidInput (not a PCI address), NotFound (not a VF of this
    resource), Refused (a VF that cannot be handed out as it is)."""
    by_id: dict[str, Vf] = {vf.pci: vf for vf in vfs}
    return pb.AllocateResponse(
        container_responses=[
            _allocate_container([_find(by_id, id_, resource) for id_ in container.device_ids], env)
            for container in request.container_requests
        ]
    )


def _find(by_id: dict[str, Vf], device_id: str, resource: str) -> Vf:
    vf = by_id.get(device_id)
    if vf is None:
        parse_pci_address(device_id, f"device of {resource}")
        raise NotFound(f"allocate {resource}: device {shorten(device_id)} is not (or no longer) a VF of it")
    return vf


def _allocate_container(vfs: list[Vf], env: str) -> pb.ContainerAllocateResponse:
    ids = sorted({vf.pci for vf in vfs})  # Multus hands them to its networks in this order too
    nodes = sorted({node for vf in vfs if vf.driver == _VFIO_DRIVER for node in _vfio_nodes(vf)})
    return pb.ContainerAllocateResponse(
        envs={env: ",".join(ids)},
        devices=[pb.DeviceSpec(container_path=node, host_path=node, permissions="rw") for node in nodes],
    )


def _vfio_nodes(vf: Vf) -> tuple[str, str]:
    if vf.iommu_group is None:
        raise Refused(
            f"allocate VF {vf.pci}: it is bound to {_VFIO_DRIVER} but has no IOMMU group, so there is no"
            f" /dev/vfio node for the container; switch the IOMMU on (intel_iommu=on or amd_iommu=on)"
        )
    return _VFIO_CONTAINER, f"/dev/vfio/{vf.iommu_group}"


def prefer(request: pb.PreferredAllocationRequest) -> pb.PreferredAllocationResponse:
    """For each container: what must be in, then the lowest addresses. Raises InvalidInput."""
    return pb.PreferredAllocationResponse(
        container_responses=[_prefer_container(container) for container in request.container_requests]
    )


def _prefer_container(
    request: pb.ContainerPreferredAllocationRequest,
) -> pb.ContainerPreferredAllocationResponse:
    must = sorted(set(request.must_include_ids))
    others = sorted(set(request.available_ids) - set(must))
    if not len(must) <= request.size <= len(must) + len(others):
        raise InvalidInput(
            "size", request.size, f"{len(must)} (must be in) to {len(must) + len(others)} (are available)"
        )
    return pb.ContainerPreferredAllocationResponse(device_ids=(must + others)[: request.size])
