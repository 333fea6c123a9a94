"""The agent's config file: what it says, and that every mistake in it is named with its place."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_plugin.allocation import Allocation, Policy
from device_plugin.pools import Pool
from device_plugin.selectors import Selector
from node_agent.config import AgentConfig, ConfigError, PoolConfig, parse_config, pf_policies
from node_agent.vfs_config import VfsConfig
from vf_manager.health import HealthPolicy, Reaction
from vf_manager.model import IfName, Inventory, Mac, Netdev, PciAddress, Pf
from vf_manager.provision import MacKind, PfPolicy, VfPolicy
from vf_manager.provision_steps import DriverKind, EswitchMode

PF0, PF1 = PciAddress("0000:01:00.0"), PciAddress("0000:02:00.0")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FULL = """
resourcePrefix: example.org
pools:
- name: fast
  select: {pfNames: ["ens0#0-3", ens1], vendors: ["8086"], devices: [10ca], drivers: [igbvf],
           pciAddresses: ["0000:01:10.0"]}
  vfs: {count: 7, mtu: 9000, driver: vfio-pci, mac: stable, adopt: true, eswitchMode: switchdev}
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
                vfs=VfsConfig(
                    count=7,
                    mtu=9000,
                    driver=DriverKind.VFIO_PCI,
                    mac=MacKind.STABLE,
                    adopt=True,
                    eswitch_mode=EswitchMode.SWITCHDEV,
                ),
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


POOL = """
pools:
- name: a
  resourcePrefix: example.com
  select:
  - {pfNames: [ens0]}
  - {rootDevices: ["0000:02:00.0#1"], isRdma: true, acpiIndexes: [3], numaNodes: [0]}
  shared: true
  excludeTopology: true
  vhostNet: true
  additionalInfo: {"*": {rack: r1}, "0000:3B:02.1": {port: p7}}
"""


def test_all_that_a_pool_can_be() -> None:
    assert parse_config(POOL).resources() == (
        Pool(
            name="a",
            prefix="example.com",
            select=(
                Selector(pf_names=("ens0",)),
                Selector(root_devices=("0000:02:00.0#1",), is_rdma=True, acpi_indexes=(3,), numa_nodes=(0,)),
            ),
            shared=True,
            exclude_topology=True,
            vhost_net=True,
            additional_info={"*": {"rack": "r1"}, "0000:3b:02.1": {"port": "p7"}},
        ),
    )


def test_every_mistake_is_found() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(
            "resourcePrefix: A\nfallback: x\nnetworks: [{name: n, pools: [z]}]\n"
            + pools(
                '{name: -, resourcePrefix: "", select: [{}, {vendors: [x, 8086, y], pKeys: []}]}',
                "{name: b, select: [], additionalInfo: {ens0: {}}}",
                "{name: b, select: {pfNames: [a#3-1]}, limits: {vlans: [9999]}}",
                "{name: c, select: {pfNames: [a]}, vfs: {count: -1}}",
            ).replace("8086", '"8086"')
        )
    assert [line.partition(": ")[0] for line in caught.value.mistakes] == [
        "resourcePrefix",
        "pools[0].name",
        "pools[0].resourcePrefix",
        "pools[0].select[1].vendors[0]",
        "pools[0].select[1].vendors[2]",
        "pools[0].select[1].pKeys",
        "pools[1].select",
        "pools[1].additionalInfo",
        "pools[2].select.pfNames[0]",
        "pools[2].name",
        "pools[2].limits.vlans[0]",
        "pools[3].vfs.count",
        "networks[0].pools[0]",
        "fallback",
    ]


def test_how_a_pool_is_allocated() -> None:
    config = parse_config(
        pools(
            "{name: a, select: {}}",
            "{name: b, select: {}, allocation: {policy: aligned, cdi: true, resetVfio: true}}",
        )
    )
    assert [pool.allocation for pool in config.resources()] == [
        Allocation(policy=Policy.PACKED, cdi=False, reset_vfio=False),
        Allocation(policy=Policy.ALIGNED, cdi=True, reset_vfio=True),
    ]


def test_a_prefix_that_cannot_name_a_cdi_vendor() -> None:
    text = pools("{name: a, select: {}, allocation: {cdi: true}}") + "\nresourcePrefix: 3com.com"
    with pytest.raises(ConfigError, match=r"^resourcePrefix: '3com\.com' .* begins with a letter"):
        parse_config(text)
    assert parse_config(text.replace("cdi: true", "cdi: false")).resource_prefix == "3com.com"


