"""What a container is given with a VF, on a /dev and a /sys in folders."""

import os
from pathlib import Path

import pytest

from device_plugin.allocation import Allocation
from device_plugin.allocator import Resource
from device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from device_plugin.selectors import Selector
from tests.allocation_world import PF, PREFIX, AllocationWorld, address, info, make_pool, make_vf, mapped
from vf_manager.errors import InvalidInput, KernelError, NotFound, Refused, SriovError
from vf_manager.model import IfName, PciAddress

POOL = make_pool()
RDMA = make_pool(select=Selector(is_rdma=True))
VFIO_NODES = ("/dev/vfio/vfio", "/dev/vfio/42")


@pytest.fixture
def world(tmp_path: Path) -> AllocationWorld:
    return AllocationWorld(tmp_path)


# -- environment


def test_a_kernel_vf_is_named_and_has_no_nodes(world: AllocationWorld) -> None:
    answer = world.allocate(POOL, [make_vf(0), make_vf(1)])
    assert answer.envs["PCIDEVICE_EXAMPLE_COM_FAST"] == f"{address(0)},{address(1)}"
    assert info(answer) == {vf: {"generic": {"deviceID": vf}} for vf in (address(0), address(1))}
    assert not answer.devices
    assert not answer.cdi_devices
    assert not answer.mounts
    assert not answer.annotations


def test_what_is_said_of_a_vf_goes_before_what_is_said_of_all(world: AllocationWorld) -> None:
    pool = make_pool(additional_info={"*": {"zone": "a", "token": "1"}, address(1): {"token": "2"}})
    found = info(world.allocate(pool, [make_vf(0), make_vf(1)]))
    assert found[address(0)]["extra"] == {"zone": "a", "token": "1"}
    assert found[address(1)]["extra"] == {"zone": "a", "token": "2"}


def test_each_container_of_a_request_gets_its_own(world: AllocationWorld) -> None:
    request = pb.AllocateRequest()
    for index in (1, 0):
        request.container_requests.add(device_ids=[address(index)])
    answer = world.allocator.allocate(Resource(POOL, PREFIX), [make_vf(0), make_vf(1)], request)
    assert [one.envs["PCIDEVICE_EXAMPLE_COM_FAST"] for one in answer.container_responses] == [
        address(1),
        address(0),
    ]


def test_requests_are_counted_by_how_they_ended(world: AllocationWorld) -> None:
    for _ in range(2):
        world.allocate(POOL, [make_vf(0)])
    with pytest.raises(NotFound):
        world.allocate(POOL, [make_vf(0)], address(5))
    assert world.allocator.counts() == {("example.com/fast", True): 2, ("example.com/fast", False): 1}


@pytest.mark.parametrize(
    ("device", "error"), [(address(5), NotFound), ("nonsense", InvalidInput), ("", InvalidInput)]
)
def test_ids_that_are_not_of_the_pool(world: AllocationWorld, device: str, error: type[SriovError]) -> None:
    with pytest.raises(error, match=r"example\.com/fast"):
        world.allocate(POOL, [make_vf(0)], address(0), device)
    assert world.device_info(address(0)) is None


# -- vfio


def test_a_vfio_vf_comes_with_its_group(world: AllocationWorld) -> None:
    world.add_nodes(*VFIO_NODES)
    answer = world.allocate(POOL, [make_vf(driver="vfio-pci", iommu_group=42)])
    assert mapped(answer) == {node: node for node in VFIO_NODES}
    assert info(answer)[address(0)]["vfio"] == {"mount": "/dev/vfio/vfio", "dev-mount": "/dev/vfio/42"}


def test_without_an_iommu_the_group_has_another_name_on_the_host(world: AllocationWorld) -> None:
    world.add_nodes("/dev/vfio/vfio", "/dev/vfio/noiommu-42")
    answer = world.allocate(POOL, [make_vf(driver="vfio-pci", iommu_group=42)])
    assert mapped(answer)["/dev/vfio/42"] == "/dev/vfio/noiommu-42"
    assert info(answer)[address(0)]["vfio"]["dev-mount"] == "/dev/vfio/42"


