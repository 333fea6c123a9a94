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
    devices_of,
    env_name,
    envs_of,
    held_back,
    parse_pool_name,
    parse_prefix,
    pools_by_vf,
    resource_name,
    resource_of,
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
    vfs = assign([Pool(name="p", select=(Selector(**select),))], inventory)["p"]
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


def with_facts(**facts: Any) -> Inventory:
    """VF 3 of ens1f0 differs from all others in these fields."""
    first = TWO_PFS.pfs[0]
    vfs = [msgspec.structs.replace(vf, **facts) if vf.index == 3 else vf for vf in first.vfs]
    return Inventory(pfs=(msgspec.structs.replace(first, vfs=tuple(vfs)), TWO_PFS.pfs[1]))


@pytest.mark.parametrize(
    ("select", "facts"),
    [
        ({"acpi_indexes": ("101",)}, {"acpi_index": 101}),
        ({"acpi_indexes": (7, 101)}, {"acpi_index": 101}),
        ({"link_types": ("InfiniBand",)}, {"link_type": "infiniband"}),
        ({"p_keys": ("0x8001",)}, {"pkey": "0x8001"}),
        ({"p_keys": ("FFFF", "1")}, {"pkey": "0x0001"}),
        ({"numa_nodes": (1, 2)}, {"numa_node": 2}),
        ({"pcie_roots": ("PCI0000:3A",)}, {"pcie_root": "pci0000:3a"}),
        ({"is_rdma": True}, {"rdma_devices": ("mlx5_2",)}),
    ],
)
def test_each_key_takes_what_it_names_and_nothing_without(
    select: dict[str, Any], facts: dict[str, Any]
) -> None:
    assert selected(with_facts(**facts), **select) == ["1:3"]
    assert selected(**select) == []


def test_is_rdma_false_means_without() -> None:
    assert "1:3" not in selected(with_facts(rdma_devices=("mlx5_2",)), is_rdma=False)
    assert len(selected(is_rdma=False)) == 14


def test_root_devices_are_pfs_by_address() -> None:
    assert selected(root_devices=("0000:01:00.0#0-1,6", "0000:02:00.0#3")) == ["1:0", "1:1", "1:6", "2:3"]
    assert selected(root_devices=("0000:01:00.0",), pf_names=("ens1f1",)) == []
    bare = msgspec.structs.replace(TWO_PFS.pfs[0], netdev=None)
    assert len(selected(Inventory(pfs=(bare,)), root_devices=("0000:01:00.0",))) == 7


def test_one_selector_of_several_is_enough() -> None:
    select = (
        Selector(pf_names=("ens1f0#1",)),
        Selector(pf_names=("ens1f0#0-1",)),
        Selector(drivers=("vfio-pci",)),
    )
    vfs = assign([Pool(name="p", select=select)], TWO_PFS)["p"]
    assert [vf.index for vf in vfs] == [0, 1, *range(7)]


def test_a_vf_may_be_in_several_pools_that_are_all_shared() -> None:
    def pool(name: str, shared: bool, entry: str) -> Pool:
        return Pool(name=name, shared=shared, select=(Selector(pf_names=(entry,)),))

    pools = [
        pool("a", True, "ens1f0#0-1"),
        pool("b", False, "ens1f0#1-2"),
        pool("c", True, "ens1f0#0-3"),
        pool("d", True, "ens1f1"),
    ]
    assigned = assign(pools, TWO_PFS)
    assert {name: [vf.index for vf in vfs] for name, vfs in assigned.items()} == {
        "a": [0, 1],
        "b": [2],
        "c": [0, 1, 3],
        "d": list(range(7)),
    }
    assert pools_by_vf(assigned)[TWO_PFS.pfs[0].vfs[1].pci] == ("a", "c")


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
    pools = [Pool(name="with", select=(select,)), Pool(name="without", select=(select,), without_pf=True)]
    vfs = assign(pools, GUEST)
    assert [vf.pci for vf in vfs["with"]] == [vf.pci for vf in TWO_PFS.pfs[0].vfs]
    assert [vf.pci for vf in vfs["without"]] == ["0000:07:00.0", "0000:09:00.0"]


def test_what_a_pool_selects_and_does_not_get_is_told() -> None:
    pools = [Pool(name="p", select=(Selector(vendors=("8086",)),), without_pf=True)]
    (line,) = held_back(pools, GUEST)
    assert line == "pool p does not get 0000:08:00.0: br0 of the host stands on its interface ens8"
    assert held_back([Pool(name="p", select=(Selector(vendors=("8086",)),))], GUEST) == ()
    assert held_back([Pool(name="p", select=(Selector(devices=("10d3",)),), without_pf=True)], GUEST) == ()