def test_limits_that_make_no_sense_are_not_held_against_a_network() -> None:
    said = mistake(
        pools("{name: a, select: {}, limits: {vlans: [9999]}}") + "networks: [{name: n, pools: [a], vlan: 5}]"
    )
    assert said.startswith("pools[0].limits.vlans[0]: 9999 is not valid")
    assert "more" not in said


def test_the_least_that_can_be_said() -> None:
    config = parse_config("pools: []")
    assert config == AgentConfig(pools=())
    assert config.resource_prefix == "sriov-underlay.io"
    assert parse_config(pools("{name: a, select: {pfNames: [e]}, vfs: {count: 0}}")).pools[
        0
    ].vfs == VfsConfig(count=0, mtu=None, driver=DriverKind.KERNEL)


def test_pools_as_the_device_plugin_takes_them() -> None:
    names = [(pool.name, pool.select[0].pf_names) for pool in parse_config(FULL).resources()]
    assert names == [("fast", ("ens0#0-3", "ens1")), ("rest", None)]


# -- what is wrong, and where


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file: expected `object`, got `null`"),
        ("- a", "the file: expected `object`, got `array`"),
        ("{}", "the file: object missing required field `pools`"),
        (
            "pool: []",
            "pool: unknown key (its value is []); did you mean pools?"
            " (and 1 more; sriovctl validate tells all)",
        ),
        (
            "pools: []\nextra: 1",
            "extra: unknown key (its value is 1); known here: fallback, kubernetes, networks, pools,"
            " repairDrift, resourcePrefix",
        ),
        ("pools: fast", "pools: expected `array`, got `str` ('fast')"),
        (pools("fast"), "pools[0]: expected `object`, got `str` ('fast')"),
        (pools("{name: a}"), "pools[0]: object missing required field `select`"),
        (pools("{name: a, select: {}}", "{select: {}}"), "pools[1]: object missing required field `name`"),
        (
            pools("{name: a, select: {}, vsf: {count: 1}}"),
            "pools[0].vsf: unknown key (its value is {'count': 1}); did you mean vfs?",
        ),
        (
            pools("{name: a, select: {pfnames: [a]}}"),
            "pools[0].select.pfnames: unknown key (its value is ['a']); did you mean pfNames?",
        ),
        (
            pools("{name: a, select: {pfNames: a}}"),
            "pools[0].select.pfNames: expected `array | null`, got `str` ('a')",
        ),
        (
            pools("{name: a, select: {}, allocation: {policy: random}}"),
            "pools[0].allocation.policy: invalid enum value 'random'",
        ),
        (
            pools("{name: a, select: {}, allocation: {CDI: true}}"),
            "pools[0].allocation.CDI: unknown key (its value is True); did you mean cdi?",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: {count: 1}, allocation: {resetVfio: true}}"),
            "pools[0].allocation.resetVfio: True is not valid;"
            " expected pools[0].vfs.driver: vfio-pci beside it: VFs with a kernel driver are not reset",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: 3}"),
            "pools[0].vfs: expected `object | null`, got `int` (3)",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: {}}"),
            "pools[0].vfs: object missing required field `count`",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: {count: 1, mut: 9000}}"),
            "pools[0].vfs.mut: unknown key (its value is 9000); did you mean mtu?",
        ),
        (
            pools('{name: a, select: {pfNames: [a]}, vfs: {count: "7"}}'),
            "pools[0].vfs.count: expected `int`, got `str` ('7')",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: {count: 7.5}}"),
            "pools[0].vfs.count: expected `int`, got `float` (7.5)",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: {count: yes}}"),
            "pools[0].vfs.count: expected `int`, got `bool` (True)",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: {count: 1, driver: igbvf}}"),
            "pools[0].vfs.driver: invalid enum value 'igbvf'",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: {count: 1, mac: random}}"),
            "pools[0].vfs.mac: invalid enum value 'random'",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: {count: 1, eswitchMode: on}}"),
            "pools[0].vfs.eswitchMode: expected `str | null`, got `bool` (True); put quotes around it",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: {count: 1, eswitch_mode: legacy}}"),
            "pools[0].vfs.eswitch_mode: unknown key (its value is 'legacy'); did you mean eswitchMode?",
        ),
        (
            pools("{name: a, select: {pfNames: [a]}, vfs: {count: 1, adopt: yess}}"),
            "pools[0].vfs.adopt: expected `bool`, got `str` ('yess')",
        ),
        (
            pools('{name: a, select: {pfNames: ["a#0-1", "b#2,5-7"]}, vfs: {count: 7}}'),
            "pools[0].vfs.count: 7 is not valid; expected more than 7, the last VF that 'b#2,5-7' selects",
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
            "pools[0].health.carrier: expected `str`, got `bool` (False); put quotes around it",
        ),
        (
            pools("{name: a, select: {}, health: {pfDown: sick}}"),
            "pools[0].health.pfDown: invalid enum value 'sick'",
        ),
        (
            pools("{name: a, select: {}, health: {pfdown: ignore}}"),
            "pools[0].health.pfdown: unknown key (its value is 'ignore'); did you mean pfDown?",
        ),
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
    assert len(mistake(f"pools: []\n? {'x' * 5000}\n: 1\n")) < 300


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


