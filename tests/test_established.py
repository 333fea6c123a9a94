"""Configurations as they are written for the established device plugin: the same pools, names and devices;
and what it passes over in silence, refused with path, value and cure."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_plugin.established import parse_established
from device_plugin.pools import Pool, assign, check_pools, envs_of, resource_of
from device_plugin.selectors import Selector
from node_agent.config import ConfigError
from node_agent.drop_in import parse_drop_in
from vf_manager.mistakes import MistakesFound
from vf_manager.model import IfName, Inventory, Mac, Netdev, PciAddress, Pf, Vf

SEVERAL = """
{"resourceList": [
  {"resourceName": "intel_sriov_netdevice",
   "selectors": {"vendors": ["8086"], "devices": ["154c", "10ed", "1889"],
                 "drivers": ["i40evf", "iavf", "ixgbevf"]}},
  {"resourceName": "intel_sriov_dpdk",
   "resourcePrefix": "intel.com",
   "selectors": [{"vendors": ["8086"], "devices": ["154C", "10ED"], "drivers": ["vfio-pci"],
                  "pfNames": ["ens785f0#0-2,4", "ens785f1"]},
                 {"rootDevices": ["0000:87:00.0#3"], "needVhostNet": false}],
   "excludeTopology": true},
  {"resourceName": "mlnx-sriov-rdma",
   "resourcePrefix": "mellanox.com",
   "selectors": [{"vendors": ["15b3"], "devices": ["1018"], "drivers": ["mlx5_core"], "isRdma": true,
                  "linkTypes": ["ether"], "needVhostNet": true}],
   "additionalInfo": {"*": {"token": "3e49019f-412f-4f02-824e-4cd195944205"},
                      "0000:3B:00.2": {"token": "1b2c"}}},
  {"resourceName": "ib", "selectors": {"linkTypes": ["infiniband"], "pKeys": ["0x8001"], "isRdma": false}},
  {"resourceName": "onboard", "deviceType": "netDevice",
   "selectors": {"acpiIndexes": ["101", "102"], "pciAddresses": ["0000:03:02.0"]}},
  {"resourceName": "all", "selectors": {}}
]}
"""


def pf(pci: str, name: str, *vfs: Vf, vendor: str = "8086") -> Pf:
    port = Netdev(ifindex=1, name=IfName(name), mac=Mac("02:00:00:00:00:01"), mtu=1500)
    return Pf(pci=PciAddress(pci), vendor=vendor, device="1572", netdev=port, vfs=vfs)


def vf(pci: str, index: int, device: str, driver: str, vendor: str = "8086", **more: Any) -> Vf:
    return Vf(pci=PciAddress(pci), index=index, vendor=vendor, device=device, driver=driver, **more)


NODE = Inventory(
    pfs=(
        pf(
            "0000:86:00.0",
            "ens785f0",
            *(vf(f"0000:86:02.{i}", i, "154c", "vfio-pci" if i < 6 else "iavf") for i in range(8)),
        ),
        pf("0000:87:00.0", "ens786", *(vf(f"0000:87:02.{i}", i, "1889", "vfio-pci") for i in range(4))),
        pf(
            "0000:3b:00.0",
            "ens2f0np0",
            vf(
                "0000:3b:00.2",
                0,
                "1018",
                "mlx5_core",
                "15b3",
                link_type="ether",
                rdma_devices=("mlx5_2",),
            ),
            vf("0000:3b:00.3", 1, "1018", "mlx5_core", "15b3", link_type="ether"),
            vf(
                "0000:3b:00.4",
                2,
                "1018",
                "mlx5_core",
                "15b3",
                link_type="infiniband",
                pkey="0x8001",
                rdma_devices=("mlx5_4",),
            ),
            vendor="15b3",
        ),
    ),
    lone=(
        vf("0000:03:02.0", 0, "1521", "igb", acpi_index=102),
        vf("0000:04:00.0", 0, "1889", "iavf"),
        vf("0000:05:00.0", 0, "1889", "iavf", unusable="the host's default route goes by its interface ens5"),
    ),
)


def members(text: str, prefix: str = "intel.com") -> dict[str, list[str]]:
    """PCI addresses by resource."""
    pools = parse_established(text, prefix)
    check_pools(pools, prefix)
    assigned = assign(pools, NODE)
    return {resource_of(pool, prefix): [one.pci for one in assigned[pool.name]] for pool in pools}


def resource(**change: Any) -> str:
    one = {"resourceName": "r", "selectors": {"vendors": ["8086"]}} | change
    return json.dumps({"resourceList": [{key: value for key, value in one.items() if value != ...}]})


def mistakes(text: str) -> list[str]:
    with pytest.raises(MistakesFound) as caught:
        parse_established(text)
    return list(caught.value.mistakes)


# -- the same as there


def addresses(pattern: str, *indexes: int) -> list[str]:
    return [f"{pattern}.{index}" for index in indexes]


def test_the_same_devices_under_the_same_names() -> None:
    assert members(SEVERAL) == {
        "intel.com/intel_sriov_netdevice": [*addresses("0000:86:02", 6, 7), "0000:04:00.0"],
        "intel.com/intel_sriov_dpdk": [*addresses("0000:86:02", 0, 1, 2, 4), "0000:87:02.3"],
        "mellanox.com/mlnx-sriov-rdma": ["0000:3b:00.2"],
        "intel.com/ib": ["0000:3b:00.4"],
        "intel.com/onboard": ["0000:03:02.0"],
        "intel.com/all": [
            "0000:3b:00.3",
            *addresses("0000:86:02", 3, 5),
            *addresses("0000:87:02", 0, 1, 2),
        ],
    }


def test_the_same_settings() -> None:
    _, dpdk, rdma, ib, onboard, every = parse_established(SEVERAL)
    assert dpdk == Pool(
        name="intel_sriov_dpdk",
        resource="intel_sriov_dpdk",
        prefix="intel.com",
        select=(
            Selector(
                vendors=("8086",),
                devices=("154C", "10ED"),
                drivers=("vfio-pci",),
                pf_names=("ens785f0#0-2,4", "ens785f1"),
            ),
            Selector(root_devices=("0000:87:00.0#3",)),
        ),
        exclude_topology=True,
        hyphen_env=True,
    )
    assert (rdma.vhost_net, rdma.select[0].is_rdma, ib.select[0].is_rdma) == (True, True, None)
    assert rdma.additional_info == {
        "*": {"token": "3e49019f-412f-4f02-824e-4cd195944205"},
        "0000:3b:00.2": {"token": "1b2c"},
    }
    assert (onboard.without_pf, every.without_pf) == (None, False)
    assert every.select == (Selector(),)


def test_the_same_variables_and_one_that_a_shell_can_read() -> None:
    pools = {pool.name: envs_of(pool, "intel.com") for pool in parse_established(SEVERAL)}
    assert pools["intel_sriov_netdevice"] == ("PCIDEVICE_INTEL_COM_INTEL_SRIOV_NETDEVICE",)
    assert pools["mlnx-sriov-rdma"] == (
        "PCIDEVICE_MELLANOX_COM_MLNX_SRIOV_RDMA",
        "PCIDEVICE_MELLANOX_COM_MLNX-SRIOV-RDMA",
    )


def test_the_prefix_of_the_node_is_for_those_without_one() -> None:
    found = members(resource(), "openshift.io") | members(resource(resourcePrefix=""), "openshift.io")
    assert list(found) == ["openshift.io/r"]
    assert list(members(resource(resourcePrefix="a.io"), "openshift.io")) == ["a.io/r"]


def test_one_name_under_two_prefixes() -> None:
    text = """{"resourceList": [
        {"resourceName": "net", "selectors": {"vendors": ["15b3"]}, "resourcePrefix": "mellanox.com"},
        {"resourceName": "net", "selectors": {"vendors": ["8086"]}}]}"""
    assert [pool.name for pool in parse_established(text)] == ["mellanox.com/net", "intel.com/net"]
    assert {name: len(vfs) for name, vfs in members(text).items()} == {
        "mellanox.com/net": 3,
        "intel.com/net": 14,
    }


@pytest.mark.parametrize(
    "change",
    [
        {
            "selectors": {
                "vendors": ["8086"],
                "drivers": [],
                "pfNames": None,
                "ddpProfiles": [],
                "vdpaType": "",
            }
        },
        {"deviceType": "", "additionalInfo": None},
        {"selectors": [{"vendors": ["0x8086"], "isRdma": False, "needVhostNet": False}]},
    ],
)
def test_what_says_nothing_changes_nothing(change: dict[str, Any]) -> None:
    assert members(resource(**change)) == members(resource())


# -- errors, all with path, value and cure


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resourceName": ...}, "resourceList[0]: object missing required field `resourceName`"),
        ({"resourceName": "a b"}, "resourceList[0].resourceName: 'a b' is not valid; expected 1-63 letters"),
        ({"resourcePrefix": "Intel"}, "resourceList[0].resourcePrefix: 'Intel' is not valid; expected a DNS"),
        (
            {"deviceType": "netdevice"},
            "resourceList[0].deviceType: 'netdevice' is not valid; expected netDevice",
        ),
        ({"selectors": []}, "resourceList[0].selectors: [] is not valid; expected at least one selector"),
        (
            {"selectors": [{}, {"vendor": ["8086"]}]},
            "resourceList[0].selectors[1].vendor: unknown key (its value is ['8086']); did you mean vendors?",
        ),
        (
            {"selectors": {"excludeTopology": True}},
            "resourceList[0].selectors.excludeTopology: unknown key (its value is True);"
            " it belongs one level up, beside selectors",
        ),
        (
            {"selectors": {"pfNames": "ens1f0"}},
            "resourceList[0].selectors.pfNames: expected `array | null`, got `str` ('ens1f0')",
        ),
        (
            {"selectors": {"acpiIndexes": [101]}},
            "resourceList[0].selectors.acpiIndexes[0]: expected `str`, got `int` (101); put quotes around it",
        ),
        (
            {"additionalInfo": {"eth0": {"a": "b"}}},
            "resourceList[0].additionalInfo: 'eth0' is not valid; expected a PCI address like 0000:3b:02.1,"
            " or * for every device",
        ),
        (
            {"additionalInfo": {"*": {"a": 1}}},
            "resourceList[0].additionalInfo.*.a: expected `str`, got `int` (1); put quotes around it",
        ),
        (
            {"selectors": [{"needVhostNet": True}, {}]},
            "resourceList[0].selectors[1].needVhostNet: False is not valid; expected as in"
            " resourceList[0].selectors[0]: all devices of a resource are given the nodes, or none is",
        ),
    ],
)
def test_a_mistake(change: dict[str, Any], said: str) -> None:
    (line,) = mistakes(resource(**change))
    assert line.startswith(said)


def test_all_mistakes_are_told() -> None:
    lines = mistakes(
        json.dumps(
            {
                "resourceList": [
                    {"resourceName": "a", "selectors": {"pfNames": ["x#2-1"], "vdpaType": "vhost"}},
                    {"resourceName": "b", "deviceType": "accelerator", "selectors": {"devices": ["x"]}},
                    {"resourceName": "a", "selectors": None},
                ]
            }
        )
    )
    assert [line.partition(": ")[0] for line in lines] == [
        "resourceList[0].selectors.vdpaType",
        "resourceList[1].deviceType",
        "resourceList[2].selectors",
        "resourceList[0].selectors.pfNames[0]",
        "resourceList[1].selectors.devices[0]",
        "resourceList[2].resourceName",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[]", "the file: expected `object`, got `array`"),
        ("{}", "the file: object missing required field `resourceList`"),
        ('{"resourceList": []}', "resourceList: [] is not valid; expected at least one resource"),
        ('{"resourceList": [NaN]}', "not valid JSON: "),
        ('{"resourceList": ["\\ud800"]}', "not valid JSON: "),
        ('{"resourceList": [{"a": 1, "a": 2}]}', "not valid JSON: the key 'a' is there twice in one object"),
        ('{"resourceList": ' + "[" * 100_000, "not valid JSON: "),
    ],
)
def test_what_is_no_such_file(text: str, said: str) -> None:
    (line,) = mistakes(text)
    assert line.startswith(said)


def test_the_prefix_of_the_command_line_is_a_domain() -> None:
    with pytest.raises(ConfigError, match=r"^--resource-prefix: 'Intel' is not valid"):
        parse_drop_in(resource(), "Intel")


def test_as_the_config_of_the_agent() -> None:
    config = parse_drop_in(SEVERAL, "openshift.io")
    assert config.resources() == parse_established(SEVERAL, "openshift.io")
    assert [pool.name for pool in config.pools] == [pool.name for pool in config.resources()]
    assert {pool.vfs for pool in config.pools} == {None}
    assert config.resource_prefix == "openshift.io"


@given(st.recursive(st.none() | st.booleans() | st.text(max_size=4), lambda part: st.lists(part, max_size=3)))
def test_anything_is_parsed_or_refused(value: object) -> None:
    for text in (json.dumps(value), resource(selectors=value), resource(selectors={"pfNames": value})):
        try:
            parse_established(text)
        except MistakesFound as e:
            found = e.mistakes
        else:
            found = ()
        assert all(line.isprintable() for line in found)
