"""Services and NetworkPolicy inside of pods, on real VFs: what veths cannot show, the drivers, the NIC's own
switch and its VLANs. What each option means is in tests/netns/test_in_pod_*.py."""

import os
import socket
import statistics
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from hw_tests import timing
from hw_tests.conftest import REPORT, need_programs
from hw_tests.dns import PORT, asked_by, name_server, question, resolv_conf, resolve
from hw_tests.in_pod import NAMESPACE, ClusterPod, Scene, knowing_a_cluster
from hw_tests.nics import Nic, wait_for_carrier, wait_until
from hw_tests.node import Node
from hw_tests.runtime import Conf, host_local, network, wait_for_ping
from hw_tests.stage import Stage
from hw_tests.traffic import Traffic
from tests.api_double import ApiDouble
from tests.cluster_objects import endpoints, policy, service
from tests.netns.talk import Reply, Server, ask, socket_in

VIP, DNS = "10.96.0.80", "10.96.0.10"
NAME = "web.ml.svc.cluster.local"
PORTS = {"web": 80, "udp-web": 80}
IN_POD = {"services": "in-pod", "policy": "in-pod", "syncTimeout": 30}
SOON_S = 20.0
QUESTIONS = 200
MODULES = {"nf_tables", "nf_conntrack", "nf_nat"}


def ipam(start: str, end: str) -> Conf:
    """All of them in one subnet, whatever their VLAN. Nobody has the gateway's address."""
    one = {"subnet": "198.18.100.0/24", "gateway": "198.18.100.1"}
    ends = {"rangeStart": f"198.18.100.{start}", "rangeEnd": f"198.18.100.{end}"}
    return host_local(one | ends, routes=[{"dst": "0.0.0.0/0"}])


BLUE = network("blue", vlan=100, ipam=ipam("10", "60"), **IN_POD)
RED = network("red", vlan=200, ipam=ipam("100", "150"), **IN_POD)
FRIENDS = [{"podSelector": {"matchLabels": {"role": "friend"}}}]
FRIENDS_ONLY = policy(
    "friends-only",
    NAMESPACE,
    podSelector={"matchLabels": {"app": "db"}},
    policyTypes=["Ingress", "Egress"],
    ingress=[{"from": FRIENDS, "ports": [{"protocol": proto, "port": 80} for proto in ("TCP", "UDP")]}],
)


@pytest.fixture(scope="module")
def api(
    request: pytest.FixtureRequest, session_node: Node, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiDouble]:
    need_programs(request.config, "dnsmasq", "nft")
    with knowing_a_cluster(session_node, tmp_path_factory.mktemp("api")) as api:
        yield api


@pytest.fixture
def scene(stage: Stage, api: ApiDouble) -> Iterator[Scene]:
    wait_for_carrier(stage.node.nics)
    with Scene(stage, api) as scene:
        yield scene


def eventually(pod: ClusterPod, reply: Reply, proto: str, address: str = VIP) -> None:
    """A link that was just brought up needs its time for the carrier."""

    def is_so() -> bool:
        try:
            return ask(pod.space, address, 80, proto, timeout_s=1) == reply
        except OSError:
            return False

    wait_until(is_so, f"answer {reply} from {address} by {proto}", SOON_S)


def says(flow: socket.socket, address: str) -> bool:
    return question(flow, NAME) == address


def netfilter_modules() -> set[str]:
    names = [line.split()[0] for line in Path("/proc/modules").read_text().splitlines()]
    return {name for name in names if name.startswith(("nf", "xt_", "ip_tables", "ip6_tables"))}


def without_netfilter() -> bool:
    """Whether the kernel has none of it, after everything was tried to remove it."""
    subprocess.run(["rmmod", *netfilter_modules()], capture_output=True, check=False)
    return not netfilter_modules() & MODULES


