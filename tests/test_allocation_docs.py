"""What docs/device-plugin.md shows of allocations is what they bring, and its errors are those one gets."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_plugin.allocation import Allocation, Policy
from device_plugin.allocator import Resource
from device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from device_plugin.pools import DEFAULT_PREFIX
from device_plugin.preference import choose
from device_plugin.selectors import Selector
from node_agent.config import ConfigError, parse_config
from tests.allocation_world import AllocationWorld, make_pool, make_vf
from tests.test_cdi import check_spec
from vf_manager.errors import KernelError, Refused
from vf_manager.model import IfName, PciAddress, Vf

PAGE = (Path(__file__).parent.parent / "docs/device-plugin.md").read_text()
BLOCKS = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)]
ROWS = dict(re.findall(r"^\| (.+?) \| `+(.+?) ?`+ \|$", PAGE, re.MULTILINE))

VF = PciAddress("0000:3b:02.0")
DPDK = make_pool("dpdk", allocation=Allocation(cdi=True), additional_info={VF: {"rail": "3"}})
VFIO_VF = make_vf(driver="vfio-pci", iommu_group=42, vfio_device="vfio3")


@pytest.fixture
def world(tmp_path: Path) -> AllocationWorld:
    world = AllocationWorld(tmp_path)
    world.add_nodes("/dev/vfio/vfio", "/dev/vfio/42", "/dev/vfio/devices/vfio3", "/dev/iommu")
    return world


def block(key: str) -> Any:
    """The example that has this key."""
    [found] = [value for value in BLOCKS if key in value]
    return found


def test_the_environment_and_the_cdi_spec(world: AllocationWorld) -> None:
    request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(device_ids=[VF])])
    answer = world.allocator.allocate(Resource(DPDK, DEFAULT_PREFIX), [VFIO_VF], request)
    env = "PCIDEVICE_SRIOV_UNDERLAY_IO_DPDK_INFO"
    assert f"`{env}`" in PAGE
    assert json.loads(answer.container_responses[0].envs[env]) == block(VF)
    [path] = world.cdi_dir.iterdir()
    assert path.name == "sriov-underlay_sriov-underlay.io_dpdk.json"
    assert json.loads(path.read_text()) == block("cdiVersion")
    check_spec(block("cdiVersion"))


def test_the_device_information(world: AllocationWorld) -> None:
    world.add_nodes("/dev/vhost-net", "/dev/net/tun")
    vf = make_vf(rdma_devices=("mlx5_2",), representor=IfName("ens1f0npf0vf0"))
    world.allocate(make_pool(vhost_net=True), [vf])
    assert world.device_info(VF) == block("pci")


def without_group(world: AllocationWorld) -> Vf:
    world.remove_node("/dev/vfio/42")
    return VFIO_VF


def without_iommu(world: AllocationWorld) -> Vf:
    return make_vf(driver="vfio-pci")


def without_uio(world: AllocationWorld) -> Vf:
    return make_vf(driver="igb_uio")


def without_umad(world: AllocationWorld) -> Vf:
    world.add_rdma("mlx5_2", 3)
    world.add_nodes("/dev/infiniband/uverbs3", "/dev/infiniband/issm3")
    return make_vf(driver="mlx5_core", rdma_devices=("mlx5_2",))


def without_vhost(world: AllocationWorld) -> Vf:
    return make_vf()


def that_is_attached(world: AllocationWorld) -> Vf:
    world.attached = {VF}
    return VFIO_VF


def that_cannot_be_reset(world: AllocationWorld) -> Vf:
    def refuse(pci: PciAddress) -> None:
        raise KernelError(f"write '1' to reset of {pci}", 25)

    world.on_reset = refuse
    return VFIO_VF


RESET = make_pool(allocation=Allocation(reset_vfio=True))


@pytest.mark.parametrize(
    ("row", "vf_of", "pool"),
    [
        ("the group's node", without_group, DPDK),
        ("the IOMMU", without_iommu, DPDK),
        ("the uio device", without_uio, DPDK),
        ("the RDMA device's node", without_umad, make_pool(select=Selector(is_rdma=True))),
        ("vhost-net", without_vhost, make_pool(vhost_net=True)),
        ("the DEL of its last pod has not gone through", that_is_attached, RESET),
        ("the kernel refuses", that_cannot_be_reset, RESET),
    ],
)
def test_errors_of_an_allocation(
    world: AllocationWorld, row: str, vf_of: Callable[[AllocationWorld], Vf], pool: Any
) -> None:
    vf = vf_of(world)
    with pytest.raises(Refused) as caught:
        world.allocate(pool, [vf])
    assert str(caught.value) == ROWS[row]


@pytest.mark.parametrize("written", [row for row in ROWS if row.startswith("`{")])
def test_errors_of_the_config(written: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(written.strip("`"))
    assert str(caught.value) == ROWS[written]


@pytest.mark.parametrize("policy", Policy)
def test_reasons(policy: Policy) -> None:
    vfs = [
        Vf(
            pci=PciAddress(f"0000:{bus}:02.{i}"),
            pf_pci=PciAddress(f"0000:{bus}:00.0"),
            vendor="8086",
            device="1889",
            numa_node=0,
            pcie_root=root,
        )
        for bus, root in (("3b", "pci0000:3a"), ("5e", "pci0000:5d"))
        for i in range(2)
    ]
    assert choose(policy, vfs, [vf.pci for vf in vfs], [], 2).reason == ROWS[f"`{policy}`"]
