"""`sriovctl doctor`: each check finds what is broken, says so, and is silent once that is mended."""

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from node_agent import cli
from node_agent.config import parse_config
from node_agent.doctor import cni_files, nics
from node_agent.doctor.checks import RULES
from node_agent.doctor.facts import CniFiles, Facts
from node_agent.doctor.networkd import HostInterface, matches, parse_network_file
from node_agent.status_file import InPodState, PoolState, Provisioned, Watched
from sriov_cni.spec import SUPPORTED_VERSIONS
from tests.cni_world import PF0
from tests.doctor_node import CONFIG, DoctorNode
from tests.fake_kernel import FakeKernel
from vf_manager.apply import Failure
from vf_manager.kernel.api import PciFunction, RouteSpec
from vf_manager.model import Mac, PciAddress
from vf_manager.provision import Refusal, RefusalKind

PROJECT = Path(__file__).parent.parent
Break = Callable[[DoctorNode], Callable[[], object]]  # returns what mends it
BREAKS: dict[str, Break] = {}
DEFAULT_ROUTE = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.56.0.0/24", "gateway": "10.56.0.1"}]],
    "routes": [{"dst": "0.0.0.0/0"}],
}
RULES_FILE, NETWORK_FILE = "80-sriov-vfs.rules", "10-sriov-vfs.network"


def breaks(rule: str) -> Callable[[Break], Break]:
    def keep(function: Break) -> Break:
        BREAKS[rule] = function
        return function

    return keep


@pytest.fixture
def node() -> Iterator[DoctorNode]:
    """Not in tmp_path: the path of a socket may have 107 bytes only."""
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        made = DoctorNode(Path(folder))
        with made.agent():
            yield made


def test_a_node_that_is_well(node: DoctorNode) -> None:
    done = node.doctor("--probe")
    assert (done.exit_code, done.stdout) == (0, f"Nothing is wrong: {len(RULES)} checks.\n")
    assert node.findings() == []
    assert node.asked_with == "/opt/cni/bin"


@pytest.mark.parametrize("rule", [rule.id for rule in RULES])
def test_what_is_broken_is_found_until_it_is_mended(node: DoctorNode, rule: str) -> None:
    assert rule not in [finding.id for finding in node.look()]
    mend = BREAKS[rule](node)
    (found,) = [finding for finding in node.look() if finding.id == rule]
    assert found.about
    assert "{" not in found.cause + found.cure.replace("{mac: stable}", "")
    mend()
    assert rule not in [finding.id for finding in node.look()]


def test_every_rule_is_broken_by_one_test() -> None:
    assert set(BREAKS) == {rule.id for rule in RULES}
    assert len({rule.id for rule in RULES}) == len(RULES) >= 30


# -- the agent, its folder, the kubelet


@breaks("agent-silent")
def _(node: DoctorNode) -> Callable[[], object]:
    socket = node.run_dir / "cni.sock"
    socket.rename(node.root / "aside")
    return lambda: (node.root / "aside").rename(socket)


@breaks("agent-not-ready")
def _(node: DoctorNode) -> Callable[[], object]:
    node.not_ready = "all 7 VFs of this node's pools are attached"
    return lambda: setattr(node, "not_ready", None)


@breaks("config-invalid")
def _(node: DoctorNode) -> Callable[[], object]:
    node.config.write_text("pools: [{nam: a}]")
    return lambda: node.config.write_text(CONFIG)


@breaks("config-refused")
def _(node: DoctorNode) -> Callable[[], object]:
    node.tell(config_refused="pools: 3 is not a list")
    return node.tell


@breaks("provisioning-stuck")
def _(node: DoctorNode) -> Callable[[], object]:
    refusal = Refusal(pf=PF0, kind=RefusalKind.REFUSED, reason="somebody else created 4 VFs")
    node.tell(Provisioned(refused=(refusal,)))
    return node.tell


@breaks("provisioning-pending")
def _(node: DoctorNode) -> Callable[[], object]:
    refusal = Refusal(pf=PF0, kind=RefusalKind.PENDING, reason="7 VFs -> 3 would destroy VFs in use")
    node.tell(Provisioned(pending=(refusal,)))
    return node.tell


