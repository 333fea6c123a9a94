"""Pools and selectors: which VF goes where, and what is refused before any VF is seen."""

import re
from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_plugin.pools import (
    Pool,
    assign,
    check_pools,
    env_name,
    held_back,
    parse_pool_name,
    parse_prefix,
    resource_name,
)
from device_plugin.selectors import PfRule, Selector, parse_pf_rule, parse_selector
from vf_manager.errors import InvalidInput
from vf_manager.model import IfName, Inventory, Mac, Netdev, PciAddress, Pf, Vf

PREFIX = "sriov-underlay.io"


def netdev(name: str, altnames: tuple[str, ...] = ()) -> Netdev:
    return Netdev(ifindex=1, name=IfName(name), mac=Mac("02:00:00:00:00:01"), mtu=1500, altnames=altnames)


def pf(bus: int, name: str, count: int, driver: str = "igbvf", altnames: tuple[str, ...] = ()) -> Pf:
    address = PciAddress(f"0000:{bus:02x}:00.0")
    vfs = tuple(
        Vf(
            pci=PciAddress(f"0000:{bus:02x}:{0x10 + i // 8:02x}.{i % 8}"),
            pf_pci=address,
            index=i,
            vendor="8086",
            device="10ca",
            driver=driver,
        )
        for i in range(count)
    )
    return Pf(
        pci=address, vendor="8086", device="10c9", netdev=netdev(name, altnames), num_vfs=count, vfs=vfs
    )


TWO_PFS = Inventory(pfs=(pf(1, "ens1f0", 7, altnames=("enp1s0f0np0",)), pf(2, "ens1f1", 7, "vfio-pci")))


def selected(inventory: Inventory = TWO_PFS, **select: Any) -> list[str]:
    """`bus:index` of each VF that a selector takes."""
    vfs = assign([Pool(name="p", select=Selector(**select))], inventory)["p"]
    return [f"{int(vf.pci[5:7], 16)}:{vf.index}" for vf in vfs]


# -- selectors -----------------------------------------------------------------------------------------


def test_an_empty_selector_takes_all() -> None:
    assert len(selected()) == 14


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (("ens1f0#0-2,5",), ["1:0", "1:1", "1:2", "1:5"]),
        (("ens1f0#6",), ["1:6"]),
        (("ens1f0#1", "ens1f0#4", "ens1f1#0"), ["1:1", "1:4", "2:0"]),  # every entry counts, not the first
        (("ENS1F0#1",), ["1:1"]),
        (("enp1s0f0np0#3",), ["1:3"]),
        (("ens1f0#7-100",), []),
        (("ens9",), []),
    ],
)
def test_pf_names(entries: tuple[str, ...], expected: list[str]) -> None:
    assert selected(pf_names=entries) == expected


def test_keys_are_joined_by_and() -> None:
    assert selected(pf_names=("ens1f0#1", "ens1f1#2"), drivers=("vfio-pci",)) == ["2:2"]
    assert selected(pf_names=("ens1f0",), drivers=("vfio-pci",)) == []


def test_ids_drivers_and_addresses_are_read_as_people_write_them() -> None:
    assert len(selected(vendors=("0x8086",), devices=("10CA",))) == 14
    assert selected(devices=("10c9",)) == []  # the PF's
    assert len(selected(drivers=("VFIO_pci",))) == 7
    assert selected(pci_addresses=("0000:02:10.3", "0000:01:10.0")) == ["1:0", "2:3"]


LONE = tuple(
    Vf(pci=PciAddress(pci), vendor="8086", device=device, driver="igbvf", unusable=unusable)
    for pci, device, unusable in (
        ("0000:09:00.0", "10ca", None),
        ("0000:08:00.0", "10ca", "br0 of the host stands on its interface ens8"),
        ("0000:07:00.0", "10ca", None),
        ("0000:06:00.0", "10d3", None),
    )
)
GUEST = Inventory(pfs=TWO_PFS.pfs[:1], lone=LONE)


def test_a_pool_takes_vfs_with_a_pf_or_without_one_never_both() -> None:
    select = Selector(devices=("10ca",))
    pools = [Pool(name="with", select=select), Pool(name="without", select=select, without_pf=True)]
    vfs = assign(pools, GUEST)
    assert [vf.pci for vf in vfs["with"]] == [vf.pci for vf in TWO_PFS.pfs[0].vfs]
    assert [vf.pci for vf in vfs["without"]] == ["0000:07:00.0", "0000:09:00.0"]


