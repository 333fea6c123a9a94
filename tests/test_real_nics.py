"""The inventory of nodes with the NICs that people have."""

from pathlib import Path

import pytest

from tests.real_nics import BCM57414, CONNECTX6_DX, CONNECTX6_IB, E810, X710, Nic, NicWorld, vf_pci
from tests.sysfs_tree import link, write
from vf_manager.discovery import read_vf
from vf_manager.kernel.api import LinkChange, RouteSpec
from vf_manager.model import PciAddress, Pf, Vf


@pytest.fixture
def world(tmp_path: Path) -> NicWorld:
    return NicWorld(tmp_path)


def only_pf(world: NicWorld) -> Pf:
    (pf,) = world.inventory().pfs
    return pf


def add_nic(
    world: NicWorld, nic: Nic, pf: str, name: str, count: int, root: str = "pci0000:3a"
) -> PciAddress:
    """VFs named as udev names them."""
    address = world.add_pf(nic, pf, name, root=root)
    for index in range(count):
        world.add_vf(nic, address, index, vf_pci(pf, index), f"{name}v{index}")
    return address


def ids(function: Pf | Vf) -> tuple[str, str, str | None]:
    return function.vendor, function.device, function.driver


# -- Intel


def test_an_x710(world: NicWorld) -> None:
    add_nic(world, X710, "0000:3b:00.0", "ens1f0", 4)
    world.tree.set("0000:3b:00.0", acpi_index="3", numa_node="1")
    pf = only_pf(world)
    assert ids(pf) == ("8086", "1572", "i40e")
    assert (pf.acpi_index, pf.numa_node, pf.pcie_root, pf.link_type) == (3, 1, "pci0000:3a", "ether")
    assert (pf.num_vfs, pf.total_vfs, pf.eswitch_mode, pf.rdma_devices) == (4, 64, None, ())
    assert [ids(vf) for vf in pf.vfs] == [("8086", "154c", "iavf")] * 4
    assert [(vf.pci, vf.netdev and vf.netdev.name) for vf in pf.vfs] == [
        ("0000:3b:02.0", "ens1f0v0"),
        ("0000:3b:02.1", "ens1f0v1"),
        ("0000:3b:02.2", "ens1f0v2"),
        ("0000:3b:02.3", "ens1f0v3"),
    ]
    assert {(vf.pcie_root, vf.link_type, vf.acpi_index, vf.pkey) for vf in pf.vfs} == {
        ("pci0000:3a", "ether", None, None)
    }
    assert all(vf.attributes is not None and vf.attributes.trust is False for vf in pf.vfs)


def test_an_e810_with_irdma(world: NicWorld) -> None:
    pci = add_nic(world, E810, "0000:4b:00.0", "ens2f0", 2, root="pci0000:4a")
    vf0, vf1 = (vf_pci(pci, index) for index in range(2))
    world.tree.add_rdma(pci, "rocep75s0f0")
    world.tree.add_rdma(vf0, "rocep75s0f0v0")
    world.modes[pci] = "legacy"
    pf = only_pf(world)
    assert (pf.eswitch_mode, pf.rdma_devices) == ("legacy", ("rocep75s0f0",))
    assert [(vf.pci, vf.rdma_devices) for vf in pf.vfs] == [(vf0, ("rocep75s0f0v0",)), (vf1, ())]
    assert pf.vfs[0].pkey is None, "RoCE has no partitions"


# -- Mellanox


def test_a_connectx_in_legacy_mode(world: NicWorld) -> None:
    """PF and VF have one driver, and each a devlink handle."""
    pci = add_nic(world, CONNECTX6_DX, "0000:86:00.0", "ens3f0np0", 3, root="pci0000:85")
    world.modes[pci] = "legacy"
    world.memory.sick = {pci: ("fw_fatal",), PciAddress(vf_pci(pci, 0)): ("tx",)}
    for index in range(3):
        world.tree.add_rdma(vf_pci(pci, index), f"mlx5_{index + 2}")
    pf = only_pf(world)
    assert [ids(vf) for vf in pf.vfs] == [("15b3", "101e", "mlx5_core")] * 3
    assert [vf.rdma_devices for vf in pf.vfs] == [("mlx5_2",), ("mlx5_3",), ("mlx5_4",)]
    assert [vf.representor for vf in pf.vfs] == [None] * 3
    assert (pf.eswitch_mode, pf.sick_reporters) == ("legacy", ("fw_fatal",))