@breaks("kubelet-socket-missing")
def _(node: DoctorNode) -> Callable[[], object]:
    node.remove("kubelet/device-plugins/kubelet.sock")
    return lambda: node.write("kubelet/device-plugins/kubelet.sock", "")


@breaks("pod-resources-missing")
def _(node: DoctorNode) -> Callable[[], object]:
    node.remove("kubelet/pod-resources")
    return lambda: node.write("kubelet/pod-resources/kubelet.sock", "")


@breaks("pool-not-registered")
def _(node: DoctorNode) -> Callable[[], object]:
    pool = PoolState(name="fast", resource="x/fast", reason="the kubelet did not answer")
    node.tell(pools=(pool,))
    return lambda: node.tell(pools=(msgspec.structs.replace(pool, registered=True),))


@breaks("run-dir-open")
def _(node: DoctorNode) -> Callable[[], object]:
    node.run_dir.chmod(0o775)
    return lambda: node.run_dir.chmod(0o755)


@breaks("socket-open")
def _(node: DoctorNode) -> Callable[[], object]:
    socket = node.run_dir / "cni.sock"
    socket.chmod(0o666)
    return lambda: socket.chmod(0o600)


@breaks("folder-not-writable")
def _(node: DoctorNode) -> Callable[[], object]:
    """A file in its place; a file system that is full or read-only is in `hw_tests/test_doctor.py`."""
    node.remove("kubelet/device-plugins")
    file = node.write("kubelet/device-plugins", "")

    def mend() -> None:
        file.unlink()
        node.write("kubelet/device-plugins/kubelet.sock", "")

    return mend


@breaks("records-unreadable")
def _(node: DoctorNode) -> Callable[[], object]:
    node.write("run/su/attachments/c0@net1.json", "{")
    return lambda: node.remove("run/su/attachments/c0@net1.json")


# -- the clock

NOW = time.time()


@breaks("clock-unsynchronised")
def _(node: DoctorNode) -> Callable[[], object]:
    node.config.write_text(f"{CONFIG}kubernetes: {{}}\n")
    node.is_synchronised = False
    return lambda: setattr(node, "is_synchronised", True)


@breaks("clock-set-back")
def _(node: DoctorNode) -> Callable[[], object]:
    node.attach("web-0", node.vf(3))
    (record,) = (node.run_dir / "attachments").iterdir()
    os.utime(record, times=(NOW + 3600,) * 2)
    return lambda: os.utime(record)


@breaks("token-out-of-date")
def _(node: DoctorNode) -> Callable[[], object]:
    node.config.write_text(f"{CONFIG}kubernetes: {{}}\n")
    node.write_token(NOW - 7200, NOW - 3600)
    return lambda: node.write_token(NOW - 3600, NOW + 3600)


# -- PFs and VFs


@breaks("sriov-off")
def _(node: DoctorNode) -> Callable[[], object]:
    node.kernel.add_lone("0000:05:00.0", "ens5")
    node.config.write_text(CONFIG.replace("[ens0]", "[ens0, ens5]"))
    return lambda: node.kernel.add_pf("0000:05:00.0", "ens5") and node.set_link("ens5", up=True, carrier=True)


@breaks("totalvfs-low")
def _(node: DoctorNode) -> Callable[[], object]:
    node.config.write_text(CONFIG.replace("count: 7}", "count: 8}"))
    return lambda: node.config.write_text(CONFIG)


@breaks("pf-no-driver")
def _(node: DoctorNode) -> Callable[[], object]:
    owner = node.kernel.functions[PF0]
    before = owner.function
    owner.function = msgspec.structs.replace(before, driver=None)
    return lambda: setattr(owner, "function", before)


@breaks("driver-without-sriov")
def _(node: DoctorNode) -> Callable[[], object]:
    error = f"write '7' to sriov_numvfs of {PF0}: ENOENT (No such file or directory)"
    node.tell(Provisioned(failed=(Failure(PF0, error),)))
    return node.tell


