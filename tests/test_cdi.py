"""CDI specs: what a container runtime would take, and when they are written and removed."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_plugin.allocation import Allocation
from device_plugin.cdi import cdi_kind, cdi_name, is_spec_file, make_devices, render_spec, spec_file_name
from device_plugin.nodes import Node
from device_plugin.pools import parse_pool_name, parse_prefix
from tests.allocation_world import AllocationWorld, address, make_pool, make_vf
from vf_manager.errors import InvalidInput, KernelError
from vf_manager.model import PciAddress, Vf

POOL = make_pool(allocation=Allocation(cdi=True))

# What the CDI library has of names and of a spec: pkg/parser, pkg/cdi, schema/schema.json, at version 0.5.0.
_VENDOR = re.compile(r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_CLASS = re.compile(r"[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")


def check_spec(spec: dict[str, Any]) -> None:
    """Keys, types and names as the schema and the library want them."""
    assert spec.keys() == {"cdiVersion", "kind", "devices"}
    assert spec["cdiVersion"] == "0.5.0"
    check_kind(spec["kind"])
    assert spec["devices"]
    for device in spec["devices"]:
        assert device.keys() == {"name", "containerEdits"}
        assert _DEVICE.fullmatch(device["name"])
        assert device["containerEdits"].keys() == {"deviceNodes"}
        assert device["containerEdits"]["deviceNodes"]
        for node in device["containerEdits"]["deviceNodes"]:
            assert {"path"} <= node.keys() <= {"path", "hostPath", "permissions"}
            assert all(isinstance(value, str) for value in node.values())
            assert node["path"].startswith("/dev/")
            assert set(node["permissions"]) <= set("rwm")
    names = [device["name"] for device in spec["devices"]]
    assert len(names) == len(set(names))


def check_kind(kind: str) -> None:
    vendor, _, class_name = kind.partition("/")
    assert _VENDOR.fullmatch(vendor)
    assert _CLASS.fullmatch(class_name)


@pytest.fixture
def world(tmp_path: Path) -> AllocationWorld:
    world = AllocationWorld(tmp_path)
    world.add_nodes("/dev/vfio/vfio", *(f"/dev/vfio/{group}" for group in range(40, 44)))
    return world


def vfio_vfs(*groups: int) -> list[Vf]:
    return [make_vf(i, driver="vfio-pci", iommu_group=group) for i, group in enumerate(groups)]


def group_nodes(spec: dict[str, Any] | None) -> dict[str, list[str]]:
    """By device, the paths in its container."""
    assert spec is not None
    check_spec(spec)
    return {
        device["name"]: [node["path"] for node in device["containerEdits"]["deviceNodes"]]
        for device in spec["devices"]
    }


# -- names and content


@pytest.mark.parametrize(
    ("pool", "kind"),
    [
        ("fast", "example.com/vf-fast"),
        ("40G", "example.com/vf-40G"),
        ("a.b-c_d", "example.com/vf-a_b-c_d"),
    ],
)
def test_the_kind_of_a_pool(pool: str, kind: str) -> None:
    assert cdi_kind(f"example.com/{pool}") == kind
    assert cdi_name(kind, address(1)) == f"{kind}=0000:3b:02.1"


def test_a_prefix_that_is_no_vendor() -> None:
    with pytest.raises(InvalidInput, match=r"resourcePrefix: '3com.com' .* begins with a letter"):
        cdi_kind("3com.com/fast")


_LETTERS = st.text("abzAZ019._-", min_size=1, max_size=12)


@given(_LETTERS, _LETTERS)
def test_every_pool_has_a_legal_kind_or_an_error(prefix: str, pool: str) -> None:
    try:
        parse_prefix(prefix)
        parse_pool_name(pool)
    except InvalidInput:
        return
    try:
        kind = cdi_kind(f"{prefix}/{pool}")
    except InvalidInput:
        assert prefix[0].isdigit()
        return
    check_kind(kind)
    name = spec_file_name(f"{prefix}/{pool}")
    assert is_spec_file(name)
    assert "/" not in name


def test_what_has_no_node_is_no_device() -> None:
    node = Node("/dev/uio0", "/dev/uio0")
    devices = make_devices({address(0): (), address(1): (node,)})
    assert [device.name for device in devices] == [address(1)]
    assert render_spec(cdi_kind("example.com/fast"), []) is None


# -- files


def test_a_spec_is_there_before_an_allocation_names_its_devices(world: AllocationWorld) -> None:
    vfs = vfio_vfs(40, 41)
    world.publish(POOL, vfs)
    assert group_nodes(world.spec()) == {
        address(0): ["/dev/vfio/40", "/dev/vfio/vfio"],
        address(1): ["/dev/vfio/41", "/dev/vfio/vfio"],
    }
    answer = world.allocate(POOL, vfs)
    assert [device.name for device in answer.cdi_devices] == [
        f"example.com/vf-fast={address(0)}",
        f"example.com/vf-fast={address(1)}",
    ]
    assert not answer.devices
    assert not answer.annotations
    [path] = world.cdi_dir.iterdir()
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_path_that_differs_on_the_host(world: AllocationWorld) -> None:
    world.remove_node("/dev/vfio/40")
    world.add_nodes("/dev/vfio/noiommu-40")
    world.publish(POOL, vfio_vfs(40))
    spec = world.spec()
    assert spec is not None
    check_spec(spec)
    assert spec["devices"][0]["containerEdits"]["deviceNodes"][0] == {
        "path": "/dev/vfio/40",
        "hostPath": "/dev/vfio/noiommu-40",
        "permissions": "rw",
    }


def test_the_name_of_a_device_stays_and_its_nodes_move(world: AllocationWorld) -> None:
    """As over a reboot: the kubelet keeps the answer of Allocate, the group number is another one."""
    name = world.allocate(POOL, vfio_vfs(40)).cdi_devices[0].name
    world.allocator = world.new_allocator()
    world.publish(POOL, vfio_vfs(43))
    assert group_nodes(world.spec()) == {address(0): ["/dev/vfio/43", "/dev/vfio/vfio"]}
    assert world.allocate(POOL, vfio_vfs(43)).cdi_devices[0].name == name


def test_a_spec_that_says_so_already_is_left_alone(world: AllocationWorld) -> None:
    world.publish(POOL, vfio_vfs(40))
    [path] = world.cdi_dir.iterdir()
    before = path.stat()
    world.allocate(POOL, vfio_vfs(40))
    assert path.stat() == before
    path.write_text("{")  # somebody's editor
    world.allocate(POOL, vfio_vfs(40))
    assert group_nodes(world.spec())


def test_a_kernel_vf_needs_no_cdi_device(world: AllocationWorld) -> None:
    answer = world.allocate(POOL, [make_vf()])
    assert not answer.cdi_devices
    assert world.spec() is None
    assert answer.envs["PCIDEVICE_EXAMPLE_COM_FAST"] == address(0)


def test_a_vf_whose_node_is_missing_is_not_in_the_spec(world: AllocationWorld) -> None:
    world.publish(POOL, vfio_vfs(40, 77))
    assert list(group_nodes(world.spec())) == [address(0)]


def test_a_pool_that_lost_its_vfs_has_no_spec(world: AllocationWorld) -> None:
    world.publish(POOL, vfio_vfs(40))
    world.publish(POOL, [])
    world.tidy((POOL, []))
    assert world.spec() is None


def test_a_spec_goes_with_its_pool_unless_a_pod_has_a_device_of_it(world: AllocationWorld) -> None:
    world.publish(POOL, vfio_vfs(40, 41))
    world.publish(make_pool("other", allocation=Allocation(cdi=True)), vfio_vfs(42))
    (world.cdi_dir / "nvidia.json").write_text("{}")
    world.allocator = world.new_allocator()  # the pool went while the agent was down
    world.given = {address(1)}
    world.tidy()
    assert world.spec() is not None
    world.given = set()
    world.tidy()
    assert [path.name for path in world.cdi_dir.iterdir()] == ["nvidia.json"]


def test_a_device_stays_in_the_spec_while_a_container_has_it(world: AllocationWorld) -> None:
    """It left the pool, but its container may start again."""
    world.publish(POOL, vfio_vfs(40, 41, 42))
    world.publish(POOL, vfio_vfs(40))
    assert list(group_nodes(world.spec())) == [address(0), address(1), address(2)]
    world.given = {address(2)}
    world.tidy((POOL, vfio_vfs(40)))
    assert list(group_nodes(world.spec())) == [address(0), address(2)]
    world.given = set()
    world.tidy((POOL, vfio_vfs(40)))
    assert list(group_nodes(world.spec())) == [address(0)]


def test_a_pool_that_gives_up_cdi(world: AllocationWorld) -> None:
    world.publish(POOL, vfio_vfs(40))
    world.tidy((make_pool(), vfio_vfs(40)))
    assert world.spec() is None


def test_a_spec_of_ours_that_cannot_be_read_goes_too(world: AllocationWorld) -> None:
    world.publish(POOL, vfio_vfs(40))
    [path] = world.cdi_dir.iterdir()
    path.write_text("{")
    world.tidy()
    assert not list(world.cdi_dir.iterdir())


def test_a_folder_that_cannot_be_made_is_said_and_fails_allocations(world: AllocationWorld) -> None:
    world.cdi_dir.touch()
    world.publish(POOL, vfio_vfs(40))
    assert [entry["event"] for entry in world.logged.entries] == ["no CDI spec"]
    with pytest.raises(KernelError, match=r"write .*cdi"):
        world.allocate(POOL, vfio_vfs(40))


def test_all_pci_addresses_are_legal_device_names() -> None:
    for pci in ("0000:00:00.0", "10000:ff:1f.7", "abcd:ef:01.1"):
        assert _DEVICE.fullmatch(PciAddress(pci))
