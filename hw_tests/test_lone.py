"""A NIC that plays a VF whose PF is at a hypervisor: neither physfn nor sriov_totalvfs, on the PFs' wire."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import yaml

from hw_tests.nics import Nic, find_plain_nic, ip, wait_for_carrier, wait_until
from hw_tests.node import PREFIX, Node, render_config
from hw_tests.runtime import IFNAME, PROJECT, CniError, Conf, Pod, host_local, network, wait_for_ping
from hw_tests.snapshot import Snapshot, differences, read_snapshot, stable_snapshot, wait_for_same
from hw_tests.stage import Stage

pytestmark = pytest.mark.skipif(
    os.environ.get("RIG") != "emulated",
    reason="a NIC of a real host that no pool of the tests made is not theirs to touch",
)

WELL_AGAIN_S = 80.0  # a VF that falls ill again soon must be well for longer, up to 64 s
RESOURCE = f"{PREFIX}/lone"
MAC = "02:00:00:00:cd:51"
IPAM = host_local({"subnet": "198.18.51.0/24"}, {"subnet": "fd00:51::/64"})
CONF = network("lone", mac=MAC, mtu=1400, ipam=IPAM)
PEER = network("lone", mtu=1400, ipam=IPAM)


@pytest.fixture(scope="module")
def lone() -> Nic:
    return find_plain_nic()


@pytest.fixture(scope="module", autouse=True)
def lone_pool(session_node: Node, lone: Nic) -> Iterator[None]:
    """The pools of the PFs' VFs, and one more."""
    pool = {
        "name": "lone",
        "withoutPf": True,
        "select": {"vendors": ["8086"], "devices": ["10d3"], "pciAddresses": [lone.pci]},
    }
    config = yaml.safe_load(render_config(session_node.nics))
    with configured(session_node, yaml.safe_dump({"pools": [*config["pools"], pool]})):
        yield


@contextlib.contextmanager
def configured(node: Node, config: str) -> Iterator[None]:
    usual = node.config.read_text()
    node.stop()
    node.config.write_text(config)
    node.start()
    node.wait_registered()
    try:
        yield
    finally:
        node.stop()
        node.config.write_text(usual)
        node.start()
        node.wait_registered()


def attach(stage: Stage, name: str, conf: Conf) -> tuple[Pod, Conf]:
    """A new pod to which the kubelet gave the NIC, and the result of its ADD."""
    pod = stage.pod(name)
    kubelet = stage.node.kubelet
    kubelet.wait_devices(RESOURCE, 1)
    (vf,) = kubelet.allocate(pod.namespace, pod.name, RESOURCE).ids
    return pod, stage.attach(pod, conf, vf).result


def test_a_pod_gets_it_and_it_comes_back(node: Node, stage: Stage, before: Snapshot, lone: Nic) -> None:
    ip("link", "property", "add", "dev", lone.name, "altname", "uplink-of-a-guest")
    found = stable_snapshot(node.nics)
    pod, result = attach(stage, "alone", CONF)
    (interface,) = result["interfaces"]
    assert (interface["mac"], interface["mtu"], interface["pciID"]) == (MAC, 1400, lone.pci)
    assert pod.links()[IFNAME]["address"] == MAC
    assert pod.addresses() == [address["address"] for address in result["ips"]]

    wait_for_carrier(node.nics)
    peer, answer = stage.attach_new("peer", node.nics[0], PEER)
    for mine, theirs in zip(result["ips"], answer.result["ips"], strict=True):
        wait_for_ping(pod, theirs["address"].split("/")[0])
        wait_for_ping(peer, mine["address"].split("/")[0])
    assert peer.neighbour(result["ips"][0]["address"].split("/")[0]) == MAC

    node.runtime.call("CHECK", pod, CONF | {"prevResult": result})
    assert f"{pod.namespace}/{pod.name} {IFNAME}" in sriovctl_line(node, lone.pci)
    ip("-n", pod.netns, "link", "set", IFNAME, "address", "02:00:00:00:cd:52")
    with pytest.raises(CniError, match=f"mac of {IFNAME} is 02:00:00:00:cd:52, not {MAC}"):
        node.runtime.call("CHECK", pod, CONF | {"prevResult": result})

    stage.detach(pod)
    stage.detach(peer)
    assert wait_for_same(found, node.nics) == []
    ip("link", "property", "del", "dev", lone.name, "altname", "uplink-of-a-guest")