@breaks("pf-down")
def _(node: DoctorNode) -> Callable[[], object]:
    node.set_link("ens0", up=False, carrier=False)
    return lambda: node.set_link("ens0", up=True, carrier=True)


@breaks("pf-no-carrier")
def _(node: DoctorNode) -> Callable[[], object]:
    node.set_link("ens0", carrier=False)
    return lambda: node.set_link("ens0", carrier=True)


@breaks("mtu-mismatch")
def _(node: DoctorNode) -> Callable[[], object]:
    node.set_link("ens0v2", mtu=9000)
    return lambda: node.set_link("ens0", mtu=9000)


@breaks("duplicate-mac")
def _(node: DoctorNode) -> Callable[[], object]:
    before = node.set_link("ens0v1").netdev.mac
    node.set_link("ens0v1", mac=node.set_link("ens0v2").netdev.mac)
    return lambda: node.set_link("ens0v1", mac=before)


@breaks("vf-no-driver")
def _(node: DoctorNode) -> Callable[[], object]:
    node.kernel._unbind(node.vf(0))
    return lambda: node.kernel.bind_driver(node.vf(0), None)


# -- vfio


@breaks("iommu-off")
def _(node: DoctorNode) -> Callable[[], object]:
    groups = node.root / "sys/kernel/iommu_groups"
    groups.rename(node.root / "aside")
    groups.mkdir()
    return lambda: (node.root / "aside").replace(groups)


@breaks("vfio-group-not-viable")
def _(node: DoctorNode) -> Callable[[], object]:
    node.add_to_group(16, "0000:00:1c.0", "pcieport")
    driver = node.add_to_group(16, "0000:02:00.1", "igb")
    return driver.unlink


# -- services of the host


@breaks("networkmanager-holds-vfs")
def _(node: DoctorNode) -> Callable[[], object]:
    node.start_service("NetworkManager")
    return lambda: node.write("etc/udev/rules.d/80-sriov-vfs.rules", "")


@breaks("networkd-holds-vfs")
def _(node: DoctorNode) -> Callable[[], object]:
    node.start_service("systemd-networkd")
    node.write("run/systemd/network/20-all.network", "[Match]\nName=*\n[Network]\nDHCP=yes\n")

    def mend() -> None:
        for name, folder in ((RULES_FILE, "etc/udev/rules.d"), (NETWORK_FILE, "etc/systemd/network")):
            node.write(f"{folder}/{name}", (PROJECT / "manifests" / name).read_text())

    return mend


# -- what the runtime finds


@breaks("cni-conf-dir-missing")
def _(node: DoctorNode) -> Callable[[], object]:
    node.remove("etc/cni/net.d")
    return lambda: (node.root / "etc/cni/net.d").mkdir()


@breaks("cni-bin-dir-missing")
def _(node: DoctorNode) -> Callable[[], object]:
    (node.root / "opt/cni/bin").rename(node.root / "aside")
    return lambda: (node.root / "aside").rename(node.root / "opt/cni/bin")


@breaks("cni-not-called")
def _(node: DoctorNode) -> Callable[[], object]:
    ours = node.root / "etc/cni/net.d/10-underlay.conflist"
    ours.rename(node.root / "aside")
    return lambda: (node.root / "aside").rename(ours)


@breaks("cni-other-first")
def _(node: DoctorNode) -> Callable[[], object]:
    node.write_json("etc/cni/net.d/05-flannel.conflist", node.chain("flannel"))
    return lambda: node.remove("etc/cni/net.d/05-flannel.conflist")


@breaks("executable-missing")
def _(node: DoctorNode) -> Callable[[], object]:
    node.remove("opt/cni/bin/sriov-underlay")
    return lambda: node.set_executable(["0.3.1", "0.4.0", "1.0.0", "1.1.0"])


@breaks("executable-broken")
def _(node: DoctorNode) -> Callable[[], object]:
    node.set_script("exit 1")
    return lambda: node.set_executable(["0.3.1", "0.4.0", "1.0.0", "1.1.0"])