@pytest.mark.skipif(
    os.environ.get("RIG") != "emulated", reason="the rules of a real host are not the tests' to remove"
)
def test_the_kernels_modules_come_by_themselves(scene: Scene) -> None:
    subprocess.run(["nft", "flush ruleset"], check=True)
    wait_until(without_netfilter, "kernel without netfilter", SOON_S)
    scene.attach_new("first", scene.stage.node.nics[0], BLUE)
    assert netfilter_modules() >= MODULES


def test_a_cluster_ip(scene: Scene, two_nics: tuple[Nic, Nic]) -> None:
    """And nothing is left of it after DEL, but for what is the pod's own."""
    client, web = scene.pod("client"), scene.attach_new("web", two_nics[1], BLUE)
    client.nft("add table inet own; add chain inet own mine { type filter hook output priority 5; }")
    scene.attach(client, two_nics[0], BLUE)
    scene.put(
        service("web", VIP, ports=PORTS), endpoints("web", web.address, ports=dict.fromkeys(PORTS, 8080))
    )
    with Server(web.space, "web", 8080):
        for proto in ("TCP", "UDP"):
            eventually(client, Reply("web", client.address), proto)
        assert client.tables() == ["inet own", "inet sriov_underlay"]
    for pod in (client, web):
        scene.stage.detach(pod)
    assert (client.tables(), web.tables()) == (["inet own"], [])


def test_a_cluster_ip_by_sctp(scene: Scene, two_nics: tuple[Nic, Nic]) -> None:
    client, web = (scene.attach_new(name, nic, BLUE) for name, nic in zip("cw", two_nics, strict=True))
    try:
        server = Server(web.space, "web", 8080, protos=("SCTP",))
    except OSError as e:
        pytest.skip(f"the kernel here has no SCTP: {e}")
    ports = {"sctp-web": 80}
    scene.put(
        service("web", VIP, ports=ports), endpoints("web", web.address, ports=dict.fromkeys(ports, 8080))
    )
    with server:
        eventually(client, Reply("web", client.address), "SCTP")


def test_cluster_dns_outlives_its_pod(scene: Scene, two_nics: tuple[Nic, Nic], tmp_path: Path) -> None:
    client = scene.attach_new("client", two_nics[0], BLUE)
    ports = {"udp-dns": PORT, "dns": PORT}
    scene.put(service("kube-dns", DNS, ports=ports))
    with resolv_conf(client, DNS), socket_in(client.space, socket.AF_INET, "UDP") as kept:
        for number, nic in enumerate(two_nics):
            known, log = f"192.0.2.{number}", tmp_path / f"{number}.log"
            pod = scene.attach_new(f"dns-{number}", nic, BLUE)
            with name_server(pod, NAME, known, log):
                scene.put(endpoints("kube-dns", pod.address, ports=ports))
                if not number:
                    wait_until(lambda: bool(resolve(client, NAME)), "answer to the resolver", SOON_S)
                    kept.connect((DNS, PORT))
                wait_until(partial(says, kept, known), f"{known} by the same flow", SOON_S)
                assert resolve(client, NAME) == {known}
                assert resolve(client, NAME, by_tcp=True) == {known}
            assert set(asked_by(log)) == {client.address}
            scene.stage.detach(pod)


def test_a_policy_between_pfs(scene: Scene, two_nics: tuple[Nic, Nic], tmp_path: Path) -> None:
    """It is in force when there is a link at all, and stops what one PF's VF sends to the other's."""
    first, second = two_nics
    friend = scene.attach_new("friend", first, BLUE, role="friend")
    stranger = scene.attach_new("stranger", first, BLUE)
    wait_for_ping(stranger, friend.address)
    scene.put(FRIENDS_ONLY)
    db, conf = scene.pod("db", app="db"), BLUE | {"ipam": ipam("77", "77")}
    knocking = Traffic(stranger, "198.18.100.77", tmp_path / "ping", interval_s=0.02)
    with Server(db.space, "db", 80), Server(friend.space, "friend", 80):
        scene.attach(db, second, conf)
        eventually(friend, Reply("db", friend.address), "TCP", db.address)
        for proto in ("TCP", "UDP"):
            assert friend.reaches(db.address, 80, proto)
            assert not stranger.reaches(db.address, 80, proto)
            assert not db.reaches(friend.address, 80, proto)
            assert stranger.reaches(friend.address, 80, proto)
        _, answered = knocking.stop()
        assert answered == 0
        scene.delete("networkpolicies", f"{NAMESPACE}/friends-only")
        wait_for_ping(stranger, db.address)