def test_what_a_pool_selects_and_does_not_get_is_told() -> None:
    pools = [Pool(name="p", select=Selector(vendors=("8086",)), without_pf=True)]
    (line,) = held_back(pools, GUEST)
    assert line == "pool p does not get 0000:08:00.0: br0 of the host stands on its interface ens8"
    assert held_back([Pool(name="p", select=Selector(vendors=("8086",)))], GUEST) == ()
    assert held_back([Pool(name="p", select=Selector(devices=("10d3",)), without_pf=True)], GUEST) == ()


@pytest.mark.parametrize(
    ("select", "said"),
    [
        (Selector(), "pools[0].select: {} is not valid; expected vendors, devices, drivers or pciAddresses"),
        (
            Selector(pf_names=("ens1f0",)),
            "pools[0].select.pfNames: ['ens1f0'] is not valid; expected vendors",
        ),
    ],
)
def test_a_pool_without_pf_says_which_nics_it_means(select: Selector, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_pools([Pool(name="p", select=select, without_pf=True)], PREFIX)
    assert str(caught.value).startswith(said)


def test_a_vf_without_driver_and_a_pf_without_interface() -> None:
    bare = msgspec.structs.replace(TWO_PFS.pfs[0], netdev=None)
    vfs = tuple(msgspec.structs.replace(vf, driver=None) for vf in bare.vfs)
    inventory = Inventory(pfs=(msgspec.structs.replace(bare, vfs=vfs),))
    assert selected(inventory, pf_names=("ens1f0",)) == []
    assert selected(inventory, drivers=("igbvf",)) == []
    assert len(selected(inventory, vendors=("8086",))) == 7


@pytest.mark.parametrize(
    ("key", "select"),
    [
        ("pfNames[0]", Selector(pf_names=("ens1f0#",))),
        ("pfNames[1]", Selector(pf_names=("ens1f0", "ens1f0#3-1"))),
        ("pfNames[0]", Selector(pf_names=("ens1f0#0-3,",))),
        ("pfNames[0]", Selector(pf_names=("ens1f0#0--3",))),
        ("pfNames[0]", Selector(pf_names=("ens1f0#-3",))),
        ("pfNames[0]", Selector(pf_names=("ens1f0#0, 1",))),
        ("pfNames[0]", Selector(pf_names=("ens1f0#٣",))),
        ("pfNames[0]", Selector(pf_names=("ens1f0#70000",))),
        ("pfNames[0]", Selector(pf_names=("#0-3",))),
        ("pfNames[0]", Selector(pf_names=("",))),
        ("pfNames[0]", Selector(pf_names=("ens1f0#1#2",))),
        ("pfNames[0]", Selector(pf_names=("x" * 128,))),
        ("pfNames", Selector(pf_names=())),
        ("vendors[0]", Selector(vendors=("intel",))),
        ("devices[0]", Selector(devices=("10c",))),
        ("drivers[0]", Selector(drivers=("../vfio-pci",))),
        ("pciAddresses[0]", Selector(pci_addresses=("3b:02.1",))),
    ],
)
def test_what_does_not_parse_is_named(key: str, select: Selector) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_selector(select, "pools[4].select")
    assert caught.value.key == f"pools[4].select.{key}"


def test_a_selector_in_a_config_is_strict() -> None:
    decoded = msgspec.json.decode(
        b'{"pfNames": ["ens1f0#0-3"], "pciAddresses": ["0000:3b:02.1"]}', type=Selector
    )
    assert decoded == Selector(pf_names=("ens1f0#0-3",), pci_addresses=("0000:3b:02.1",))
    with pytest.raises(msgspec.ValidationError, match="pfName"):
        msgspec.json.decode(b'{"pfName": ["ens1f0"]}', type=Selector)


# -- names ---------------------------------------------------------------------------------------------


def test_names_of_a_pool() -> None:
    assert resource_name(PREFIX, "fast") == "sriov-underlay.io/fast"
    assert env_name(PREFIX, "fast") == "PCIDEVICE_SRIOV_UNDERLAY_IO_FAST"
    assert env_name("intel.com", "intel_sriov-netdevice.v2") == "PCIDEVICE_INTEL_COM_INTEL_SRIOV_NETDEVICE_V2"


@pytest.mark.parametrize("name", ["a", "fast", "Fast_1.x-y", "a" * 63])
def test_good_pool_names(name: str) -> None:
    assert parse_pool_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "a/b", "a b", "ä", "a" * 64, "a\n"])
def test_bad_pool_names(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"^pools\[0\]\.name: "):
        check_pools([Pool(name=name, select=Selector())], PREFIX)