def switchdev(world: NicWorld) -> PciAddress:
    """The representors are listed around the uplink, of which only the name of its port tells."""
    pci = world.add_pf(CONNECTX6_DX, "0000:86:00.0", "ens3f0np0", root="pci0000:85")
    uplink = world.memory.find("ens3f0np0")
    assert uplink is not None
    world.memory.namespaces[1].remove(uplink)
    for index in range(3):
        world.add_vf(CONNECTX6_DX, pci, index, vf_pci(pci, index, 2), f"ens3f0v{index}")
        world.add_representor(pci, f"ens3f0np0_{index}" if index else "a_rep", f"pf0vf{index}")
    uplink.phys_port_name = "p0"
    world.memory.namespaces[1].append(uplink)
    world.add_representor(pci, "pf0hpf", "c1pf0")
    world.add_representor(pci, "host_vf0", "c1pf0vf0")
    world.add_representor(pci, "en3f0pf0sf88", "pf0sf88")
    world.modes[pci] = "switchdev"
    return pci


@pytest.mark.parametrize("tells_parent", [True, False])
def test_a_connectx_in_switchdev_mode(world: NicWorld, tells_parent: bool) -> None:
    """On kernels before 5.14 the names in sysfs tell whose an interface is."""
    switchdev(world)
    world.memory.tells_parent = tells_parent
    pf = only_pf(world)
    assert pf.netdev is not None
    assert (pf.eswitch_mode, pf.netdev.name) == ("switchdev", "ens3f0np0")
    assert [(vf.representor, vf.netdev and vf.netdev.name) for vf in pf.vfs] == [
        ("a_rep", "ens3f0v0"),
        ("ens3f0np0_1", "ens3f0v1"),
        ("ens3f0np0_2", "ens3f0v2"),
    ]
    assert all(vf.attributes is not None for vf in pf.vfs)


def test_a_representor_in_another_namespace_is_none(world: NicWorld) -> None:
    switchdev(world)
    gone = world.memory.find("ens3f0np0_1")
    assert gone is not None
    world.memory.namespaces[1].remove(gone)
    assert [vf.representor for vf in only_pf(world).vfs] == ["a_rep", None, "ens3f0np0_2"]


# -- Broadcom


def test_a_bcm57414(world: NicWorld) -> None:
    pci = add_nic(world, BCM57414, "0000:d8:00.0", "ens4f0np0", 2, root="pci0000:d7")
    world.tree.add_rdma(pci, "bnxt_re0")
    pf = only_pf(world)
    assert ids(pf) == ("14e4", "16d7", "bnxt_en")
    assert [ids(vf) for vf in pf.vfs] == [("14e4", "16dc", "bnxt_en")] * 2
    assert (pf.rdma_devices, pf.vfs[0].rdma_devices) == (("bnxt_re0",), ())


# -- InfiniBand


def test_infiniband(world: NicWorld) -> None:
    """One VF has its interface, of one it is in a pod, one is vfio-pci's."""
    pci = world.add_pf(CONNECTX6_IB, "0000:5e:00.0", "ibs3", root="pci0000:5d")
    vfs = [vf_pci(pci, index, 1) for index in range(3)]
    world.add_vf(CONNECTX6_IB, pci, 0, vfs[0], "ibs3v0")
    world.add_vf(CONNECTX6_IB, pci, 1, vfs[1], None)
    world.add_vf(CONNECTX6_IB, pci, 2, vfs[2], None, driver="vfio-pci")
    for index, pkey in ((0, "0xffff"), (1, "0x8001")):
        world.tree.add_rdma(vfs[index], f"mlx5_{index + 1}", "InfiniBand", pkey)
    pf = only_pf(world)
    assert pf.link_type == "infiniband"
    assert [(vf.link_type, vf.pkey, vf.rdma_devices) for vf in pf.vfs] == [
        ("infiniband", "0xffff", ("mlx5_1",)),
        ("infiniband", "0x8001", ("mlx5_2",)),
        ("infiniband", None, ()),
    ]