@breaks("executable-old")
def _(node: DoctorNode) -> Callable[[], object]:
    node.set_executable(["0.3.1", "0.4.0", "1.0.0"])
    return lambda: node.set_executable(["0.3.1", "0.4.0", "1.0.0", "1.1.0"])


@breaks("fallback-unreadable")
def _(node: DoctorNode) -> Callable[[], object]:
    node.config.write_text(f"{CONFIG}fallback: {node.fallback}.gone\n")
    return lambda: node.config.write_text(f"{CONFIG}fallback: {node.fallback}\n")


@breaks("fallback-plugin-missing")
def _(node: DoctorNode) -> Callable[[], object]:
    node.config.write_text(f"{CONFIG}fallback: {node.fallback}\n")
    node.remove("opt/cni/bin/bridge")
    return lambda: node.set_plugins("bridge")


# -- VFs in pods


@breaks("spoofchk-mac")
def _(node: DoctorNode) -> Callable[[], object]:
    vf, mac = node.vf(3), Mac("02:00:00:00:aa:01")
    pod = node.attach("web-0", vf, mac=mac)
    node.set_link("net1", pod, mac=Mac("02:00:00:00:aa:02"))
    return lambda: node.set_link("net1", pod, mac=mac)


@breaks("address-twice")
def _(node: DoctorNode) -> Callable[[], object]:
    """Two networks that do not know of each other."""
    node.attach("web-0", node.vf(3), name="one")
    pod = node.attach("web-1", node.vf(4), name="two")
    return lambda: node.detach("web-1", pod, node.vf(4))


@breaks("address-in-use")
def _(node: DoctorNode) -> Callable[[], object]:
    node.attach("web-0", node.vf(3))
    node.kernel.neighbours["10.56.0.2/24"] = Mac("02:00:00:00:00:77")
    return node.kernel.neighbours.clear


@breaks("bypasses-kube-proxy")
def _(node: DoctorNode) -> Callable[[], object]:
    pod = node.attach("web-0", node.vf(3), ipam=DEFAULT_ROUTE)
    return lambda: node.detach("web-0", pod, node.vf(3))


@breaks("no-route-to-services")
def _(node: DoctorNode) -> Callable[[], object]:
    pod = node.attach("web-0", node.vf(3))
    return lambda: add_cluster_network(node, pod)


def add_cluster_network(node: DoctorNode, pod: int) -> None:
    """An interface with a way to the service range."""
    eth0 = node.kernel.add_link("eth0", pod)
    eth0.routes = [RouteSpec(dst="10.96.0.0/12", gateway="10.244.0.1")]


# -- services and policy inside of pods


@breaks("rules-missing")
def _(node: DoctorNode) -> Callable[[], object]:
    pod = node.attach("web-0", node.vf(3), services="in-pod", ipam=DEFAULT_ROUTE)
    tables = node.kernel.nft.pop(pod)
    return lambda: node.kernel.nft.update({pod: tables})


@breaks("services-without-route")
def _(node: DoctorNode) -> Callable[[], object]:
    pod = node.attach("web-0", node.vf(3), services="in-pod")
    return lambda: add_cluster_network(node, pod)


@breaks("cluster-not-heard")
def _(node: DoctorNode) -> Callable[[], object]:
    deaf = InPodState(watched=(Watched(kind="pods", trouble="connection refused"),))
    node.tell(in_pod=deaf)
    return node.tell


# -- the wire


@breaks("gateway-silent")
def _(node: DoctorNode) -> Callable[[], object]:
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": "10.56.0.0/24"}]],
        "routes": [{"dst": "10.0.0.0/8", "gw": "10.56.0.9"}],
    }
    node.attach("web-0", node.vf(3), vlan=100, ipam=ipam)
    return lambda: node.kernel.neighbours.update({"10.56.0.9/32": Mac("02:00:00:00:00:77")})


@breaks("nothing-received")
def _(node: DoctorNode) -> Callable[[], object]:
    pod = node.attach("web-0", node.vf(3), vlan=100)
    counted = node.set_link("net1", pod).counted
    counted["tx_packets"] = 40
    return lambda: counted.update(rx_packets=1)