def test_the_nodes_of_iommufd_come_along_if_both_are_there(world: AllocationWorld) -> None:
    vf = make_vf(driver="vfio-pci", iommu_group=42, vfio_device="vfio3")
    world.add_nodes(*VFIO_NODES, "/dev/vfio/devices/vfio3")
    assert set(mapped(world.allocate(POOL, [vf]))) == {*VFIO_NODES}
    world.add_nodes("/dev/iommu")
    answer = world.allocate(POOL, [vf])
    assert set(mapped(answer)) == {*VFIO_NODES, "/dev/vfio/devices/vfio3", "/dev/iommu"}
    assert info(answer)[address(0)]["vfio"]["cdev-mount"] == "/dev/vfio/devices/vfio3"
    assert info(answer)[address(0)]["vfio"]["iommu-mount"] == "/dev/iommu"


def test_a_kernel_may_have_the_nodes_of_iommufd_alone(world: AllocationWorld) -> None:
    world.add_nodes("/dev/vfio/devices/vfio3", "/dev/iommu")
    answer = world.allocate(POOL, [make_vf(driver="vfio-pci", iommu_group=42, vfio_device="vfio3")])
    assert set(mapped(answer)) == {"/dev/vfio/devices/vfio3", "/dev/iommu"}


def test_a_variant_driver_has_a_vfio_device(world: AllocationWorld) -> None:
    world.add_nodes(*VFIO_NODES)
    answer = world.allocate(POOL, [make_vf(driver="mlx5-vfio-pci", iommu_group=42, vfio_device="vfio0")])
    assert set(mapped(answer)) == {*VFIO_NODES}


# -- uio, vhost


@pytest.mark.parametrize("driver", ["uio_pci_generic", "igb_uio"])
def test_a_uio_vf_comes_with_its_node(world: AllocationWorld, driver: str) -> None:
    world.add_nodes("/dev/uio2")
    answer = world.allocate(POOL, [make_vf(driver=driver, uio_device="uio2")])
    assert mapped(answer) == {"/dev/uio2": "/dev/uio2"}
    assert info(answer)[address(0)]["uio"] == {"mount": "/dev/uio2"}


def test_vhost_net_comes_with_each_vf_that_is_to_have_it(world: AllocationWorld) -> None:
    world.add_nodes("/dev/vhost-net", "/dev/net/tun")
    answer = world.allocate(make_pool(vhost_net=True), [make_vf(0), make_vf(1)])
    assert set(mapped(answer)) == {"/dev/vhost-net", "/dev/net/tun"}
    assert len(answer.devices) == 2
    assert info(answer)[address(1)]["vhost"] == {"net-mount": "/dev/vhost-net", "tun-mount": "/dev/net/tun"}


# -- RDMA


def test_an_rdma_vf_comes_with_its_nodes(world: AllocationWorld) -> None:
    world.add_rdma("mlx5_2", 3)
    world.add_rdma("mlx5_9", 7)
    world.add_rdma_cm()
    names = ("uverbs3", "umad3", "issm3", "rdma_cm")
    world.add_nodes(*(f"/dev/infiniband/{name}" for name in names))
    answer = world.allocate(RDMA, [make_vf(driver="mlx5_core", rdma_devices=("mlx5_2",))])
    assert set(mapped(answer)) == {f"/dev/infiniband/{name}" for name in names}
    assert info(answer)[address(0)]["rdma"] == {
        "uverbs": "/dev/infiniband/uverbs3",
        "umad": "/dev/infiniband/umad3",
        "issm": "/dev/infiniband/issm3",
        "rdma_cm": "/dev/infiniband/rdma_cm",
        "rdma_dev": "mlx5_2",
    }


def test_two_rdma_devices_of_one_vf(world: AllocationWorld) -> None:
    world.add_rdma("a", 0, parent="both")
    world.add_rdma("b", 1, parent="both")
    world.add_nodes(*(f"/dev/infiniband/{kind}{i}" for kind in ("uverbs", "umad", "issm") for i in (0, 1)))
    found = info(world.allocate(RDMA, [make_vf(rdma_devices=("a", "b"))]))[address(0)]["rdma"]
    assert found["uverbs"] == "/dev/infiniband/uverbs0,/dev/infiniband/uverbs1"
    assert found["rdma_dev"] == "a,b"


def test_without_is_rdma_a_pool_has_no_rdma_nodes(world: AllocationWorld) -> None:
    world.add_rdma("mlx5_2", 3)
    answer = world.allocate(POOL, [make_vf(rdma_devices=("mlx5_2",))])
    assert not answer.devices
    assert "rdma" not in info(answer)[address(0)]


# -- a node that is missing


