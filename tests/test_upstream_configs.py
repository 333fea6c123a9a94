"""Configurations as they are written for sriov-cni: taken as they are, with the meaning they have there; and
what its documentation warns of, refused with key and value."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sriov_cni.attachment import Asked
from sriov_cni.environment import Pod
from sriov_cni.ipam.config import DelegateConf, HostLocalConf, StaticConf
from sriov_cni.netconf import CniCall, NetConf, parse_call
from sriov_cni.spec import SUPPORTED_VERSIONS, code_of
from tests.cni_world import PF0, World, error_of, result_of
from vf_manager.errors import SriovError
from vf_manager.model import LinkState, Mac, VfChange, VlanProto

PROJECT = Path(__file__).parent.parent
VF = "0000:03:02.0"
MULTUS_ARGS = (
    "IgnoreUnknown=true;K8S_POD_NAMESPACE=default;K8S_POD_NAME=testpod1;"
    "K8S_POD_INFRA_CONTAINER_ID=5e1b;K8S_POD_UID=e1f2"
)
HOST_LOCAL = {
    "type": "host-local",
    "subnet": "10.56.217.0/24",
    "rangeStart": "10.56.217.171",
    "rangeEnd": "10.56.217.181",
    "routes": [{"dst": "0.0.0.0/0"}],
    "gateway": "10.56.217.1",
}


def parse(config: dict[str, Any], args: str = MULTUS_ARGS, command: str = "ADD") -> CniCall:
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "5e1b",
        "CNI_NETNS": "/proc/4711/ns/net",
        "CNI_IFNAME": "net1",
        "CNI_PATH": "/opt/cni/bin",
        "CNI_ARGS": args,
    }
    return parse_call(env, json.dumps(config).encode())


def sriov(**options: Any) -> dict[str, Any]:
    """A network attachment as its author wrote it, with what Multus puts in."""
    base = {"cniVersion": "0.3.1", "name": "sriov-net", "type": "sriov"}
    return base | options | {"deviceID": VF, "pciBusID": VF}


def conf(**options: Any) -> NetConf:
    return parse(sriov(**options)).conf


# --- the documented examples


def test_kernel_driver() -> None:
    found = conf(ipam=HOST_LOCAL)
    assert (found.name, found.device_id, found.asked) == ("sriov-net", VF, Asked())
    assert isinstance(found.ipam, HostLocalConf)
    (only,) = found.ipam.range_sets
    assert str(only) == "10.56.217.171-10.56.217.181"
    assert [str(r.gateway) for r in only.ranges] == ["10.56.217.1"]
    assert [(r.dst, r.gw) for r in found.ipam.routes] == [("0.0.0.0/0", None)]


def test_every_key_at_once() -> None:
    """With a tag of 802.1ad (QinQ) on the outside."""
    found = conf(
        mac="CA:FE:C0:FF:EE:00",
        vlan=1000,
        vlanQoS=4,
        vlanProto="802.1ad",
        min_tx_rate=100,
        max_tx_rate=200,
        spoofchk="off",
        trust="on",
        link_state="enable",
        logLevel="debug",
        logFile="/tmp/sriov.log",
        ipam=HOST_LOCAL,
    )
    mac = Mac("ca:fe:c0:ff:ee:00")
    change = VfChange(
        mac=mac,
        vlan=1000,
        qos=4,
        proto=VlanProto.DOT1AD,
        spoofchk=False,
        trust=True,
        min_tx_rate=100,
        max_tx_rate=200,
        link_state=LinkState.ENABLE,
    )
    assert found.asked == Asked(change=change, mac=mac)
    assert (found.log_level, found.log_file) == ("debug", "/tmp/sriov.log")


def test_dpdk_without_ipam() -> None:
    found = conf(name="sriov-dpdk", vlan=1000)
    assert found.asked == Asked(change=VfChange(vlan=1000, qos=0, proto=VlanProto.DOT1Q))
    assert found.ipam is None


def test_an_ipam_that_is_switched_off() -> None:
    for off in ({}, {"type": ""}, None):
        assert conf(ipam=off).ipam is None


def test_other_ipams() -> None:
    static = {"type": "static", "addresses": [{"address": "10.10.0.1/24", "gateway": "10.10.0.254"}]}
    assert isinstance(conf(ipam=static).ipam, StaticConf)
    whereabouts = {"type": "whereabouts", "range": "192.168.2.225/28", "kubernetes": {"kubeconfig": "/x"}}
    found = conf(ipam=whereabouts).ipam
    assert isinstance(found, DelegateConf)
    assert json.loads(found.config)["ipam"] == whereabouts
    assert isinstance(conf(ipam={"type": "dhcp"}).ipam, DelegateConf)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"min_tx_rate": 100, "max_tx_rate": 200}, VfChange(min_tx_rate=100, max_tx_rate=200)),
        ({"min_tx_rate": 0, "max_tx_rate": 0}, VfChange(min_tx_rate=0, max_tx_rate=0)),
        ({"vlan": 0}, VfChange(vlan=0, qos=0, proto=VlanProto.DOT1Q)),
        ({"vlan": 0, "vlanQoS": 0}, VfChange(vlan=0, qos=0, proto=VlanProto.DOT1Q)),
        ({"vlan": 4094, "vlanQoS": 7}, VfChange(vlan=4094, qos=7, proto=VlanProto.DOT1Q)),
        ({"vlan": 5, "vlanProto": "802.1Q"}, VfChange(vlan=5, qos=0, proto=VlanProto.DOT1Q)),
        ({"vlan": 5, "vlanProto": "802.1AD"}, VfChange(vlan=5, qos=0, proto=VlanProto.DOT1AD)),
        ({"spoofchk": "on", "trust": "off"}, VfChange(spoofchk=True, trust=False)),
        ({"link_state": "auto"}, VfChange(link_state=LinkState.AUTO)),
        ({"link_state": "disable"}, VfChange(link_state=LinkState.DISABLE)),
    ],
)
def test_attributes(options: dict[str, Any], change: VfChange) -> None:
    assert conf(**options).asked.change == change


@pytest.mark.parametrize(
    "text", ["CA:FE:C0:FF:EE:00", "ca-fe-c0-ff-ee-00", "cafe.c0ff.ee00", "CAFE.C0FF.EE00"]
)
def test_every_way_to_write_a_mac(text: str) -> None:
    assert conf(mac=text).asked.mac == "ca:fe:c0:ff:ee:00"


@pytest.mark.parametrize("level", ["panic", "error", "warning", "info", "debug", "INFO", "Debug"])
def test_log_levels(level: str) -> None:
    assert conf(logLevel=level).log_level == level.lower()


def test_what_the_operator_writes() -> None:
    """sriov-network-operator fills in every key, with "" where nothing is asked for, and `capabilities`."""
    found = conf(
        cniVersion="1.0.0",
        vlan=0,
        vlanQoS=0,
        vlanProto="802.1q",
        spoofchk="",
        trust="",
        link_state="",
        capabilities={"mac": True, "ips": True},
        logLevel="info",
        logFile="",
        ipam={},
    )
    assert found.asked.change == VfChange(vlan=0, qos=0, proto=VlanProto.DOT1Q)


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_every_version(version: str) -> None:
    assert conf(cniVersion=version).cni_version == version


# --- what a runtime puts in


def test_multus_gives_the_device() -> None:
    for key in ("deviceID", "pciBusID"):
        only = {"cniVersion": "0.3.1", "name": "sriov-net", "type": "sriov", key: VF}
        assert parse(only).conf.device_id == VF
    assert conf(runtimeConfig={"deviceID": VF}).device_id == VF
    assert conf(runtimeConfig={"CNIDeviceInfoFile": "/var/run/k8s.cni.cncf.io/devinfo/cni/f"}).device_id == VF
    assert conf(CNIDeviceInfoFile="/var/run/k8s.cni.cncf.io/devinfo/cni/f").device_id == VF


def test_multus_names_the_pod() -> None:
    assert parse(sriov()).pod == Pod(namespace="default", name="testpod1", uid="e1f2")


def test_all_runtime_capabilities_at_once() -> None:
    runtime = {
        "mac": "CA:FE:C0:FF:EE:00",
        "ips": ["10.56.217.175/24"],
        "portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 1},
        "infinibandGUID": "c2:11:22:33:44:55:66:77",
    }
    found = conf(runtimeConfig=runtime, capabilities=dict.fromkeys(runtime, True), ipam=HOST_LOCAL)
    assert found.asked.mac == "ca:fe:c0:ff:ee:00"
    assert isinstance(found.ipam, HostLocalConf)
    assert str(found.ipam.range_sets[0].requested) == "10.56.217.175"


def test_later_in_a_chain() -> None:
    prev = {
        "cniVersion": "0.3.1",
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/proc/1/ns/net"}],
        "ips": [{"version": "4", "interface": 0, "address": "10.1.0.5/24", "gateway": "10.1.0.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["10.1.0.1"]},
    }
    assert conf(prevResult=prev).asked == Asked()


MACS = [
    # (runtimeConfig, args.cni, CNI_ARGS, the config's own) -> the one that counts
    (("1", "2", "3", "4"), "1"),
    (("1", None, "3", "4"), "1"),
    ((None, "2", "3", "4"), "2"),
    ((None, None, "3", "4"), "3"),
    ((None, None, None, "4"), "4"),
]


@pytest.mark.parametrize(("places", "wins"), MACS)
def test_which_mac_counts(places: tuple[str | None, ...], wins: str) -> None:
    runtime, cni, args, own = (place and f"02:00:00:00:00:0{place}" for place in places)
    config = sriov(
        mac=own,
        args={"cni": {"mac": cni}} if cni else None,
        runtimeConfig={"mac": runtime} if runtime else None,
    )
    call = parse(config, f"{MULTUS_ARGS};MAC={args}" if args else MULTUS_ARGS)
    assert call.conf.asked.mac == f"02:00:00:00:00:0{wins}"


# --- what its users were refused, and is there


def test_mtu_and_flags() -> None:
    assert conf(mtu=9000, promisc="on", allmulti="off").asked == Asked(mtu=9000, promisc=True, allmulti=False)


def test_they_reach_the_vf_and_are_taken_back(tmp_path: Path) -> None:
    """As type `sriov`, altnames of the host's interface included."""
    world = World(tmp_path)
    vf = world.vfs(PF0)[2]
    link = next(link for link in world.kernel.namespaces[1] if link.parent == vf)
    with world.kernel.links() as host:
        host.add_altnames(link.netdev.ifindex, ["enp3s0f0v2", "enx020000000001"])
    before, pod = world.state(), world.new_pod("a")
    options = {"mtu": 1400, "promisc": "on", "allmulti": "on", "vlan": 1000, "trust": "on"}
    config = sriov(**options, ipam=HOST_LOCAL) | {"deviceID": vf, "pciBusID": vf}
    result = result_of(world.call("ADD", "c1", pod, config, CNI_ARGS=MULTUS_ARGS))
    assert result["ips"][0]["address"] == "10.56.217.171/24"
    inside = world.kernel.find("net1", pod)
    assert inside is not None
    found = inside.netdev
    assert (found.mtu, found.promisc, found.allmulti, found.altnames) == (1400, True, True, ())
    assert world.kernel.functions[PF0].attributes[2].vlan == 1000
    assert world.call("DEL", "c1", pod, config, CNI_ARGS=MULTUS_ARGS).exit_code == 0
    assert world.state().without(pod) == before.without(pod)