@pytest.mark.parametrize("prefix", ["sriov-underlay.io", "intel.com", "a", "1.x"])
def test_good_prefixes(prefix: str) -> None:
    assert parse_prefix(prefix) == prefix


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "Intel.com",
        "intel..com",
        "-a.io",
        "a/b",
        "kubernetes.io",
        "x.kubernetes.io",
        "requests.a.io",
        "a" * 245,
    ],
)
def test_bad_prefixes(prefix: str) -> None:
    with pytest.raises(InvalidInput, match=r"^resourcePrefix: "):
        parse_prefix(prefix)


@pytest.mark.parametrize("names", [("fast", "fast"), ("a-b", "a_b"), ("a", "x", "A")])
def test_pools_that_a_container_could_not_tell_apart(names: Sequence[str]) -> None:
    with pytest.raises(InvalidInput, match=rf"^pools\[{len(names) - 1}\]\.name: .*pools\[0\]"):
        check_pools([Pool(name=name, select=Selector()) for name in names], PREFIX)


def test_a_bad_selector_is_found_before_any_vf_is_seen() -> None:
    pools = [
        Pool(name="a", select=Selector()),
        Pool(name="b", select=Selector(pf_names=("x", "ens1f0#9-1"))),
    ]
    with pytest.raises(InvalidInput, match=r"^pools\[1\]\.select\.pfNames\[1\]: 'ens1f0#9-1' is not valid"):
        check_pools(pools, PREFIX)


# -- properties ----------------------------------------------------------------------------------------

unhurried = settings(deadline=None)  # the machine may be busy

names = st.sampled_from(["ens1f0", "ens1f1", "ens2f0"])
ranges = st.lists(
    st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(lambda pair: (min(pair), max(pair))),
    min_size=1,
    max_size=5,
).map(tuple)
pf_rules = st.builds(PfRule, names, st.none() | ranges)
low_rules = st.builds(
    PfRule,
    names,
    st.none() | st.lists(st.integers(0, 7).map(lambda i: (i, i + 1)), min_size=1, max_size=3).map(tuple),
)
selectors = st.builds(
    Selector,
    pf_names=st.none() | st.lists(low_rules.map(str), min_size=1, max_size=3).map(tuple),
    drivers=st.none() | st.lists(st.sampled_from(["igbvf", "vfio-pci"]), min_size=1, max_size=2).map(tuple),
)
pool_lists = st.lists(selectors, max_size=4).map(
    lambda all_: [Pool(name=f"p{i}", select=select) for i, select in enumerate(all_)]
)
inventories = st.lists(
    st.tuples(names, st.integers(0, 8), st.sampled_from(["igbvf", "vfio-pci"])),
    max_size=3,
    unique_by=lambda row: row[0],
).map(lambda rows: Inventory(pfs=tuple(pf(i + 1, *row) for i, row in enumerate(rows))))


@unhurried
@given(pf_rules)
def test_a_rule_survives_being_written_down(rule: PfRule) -> None:
    assert parse_pf_rule(str(rule)) == rule


@unhurried
@given(st.text(max_size=20))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        rule = parse_pf_rule(text)
    except InvalidInput:
        return
    assert parse_pf_rule(str(rule)) == rule


@unhurried
@given(pool_lists, inventories)
def test_the_first_pool_that_takes_a_vf_has_it_alone(pools: list[Pool], inventory: Inventory) -> None:
    assigned = assign(pools, inventory)
    assert list(assigned) == [pool.name for pool in pools]
    for one in inventory.pfs:
        for vf in one.vfs:
            takers = [pool.name for pool in pools if parse_selector(pool.select).takes(one, vf)]
            assert [name for name, vfs in assigned.items() if vf in vfs] == takers[:1]


@unhurried
@given(pool_lists, inventories, st.randoms())
def test_order_does_not_depend_on_the_order_of_discovery(
    pools: list[Pool], inventory: Inventory, random: Random
) -> None:
    shuffled = [
        msgspec.structs.replace(one, vfs=tuple(random.sample(one.vfs, len(one.vfs)))) for one in inventory.pfs
    ]
    random.shuffle(shuffled)
    assigned = assign(pools, Inventory(pfs=tuple(shuffled)))
    assert assigned == assign(pools, inventory)
    for vfs in assigned.values():
        assert list(vfs) == sorted(vfs, key=lambda vf: (vf.pf_pci, vf.index))


@unhurried
@given(st.text(max_size=30), st.text(max_size=30))
def test_a_variable_is_a_legal_shell_name(prefix: str, pool: str) -> None:
    assert re.fullmatch(r"PCIDEVICE_[A-Z0-9_]*", env_name(prefix, pool))