@pytest.mark.parametrize(
    ("select", "said"),
    [
        (Selector(), "pools[0].select: {} is not valid; expected vendors, devices, drivers or pciAddresses"),
        (
            Selector(pf_names=("ens1f0",)),
            "pools[0].select.pfNames: ['ens1f0'] is not valid; expected vendors",
        ),
        (
            Selector(link_types=("ether",)),
            "pools[0].select: {'linkTypes': ['ether']} is not valid; expected vendors, devices, drivers or"
            " pciAddresses: with withoutPf, this one would take every NIC of the node",
        ),
    ],
)
def test_a_pool_without_pf_says_which_nics_it_means(select: Selector, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_pools([Pool(name="p", select=(select,), without_pf=True)], PREFIX)
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
        ("pfNames[0]", Selector(pf_names=("0000:3b:00.0#0-3",))),
        ("rootDevices[0]", Selector(root_devices=("ens1f0",))),
        ("rootDevices[0]", Selector(root_devices=("3b:00.0",))),
        ("rootDevices[1]", Selector(root_devices=("0000:3b:00.0", "0000:3b:00.0#3-1"))),
        ("acpiIndexes[1]", Selector(acpi_indexes=(1, -1))),
        ("acpiIndexes[0]", Selector(acpi_indexes=("0x1",))),
        ("linkTypes[0]", Selector(link_types=("eth",))),
        ("pKeys[0]", Selector(p_keys=("0x18001",))),
        ("numaNodes[0]", Selector(numa_nodes=(-1,))),
        ("pcieRoots[0]", Selector(pcie_roots=("0000:3a",))),
        ("numaNodes", Selector(numa_nodes=())),
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


def test_a_pool_may_have_a_prefix_and_a_resource_name_of_its_own() -> None:
    pool = Pool(name="a", prefix="intel.com", resource="my-nic", select=(Selector(),))
    assert resource_of(pool, PREFIX) == "intel.com/my-nic"
    assert envs_of(pool, PREFIX) == ("PCIDEVICE_INTEL_COM_MY_NIC",)
    both = msgspec.structs.replace(pool, hyphen_env=True)
    assert envs_of(both, PREFIX) == ("PCIDEVICE_INTEL_COM_MY_NIC", "PCIDEVICE_INTEL_COM_MY-NIC")
    plain = Pool(name="nic", select=(Selector(),), hyphen_env=True)
    assert envs_of(plain, "intel.com") == ("PCIDEVICE_INTEL_COM_NIC",)


def test_pools_of_one_name_in_a_container_may_differ_by_prefix() -> None:
    pools = [
        Pool(name="a", resource="nic", prefix="intel.com", select=(Selector(),)),
        Pool(name="b", resource="nic", prefix="example.org", select=(Selector(),)),
    ]
    check_pools(pools, PREFIX)
    with pytest.raises(InvalidInput, match=r"^pools\[1\]\.name: 'nic' .*PCIDEVICE_INTEL_COM_NIC"):
        check_pools([pools[0], msgspec.structs.replace(pools[1], prefix="intel.com")], PREFIX)


@pytest.mark.parametrize(
    ("pool", "key"),
    [
        (Pool(name="a", select=()), "select"),
        (Pool(name="a", select=(Selector(),), prefix="kubernetes.io"), "resourcePrefix"),
        (Pool(name="a", select=(Selector(), Selector(vendors=("x",)))), "select[1].vendors[0]"),
        (Pool(name="a", select=(Selector(),), additional_info={"ens1": {}}), "additionalInfo"),
    ],
)
def test_what_is_wrong_with_a_pool_is_named(pool: Pool, key: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_pools([pool], PREFIX)
    assert caught.value.key == f"pools[0].{key}"


@pytest.mark.parametrize("name", ["a", "fast", "Fast_1.x-y", "a" * 63])
def test_good_pool_names(name: str) -> None:
    assert parse_pool_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "a/b", "a b", "ä", "a" * 64, "a\n"])
def test_bad_pool_names(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"^pools\[0\]\.name: "):
        check_pools([Pool(name=name, select=(Selector(),))], PREFIX)


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
        check_pools([Pool(name=name, select=(Selector(),)) for name in names], PREFIX)