def missing(world: AllocationWorld, node: str) -> str:
    """Why there is no allocation of a VF that has everything but this."""
    world.add_rdma("mlx5_2", 3)
    world.add_rdma_cm()
    vf = make_vf(
        driver="vfio-pci", iommu_group=42, vfio_device="vfio3", uio_device="uio2", rdma_devices=("mlx5_2",)
    )
    pool = make_pool(select=Selector(is_rdma=True), vhost_net=True)
    nodes = {
        *(*VFIO_NODES, "/dev/uio2", "/dev/vhost-net", "/dev/net/tun"),
        *(f"/dev/infiniband/{name}" for name in ("uverbs3", "umad3", "issm3", "rdma_cm")),
    }
    assert node in nodes
    world.add_nodes(*nodes)
    world.allocate(pool, [vf])
    world.remove_node(node)
    with pytest.raises(Refused) as caught:
        world.allocate(pool, [vf])
    return str(caught.value)


@pytest.mark.parametrize(
    ("node", "cure"),
    [
        ("/dev/vfio/vfio", "load the module vfio-pci"),
        ("/dev/vfio/42", "load the module vfio-pci"),
        ("/dev/uio2", "see that /dev of the host"),
        ("/dev/vhost-net", "load the modules vhost_net and tun"),
        ("/dev/net/tun", "load the modules vhost_net and tun"),
        ("/dev/infiniband/uverbs3", "load the modules ib_uverbs"),
        ("/dev/infiniband/umad3", "load the modules ib_uverbs"),
        ("/dev/infiniband/issm3", "load the modules ib_uverbs"),
        ("/dev/infiniband/rdma_cm", "load the modules ib_uverbs"),
    ],
)
def test_a_missing_node_fails_the_allocation(world: AllocationWorld, node: str, cure: str) -> None:
    message = missing(world, node)
    assert message.startswith(f"allocate VF {address(0)} (bound to vfio-pci): {node} is not there")
    assert cure in message


def test_a_uio_driver_without_a_uio_device(world: AllocationWorld) -> None:
    with pytest.raises(Refused, match=r"\(bound to igb_uio\): its node /dev/uioN is not there"):
        world.allocate(POOL, [make_vf(driver="igb_uio")])


def test_an_rdma_device_of_which_the_kernel_has_no_verbs(world: AllocationWorld) -> None:
    with pytest.raises(Refused, match="/dev/infiniband/uverbsN of mlx5_2 is not there"):
        world.allocate(RDMA, [make_vf(rdma_devices=("mlx5_2",))])


def test_vfio_without_a_group(world: AllocationWorld) -> None:
    world.add_nodes("/dev/vfio/vfio")
    with pytest.raises(Refused, match=r"no IOMMU group.*intel_iommu=on"):
        world.allocate(POOL, [make_vf(driver="vfio-pci")])


def test_nothing_is_done_for_the_others_then(world: AllocationWorld) -> None:
    world.add_nodes(*VFIO_NODES)
    pool = make_pool(allocation=Allocation(reset_vfio=True))
    vfs = [make_vf(i, driver="vfio-pci", iommu_group=42 + i) for i in (0, 1)]
    with pytest.raises(Refused, match="/dev/vfio/43"):
        world.allocate(pool, vfs)
    assert (world.reset, world.device_info(address(0))) == ([], None)


# -- reset before use


RESET = make_pool(allocation=Allocation(reset_vfio=True))


def test_a_vfio_vf_is_reset_before_each_use_and_no_other(world: AllocationWorld) -> None:
    world.add_nodes(*VFIO_NODES)
    vfs = [make_vf(0, driver="vfio-pci", iommu_group=42), make_vf(1)]
    world.allocate(RESET, vfs)
    world.allocate(RESET, vfs)
    assert world.reset == [address(0), address(0)]
    world.allocate(POOL, vfs)
    assert len(world.reset) == 2


def test_a_vf_in_a_pod_is_never_reset(world: AllocationWorld) -> None:
    world.add_nodes("/dev/vfio/vfio", "/dev/vfio/1")
    world.attached = {address(1)}
    vfs = [make_vf(i, driver="vfio-pci", iommu_group=1) for i in (0, 1)]
    with pytest.raises(Refused, match=f"allocate VF {address(1)}: .* a pod has it still"):
        world.allocate(RESET, vfs)
    assert world.reset == []