def test_the_type_of_a_link_that_its_class_does_not_tell(world: NicWorld) -> None:
    """ConnectX-3 is a "network controller" (0280) whatever its ports do."""
    nic = Nic("15b3", "1003", "1004", "mlx4_core", "mlx4_core", "0x028000", "infiniband")
    pci = world.add_pf(nic, "0000:05:00.0", "ib0")
    world.add_vf(nic, pci, 0, vf_pci(pci, 0, 1), None, driver="vfio-pci")
    world.add_pf(nic, "0000:06:00.0", None)
    known, unknown = world.inventory().pfs
    assert [vf.link_type for vf in known.vfs] == ["infiniband"]
    assert unknown.link_type is None


# -- what the host needs


def test_a_bond_over_two_pfs_with_the_default_route(world: NicWorld) -> None:
    """The usual set-up of a node: its own address is on the PFs, and their VFs are for pods."""
    for number in range(2):
        add_nic(world, X710, f"0000:3b:00.{number}", f"ens1f{number}", 0)
        world.add_vf(
            X710, PciAddress(f"0000:3b:00.{number}"), 0, f"0000:3b:0{2 + number}.0", f"ens1f{number}v0"
        )
    world.tree.add_upper("bond0", "ens1f0", "ens1f1")
    route_by(world, world.memory.add_link("bond0").netdev.name)
    assert [vf.unusable for vf in world.inventory().vfs()] == [None, None]


def test_a_vf_that_the_host_uses(world: NicWorld) -> None:
    """As an own NIC, or below a VLAN or a bond over VFs; the others are free."""
    add_nic(world, X710, "0000:3b:00.0", "ens1f0", 5)
    route_by(world, "ens1f0v1", dst="::/0")
    route_by(world, "ens1f0v4", dst="198.51.100.0/24")
    world.tree.add_upper("ens1f0v2.7", "ens1f0v2")
    world.tree.add_upper("bond0", "ens1f0v3")
    assert [vf.unusable for vf in only_pf(world).vfs] == [
        None,
        "the host's default route goes by its interface ens1f0v1",
        "ens1f0v2.7 of the host stands on its interface ens1f0v2",
        "bond0 of the host stands on its interface ens1f0v3",
        None,
    ]


def route_by(world: NicWorld, name: str, dst: str = "0.0.0.0/0") -> None:
    with world.links() as host:
        link = host.read(name=name)
        assert link is not None
        host.set_link(link.netdev.ifindex, LinkChange(up=True))
        host.add_route(link.netdev.ifindex, RouteSpec(dst=dst))


# -- many


@pytest.mark.parametrize("count", [1, 16, 256])
def test_a_look_asks_the_same_however_many_vfs_there_are(world: NicWorld, count: int) -> None:
    pci = world.add_pf(E810, "0000:4b:00.0", "ens2f0", total_vfs=256)
    for index in range(count):
        world.add_vf(E810, pci, index, vf_pci(pci, index), f"ens2f0v{index}")
    pf = only_pf(world)
    assert [vf.index for vf in pf.vfs] == list(range(count))
    assert len({vf.netdev.name for vf in pf.vfs if vf.netdev and vf.attributes}) == count
    assert world.asked == {"dump": 1, "default routes": 1, "read with VFs": 1}
    assert world.meter.sysfs_reads <= 16 + 12 * count


# -- what is missing


def test_a_pf_without_driver(world: NicWorld) -> None:
    world.add_pf(X710, "0000:3b:00.0", None, root="pci0000:3a")
    pf = only_pf(world)
    assert (pf.driver, pf.netdev, pf.vfs, pf.total_vfs) == (None, None, (), 64)
    assert (pf.link_type, pf.pcie_root) == ("ether", "pci0000:3a")


def test_vfs_without_an_interface(world: NicWorld) -> None:
    pci = world.add_pf(X710, "0000:3b:00.0", "ens1f0")
    drivers = ["vfio-pci", "uio_pci_generic", None, "iavf"]
    for index, driver in enumerate(drivers):
        world.add_vf(X710, pci, index, vf_pci(pci, index), None, driver)
    (world.tree.folder(vf_pci(pci, 0)) / "vfio-dev/vfio7").mkdir(parents=True)
    (world.tree.folder(vf_pci(pci, 1)) / "uio/uio2").mkdir(parents=True)
    vfs = only_pf(world).vfs
    assert [vf.driver for vf in vfs] == drivers
    assert [vf.netdev for vf in vfs] == [None] * 4
    assert [vf.link_type for vf in vfs] == ["ether"] * 4
    assert [vf.vfio_device for vf in vfs] == ["vfio7", None, None, None]
    assert [vf.uio_device for vf in vfs] == [None, "uio2", None, None]
    assert [vf.iommu_group for vf in vfs] == [20, 21, 22, 23]
    assert all(vf.attributes is not None for vf in vfs)