def test_vlans_are_worlds_of_their_own(scene: Scene, two_nics: tuple[Nic, Nic]) -> None:
    """No service and no policy leads from one to the other."""
    first, second = two_nics
    db = scene.attach_new("db", second, BLUE, app="db")
    red, peer = scene.attach_new("red", first, RED, role="friend"), scene.attach_new("peer", second, RED)
    scene.put(FRIENDS_ONLY, service("db", VIP, ports=PORTS), endpoints("db", db.address, ports=PORTS))
    with Server(db.space, "db", 80), Server(peer.space, "peer", 80):
        eventually(red, Reply("peer", red.address), "TCP", peer.address)
        for proto in ("TCP", "UDP"):
            assert not red.reaches(db.address, 80, proto)
            assert not red.reaches(VIP, 80, proto)


def test_allowed_traffic_is_not_lost(scene: Scene, two_nics: tuple[Nic, Nic]) -> None:
    """Each question is a flow of its own, so that it is judged. Meanwhile a policy takes turns in how it lets
    them through, and another service gets and loses its endpoint."""
    client = scene.attach_new("client", two_nics[0], BLUE, role="friend")
    db = scene.attach_new("db", two_nics[1], BLUE, app="db")
    by_address = FRIENDS_ONLY | {
        "spec": FRIENDS_ONLY["spec"] | {"ingress": [{"from": [{"ipBlock": {"cidr": "198.18.100.0/24"}}]}]}
    }
    scene.put(FRIENDS_ONLY, service("db", VIP, ports=PORTS), endpoints("db", db.address, ports=PORTS))
    with Server(db.space, "db", 80):
        eventually(client, Reply("db", client.address), "UDP")
        for number in range(QUESTIONS):
            if number % 10 == 0:
                scene.put((by_address, FRIENDS_ONLY)[number // 10 % 2])
                other = ["192.0.2.9"] if number // 10 % 2 else []
                scene.put(endpoints("other", *other), service("other", "10.96.0.81"))
            with socket_in(client.space, socket.AF_INET, "UDP") as flow:
                flow.connect((VIP, 80))
                flow.settimeout(2)
                flow.send(b"?")
                assert flow.recv(64) == f"db {client.address}".encode()


def test_what_it_adds_to_add(request: pytest.FixtureRequest, scene: Scene) -> None:
    """Not asserted, since it is the machine's."""
    nic, pod = scene.stage.node.nics[0], scene.pod("timed")
    vf = scene.stage.allocate(pod, nic)
    log_start = scene.stage.node.log.stat().st_size
    times: dict[str, list[float]] = {"without": [], "in-pod": []}
    for _ in range(5):
        for name, options in (("without", {}), ("in-pod", IN_POD)):
            conf = network("timed", vlan=100, ipam=ipam("10", "60"), **options)
            times[name].append(scene.stage.attach(pod, conf, vf).seconds)
            scene.stage.detach(pod)
    lines = [f"ADD, {name}: {statistics.median(of) * 1000:.0f} ms" for name, of in times.items()]
    steps = timing.steps(scene.stage.node, log_start)
    lines += [f"agent: {step}: {of:.0f} ms" for step, of in steps.items() if "rules for" in step]
    request.config.stash.setdefault(REPORT, []).extend(lines)