@breaks("vf-attributes-changed")
def _(node: DoctorNode) -> Callable[[], object]:
    node.attach("web-0", node.vf(3), vlan=100)
    attributes = node.kernel.functions[PF0].attributes
    before = attributes[3]
    attributes[3] = msgspec.structs.replace(before, vlan=300)
    return lambda: attributes.update({3: before})


@breaks("vlan-in-switchdev")
def _(node: DoctorNode) -> Callable[[], object]:
    node.config.write_text(f"{CONFIG}networks: [{{name: blue, pools: [fast], vlan: 100}}]\n")
    pool = PoolState(name="fast", resource="x/fast", vfs=(node.vf(0),), registered=True)
    node.tell(pools=(pool,))
    node.kernel.eswitch[PF0] = "switchdev"
    return lambda: node.kernel.eswitch.update({PF0: "legacy"})


# -- how it is said


def test_the_worst_comes_first_and_decides_the_exit_code(node: DoctorNode) -> None:
    mend = BREAKS["bypasses-kube-proxy"](node)
    assert node.doctor().exit_code == 0
    node.set_link("ens1", carrier=False)
    assert node.doctor().exit_code == 3
    node.remove("kubelet/device-plugins/kubelet.sock")
    done = node.doctor()
    assert done.exit_code == 4
    heads = [line.partition(":")[0] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert heads == ["error", "warning", "note"]
    mend()


def test_a_finding_for_people(node: DoctorNode) -> None:
    node.set_link("ens0", carrier=False)
    assert node.doctor().stdout == (
        f"warning: pf-no-carrier: ens0 ({PF0})\n"
        "  The PF is up and has no carrier.\n"
        "  To do: look at cable, module and switch port: `ethtool ens0`.\n"
    )


def test_nothing_is_changed(node: DoctorNode) -> None:
    for rule in ("bypasses-kube-proxy", "mtu-mismatch"):
        BREAKS[rule](node)
    before, files = node.world.state(), sorted(node.root.rglob("*"))
    node.doctor("--probe")
    assert (node.world.state(), sorted(node.root.rglob("*"))) == (before, files)


def test_without_probe_the_wire_is_not_asked(node: DoctorNode) -> None:
    BREAKS["address-in-use"](node)
    assert [finding["id"] for finding in node.findings()] == ["no-route-to-services"]


def test_a_multus_configuration_may_sort_first(node: DoctorNode) -> None:
    node.write_json("etc/cni/net.d/00-multus.conf", {"type": "multus-shim"})
    assert node.findings() == []


def test_what_the_runtime_would_skip_does_not_sort_first(node: DoctorNode) -> None:
    node.write("etc/cni/net.d/00-broken.conflist", "{")
    node.write("etc/cni/net.d/00-readme.txt", "{}")
    assert node.findings() == []


CRIO = '[crio.network]\nnetwork_dir = "/other/net.d"\nplugin_dirs = ["/other/bin", "/opt/cni/bin"]\n'
CONTAINERD = """
version = {}
[plugins."{}".cni]
conf_dir = "/other/net.d"
{}
"""


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "etc/containerd/config.toml",
            CONTAINERD.format(3, "io.containerd.cri.v1.runtime", 'bin_dirs = ["/other/bin"]'),
        ),
        (
            "etc/containerd/config.toml",
            CONTAINERD.format(2, "io.containerd.grpc.v1.cri", 'bin_dir = "/other/bin"'),
        ),
        ("etc/crio/crio.conf.d/10-cni.conf", CRIO),
    ],
)
def test_where_the_runtime_looks_counts(node: DoctorNode, file: str, text: str) -> None:
    """The usual folders have all that is needed, and nobody looks there. Neither does the agent, who is asked
    whether it finds the plugins of a fallback chain."""
    for folder in ("net.d", "bin"):
        (node.root / "other" / folder).mkdir(parents=True)
    node.write(file, text)
    found = {finding["id"]: finding["about"] for finding in node.findings()}
    assert found == {
        "cni-not-called": f"{node.root}/other/net.d",
        "executable-missing": f"{node.root}/other/bin/sriov-underlay",
    }
    assert node.asked_with == "/other/bin"
    node.write(file, "[")
    assert node.findings() == []