def test_a_reset_that_fails_fails_the_allocation(world: AllocationWorld) -> None:
    def refuse(pci: PciAddress) -> None:
        raise KernelError(f"write '1' to reset of {pci}", 25)

    world.add_nodes(*VFIO_NODES)
    world.on_reset = refuse
    with pytest.raises(Refused, match=r"no reset before use .*: write '1' to reset of .*: ENOTTY"):
        world.allocate(RESET, [make_vf(driver="vfio-pci", iommu_group=42)])
    assert world.device_info(address(0)) is None


# -- device information


def test_an_allocation_leaves_device_information(world: AllocationWorld) -> None:
    vf = make_vf(rdma_devices=("mlx5_2",), representor=IfName("ens1f0npf0vf0"))
    world.add_nodes("/dev/vhost-net", "/dev/net/tun")
    world.allocate(make_pool(vhost_net=True), [vf, make_vf(1)], address(0))
    assert world.device_info(address(0)) == {
        "type": "pci",
        "version": "1.1.0",
        "pci": {
            "pci-address": address(0),
            "vhost-net": "/dev/vhost-net",
            "rdma-device": "mlx5_2",
            "pf-pci-address": PF,
            "representor-device": "ens1f0npf0vf0",
        },
    }
    assert world.device_info(address(1)) is None
    [path] = world.device_info_dir.iterdir()
    assert path.name == f"example.com-fast-{address(0)}-device.json"
    assert path.stat().st_mode & 0o777 == 0o444


def test_what_is_not_known_is_left_out(world: AllocationWorld) -> None:
    old_mask = os.umask(0o077)
    try:
        world.allocate(POOL, [make_vf()])
    finally:
        os.umask(old_mask)
    assert world.device_info(address(0)) == {
        "type": "pci",
        "version": "1.1.0",
        "pci": {"pci-address": address(0), "pf-pci-address": PF},
    }
    assert {path.stat().st_mode & 0o777 for path in world.device_info_dir.iterdir()} == {0o444}


def test_device_information_is_written_over(world: AllocationWorld) -> None:
    world.allocate(POOL, [make_vf()])
    world.allocate(POOL, [make_vf(rdma_devices=("mlx5_2",))])
    found = world.device_info(address(0))
    assert found is not None
    assert found["pci"]["rdma-device"] == "mlx5_2"


def test_it_outlives_a_restart_and_ends_with_the_device(world: AllocationWorld) -> None:
    vfs = [make_vf(i) for i in range(4)]
    world.allocate(POOL, vfs)
    world.allocator = world.new_allocator()
    world.publish(POOL, vfs)
    world.tidy((POOL, vfs))
    assert all(world.device_info(vf.pci) for vf in vfs)
    world.given = {address(3)}
    world.tidy((POOL, vfs[:2]))
    assert [world.device_info(vf.pci) is not None for vf in vfs] == [True, True, False, True]


def test_it_ends_with_the_pool(world: AllocationWorld) -> None:
    world.publish(POOL, [make_vf()])
    world.allocate(POOL, [make_vf()])
    world.tidy()
    assert world.device_info(address(0)) is None


def test_the_files_of_others_stay(world: AllocationWorld) -> None:
    """A pool's name may be the beginning of another's, and that one another plugin's."""
    world.allocate(make_pool("fast-2"), [make_vf()])
    (world.device_info_dir / "nvidia.com-gpu-0-device.json").write_text("{}")
    (world.device_info_dir / f"example.com-fast-{address(0)}-device.json.bak").write_text("{}")
    world.publish(POOL, [])
    world.tidy((POOL, []))
    assert len(list(world.device_info_dir.iterdir())) == 3


def test_while_the_kubelet_does_not_tell_nothing_is_removed(world: AllocationWorld) -> None:
    def silent() -> set[str]:
        raise SriovError("the kubelet is away")

    world.allocate(POOL, [make_vf()])
    world.on_given = silent
    world.tidy((POOL, []))
    assert world.device_info(address(0)) is not None
    assert [entry["reason"] for entry in world.logged.entries] == ["the kubelet is away"]


def test_the_kubelet_is_not_asked_if_nothing_hangs_on_it(world: AllocationWorld) -> None:
    def unexpected() -> set[str]:
        raise AssertionError

    world.on_given = unexpected
    world.allocate(POOL, [make_vf()])
    world.tidy((POOL, [make_vf()]))


def test_a_folder_that_cannot_be_made(world: AllocationWorld) -> None:
    world.device_info_dir.parent.touch()
    with pytest.raises(KernelError, match=r"write .*-device.json: E(EXIST|NOTDIR)"):
        world.allocate(POOL, [make_vf()])