def test_a_pod_that_ends_before_its_del(node: Node, stage: Stage, before: Snapshot) -> None:
    pod, _ = attach(stage, "short", CONF)
    pod.destroy()
    stage.detach(pod)
    assert wait_for_same(before, node.nics) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [("vlan", 100), ("spoofchk", "off"), ("trust", "on"), ("link_state", "enable")],
)
def test_what_only_a_pf_can_do(
    node: Node, stage: Stage, before: Snapshot, lone: Nic, option: str, value: object
) -> None:
    with pytest.raises(CniError) as caught:
        attach(stage, "asks", CONF | {option: value})
    assert caught.value.code == 7
    assert caught.value.msg.startswith(f"{option}: only a PF can set this, and VF {lone.pci} has its PF")
    assert differences(before, read_snapshot(node.nics)) == []


@contextlib.contextmanager
def default_route(name: str, family: str, gateway: str) -> Iterator[None]:
    ip("link", "set", name, "up")
    ip(family, "route", "add", "default", "via", gateway, "dev", name, "onlink")
    try:
        yield
    finally:
        ip("link", "set", name, "down")


@contextlib.contextmanager
def bridged(name: str) -> Iterator[None]:
    ip("link", "add", "br0", "type", "bridge")
    ip("link", "set", name, "master", "br0")
    try:
        yield
    finally:
        ip("link", "delete", "br0")


@contextlib.contextmanager
def vlan_upon(name: str) -> Iterator[None]:
    ip("link", "add", "link", name, "name", "tagged0", "type", "vlan", "id", "7")
    try:
        yield
    finally:
        ip("link", "delete", "tagged0")


ROUTE = "the host's default route goes by its interface"
NEEDS: dict[str, tuple[Callable[[str], contextlib.AbstractContextManager[None]], str]] = {
    "default route": (lambda name: default_route(name, "-4", "198.18.51.254"), ROUTE),
    "default route of IPv6": (lambda name: default_route(name, "-6", "fe80::1"), ROUTE),
    "bridge": (bridged, "br0 of the host stands on its interface"),
    "VLAN": (vlan_upon, "tagged0 of the host stands on its interface"),
}


@pytest.mark.parametrize("need", NEEDS)
def test_the_host_comes_to_need_it(node: Node, stage: Stage, before: Snapshot, lone: Nic, need: str) -> None:
    make, words = NEEDS[need]
    start = node.log.stat().st_size
    pod = stage.pod("late")
    node.kubelet.wait_devices(RESOURCE, 1, WELL_AGAIN_S)
    node.kubelet.allocate(pod.namespace, pod.name, RESOURCE)
    with make(lone.name):
        with pytest.raises(CniError) as caught:
            node.runtime.add(pod, CONF, lone.pci)
        assert caught.value.code == 7
        assert lone.pci in caught.value.msg
        assert f"{words} {lone.name}" in caught.value.msg
        node.kubelet.wait_devices(RESOURCE, 0)
        reason = f"pool lone does not get {lone.pci}: {words} {lone.name}"
        wait_until(lambda: said(node, start) == [reason], "the reason in the log", 20.0)
    wait_until(lambda: not wait_for_same(before, node.nics), "the NIC as it was", 20.0)
    node.kubelet.wait_devices(RESOURCE, 1, WELL_AGAIN_S)


def said(node: Node, start: int) -> list[str]:
    return [e["reason"] for e in node.log_events(start) if e["event"] == "a device stays out of its pool"]


def sriovctl_line(node: Node, pci: str) -> str:
    command = [sys.executable, "-m", "node_agent.cli", "vfs", "--run-dir", str(node.run_dir)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    (line,) = [line.strip() for line in done.stdout.splitlines() if pci in line]
    assert line.startswith("NIC without PF")
    return line