# --- documented misuse, and what is guessed at there in silence

MISUSE: list[tuple[str, dict[str, Any], int, tuple[str, ...]]] = [
    ("vlan beyond 4094", {"vlan": 4095}, 7, ("vlan: 4095", "0 to 4094")),
    ("negative vlan", {"vlan": -1}, 7, ("vlan: -1", "0 to 4094")),
    ("qos without vlan", {"vlanQoS": 4}, 7, ("vlanQoS: 4", "vlan beside it")),
    ("qos on vlan 0", {"vlan": 0, "vlanQoS": 4}, 7, ("vlanQoS: 4", "0 when vlan is 0")),
    ("qos beyond 7", {"vlan": 5, "vlanQoS": 8}, 7, ("vlanQoS: 8", "0 to 7")),
    ("proto without vlan", {"vlanProto": "802.1ad"}, 7, ("vlanProto: '802.1ad'", "vlan beside it")),
    ("802.1ad on vlan 0", {"vlan": 0, "vlanProto": "802.1ad"}, 7, ("vlanProto: '802.1ad'", "802.1q")),
    ("proto unknown", {"vlan": 5, "vlanProto": "802.1x"}, 7, ("vlanProto: '802.1x'", "802.1q, 802.1ad")),
    ("link state", {"link_state": "up"}, 7, ("link_state: 'up'", "auto, enable, disable")),
    ("spoofchk in words", {"spoofchk": "yes"}, 7, ("spoofchk: 'yes'", '"on" or "off"')),
    ("spoofchk in capitals", {"spoofchk": "ON"}, 7, ("spoofchk: 'ON'", '"on" or "off"')),
    ("trust as a boolean", {"trust": True}, 7, ("trust: True", '"on" or "off"')),
    ("multicast mac", {"mac": "01:00:5e:00:00:01"}, 7, ("mac: '01:00:5e:00:00:01'", "unicast")),
    ("mac of another kind", {"mac": "02:00:5e:10:00:00:00:01"}, 7, ("mac: '02:00:5e:10:00:00:00:01'",)),
    ("mac by the runtime", {"runtimeConfig": {"mac": "x"}}, 7, ("runtimeConfig.mac: 'x'",)),
    ("a maximum alone", {"max_tx_rate": 100}, 7, ("max_tx_rate: 100", "min_tx_rate beside it")),
    ("a minimum alone", {"min_tx_rate": 100}, 7, ("min_tx_rate: 100", "max_tx_rate beside it")),
    ("min above max", {"min_tx_rate": 200, "max_tx_rate": 100}, 7, ("min_tx_rate: 200", "100")),
    ("negative rate", {"max_tx_rate": -5}, 7, ("max_tx_rate: -5",)),
    ("rate as text", {"max_tx_rate": "100"}, 7, ("max_tx_rate: '100'",)),
    ("rate with hyphens", {"max-tx-rate": 100}, 2, ("max-tx-rate", "100", "did you mean 'max_tx_rate'?")),
    ("key in lower case", {"vlanqos": 4, "vlan": 5}, 2, ("vlanqos", "4", "did you mean 'vlanQoS'?")),
    ("deviceID without domain", {"deviceID": "03:02.0"}, 7, ("deviceID: '03:02.0'", "0000:3b:02.1")),
    ("two devices", {"deviceID": "0000:03:02.1"}, 7, ("0000:03:02.1", VF)),
    ("log level", {"logLevel": "verbose"}, 7, ("logLevel: 'verbose'", "debug")),
    ("version of old", {"cniVersion": "0.2.0"}, 1, ("cniVersion: '0.2.0'", "0.3.1")),
    ("insides of sriov-cni", {"Master": "ens1f0"}, 2, ("Master", "ens1f0", "unknown key")),
    ("options of its first version", {"if0": "ens1f0"}, 2, ("if0", "ens1f0", "unknown key")),
]