def test_pfs_are_named_by_address_and_in_several_selectors() -> None:
    found, _ = policies(
        f"{{name: a, select: [{{rootDevices: ['{PF1}']}}, {{pfNames: ['ens0#2']}}], vfs: {{count: 4}}}}"
    )
    assert found == (
        PfPolicy(pf=PF0, count=4, vfs=(VfPolicy(first=2, last=2),)),
        PfPolicy(pf=PF1, count=4, vfs=(VfPolicy(first=0, last=3),)),
    )


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
    assert missing == ("pools[0] a: no SR-IOV PF is called 'ens9' on this node; there is ens0, ens1",)


def test_two_counts_for_one_pf_conflict() -> None:
    with pytest.raises(ConfigError) as caught:
        policies(
            '{name: a, select: {pfNames: ["ens0#0"]}, vfs: {count: 7}}',
            '{name: b, select: {pfNames: ["enp1s0#1"]}, vfs: {count: 6}}',
        )
    assert str(caught.value).startswith(
        f"pools[1].vfs.count: 6 VFs are asked of ens0 ({PF0}), and 7 by another pool;"
    )


@pytest.mark.parametrize("other", ["mtu: 9000", "driver: vfio-pci", "mac: stable"])
def test_two_wishes_for_one_vf_conflict(other: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policies(
            '{name: a, select: {pfNames: ["ens0#0-3"]}, vfs: {count: 7}}',
            f'{{name: b, select: {{pfNames: ["ens0#2-5"]}}, vfs: {{count: 7, {other}}}}}',
        )
    said = str(caught.value)
    assert said == f"pools[1].vfs: VF 2 of ens0 ({PF0}) is given another mtu, driver or mac by another pool"


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        ("adopt", "adopt: true", "driver: kernel"),
        ("eswitchMode", "eswitchMode: legacy", "driver: kernel"),
        ("eswitchMode", "eswitchMode: legacy", "eswitchMode: switchdev"),
    ],
)
def test_two_wishes_for_one_pf_conflict(key: str, one: str, other: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policies(
            f'{{name: a, select: {{pfNames: ["ens0#0-3"]}}, vfs: {{count: 7, {one}}}}}',
            f'{{name: b, select: {{pfNames: ["ens0#4-5"]}}, vfs: {{count: 7, {other}}}}}',
        )
    said = str(caught.value)
    assert said.startswith(f"pools[1].vfs.{key}: ")
    assert said.endswith("by another pool; it is about the whole PF, so say the same in both")


def test_what_is_said_of_vfs_is_said_of_those_of_the_pool() -> None:
    found, _ = policies(
        '{name: a, select: {pfNames: ["ens0#0-3"]}, vfs: {count: 7, mac: stable, adopt: true}}',
        '{name: b, select: {pfNames: ["ens0#4-6"]}, vfs: {count: 7, mtu: 1400, adopt: true}}',
    )
    vfs = (VfPolicy(first=0, last=3, mac=MacKind.STABLE), VfPolicy(first=4, last=6, mtu=1400))
    assert found == (PfPolicy(pf=PF0, count=7, vfs=vfs, adopt=True),)


def test_the_same_wish_twice_is_no_conflict() -> None:
    found, _ = policies(
        "{name: a, select: {pfNames: [ens0]}, vfs: {count: 7}}",
        '{name: b, select: {pfNames: ["ens0#2-5"]}, vfs: {count: 7}}',
    )
    assert [policy.count for policy in found] == [7]


def test_a_config_of_the_established_plugin_is_known_as_one() -> None:
    with pytest.raises(ConfigError, match="by --device-plugin-config"):
        parse_config('{"resourceList": [{"resourceName": "fast", "selectors": {"pfNames": ["ens0"]}}]}')