def test_network_manager_that_was_told_otherwise(node: DoctorNode) -> None:
    node.start_service("NetworkManager")
    node.write("etc/NetworkManager/conf.d/9-vfs.conf", "[keyfile]\nunmanaged-devices=driver:iavf\n")
    assert node.findings() == []


def test_rules_count_for_the_vfs_that_were_made_since(node: DoctorNode) -> None:
    """udev's database has what its rules said of each interface when it came."""
    node.start_service("NetworkManager")
    node.write(f"etc/udev/rules.d/{RULES_FILE}", "")
    node.write_udev("ens0v2", ID_PATH="pci-0000:01:10.2")
    (found,) = node.findings()
    assert (found["id"], "(ens0v2)" in found["cause"]) == ("networkmanager-holds-vfs", True)
    node.write_udev("ens0v2", NM_UNMANAGED="1", SRIOV_VF="1")
    assert node.findings() == []


DHCP = "[Network]\nDHCP=yes\n"


@pytest.mark.parametrize(
    ("match", "vfs"),
    [
        ("Name=ens0v2", ["ens0v2"]),
        ("Name=ens0v[12] ens0v4", ["ens0v1", "ens0v2", "ens0v4"]),
        ("Name=!ens0v* ens1v*", ["ens0v2"]),  # by its other name
        ("Name=ens0v*\nName=\nName=ens0v3", ["ens0v3"]),
        ("Name=ens0v* !ens0v[0-5]", ["ens0v6"]),
        ("Name=fast2", ["ens0v2"]),
        ("Driver=iavf igb", []),
        ("Driver=igb*\nName=ens1v0", ["ens1v0"]),
        ("Path=pci-0000:01:10.1", ["ens0v1"]),
        ("Type=ether\nPath=pci-0000:01:10.1", ["ens0v1"]),
        ("Type=wlan", []),
        ("Kind=veth", []),
        ("Kind=!veth\nName=ens0v0", ["ens0v0"]),
        ("Property=ID_MODEL_ID=0x10c? 'ID_NOTE=a b'", ["ens0v2"]),
        ("Property=ID_MODEL_ID=0x10c?\nProperty=ID_NOTE=c", []),
        ("Property=!ID_NOTE=*\nName=ens0v2", []),
        ("Property=!ID_NOTE=*\nName=ens0v3", ["ens0v3"]),
        ("MACAddress=02:00:00:00:AA:01 02-00-00-00-aa-02", ["ens0v2"]),
        ("PermanentMACAddress=0200.0000.aa03", ["ens0v2"]),
        ("Name=ens0v2\nHost=elsewhere", []),
        ("# Name=*\nName=\\\n# or all of them\n  ens0v2", ["ens0v2"]),
        ("", []),
    ],
)
def test_what_networkd_would_take(node: DoctorNode, match: str, vfs: list[str]) -> None:
    node.start_service("systemd-networkd")
    mac = Mac("02:00:00:00:aa:02")
    node.set_link("ens0v2", mac=mac, altnames=("fast2",)).permanent_mac = Mac("02:00:00:00:aa:03")
    node.write_udev("ens0v2", ID_MODEL_ID="0x10ca", ID_NOTE="a b")
    node.write("etc/systemd/network/20-a.network", f"[Match]\n{match}\n{DHCP}")
    causes = [finding["cause"] for finding in node.findings()]
    assert [re.findall(r"\bens\dv\d", cause) for cause in causes] == ([vfs] if vfs else [])


@given(st.lists(st.sampled_from([*"[]!*?-\\'\"#;= az\n", "[Match]\n", "Name=", "Property=", "Driver="])))
def test_files_of_networkd_may_be_anything(parts: list[str]) -> None:
    file = parse_network_file("20-a.network", ["[Match]\n" + "".join(parts)])
    matches(file, HostInterface(names=("az", "a-z"), mac=Mac("02:00:00:00:aa:01"), properties={"a": "z"}))