@pytest.mark.parametrize(
    ("options", "code", "words"), [row[1:] for row in MISUSE], ids=[row[0] for row in MISUSE]
)
def test_misuse(options: dict[str, Any], code: int, words: tuple[str, ...]) -> None:
    with pytest.raises(SriovError) as caught:
        parse(sriov() | options)
    assert code_of(caught.value) == code
    for word in words:
        assert word in str(caught.value)


def test_no_device(tmp_path: Path) -> None:
    world = World(tmp_path)
    config = {key: value for key, value in sriov().items() if key not in ("deviceID", "pciBusID")}
    code, message = error_of(world.call("ADD", "c1", world.new_pod("a"), config, CNI_ARGS=MULTUS_ARGS))
    assert code == 7
    assert message.startswith("pod default/testpod1 requests no VF")
    assert message.endswith("nor does the network configuration name a VF by deviceID")


def test_unknown_arguments() -> None:
    with pytest.raises(SriovError, match=r"CNI_ARGS: 'WHAT=ever'") as caught:
        parse(sriov(), "WHAT=ever")
    assert code_of(caught.value) == 4
    assert parse(sriov(), "WHAT=ever;IgnoreUnknown=1").conf.device_id == VF


# --- the executable under its second name


def install(folder: Path, also_as: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "install-cni", f"CNI_BIN={folder}", f"ALSO_AS={also_as}"]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)