def test_a_host_bridge_below_a_platform_device(world: NicWorld) -> None:
    """As on Arm servers, and behind Intel's VMD, where there are two of them: the first counts."""
    world.add_pf(X710, "0000:01:00.0", "eth0", root="platform/40000000.pcie/pci0000:00")
    world.add_pf(X710, "10000:01:00.0", "eth1", root="pci0000:97/0000:97:00.5/pci10000:00")
    assert [pf.pcie_root for pf in world.inventory().pfs] == ["pci0000:00", "pci0000:97"]


FILES = [
    "device",
    "numa_node",
    "acpi_index",
    "driver",
    "iommu_group",
    "physfn",
    "net",
    "infiniband",
    "vfio-dev",
    "uio",
    "infiniband/mlx5_2/ports/1/link_layer",
    "infiniband/mlx5_2/ports/1/pkeys/0",
]


@pytest.mark.parametrize("failure", ["EIO", "ELOOP"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_costs_what_it_says_and_no_more(
    world: NicWorld, name: str, failure: str
) -> None:
    pci = add_nic(world, CONNECTX6_IB, "0000:5e:00.0", "ibs3", 2)
    victim, other = (vf_pci(pci, index) for index in range(2))
    folder = world.tree.folder(victim)
    world.tree.add_rdma(victim, "mlx5_2", "InfiniBand")
    world.tree.set(victim, acpi_index="5")
    for entry in ("vfio-dev/vfio7", "uio/uio2"):
        (folder / entry).mkdir(parents=True)
    before = only_pf(world).vfs
    assert (before[0].pkey, before[0].vfio_device, before[0].uio_device) == ("0xffff", "vfio7", "uio2")

    (folder / name).rename(world.tree.root / "taken-away")
    (folder / name).symlink_to("/proc/self/mem" if failure == "EIO" else folder / name)
    after = only_pf(world).vfs
    assert [vf.pci for vf in after] == [victim, other]
    assert after[1] == before[1]
    changed = {key for key in Vf.__struct_fields__ if getattr(after[0], key) != getattr(before[0], key)}
    assert changed <= {
        "device": {"device"},
        "numa_node": {"numa_node"},
        "acpi_index": {"acpi_index"},
        "driver": {"driver"},
        "iommu_group": {"iommu_group"},
        "infiniband": {"rdma_devices", "pkey"},
        "vfio-dev": {"vfio_device"},
        "uio": {"uio_device"},
        FILES[-2]: {"pkey"},
        FILES[-1]: {"pkey"},
    }.get(name, set())


@pytest.mark.parametrize("name", ["vendor", "class", "sriov_totalvfs", "sriov_numvfs", "virtfn0"])
def test_a_pf_whose_files_cannot_be_read(world: NicWorld, name: str) -> None:
    pci = add_nic(world, X710, "0000:3b:00.0", "ens1f0", 2)
    add_nic(world, BCM57414, "0000:d8:00.0", "ens4f0np0", 1)
    folder = world.tree.folder(pci)
    (folder / name).unlink()
    link(folder / name, Path("/proc/self/mem"))
    pfs = {pf.pci: pf for pf in world.inventory().pfs}
    assert [vf.index for vf in pfs[PciAddress("0000:d8:00.0")].vfs] == [0]
    if name in ("sriov_numvfs", "virtfn0"):
        assert 1 in [vf.index for vf in pfs[pci].vfs]
    else:
        assert pci not in pfs


def test_a_vf_is_read_alone_as_in_the_whole(world: NicWorld) -> None:
    pci = add_nic(world, CONNECTX6_IB, "0000:5e:00.0", "ibs3", 2)
    world.tree.add_rdma(vf_pci(pci, 1), "mlx5_2", "InfiniBand")
    write(world.tree.folder(vf_pci(pci, 1)) / "acpi_index", "4")
    with world.links() as host:
        assert read_vf(world, host, PciAddress(vf_pci(pci, 1))) == only_pf(world).vfs[1]