@pytest.mark.parametrize(
    ("files", "taker"),
    [
        ({"etc/systemd/network/10-a.network": "Unmanaged=yes"}, None),
        ({"etc/systemd/network/30-a.network": "Unmanaged=yes"}, "20-all.network"),
        ({"usr/lib/systemd/network/10-a.network": "Unmanaged=no"}, "10-a.network"),
        ({"etc/systemd/network/20-all.network": "Unmanaged=true"}, None),
        ({"usr/lib/systemd/network/20-all.network": "Unmanaged=true"}, "20-all.network"),
        ({"usr/lib/systemd/network/20-all.network.d/a.conf": "Unmanaged=1"}, None),
        ({"etc/systemd/network/20-all.network": None}, None),
    ],
)
def test_the_first_file_of_networkd_counts(
    node: DoctorNode, files: dict[str, str | None], taker: str | None
) -> None:
    """/etc before /run before /usr for files of one name; all together in the order of their names."""
    node.start_service("systemd-networkd")
    node.write("run/systemd/network/20-all.network", f"[Match]\nDriver=igbvf\n{DHCP}")
    for name, link in files.items():
        node.write(name, f"[Match]\nName=ens*v*\n[Link]\n{link}\n" if link else "")
    assert [finding["about"] for finding in node.findings()] == ([taker] if taker else [])


def test_networkd_has_a_vf_that_comes_back_from_its_pod(node: DoctorNode) -> None:
    node.start_service("systemd-networkd")
    node.write("etc/systemd/network/20-a.network", f"[Match]\nName=ens0v3\n{DHCP}")
    add_cluster_network(node, node.attach("web-0", node.vf(3)))
    assert [finding["id"] for finding in node.findings()] == ["networkd-holds-vfs"]


def test_an_executable_that_is_not_the_shipped_one_is_of_another_release(node: DoctorNode) -> None:
    """As in the image, which has a copy of its own."""
    installed = node.root / "opt/cni/bin/sriov-underlay"
    shipped = node.write("libexec/sriov-underlay", "another")
    (found,) = node.look()
    assert (found.id, found.about) == ("executable-old", str(installed))
    shipped.write_bytes(installed.read_bytes())
    assert node.look() == []


def test_the_config_is_the_one_that_the_agent_reads(node: DoctorNode) -> None:
    """Also if that is of the established device plugin."""
    established = {"resourceList": [{"resourceName": "fast", "selectors": {"pfNames": ["ens0"]}}]}
    config = node.write_json("etc/pcidp/config.json", established)
    node.names_config = False
    node.tell(config=str(config))
    assert node.findings() == []
    config.write_text("{}")
    (found,) = node.findings()
    assert (found["id"], found["about"]) == ("config-invalid", str(config))


def test_totalvfs_0_is_off_too() -> None:
    """A driver may say 0 (drivers/pci/iov.c pci_sriov_set_totalvfs)."""
    function = PciFunction(
        pci=PciAddress("0000:05:00.0"), vendor="15b3", device="1017", netdev_names=("ens0",), lone=False
    )
    (found,) = nics.find(Facts(functions=(function,), config=parse_config(CONFIG)))
    assert (found.id, found.about) == ("sriov-off", "ens0")


def test_a_folder_as_the_kubelet_makes_it_is_no_trouble(node: DoctorNode) -> None:
    """`DirectoryOrCreate` of a hostPath: everybody may look, and sees nothing that is not root's alone."""
    node.run_dir.chmod(0o755)
    assert node.findings() == []


def test_a_pod_that_has_a_route_to_the_services_by_the_cluster_network(node: DoctorNode) -> None:
    """Which is what the note asks for: then it is silent, though the default route goes by the VF."""
    BREAKS["bypasses-kube-proxy"](node)
    assert [finding["id"] for finding in node.findings()] == ["bypasses-kube-proxy"]
    add_cluster_network(node, node.kernel.paths["/run/netns/web-0"])
    assert node.findings() == []


