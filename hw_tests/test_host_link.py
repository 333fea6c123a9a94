"""The link between the node and a pod, on real VFs: probes as the kubelet makes them, by both kinds."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from hw_tests.conftest import REPORT
from hw_tests.nics import Nic, host_address, ip, ip_json, wait_for_carrier, wait_until
from hw_tests.node import Node, resource_of
from hw_tests.runtime import Conf, Pod, host_local, network
from hw_tests.snapshot import Snapshot, wait_for_same
from hw_tests.stage import Stage
from tests.host_link_contract import VlanContract
from tests.kernel_contract import Space
from tests.netns.namespaces import LinuxWorld
from tests.netns.talk import Server, ask

RANGES = ({"subnet": "198.18.90.0/24"}, {"subnet": "fd00:90::/64"})
ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
PORT = 8080
ELSEWHERE = ("198.51.100.1", "2001:db8:90::1")  # of the node, on no network of its pods
KINDS = ("pf", "veth")


def conf_of(kind: str, vlan: int | None = None) -> Conf:
    ipam = host_local(*RANGES, routes=ROUTES)
    return network(f"linked-{kind}", vlan=vlan, hostLink=kind, ipam=ipam)


@pytest.fixture
def nic(node: Node) -> Iterator[Nic]:
    """Its PF is up; the node has addresses on another network."""
    wait_for_carrier(node.nics)
    with ExitStack() as undo:
        for address, width in zip(ELSEWHERE, (32, 128), strict=True):
            ip("address", "add", f"{address}/{width}", "dev", "lo")
            undo.callback(ip, "address", "del", f"{address}/{width}", "dev", "lo")
        yield node.nics[0]


def host_state() -> set[str]:
    """Links, routes and rules of the node, and tables of nftables, without VFs, which come back with another
    index, and without what comes and goes with duplicate address detection."""
    commands = (
        "ip -o link show",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip -4 rule show",
        "ip -6 rule show",
        "nft list tables",
    )
    outputs = (subprocess.run(c.split(), check=True, capture_output=True, text=True).stdout for c in commands)
    lines = {line.split("expires")[0].strip() for output in outputs for line in output.splitlines()}
    return {line for line in lines if not re.search(r"fe80|anycast|multicast|^[0-9]+: .*v[0-9]+:", line)}


@contextmanager
def serving(pod: Pod) -> Iterator[None]:
    with Server(Space(-1, str(pod.path)), pod.name, PORT, protos=("TCP",)):
        yield


def probe(address: str) -> None:
    """As the kubelet does by TCP, again and again until the link has its carrier."""

    def answers() -> bool:
        try:
            ask(None, address, PORT, timeout_s=1)
        except OSError:
            return False
        return True

    wait_until(answers, f"answer to the node from {address} port {PORT}", 30.0)


def ips_of(result: dict[str, Any]) -> list[str]:
    return [str(one["address"]).split("/")[0] for one in result["ips"]]


def our_links() -> list[str]:
    return sorted(link["ifname"] for link in ip_json("link", "show") if link["ifname"].startswith("hlk"))


@pytest.fixture
def world(node: Node) -> Iterator[LinuxWorld]:
    ip("link", "add", "spare0", "type", "veth", "peer", "name", "peer0")
    ip("link", "set", "peer0", "up")
    try:
        with LinuxWorld("spare0") as world:
            yield world
    finally:
        ip("link", "del", "spare0")


class TestContract(VlanContract):
    """By a kernel that has 802.1q."""


@pytest.mark.parametrize("vlan", [None, 90])
@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_of_both_families(
    node: Node, stage: Stage, before: Snapshot, nic: Nic, kind: str, vlan: int | None
) -> None:
    state = host_state()
    pod, answer = stage.attach_new("probed", nic, conf_of(kind, vlan))
    with serving(pod):
        for address in ips_of(answer.result):
            probe(address)
    with Server(None, "node", PORT + 1, protos=("TCP",)):
        for address in ELSEWHERE:
            assert ask(Space(-1, str(pod.path)), address, PORT + 1).client in ips_of(answer.result)
    made = [name for name in our_links() if (f"-{vlan}." in name) == (kind == "pf")]
    assert len(made) == (0 if kind == "pf" and vlan is None else 1), our_links()
    node.runtime.call("CHECK", pod, conf_of(kind, vlan) | {"prevResult": answer.result})
    stage.detach(pod)
    assert host_state() == state
    assert wait_for_same(before, node.nics) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_node_address_in_the_pods_own_network(node: Node, stage: Stage, nic: Nic, kind: str) -> None:
    """On the PF: a probe comes from it, and by `veth` its answer still does not take the VF."""
    with host_address(nic, "198.18.90.250/24"):
        pod, answer = stage.attach_new("near", nic, conf_of(kind))
        with serving(pod):
            for address in ips_of(answer.result):
                probe(address)
        stage.detach(pod)


def test_the_link_of_a_vlan_is_shared_and_goes_with_its_last_pod(
    node: Node, stage: Stage, before: Snapshot, nic: Nic
) -> None:
    state, conf = host_state(), conf_of("pf", 90)
    pods = [stage.attach_new(name, nic, conf) for name in ("first", "second")]
    (name,) = our_links()
    stage.detach(pods[0][0])
    assert our_links() == [name]
    with serving(pods[1][0]):
        probe(pods[1][1].address)
    stage.detach(pods[1][0])
    assert host_state() == state


def test_a_vlan_interface_of_the_administrators_is_used_and_stays(node: Node, stage: Stage, nic: Nic) -> None:
    ip("link", "add", "link", nic.name, "name", "admin90", "type", "vlan", "id", "90")
    try:
        ip("link", "set", "admin90", "up")
        pod, answer = stage.attach_new("guest", nic, conf_of("pf", 90))
        with serving(pod):
            probe(answer.address)
        assert our_links() == []
        assert "admin90" in ip("route", "get", answer.address)
        stage.detach(pod)
        assert ip_json("link", "show", "dev", "admin90")
    finally:
        ip("link", "del", "admin90")


@pytest.mark.parametrize("kind", KINDS)
def test_every_vf_of_a_pod(node: Node, stage: Stage, before: Snapshot, nic: Nic, kind: str) -> None:
    state, conf = host_state(), conf_of(kind, 91)
    pod = stage.pod("many")
    node.kubelet.allocate(pod.namespace, pod.name, resource_of(nic), 2)
    result = node.runtime.add(pod, conf, None, "eth0").result
    with serving(pod):
        for address in ips_of(result):
            probe(address)
    node.runtime.delete(pod, conf, ifname="eth0")
    assert set(pod.links()) == {"lo"}
    assert pod.rules() == []
    assert host_state() == state


@pytest.mark.parametrize("kind", KINDS)
def test_the_pod_is_gone_before_its_del(
    node: Node, stage: Stage, before: Snapshot, nic: Nic, kind: str
) -> None:
    state = host_state()
    pod, _ = stage.attach_new("gone", nic, conf_of(kind, 93))
    assert host_state() != state
    pod.destroy()
    stage.detach(pod)
    assert host_state() == state
    assert wait_for_same(before, node.nics) == []


def test_how_long_it_takes(request: pytest.FixtureRequest, node: Node, stage: Stage, nic: Nic) -> None:
    """Not asserted, since it is the machine's."""
    took: dict[str, list[float]] = {kind: [] for kind in ("none", *KINDS)}
    pods = {kind: (pod := stage.pod(f"timed-{kind}"), stage.allocate(pod, nic)) for kind in took}
    for _ in range(7):
        for kind, (pod, vf) in pods.items():
            took[kind].append(stage.attach(pod, conf_of(kind, 92), vf).seconds)
            stage.detach(pod)
    medians = {kind: sorted(times)[len(times) // 2] * 1000 for kind, times in took.items()}
    lines = [f"ADD with hostLink {kind}: {ms:.1f} ms" for kind, ms in medians.items()]
    request.config.stash.setdefault(REPORT, []).extend(lines)
