"""Pods made by containerd and runc over the CRI, as a kubelet asks for them: our executable is called by a
runtime that is not ours, and the agent learns from the kubelet which VFs a pod has."""

import contextlib
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from hw_tests.cluster import BRIDGE_ADDRESS, FAR, Cluster, gateway_of, running_cluster
from hw_tests.conftest import REPORT, need_programs
from hw_tests.containerd import REFERENCE_PLUGINS
from hw_tests.cri.api import cri_runtime_v1_pb2 as pb
from hw_tests.cri.client import CriError
from hw_tests.cri.pods import SandboxPod
from hw_tests.nics import Nic, ip_json, wait_for_carrier
from hw_tests.node import Node
from hw_tests.runtime import pings, wait_for_ping
from hw_tests.snapshot import Snapshot
from vf_manager.kernel.netns import Netns

PORTS = (pb.PortMapping(protocol=pb.TCP, container_port=80, host_port=8080),)
CYCLES = int(os.environ.get("RIG_CYCLES", "200"))
CHURN_S = float(os.environ.get("RIG_CHURN_S", "1800"))  # then no more begin
SEED = int(os.environ.get("RIG_SEED", "1"))
WORKERS = 4
CYCLES_PER_KILL = (4, 16)


@pytest.fixture(scope="module")
def module_cluster(
    request: pytest.FixtureRequest, session_node: Node, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Not for tests: they take `cluster`."""
    need_programs(request.config, "containerd", "ctr", "runc", str(REFERENCE_PLUGINS / "bridge"))
    with running_cluster(session_node, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(module_cluster: Cluster, node: Node, before: Snapshot) -> Iterator[Cluster]:
    """Left as it was found, VFs, leases and records included (see `before`)."""
    wait_for_carrier(node.nics)
    module_cluster.runner.retried.clear()
    found = module_cluster.left()
    yield module_cluster
    module_cluster.remove_all()
    assert module_cluster.left() == found


def own_addresses(pod: SandboxPod) -> dict[str, list[str]]:
    """What is in the pod, by interface."""
    links = ip_json("-n", pod.netns, "-4", "address", "show", "scope", "global")
    return {link["ifname"]: [info["local"] for info in link["addr_info"]] for link in links}


def test_a_pod_on_every_vf_at_once(cluster: Cluster, node: Node) -> None:
    wanted = {f"pod-{nic.name}-{i}": nic for nic in node.nics for i in range(nic.vfs_used)}
    with ThreadPoolExecutor(len(wanted)) as pool:
        pods = list(pool.map(lambda name: cluster.run(name, wanted[name]), wanted))
        assert cluster.runner.retried == []
        assert len(node.records()) == len(node.leases()) == len(wanted)
        for pod in pods:
            assert own_addresses(pod) == {"eth0": pod.addresses_told}
            wait_for_ping(cluster.outside, pod.addresses_told[0])
        assert len({pod.addresses_told[0] for pod in pods}) == len(wanted)
        list(pool.map(cluster.remove, wanted))
    assert cluster.runner.retried == []


def test_a_pod_with_vfs_of_two_pfs(cluster: Cluster, two_nics: tuple[Nic, Nic]) -> None:
    """Three interfaces, each reachable by its own address, also from behind a gateway: the answer leaves by
    the interface that was asked, or the router outside would drop it."""
    first, second = two_nics
    pod = cluster.run("three", first, first, second)
    addresses = own_addresses(pod)
    assert sorted(addresses) == ["eth0", "net1", "net2"]
    assert pod.addresses_told[0] == addresses["eth0"][0]
    for (address,) in addresses.values():
        wait_for_ping(cluster.outside, address)
        wait_for_ping(cluster.outside, address, "-I", FAR)
    for number in (0, 1):
        wait_for_ping(pod, gateway_of(number))
    heard = {entry["dst"]: entry["lladdr"] for entry in ip_json("-n", cluster.outside.netns, "neigh", "show")}
    links = pod.links()
    assert {address: heard[address] for (address,) in addresses.values()} == {
        address: links[ifname]["address"] for ifname, (address,) in addresses.items()
    }, "each address is answered for by its own interface"

    cluster.runner.stop("three")  # one DEL
    assert (cluster.node.records(), cluster.node.leases()) == ([], [])


def test_a_pod_without_vfs(cluster: Cluster) -> None:
    """The chain of bridge, portmap and host-local, with the port that the kubelet asked for."""
    pod = cluster.run("plain", ports=PORTS)
    (address,) = pod.addresses_told
    assert own_addresses(pod) == {"eth0": [address]}
    assert address.startswith("10.88.0.")
    wait_for_ping(None, address)
    with contextlib.closing(Netns.open(pod.path)) as inside:
        server = inside.run(lambda: socket.create_server(("0.0.0.0", 80)))
    with server, socket.create_connection((BRIDGE_ADDRESS, 8080), timeout=10) as client:
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"from the pod")
        assert client.recv(100) == b"from the pod"
    cluster.remove("plain")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((BRIDGE_ADDRESS, 8080), timeout=10)


def test_the_agent_is_down(cluster: Cluster, node: Node) -> None:
    """Pods of both kinds fail with what the kubelet takes as a reason to try again, and then succeed."""
    wanted: dict[str, tuple[Nic, ...]] = {"with": (node.nics[0],), "without": ()}
    for name, nics in wanted.items():
        cluster.allocate(name, nics)
    node.kill()

    def fails(name: str) -> str:
        with pytest.raises(CriError) as caught:
            cluster.runner.run(name, patience_s=0)
        return str(caught.value)

    with ThreadPoolExecutor(len(wanted)) as pool:
        errors = list(pool.map(fails, wanted))
    assert all("cannot reach the node agent" in error for error in errors), errors
    node.start()
    for name in wanted:
        cluster.runner.remove(name)  # the half-made sandbox, as the kubelet does before it makes another
        pod = cluster.runner.run(name)
        assert list(own_addresses(pod)) == ["eth0"]
        cluster.remove(name)


def test_containerd_is_restarted(cluster: Cluster, node: Node) -> None:
    pods = [cluster.run("with", node.nics[0]), cluster.run("without")]
    wait_for_ping(cluster.outside, pods[0].addresses_told[0])
    cluster.containerd.stop()
    assert cluster.outside.pings(pods[0].addresses_told[0])
    assert pings(pods[1].addresses_told[0])
    cluster.containerd.start()
    for pod in pods:
        assert cluster.cri.is_ready(pod.sandbox)
        assert cluster.cri.addresses(pod.sandbox) == pod.addresses_told
    cluster.run("later", node.nics[-1])
    for name in ("with", "without", "later"):
        cluster.remove(name)


@dataclass
class Churn:
    """Pods that come and go, several at once, while the agent is killed now and then."""

    cluster: Cluster
    seed: int
    kills: int = 0
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    _progress: threading.Condition = field(default_factory=threading.Condition)  # guards `done` and `_over`
    _over: bool = False

    def go(self) -> None:
        killer = threading.Thread(target=self._kill_now_and_then, name="killer")
        with ThreadPoolExecutor(WORKERS) as pool:
            killer.start()
            try:
                list(pool.map(self._cycle, range(CYCLES)))
            finally:
                with self._progress:
                    self._over = True
                    self._progress.notify_all()
                killer.join()

    def _cycle(self, number: int) -> None:
        """What pod it is depends on seed and number alone."""
        if time.monotonic() > self.began + CHURN_S:
            return
        dice = random.Random(f"{self.seed} {number}")
        nics = self.cluster.node.nics
        name = f"churn-{number}"
        pod = self.cluster.run(name, *dice.choices(nics, k=dice.choice((0, 1, 1, 1, 1, 1, 1, 2, 3))))
        addresses = own_addresses(pod)
        assert addresses["eth0"] == pod.addresses_told[:1], f"{name}: {addresses}, {pod.addresses_told}"
        self.cluster.remove(name)
        with self._progress:
            self.done += 1
            self._progress.notify_all()

    def _kill_now_and_then(self) -> None:
        """By the count of what was done, so that a slow machine gets somewhere too; then at any moment."""
        dice = random.Random(self.seed)
        while self._wait_for_more(dice.randint(*CYCLES_PER_KILL)):
            time.sleep(dice.uniform(0, 1))
            self.cluster.node.kill()
            self.kills += 1
            self.cluster.node.start()

    def _wait_for_more(self, cycles: int) -> bool:
        """Until so many more are done. False: it is over."""
        with self._progress:
            goal = self.done + cycles
            self._progress.wait_for(lambda: self._over or self.done >= goal)
            return not self._over


def test_pods_come_and_go_while_the_agent_is_killed(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    churn = Churn(cluster, SEED)
    churn.go()
    retried, seconds = cluster.runner.retried, time.monotonic() - churn.began
    line = f"containerd: {churn.done} of {CYCLES} pods came and went in {seconds:.0f} s (seed {SEED}),"
    line += f" {churn.kills} kills of the agent, {len(retried)} calls had to be repeated"
    request.config.stash.setdefault(REPORT, []).append(line)
    assert churn.done == CYCLES, f"the rest was not begun within {CHURN_S:g} s"
    assert churn.kills
    # Whatever else is retryable would have no reason here.
    assert [error for error in retried if not re.search("went away|cannot reach", error)] == []
