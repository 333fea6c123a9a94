"""`sriovctl doctor`: each check finds what is broken, says so, and is silent once that is mended."""

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from node_agent import cli
from node_agent.config import parse_config
from node_agent.doctor import nics
from node_agent.doctor.checks import RULES, find_all
from node_agent.doctor.facts import Facts
from node_agent.doctor.gather import Node, gather
from node_agent.status_file import Provisioned
from tests.cni_world import PF0
from tests.doctor_node import CONFIG, DoctorNode
from tests.fake_kernel import FakeKernel
from vf_manager.apply import Failure
from vf_manager.kernel.api import PciFunction
from vf_manager.model import Mac, PciAddress
from vf_manager.provision import Refusal, RefusalKind

PROJECT = Path(__file__).parent.parent
Break = Callable[[DoctorNode], Callable[[], object]]  # returns what mends it
BREAKS: dict[str, Break] = {}


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


@pytest.mark.parametrize("rule", [rule.id for rule in RULES])
def test_what_is_broken_is_found_until_it_is_mended(node: DoctorNode, rule: str) -> None:
    mend = BREAKS[rule](node)
    found = [finding for finding in node.findings("--probe") if finding["id"] == rule]
    assert len(found) == 1
    assert found[0]["about"]
    assert "{" not in found[0]["cause"] + found[0]["cure"].replace("{mac: stable}", "")
    mend()
    assert rule not in node.ids()


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


@breaks("run-dir-open")
def _(node: DoctorNode) -> Callable[[], object]:
    node.run_dir.chmod(0o755)
    return lambda: node.run_dir.chmod(0o700)


@breaks("records-unreadable")
def _(node: DoctorNode) -> Callable[[], object]:
    node.write("run/su/attachments/c0@net1.json", "{")
    return lambda: node.remove("run/su/attachments/c0@net1.json")


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
    node.write("run/systemd/network/20-all.network", "")

    def mend() -> None:
        node.write("etc/udev/rules.d/80-sriov-vfs.rules", "")
        node.write("etc/systemd/network/10-sriov-vfs.network", "")

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
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": "10.56.0.0/24", "gateway": "10.56.0.1"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    pod = node.attach("web-0", node.vf(3), ipam=ipam)
    return lambda: node.detach("web-0", pod, node.vf(3))


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
    assert node.findings() == []


def test_a_multus_configuration_may_sort_first(node: DoctorNode) -> None:
    node.write_json("etc/cni/net.d/00-multus.conf", {"type": "multus-shim"})
    assert node.findings() == []


def test_what_the_runtime_would_skip_does_not_sort_first(node: DoctorNode) -> None:
    node.write("etc/cni/net.d/00-broken.conflist", "{")
    node.write("etc/cni/net.d/00-readme.txt", "{}")
    assert node.findings() == []


def test_a_service_that_was_told_otherwise(node: DoctorNode) -> None:
    node.start_service("NetworkManager")
    node.write("etc/NetworkManager/conf.d/9-vfs.conf", "[keyfile]\nunmanaged-devices=driver:iavf\n")
    node.start_service("systemd-networkd")
    assert node.findings() == []


def test_an_executable_that_is_not_the_shipped_one_is_of_another_release(node: DoctorNode) -> None:
    """As in the image, which has a copy of its own."""
    installed = node.root / "opt/cni/bin/sriov-underlay"
    shipped = node.write("libexec/sriov-underlay", "another")
    where = Node(
        root=node.root,
        config=node.config,
        run_dir=node.run_dir,
        kubelet_dir=node.root / "kubelet",
        conf_dir=node.root / "etc/cni/net.d",
        bin_dir=installed.parent,
        shipped=shipped,
    )
    (found,) = find_all(gather(where, node.kernel, 0.0, probe=False))
    assert (found.id, found.about) == ("executable-old", str(installed))
    shipped.write_bytes(installed.read_bytes())
    assert find_all(gather(where, node.kernel, 0.0, probe=False)) == []


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
