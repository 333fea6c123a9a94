"""The agent's config file: what it says, and that every mistake in it is named with its place."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_plugin.selectors import Selector
from node_agent.config import AgentConfig, ConfigError, PoolConfig, VfsConfig, parse_config, pf_policies
from vf_manager.health import HealthPolicy, Reaction
from vf_manager.model import IfName, Inventory, Mac, Netdev, PciAddress, Pf
from vf_manager.provision import DriverKind, PfPolicy, VfPolicy

PF0, PF1 = PciAddress("0000:01:00.0"), PciAddress("0000:02:00.0")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FULL = """
resourcePrefix: example.org
pools:
- name: fast
  select: {pfNames: ["ens0#0-3", ens1], vendors: ["8086"], devices: [10ca], drivers: [igbvf],
           pciAddresses: ["0000:01:10.0"]}
  vfs: {count: 7, mtu: 9000, driver: vfio-pci}
  health: {carrier: ignore, pfDown: unhealthy}
- name: rest
  select: {}
"""


def pf(pci: PciAddress, name: str, altnames: tuple[str, ...] = ()) -> Pf:
    netdev = Netdev(ifindex=1, name=IfName(name), mac=Mac("02:00:00:00:00:01"), mtu=1500, altnames=altnames)
    return Pf(pci=pci, vendor="8086", device="10c9", netdev=netdev, total_vfs=7)


INVENTORY = Inventory(pfs=(pf(PF0, "ens0", ("enp1s0",)), pf(PF1, "ens1")))


def pools(*entries: str) -> str:
    return "pools:\n" + "".join(f"- {entry}\n" for entry in entries)


def mistake(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    return str(caught.value)


# -- what is right


def test_everything_that_can_be_said() -> None:
    assert parse_config(FULL) == AgentConfig(
        resource_prefix="example.org",
        pools=(
            PoolConfig(
                name="fast",
                select=Selector(
                    pf_names=("ens0#0-3", "ens1"),
                    vendors=("8086",),
                    devices=("10ca",),
                    drivers=("igbvf",),
                    pci_addresses=("0000:01:10.0",),
                ),
                vfs=VfsConfig(count=7, mtu=9000, driver=DriverKind.VFIO_PCI),
                health=HealthPolicy(carrier=Reaction.IGNORE),
            ),
            PoolConfig(name="rest", select=Selector()),
        ),
    )


def test_a_pool_of_vfs_without_a_pf() -> None:
    config = parse_config(
        pools("{name: a, withoutPf: true, select: {drivers: [igbvf]}, limits: {mac: false, mtu: 1500}}")
        + "\nnetworks: [{name: n, pools: [a], mtu: 1400}]"
    )
    assert [pool.without_pf for pool in config.resources()] == [True]


def test_the_least_that_can_be_said() -> None:
    config = parse_config("pools: []")
    assert config == AgentConfig(pools=())
    assert config.resource_prefix == "sriov-underlay.io"
    assert parse_config(pools("{name: a, select: {pfNames: [e]}, vfs: {count: 0}}")).pools[
        0
    ].vfs == VfsConfig(count=0, mtu=None, driver=DriverKind.KERNEL)


def test_pools_as_the_device_plugin_takes_them() -> None:
    names = [(pool.name, pool.select.pf_names) for pool in parse_config(FULL).resources()]
    assert names == [("fast", ("ens0#0-3", "ens1")), ("rest", None)]


# -- what is wrong, and where


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file: expected `object`, got `null`"),
        ("- a", "the file: expected `object`, got `array`"),
        ("{}", "the file: object missing required field `pools`"),
        ("pool: []", "pool: unknown key"),
        ("pools: []\nextra: 1", "extra: unknown key"),
        ("pools: fast", "pools: expected `array`, got `str`"),
        (pools("fast"), "pools[0]: expected `object`, got `str`"),
        (pools("{name: a}"), "pools[0]: object missing required field `select`"),
        (pools("{name: a, select: {}}", "{select: {}}"), "pools[1]: object missing required field `name`"),
        (pools("{name: a, select: {}, vsf: {count: 1}}"), "pools[0].vsf: unknown key"),
        (pools("{name: a, select: {pfnames: [a]}}"), "pools[0].select.pfnames: unknown key"),
        (
            pools("{name: a, select: {pfNames: a}}"),
            "pools[0].select.pfNames: expected `array | null`, got `str`",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: 3}"),
            "pools[0].vfs: expected `object | null`, got `int`",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: {}}"),
            "pools[0].vfs: object missing required field `count`",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: {count: 1, mut: 9000}}"),
            "pools[0].vfs.mut: unknown key",
        ),
        (
            pools('{name: a, select: {pfNames: [a]}, vfs: {count: "7"}}'),
            "pools[0].vfs.count: expected `int`, got `str`",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: {count: 7.5}}"),
            "pools[0].vfs.count: expected `int`, got `float`",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: {count: yes}}"),
            "pools[0].vfs.count: expected `int`, got `bool`",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: {count: 1, driver: igbvf}}"),
            "pools[0].vfs.driver: invalid enum value 'igbvf'",
        ),
        (
            pools("{name: a, select: {}, vfs: {count: 3}}"),
            "pools[0].vfs: 3 is not valid;"
            " expected pools[0].select.pfNames beside it: on which PFs to create VFs",
        ),
        (
            pools("{name: a, select: {pfNames: [a, b#2-1]}}"),
            "pools[0].select.pfNames[1]: 'b#2-1' is not valid;"
            " expected a range that goes up, 1-2 instead of 2-1",
        ),
        (
            pools("{name: a, withoutPf: true, select: {pfNames: [ens1]}}"),
            "pools[0].select.pfNames: ['ens1'] is not valid; expected vendors, devices, drivers or"
            " pciAddresses instead: with withoutPf, the PF is not on this node and has no name here",
        ),
        (
            pools("{name: a, withoutPf: true, select: {}}"),
            "pools[0].select: {} is not valid; expected vendors, devices, drivers or pciAddresses:"
            " with withoutPf, an empty one would take every NIC of the node",
        ),
        (
            pools("{name: a, withoutPf: true, select: {drivers: [igbvf]}, vfs: {count: 3}}"),
            "pools[0].vfs: 3 is not valid; expected no such key beside pools[0].withoutPf:"
            " it is for a PF, which this node has not",
        ),
        (
            pools("{name: a, withoutPf: true, select: {drivers: [igbvf]}, health: {carrier: ignore}}"),
            "pools[0].health: {'carrier': 'ignore'} is not valid; expected no such key beside"
            " pools[0].withoutPf: it is for a PF, which this node has not",
        ),
        (
            pools("{name: a, select: {}, health: {carrier: no}}"),
            "pools[0].health.carrier: expected `str`, got `bool`; put quotes around it",
        ),
        (
            pools("{name: a, select: {}, health: {pfDown: sick}}"),
            "pools[0].health.pfDown: invalid enum value 'sick'",
        ),
        (pools("{name: a, select: {}, health: {pfdown: ignore}}"), "pools[0].health.pfdown: unknown key"),
        (
            pools("{name: a, withoutPf: true, select: {drivers: [igbvf]}, limits: {vlans: [3]}}"),
            "pools[0].limits.vlans: [3] is not valid; expected no such key beside pools[0].withoutPf:"
            " it is for a PF, which this node has not",
        ),
        (
            pools("{name: a, withoutPf: true, select: {drivers: [igbvf]}}")
            + "\nnetworks: [{name: n, pools: [a], vlan: 5}]",
            "networks[0].vlan: only a PF can set this, and each VF of pool a has its PF outside this node"
            " (withoutPf); leave it out here and set it where the PF is",
        ),
        (
            pools("{name: a, select: {pfNames: []}}"),
            "pools[0].select.pfNames: [] is not valid;"
            " expected at least one entry; leave the key out to take any",
        ),
    ],
)
def test_a_mistake_is_named_with_its_path(text: str, said: str) -> None:
    assert mistake(text) == said


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (pools("{name: a, select: {vendors: [8086]}}"), "pools[0].select.vendors[0]"),
        (pools("{name: a, select: {devices: ['10ca', 1520]}}"), "pools[0].select.devices[1]"),
        (pools("{name: a, select: {devices: [0x10ca]}}"), "pools[0].select.devices[0]"),
        (pools("{name: a, select: {pciAddresses: [0000:01:10.0]}}"), "pools[0].select.pciAddresses[0]"),
        (pools("{name: 5, select: {}}"), "pools[0].name"),
        (pools("{name: on, select: {}}"), "pools[0].name"),
        ("pools: []\nresourcePrefix: 20240101", "resourcePrefix"),
    ],
)
def test_what_yaml_takes_for_something_else_needs_quotes(text: str, path: str) -> None:
    said = mistake(text)
    assert said.startswith(f"{path}: expected `str`, got ")
    assert said.endswith("; put quotes around it")


@pytest.mark.parametrize(
    ("vfs", "path"),
    [
        ("{count: -1}", "count: -1"),
        ("{count: 65536}", "count: 65536"),
        ("{count: 1, mtu: 67}", "mtu: 67"),
        ("{count: 1, mtu: 65536}", "mtu: 65536"),
        ("{count: 1, mtu: 0}", "mtu: 0"),
    ],
)
def test_numbers_have_bounds(vfs: str, path: str) -> None:
    text = pools("{name: a, select: {pfNames: [a]}}", f"{{name: b, select: {{pfNames: [a]}}, vfs: {vfs}}}")
    assert mistake(text).startswith(f"pools[1].vfs.{path} is not valid; expected ")


@pytest.mark.parametrize(
    "vfs", ["{count: 0}", "{count: 65535}", "{count: 1, mtu: 68}", "{count: 1, mtu: 65535}"]
)
def test_and_these_are_within(vfs: str) -> None:
    assert parse_config(pools(f"{{name: b, select: {{pfNames: [a]}}, vfs: {vfs}}}"))


@pytest.mark.parametrize("prefix", ["Example.org", "-a", "a..b", "kubernetes.io", "x" * 254, "a/b", '""'])
def test_the_prefix_is_a_domain(prefix: str) -> None:
    assert mistake(f"pools: []\nresourcePrefix: {prefix}").startswith("resourcePrefix: ")


@pytest.mark.parametrize("second", ["fast", "FAST", "f.st", "fa-st"])
def test_names_that_become_one_variable_are_refused(second: str) -> None:
    text = pools("{name: fast, select: {}}", "{name: f-st, select: {}}", f"{{name: {second}, select: {{}}}}")
    if second == "fa-st":
        assert parse_config(text)
    else:
        assert mistake(text).startswith(
            f"pools[2].name: '{second}' is not valid; expected a name that differs"
        )


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("pools: []\npools: []", "pools", 2),
        ("pools:\n- name: a\n  select: {}\n  name: b\n", "name", 4),
        ("pools:\n- name: a\n  select:\n    vendors: [a]\n    vendors: [b]\n", "vendors", 5),
    ],
)
def test_a_key_that_is_there_twice_is_refused(text: str, key: str, line: int) -> None:
    said = mistake(text)
    assert f"the key '{key}' is there twice" in said
    assert f"line {line}," in said


@pytest.mark.parametrize("key", ["1", "yes", "null", "[a]", "1.5"])
def test_a_key_that_is_no_word_is_refused(key: str) -> None:
    said = mistake(f"pools: []\n? {key}\n: 1\n")
    assert "is not text; put quotes around it" in said
    assert "line 2," in said


@pytest.mark.parametrize(
    "text",
    [
        "pools: [a",
        "pools: *a",
        "a: 1\n---\nb: 2",
        "\x00",
        "\tpools: []",
        "!!python/object/apply:os.abort []",
        "a: b: c",
        "pools: " + "[" * 2000,
        "&a [*a]",
        "a: &a [1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise(LETTERS)),
        f"resourcePrefix: {'9' * 5000}",
        '"\\ud800"',
        '"\\U00200000"',
        '"\\U80000000"',
        "!!bool maybe",
        "!!int ''",
        "!!float x",
        "!!binary x",
        "!!set {a}",
        "!!timestamp 2001-99-99",
    ],
)
def test_what_is_no_yaml(text: str) -> None:
    assert mistake(text).startswith("not valid YAML: ")


def test_a_date_is_text() -> None:
    assert parse_config("pools: []\nresourcePrefix: 2001-12-31").resource_prefix == "2001-12-31"


def test_a_key_of_any_length_makes_a_short_message() -> None:
    assert len(mistake(f"pools: []\n? {'x' * 5000}\n: 1\n")) < 200


@given(st.text())
def test_no_text_brings_it_down(text: str) -> None:
    try:
        parse_config(text)
    except ConfigError:
        pass


# -- from pools to PFs


def policies(*entries: str) -> tuple[tuple[PfPolicy, ...], tuple[str, ...]]:
    return pf_policies(parse_config(pools(*entries)), INVENTORY)


def test_a_pool_without_vfs_asks_for_nothing() -> None:
    assert policies("{name: a, select: {pfNames: [ens0]}}") == ((), ())


def test_each_pf_of_a_pool_gets_the_vfs() -> None:
    found, missing = policies("{name: a, select: {pfNames: [ens1, ens0]}, vfs: {count: 7, mtu: 9000}}")
    assert found == tuple(
        PfPolicy(pf=pf, count=7, vfs=(VfPolicy(first=0, last=6, mtu=9000),)) for pf in (PF0, PF1)
    )
    assert missing == ()


def test_two_pools_divide_the_vfs_of_a_pf() -> None:
    found, _ = policies(
        '{name: a, select: {pfNames: ["ens0#0-3,6"]}, vfs: {count: 7}}',
        '{name: b, select: {pfNames: ["enp1s0#4-5"]}, vfs: {count: 7, driver: vfio-pci}}',
    )
    (policy,) = found
    assert policy.vfs == (
        VfPolicy(first=0, last=3),
        VfPolicy(first=6, last=6),
        VfPolicy(first=4, last=5, driver=DriverKind.VFIO_PCI),
    )


def test_a_name_that_no_pf_has_is_told() -> None:
    found, missing = policies("{name: a, select: {pfNames: [ens0, ens9]}, vfs: {count: 2}}")
    assert [policy.pf for policy in found] == [PF0]
    assert missing == ("pools[0] a: no SR-IOV PF is called 'ens9' on this node",)


def test_two_counts_for_one_pf_conflict() -> None:
    with pytest.raises(ConfigError) as caught:
        policies(
            '{name: a, select: {pfNames: ["ens0#0"]}, vfs: {count: 7}}',
            '{name: b, select: {pfNames: ["enp1s0#1"]}, vfs: {count: 6}}',
        )
    assert str(caught.value).startswith(
        f"pools[1].vfs.count: 6 VFs are asked of ens0 ({PF0}), and 7 by another pool;"
    )


@pytest.mark.parametrize("other", ["mtu: 9000", "driver: vfio-pci"])
def test_two_wishes_for_one_vf_conflict(other: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policies(
            '{name: a, select: {pfNames: ["ens0#0-3"]}, vfs: {count: 7}}',
            f'{{name: b, select: {{pfNames: ["ens0#2-5"]}}, vfs: {{count: 7, {other}}}}}',
        )
    said = str(caught.value)
    assert said == f"pools[1].vfs: VF 2 of ens0 ({PF0}) is given another mtu or driver by another pool"


def test_the_same_wish_twice_is_no_conflict() -> None:
    found, _ = policies(
        "{name: a, select: {pfNames: [ens0]}, vfs: {count: 7}}",
        '{name: b, select: {pfNames: ["ens0#2-5"]}, vfs: {count: 7}}',
    )
    assert [policy.count for policy in found] == [7]
