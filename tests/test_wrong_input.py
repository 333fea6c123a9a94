"""Wrong input to ADD, one case each: a CNI error that names key and value, and nothing changed."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cni_world import PF0, World, conf_of, error_of
from tests.fake_kernel import FakeFunction
from vf_manager.kernel.api import LinkChange, PciFunction, RouteSpec
from vf_manager.model import PciAddress

HOST_NIC, SPARE_NIC = PciAddress("0000:05:00.0"), PciAddress("0000:06:00.0")
HOST_VF = PciAddress("0000:02:11.2")
DISK = PciAddress("0000:00:1f.2")
CASES: dict[str, tuple[dict[str, Any], int, tuple[str, ...]]] = {
    "vlan too large": ({"vlan": 4095}, 7, ("vlan", "4095", "0", "4094")),
    "vlan is no number": ({"vlan": "100"}, 7, ("vlan", "'100'")),
    "qos without vlan": ({"vlanQoS": 3}, 7, ("vlanQoS", "3", "vlan")),
    "proto without vlan": ({"vlanProto": "802.1ad"}, 7, ("vlanProto", "802.1ad", "vlan")),
    "spoofchk is no switch": ({"spoofchk": "yes"}, 7, ("spoofchk", "yes", "on", "off")),
    "trust is a boolean": ({"trust": True}, 7, ("trust", "True", "on")),
    "min above max": (
        {"min_tx_rate": 300, "max_tx_rate": 200},
        7,
        ("min_tx_rate", "300", "max_tx_rate", "200"),
    ),
    "negative rate": ({"max_tx_rate": -1}, 7, ("max_tx_rate", "-1")),
    "multicast mac": ({"mac": "01:00:5e:00:00:01"}, 7, ("mac", "01:00:5e:00:00:01", "unicast")),
    "malformed mac": ({"runtimeConfig": {"mac": "zz"}}, 7, ("runtimeConfig.mac", "zz")),
    "link state": ({"link_state": "up"}, 7, ("link_state", "up", "auto")),
    "mtu too small": ({"mtu": 60}, 7, ("mtu", "60", "68")),
    "deviceID malformed": ({"deviceID": "../01:10.0"}, 7, ("deviceID", "../01:10.0")),
    "deviceID is a path": ({"deviceID": "../x"}, 7, ("deviceID", "../x", "PCI address")),
    "deviceID leaves its folder": ({"deviceID": f"{PF0}/../{PF0}"}, 7, ("deviceID", "..", "PCI address")),
    "deviceID in the runtime's words": ({"runtimeConfig": {"deviceID": "../x"}}, 7, ("deviceID", "../x")),
    "deviceID of no NIC": ({"deviceID": DISK}, 7, ("deviceID", DISK, "not an SR-IOV virtual function")),
    "deviceID of a NIC in no pool": ({"deviceID": SPARE_NIC}, 7, ("deviceID", SPARE_NIC, "in no pool")),
    "deviceID of the host's own NIC": (
        {"deviceID": HOST_NIC},
        7,
        ("deviceID", HOST_NIC, "the host's default route goes by its interface ens5"),
    ),
    "deviceID of a VF that the host uses": (
        {"deviceID": HOST_VF},
        7,
        ("deviceID", HOST_VF, "the host's default route goes by its interface ens1v6"),
    ),
    "deviceID of a PF": ({"deviceID": PF0}, 7, ("deviceID", PF0, "physical function")),
    "deviceID unknown": ({"deviceID": "0000:09:00.0"}, 7, ("deviceID", "0000:09:00.0")),
    "two devices": ({"runtimeConfig": {"deviceID": "0000:09:00.0"}}, 7, ("deviceID", "0000:09:00.0")),
    "unknown key": ({"max-tx-rate": 5}, 2, ("max-tx-rate", "5", "max_tx_rate")),
    "key in the wrong case": ({"VLAN": 5}, 2, ("VLAN", "5", "vlan")),
    "unknown key of the ipam": (
        {"ipam": {"type": "host-local", "subnet": "10.1.0.0/24", "rangestart": "10.1.0.9"}},
        2,
        ("ipam.rangestart", "10.1.0.9", "rangeStart"),
    ),
    "unknown ipam": ({"ipam": {"type": "magic"}}, 7, ("ipam.type", "magic", "host-local")),
    "cniVersion unknown": ({"cniVersion": "2.0.0"}, 1, ("cniVersion", "2.0.0", "1.1.0")),
    "cniVersion missing": ({"cniVersion": None}, 1, ("cniVersion", "0.1.0", "1.1.0")),
    "network name": ({"name": "../x"}, 7, ("name", "../x")),
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.kernel.add_lone(HOST_NIC, "ens5")
    world.kernel.add_lone(SPARE_NIC, "ens6")
    world.kernel.functions[DISK] = FakeFunction(PciFunction(pci=DISK, vendor="8086", device="2922"))
    with world.kernel.links() as host:
        for name in ("ens5", "ens1v6"):
            link = host.read(name=name)
            assert link is not None
            host.set_link(link.netdev.ifindex, LinkChange(up=True))
            host.add_route(link.netdev.ifindex, RouteSpec(dst="0.0.0.0/0", table=link.netdev.ifindex))
    return world


@pytest.mark.parametrize("name", CASES)
def test_option(world: World, name: str) -> None:
    options, code, words = CASES[name]
    pod = world.new_pod("a")
    before = world.state()
    conf = conf_of(world.vfs(PF0)[0]) | options
    answer, message = error_of(world.call("ADD", "c1", pod, {k: v for k, v in conf.items() if v is not None}))
    assert answer == code
    for word in words:
        assert word in message
    assert world.state() == before


@pytest.mark.parametrize("stdin", [b"", b"{", b"[]", b"\xff\xfe", b'{"a":' * 5000, b"null"])
def test_config_that_is_no_json_object(world: World, stdin: bytes) -> None:
    pod = world.new_pod("a")
    before = world.state()
    code, message = error_of(world.call("ADD", "c1", pod, stdin))
    assert code == 6
    assert "stdin" in message
    assert world.state() == before


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "../../x"),
        ("CNI_IFNAME", ""),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "sixteen-letters-"),
        ("CNI_NETNS", ""),
        ("CNI_ARGS", "WHAT=ever"),
        ("CNI_COMMAND", "ATTACH"),
    ],
)
def test_environment(world: World, variable: str, value: str) -> None:
    pod = world.new_pod("a")
    before = world.state()
    conf = conf_of(world.vfs(PF0)[0])
    code, message = error_of(world.call("ADD", "c1", pod, conf, **{variable: value}))
    assert code == 4
    assert message.startswith(variable)
    assert world.state() == before


def test_the_error_is_worded_in_the_version_of_the_config(world: World) -> None:
    conf = conf_of(world.vfs(PF0)[0], cniVersion="0.4.0", vlan=4095)
    reply = world.call("ADD", "c1", world.new_pod("a"), conf)
    assert json.loads(reply.stdout)["cniVersion"] == "0.4.0"