def test_a_bad_selector_is_found_before_any_vf_is_seen() -> None:
    pools = [
        Pool(name="a", select=(Selector(),)),
        Pool(name="b", select=(Selector(pf_names=("x", "ens1f0#9-1")),)),
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


def entries(*values: Any) -> st.SearchStrategy[Any]:
    """Of one key, if it is there."""
    return st.none() | st.lists(st.sampled_from(values), min_size=1, max_size=2).map(tuple)


selectors = st.builds(
    Selector,
    pf_names=st.none() | st.lists(low_rules.map(str), min_size=1, max_size=3).map(tuple),
    root_devices=entries("0000:01:00.0#0-3", "0000:02:00.0", "0000:03:00.0#7"),
    drivers=entries("igbvf", "vfio-pci"),
    vendors=entries("8086", "15B3"),
    numa_nodes=entries(0, 1),
    is_rdma=st.none() | st.booleans(),
)
pool_lists = st.lists(
    st.tuples(
        st.lists(selectors, min_size=1, max_size=3).map(tuple),
        st.booleans(),
        st.sampled_from([False, False, True, None]),
    ),
    max_size=4,
).map(
    lambda rows: [
        Pool(name=f"p{i}", select=select, shared=shared, without_pf=without_pf)
        for i, (select, shared, without_pf) in enumerate(rows)
    ]
)
facts: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "vendor": st.sampled_from(["8086", "15b3"]),
        "driver": st.sampled_from([None, "igbvf", "vfio-pci"]),
        "numa_node": st.sampled_from([None, 0, 1]),
        "rdma_devices": st.sampled_from([(), ("mlx5_2",)]),
        "unusable": st.sampled_from([None, None, None, "br0 of the host stands on its interface ens8"]),
    }
)
named_pfs = st.lists(
    st.tuples(names, st.lists(facts, max_size=5)), max_size=2, unique_by=lambda row: row[0]
).map(
    lambda rows: tuple(
        pf_with(pf(bus, name, len(of_vfs)), of_vfs) for bus, (name, of_vfs) in enumerate(rows, 1)
    )
)
lone_vfs = st.lists(facts, max_size=2).map(
    lambda rows: tuple(
        Vf(pci=PciAddress(f"0000:{bus:02x}:00.0"), device="10ca", **of_vf)
        for bus, of_vf in enumerate(rows, 9)
    )
)
inventories = st.builds(Inventory, pfs=named_pfs, lone=lone_vfs)


def pf_with(one: Pf, facts_of_vfs: Sequence[dict[str, Any]]) -> Pf:
    vfs = [msgspec.structs.replace(vf, **of_vf) for vf, of_vf in zip(one.vfs, facts_of_vfs, strict=True)]
    return msgspec.structs.replace(one, vfs=tuple(vfs))


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
def test_the_first_pool_has_a_vf_alone_or_shares_it(pools: list[Pool], inventory: Inventory) -> None:
    """By the words of the documentation, one device after the other."""
    assigned = assign(pools, inventory)
    assert list(assigned) == [pool.name for pool in pools]
    for one, vf in devices_of(inventory):
        takers = [
            pool
            for pool in pools
            if pool.without_pf in (None, one is None)
            and any(parse_selector(select).takes(one, vf) for select in pool.select)
        ]
        if vf.unusable:
            takers = []
        first_alone = not takers or not takers[0].shared
        expected = takers[:1] if first_alone else [pool for pool in takers if pool.shared]
        found = [name for name, vfs in assigned.items() if vf in vfs]
        assert found == [pool.name for pool in expected]


@unhurried
@given(selectors, inventories)
def test_a_device_is_taken_exactly_when_no_key_refuses_it(select: Selector, inventory: Inventory) -> None:
    rules = parse_selector(select)
    keys = dict(select.items())
    for one, vf in devices_of(inventory):
        refusals = list(rules.refusals(one, vf))
        assert rules.takes(one, vf) == (not refusals)
        assert {refusal.key for refusal in refusals} <= keys.keys()
        assert all(str(refusal).startswith(refusal.key) for refusal in refusals)


@unhurried
@given(low_rules, st.integers(0, 40))
def test_a_range_takes_the_indexes_that_it_names(rule: PfRule, index: int) -> None:
    vf = Vf(pci=PciAddress("0000:01:10.0"), index=index, vendor="8086", device="10ca")
    listed = rule.ranges is None or index in {i for a, b in rule.ranges for i in range(a, b + 1)}
    assert parse_pf_rule(str(rule)).takes(pf(1, rule.name, 0), vf) == listed
    assert not rule.takes(pf(1, "ens9f9", 0), vf)


@unhurried
@given(pool_lists, inventories, st.randoms())
def test_order_does_not_depend_on_the_order_of_discovery(
    pools: list[Pool], inventory: Inventory, random: Random
) -> None:
    shuffled = [
        msgspec.structs.replace(one, vfs=tuple(random.sample(one.vfs, len(one.vfs)))) for one in inventory.pfs
    ]
    random.shuffle(shuffled)
    lone = tuple(random.sample(inventory.lone, len(inventory.lone)))
    assigned = assign(pools, Inventory(pfs=tuple(shuffled), lone=lone))
    assert assigned == assign(pools, inventory)
    for vfs in assigned.values():
        assert list(vfs) == sorted(vfs, key=lambda vf: (vf.pf_pci is None, vf.pf_pci or vf.pci, vf.index))


@unhurried
@given(st.text(max_size=30), st.text(max_size=30))
def test_a_variable_is_a_legal_shell_name(prefix: str, pool: str) -> None:
    assert re.fullmatch(r"PCIDEVICE_[A-Z0-9_]*", env_name(prefix, pool))
