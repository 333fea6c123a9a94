"""What the kubelet is told of the VFs of a pool."""

from pathlib import Path

import pytest

from device_plugin.devices import list_devices
from device_plugin.pools import Pool
from device_plugin.selectors import Selector
from device_plugin.service import PoolService
from tests.allocation_world import AllocationWorld
from vf_manager.model import PciAddress, Vf

VFS = tuple(
    Vf(pci=PciAddress(f"0000:01:10.{i}"), index=i, vendor="8086", device="10ca", numa_node=node)
    for i, node in enumerate((1, None))
)


def test_a_vf_with_a_reason_is_unhealthy() -> None:
    found = list_devices(VFS, {VFS[0].pci}, topology=True).devices
    assert [(device.id, device.health) for device in found] == [
        ("0000:01:10.0", "Unhealthy"),
        ("0000:01:10.1", "Healthy"),
    ]


def test_the_numa_node_is_told_where_there_is_one_and_unless_it_is_excluded() -> None:
    def nodes(topology: bool) -> list[list[int] | None]:
        devices = list_devices(VFS, (), topology=topology).devices
        return [[n.id for n in d.topology.nodes] if d.HasField("topology") else None for d in devices]

    assert nodes(topology=True) == [[1], None]
    assert nodes(topology=False) == [None, None]


@pytest.mark.parametrize(("prefix", "resource"), [(None, "node.io/fast"), ("own.io", "own.io/fast")])
def test_a_pool_may_have_a_prefix_of_its_own(tmp_path: Path, prefix: str | None, resource: str) -> None:
    world = AllocationWorld(tmp_path)
    pool = Pool(name="fast", select=(Selector(),), prefix=prefix)
    service = PoolService(pool, "node.io", world.log(), world.allocator)
    assert service.resource == resource
    assert not service.is_ready()
    service.update((), {})
    assert service.is_ready()
    assert service.device_count() == 0
