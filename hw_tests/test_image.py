"""The agent from its container image, run by containerd exactly as the manifests say, with real VFs: from the
installation over an upgrade to the uninstallation."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from hw_tests.conftest import REPORT
from hw_tests.cri.pods import NAMESPACE, SandboxPod
from hw_tests.kustomize import MANIFESTS, Object, render
from hw_tests.nics import Nic, as_found, ip, wait_for_carrier
from hw_tests.node import PREFIX, pool_of, read_leases, resource_of
from hw_tests.rig.agent_image import NAME
from hw_tests.rig.image_disk import ARCHIVE, UPGRADE
from hw_tests.runtime import Conf, wait_for_ping
from hw_tests.snapshot import stable_snapshot, wait_for_same
from hw_tests.traffic import Traffic
from tests.image.node import PLAIN, ClusterNode, leaving, running_node, with_config

VFS = 2  # of each PF, for pods
OURS, CONFLIST = "/opt/cni/bin/sriov-underlay", "/etc/cni/net.d/00-sriov-underlay.conflist"
OUR_NETWORK = "sriov-underlay"
RECORDS, LEASES = "/run/sriov-underlay/attachments", "/var/lib/cni/networks"
CDI_SPEC = "/run/cdi/sriov-underlay_sriov-underlay.io_dpdk.json"
# include/uapi/linux/capability.h
BITS = {"DAC_OVERRIDE": 1, "NET_ADMIN": 12, "NET_RAW": 13, "SYS_CHROOT": 18, "SYS_ADMIN": 21}
SECCOMP_FILTER = "2"  # man 5 proc


@pytest.fixture
def machine(request: pytest.FixtureRequest, two_nics: tuple[Nic, Nic]) -> Iterator[ClusterNode]:
    """The machine as a node of a cluster: a container runtime, a kubelet, PFs without VFs, and no agent."""
    if request.config.getoption("rig") == "metal":
        pytest.skip(
            "this takes the place of the node's container runtime and kubelet: only the emulated rig has none"
        )
    assert "RIG_IMAGES" in os.environ, "no container images here: give `hw_tests.rig run` the option --images"
    images = Path(os.environ["RIG_IMAGES"])
    with ExitStack() as stack:
        for nic in two_nics:
            stack.enter_context(as_found(nic))
            ip("link", "set", nic.name, "up")  # the agent does it, and leaves it so
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=images))
        node = stack.enter_context(running_node(Path(folder), images / ARCHIVE, NAME, apart=False))
        yield node


def config_for(nics: tuple[Nic, Nic]) -> str:
    """What a user writes: a pool of each PF, one network over both, and a VF of each PF for DPDK."""
    vfs = {"count": VFS + 1}
    pools: list[Conf] = [
        {"name": pool_of(nic), "select": {"pfNames": [f"{nic.name}#0-{VFS - 1}"]}, "vfs": vfs} for nic in nics
    ]
    dpdk: Conf = {
        "name": "dpdk",
        "select": {"pfNames": [f"{nic.name}#{VFS}" for nic in nics]},
        "vfs": vfs | {"driver": "vfio-pci"},
        "allocation": {"cdi": True},
    }
    ipam = {"type": "host-local", "ranges": [[{"subnet": "198.18.60.0/24"}]]}
    networks = [{"name": "wire", "pools": [pool["name"] for pool in pools], "vlan": 60, "ipam": ipam}]
    return yaml.safe_dump(
        {"pools": [*pools, dpdk], "networks": networks, "fallback": f"/etc/cni/net.d/{PLAIN}"}
    )


def run_pod(node: ClusterNode, name: str, nic: Nic) -> SandboxPod:
    """A pod that requests a VF of this PF."""
    node.kubelet.allocate(NAMESPACE, name, resource_of(nic))
    return node.runner.run(name)


def remove_pods(node: ClusterNode, *names: str) -> None:
    for name in names:
        node.runner.remove(name)
        node.kubelet.free(NAMESPACE, name)


def records(node: ClusterNode) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in node.at(RECORDS).iterdir()}


def test_from_installation_over_an_upgrade_to_uninstallation(
    machine: ClusterNode, two_nics: tuple[Nic, Nic], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    node, (first, second) = machine, two_nics
    objects = with_config(render(MANIFESTS / "overlays/default-network"), config_for(two_nics))
    without_us = stable_snapshot(two_nics)

    install(node, objects, two_nics)
    line = f"image: the agent is ready {node.started_to('ready'):.1f} s after the start of its container"
    request.config.stash.setdefault(REPORT, []).append(line)
    check_rights(agent_pid(), objects)

    a, b = run_pod(node, "a", first), run_pod(node, "b", second)
    wait_for_ping(a, b.addresses_told[0])
    attached = stable_snapshot(two_nics)
    traffic = Traffic(a, b.addresses_told[0], tmp_path / "ping")
    traffic.wait_for_more()

    wait_for_ping(a, upgrade(node, objects, first, second).addresses_told[0])
    traffic.wait_for_more()
    remove_pods(node, "coming", "going")
    assert wait_for_same(attached, two_nics) == []

    uninstall(node, objects, two_nics, traffic)
    assert wait_for_same(without_us, two_nics) == []


def install(node: ClusterNode, objects: list[Object], nics: tuple[Nic, Nic]) -> None:
    node.start(objects, NAME)
    node.wait_for(lambda: OUR_NETWORK in node.cri.networks(), "network of ours for pods")
    assert node.probe("startupProbe")
    node.wait_for(lambda: len(node.events("installed")) == 2, "line for each file in the agent's log")
    installed = {line["path"]: line["timestamp"] for line in node.events("installed")}
    (ready,) = node.events("ready")
    assert installed[OURS] < ready["timestamp"] < installed[CONFLIST]
    for nic in nics:
        node.kubelet.wait_devices(resource_of(nic), VFS)
    node.kubelet.wait_devices(f"{PREFIX}/dpdk", len(nics))
    assert node.at(CDI_SPEC).exists()
    wait_for_carrier(nics)


def upgrade(node: ClusterNode, objects: list[Object], first: Nic, second: Nic) -> SandboxPod:
    """A pod comes and another one goes while there is no agent: both wait for the next."""
    held = records(node)
    run_pod(node, "going", second)
    node.kubelet.allocate(NAMESPACE, "coming", resource_of(first))
    executable, conflist = node.at(OURS).stat().st_ino, node.at(CONFLIST).stat().st_ino
    assert node.stop() == 0
    with ThreadPoolExecutor(2) as pool:
        run, remove = pool.submit(node.runner.run, "coming"), pool.submit(node.runner.remove, "going")
        node.start(objects, UPGRADE)
        node.wait_probe("startupProbe")
        coming = run.result()
        remove.result()
    assert set(coming.links()) == {"lo", "eth0"}
    assert node.at(OURS).stat().st_ino != executable, "exchanged by rename"
    assert node.at(CONFLIST).stat().st_ino == conflist, "it is the same and was not touched"
    kept = records(node)
    assert {name: kept.get(name) for name in held} == held
    return coming


def uninstall(node: ClusterNode, objects: list[Object], nics: tuple[Nic, Nic], traffic: Traffic) -> None:
    """The last VFs are waited for; then nothing is left."""
    assert node.stop() == 0
    node.start(leaving(objects), UPGRADE)
    node.wait_for(lambda: len(node.events("ready")) == 3, "agent that serves")
    assert not node.probe("readinessProbe")
    assert node.at(OURS).exists()
    assert OUR_NETWORK in node.cri.networks(), "the DEL of a VF comes by what the runtime finds there"
    for nic in nics:
        devices = node.kubelet.devices(resource_of(nic)).values()
        assert [device.health for device in devices] == ["Unhealthy"] * VFS, "none is offered any more"
    traffic.wait_for_more()
    sent, answered = traffic.stop()
    assert sent - answered <= 1, f"{answered} of {sent} answered; one may be on its way"
    remove_pods(node, "a", "b")
    node.wait_probe("readinessProbe")
    assert node.stop() == 0
    assert node.left() == []
    assert read_leases(node.at(LEASES)) == []


def agent_pid() -> int:
    """As the machine counts processes."""
    return int(subprocess.check_output(["pgrep", "--exact", "sriov-agent"]))


def check_rights(pid: int, objects: list[Object]) -> None:
    """Of the process, as the kernel has them: those of the manifest and no more."""
    (daemonset,) = (one for one in objects if one["kind"] == "DaemonSet")
    (container,) = daemonset["spec"]["template"]["spec"]["containers"]
    wanted = sum(1 << BITS[name] for name in container["securityContext"]["capabilities"]["add"])
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines)
    for kind in ("CapEff", "CapPrm", "CapBnd"):
        assert int(status[kind], 16) == wanted, kind
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", SECCOMP_FILTER)
    mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    (options,) = (fields[5] for fields in mounts if fields[4] == "/")
    assert "ro" in options.split(",")
