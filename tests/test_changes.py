"""What people read of the difference between two inventories."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from vf_manager.changes import Change, describe_changes, render_indexes
from vf_manager.model import IfName, Inventory, Mac, Netdev, PciAddress, Pf, Vf

PF0, PF1, LONE = PciAddress("0000:3b:00.0"), PciAddress("0000:5e:00.0"), PciAddress("0000:81:00.0")


def netdev(name: str, **fields: Any) -> Netdev:
    return Netdev(ifindex=2, name=IfName(name), mac=Mac("02:00:00:00:00:01"), mtu=1500, **fields)


def vf(index: int, **fields: Any) -> Vf:
    address = PciAddress(f"0000:3b:{2 + index // 8:02x}.{index % 8}")
    known: dict[str, Any] = {"driver": "iavf", "netdev": netdev(f"ens1f0v{index}")}
    return Vf(pci=address, pf_pci=PF0, index=index, vendor="8086", device="154c", **known | fields)


def pf(count: int = 0, **fields: Any) -> Pf:
    known: dict[str, Any] = {"driver": "i40e", "netdev": netdev("ens1f0"), "num_vfs": count}
    vfs = tuple(vf(index) for index in range(count))
    return Pf(pci=PF0, vendor="8086", device="1572", total_vfs=256, **{"vfs": vfs} | known | fields)


def said(old: Pf | None, new: Pf | None) -> list[str]:
    """Of one PF."""
    changes = describe_changes(*(Inventory(pfs=(one,) if one else ()) for one in (old, new)))
    return [f"{change.device}: {change.what}" for change in changes]


def test_nothing() -> None:
    assert said(pf(7), pf(7)) == []
    assert describe_changes(Inventory(generation=1), Inventory(generation=2)) == []


def test_a_pf_comes_and_goes_with_its_vfs() -> None:
    assert said(None, pf(7)) == [f"PF ens1f0 ({PF0}): appeared, driver i40e, 7 VFs"]
    assert said(None, pf(driver=None, netdev=None)) == [f"PF {PF0}: appeared, driver none, 0 VFs"]
    assert said(pf(7), None) == [f"PF ens1f0 ({PF0}): is gone, with its 7 VFs"]
    assert said(pf(), None) == [f"PF ens1f0 ({PF0}): is gone"]


def test_256_vfs_are_one_line() -> None:
    assert said(pf(), pf(256)) == [f"PF ens1f0 ({PF0}): number of VFs 0 -> 256"]
    assert said(pf(256), pf()) == [f"PF ens1f0 ({PF0}): number of VFs 256 -> 0"]


def test_vfs_that_the_pf_lists_late_are_told_by_their_indexes() -> None:
    few = pf(7, vfs=(vf(0), vf(4)))
    assert said(few, pf(7)) == [f"VFs 1-3,5-6 of ens1f0 ({PF0}): appeared"]
    assert said(pf(7), few) == [f"VFs 1-3,5-6 of ens1f0 ({PF0}): gone"]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"driver": "vfio-pci"}, "driver iavf -> vfio-pci"),
        ({"driver": None}, "driver iavf -> none"),
        ({"netdev": None}, "interface left: ens1f0v3"),
        ({"netdev": netdev("net1")}, "interface renamed: ens1f0v3 -> net1"),
        ({"netdev": netdev("ens1f0v3", up=True)}, "link up"),
        ({"netdev": netdev("ens1f0v3", carrier=True)}, "carrier on"),
        ({"unusable": "the host needs it"}, "not for pods any more: the host needs it"),
        ({"representor": IfName("ens1f0_3")}, "representor: none -> ens1f0_3"),
    ],
)
def test_one_vf(fields: dict[str, Any], what: str) -> None:
    changed = pf(7, vfs=tuple(vf(i, **fields) if i == 3 else vf(i) for i in range(7)))
    assert said(pf(7), changed) == [f"VF 3 of ens1f0 ({PF0}): {what}"]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"netdev": netdev("ens1f0", up=True, carrier=True)}, ["link up", "carrier on"]),
        ({"netdev": replace(netdev("ens1f0"), mtu=9000)}, ["mtu 1500 -> 9000"]),
        ({"driver": None, "netdev": None}, ["driver i40e -> none", "interface left: ens1f0"]),
        ({"eswitch_mode": "switchdev"}, ["eswitch mode none -> switchdev"]),
        ({"sick_reporters": ("fw", "tx")}, ["devlink reports errors of fw, tx"]),
    ],
)
def test_one_pf(fields: dict[str, Any], what: list[str]) -> None:
    label = pf(**fields).label
    assert said(pf(), pf(**fields)) == [f"PF {label}: {text}" for text in what]


def test_vfs_that_change_alike_are_one_line_with_an_example() -> None:
    bare = pf(256, vfs=tuple(vf(i, driver=None, netdev=None) for i in range(256)))
    kernel_names = pf(256, vfs=tuple(vf(i, netdev=netdev(f"eth{i}")) for i in range(256)))
    label = f"VFs 0-255 of ens1f0 ({PF0})"
    assert said(bare, pf(256)) == [
        f"{label}: driver none -> iavf",
        f"{label}: interface appeared: ens1f0v0, and 255 more",
    ]
    assert said(kernel_names, pf(256)) == [f"{label}: interface renamed: eth0 -> ens1f0v0, and 255 more"]


def test_devices_come_in_the_order_of_their_addresses() -> None:
    other = Pf(pci=PF1, vendor="15b3", device="1015", driver="mlx5_core")
    lone = Vf(pci=LONE, vendor="8086", device="1889", driver="iavf", netdev=netdev("ens5"))
    assert describe_changes(Inventory(pfs=(pf(),)), Inventory(pfs=(other,), lone=(lone,))) == [
        Change(f"PF ens1f0 ({PF0})", "is gone"),
        Change(f"PF {PF1}", "appeared, driver mlx5_core, 0 VFs"),
        Change(f"NIC {LONE}", "appeared"),
    ]
    down = replace(lone, netdev=None)
    assert describe_changes(Inventory(lone=(lone,)), Inventory(lone=(down,))) == [
        Change(f"NIC {LONE}", "interface left: ens5")
    ]


def test_what_is_no_news() -> None:
    """What the CNI plugin does to a VF is in its own log."""
    other_mac = replace(netdev("ens1f0v0"), mac=Mac("02:00:00:00:00:02"))
    assert said(pf(1), pf(1, vfs=(vf(0, netdev=other_mac),))) == []


@given(st.sets(st.integers(0, 300)))
def test_indexes_are_rendered_as_a_selector_takes_them(indexes: set[int]) -> None:
    ranges = [part.split("-") for part in render_indexes(sorted(indexes)).split(",") if part]
    assert {i for r in ranges for i in range(int(r[0]), int(r[-1]) + 1)} == indexes