def test_a_pod_with_two_vfs_is_told_of_once(node: DoctorNode) -> None:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.57.0.0/24"}]]}
    pod = node.attach("web-0", node.vf(3), ipam=ipam)
    node.kernel.add_link("net2", pod, node.vf(4)).routes = [RouteSpec(dst="0.0.0.0/0", gateway="10.58.0.1")]
    assert node.ids() == []


def test_gateways_that_nobody_hears_of_while_the_cable_is_out(node: DoctorNode) -> None:
    BREAKS["gateway-silent"](node)
    node.set_link("ens0", carrier=False)
    assert "gateway-silent" not in node.ids()


def test_what_the_driver_does_not_report_was_not_changed(node: DoctorNode) -> None:
    node.attach("web-0", node.vf(3), vlan=100, trust="on")
    attributes = node.kernel.functions[PF0].attributes
    attributes[3] = msgspec.structs.replace(attributes[3], trust=None)
    assert "vf-attributes-changed" not in node.ids()


def test_a_token_that_is_valid_and_one_that_cannot_be_read(node: DoctorNode) -> None:
    node.config.write_text(f"{CONFIG}kubernetes: {{}}\n")
    node.write("token", "no.token")
    assert node.look() == []
    node.write_token(NOW + 3600, NOW + 7200)
    (found,) = node.look()
    assert found.id == "token-out-of-date"


def test_without_the_api_server_nobody_cares_for_the_clock(node: DoctorNode) -> None:
    node.is_synchronised = False
    node.write_token(NOW - 7200, NOW - 3600)
    assert node.look() == []


def test_leases_have_to_be_writable_too(node: DoctorNode) -> None:
    """Those of a network with a folder of its own, which nobody has made yet."""
    above = node.write("lib", "")
    ipam = f"{{type: host-local, dataDir: {above}/leases, subnet: 10.56.0.0/24}}"
    node.config.write_text(f"{CONFIG}networks: [{{name: blue, pools: [fast], ipam: {ipam}}}]\n")
    (found,) = node.findings()
    assert (found["id"], found["about"]) == ("folder-not-writable", f"{above}/leases")
    assert "Not a directory" in found["cause"]


def test_the_image_without_the_configurations_of_the_node() -> None:
    """Only the overlay that installs one mounts their folder. Elsewhere it is missed."""
    unseen = CniFiles(has_conf_dir=False, version_answer={"supportedVersions": list(SUPPORTED_VERSIONS)})
    assert [finding.id for finding in cni_files.find(Facts(cni=unseen))] == ["cni-conf-dir-missing"]
    image = msgspec.structs.replace(unseen, is_image=True)
    assert list(cni_files.find(Facts(cni=image))) == []


def test_a_bare_machine(tmp_path: Path) -> None:
    """No NIC, no kubelet, no agent, no file: told, not stumbled over."""
    where = ["--root", tmp_path, "--run-dir", tmp_path / "run", "--config", tmp_path / "config.yaml"]
    words = ["doctor", "--json", *map(str, where), "--kubelet-dir", str(tmp_path)]
    done = CliRunner().invoke(cli.app, words, obj=FakeKernel())
    assert done.exit_code == 4, done.output
    for rule in ("agent-silent", "config-invalid", "kubelet-socket-missing", "cni-bin-dir-missing"):
        assert rule in done.stdout


def test_who_may_not_read_is_told(node: DoctorNode) -> None:
    """Permissions stop nobody who is root."""
    attachments = node.run_dir / "attachments"
    aside = node.root / "aside"
    attachments.rename(aside)
    attachments.write_text("")
    try:
        assert "records-unreadable" in node.ids()
    finally:
        attachments.unlink()
        aside.rename(attachments)


# -- the documentation


def test_troubleshooting_has_every_rule() -> None:
    page = (PROJECT / "docs/troubleshooting.md").read_text()
    assert re.findall(r"^\| `[\w-]+` \| (?:error|warning|note) \|.*$", page, re.MULTILINE) == [
        rule.row() for rule in RULES
    ]