def test_it_can_be_installed_as_sriov(tmp_path: Path) -> None:
    folder = tmp_path / "cni"
    folder.mkdir()
    (folder / "sriov").write_text("the one that was there")
    running = os.open(folder / "sriov", os.O_RDONLY)
    try:
        done = install(folder, "sriov")
        assert done.returncode == 0, done.stderr
        assert os.read(running, 100) == b"the one that was there"  # replaced, not overwritten
    finally:
        os.close(running)
    assert sorted(path.name for path in folder.iterdir()) == ["sriov", "sriov-underlay"]
    env = {"CNI_COMMAND": "VERSION"}
    answer = subprocess.run(
        [folder / "sriov"], env=env, capture_output=True, input=b"{}", timeout=10, check=True
    )
    assert json.loads(answer.stdout)["supportedVersions"] == list(SUPPORTED_VERSIONS)


def test_by_itself_it_leaves_sriov_alone(tmp_path: Path) -> None:
    assert install(tmp_path, "").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["sriov-underlay"]


def test_it_takes_no_other_name(tmp_path: Path) -> None:
    done = install(tmp_path, "bridge")
    assert done.returncode != 0
    assert "ALSO_AS: 'bridge' is not valid" in done.stderr
    assert list(tmp_path.iterdir()) == []
