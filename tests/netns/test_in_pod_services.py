"""Services inside of pods, with real packets: the real agent and executable, pods on one segment, and an API
server that lists and watches. What is asked each time: who answers, and from which address it was asked."""

import contextlib
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hw_tests.runtime import CniError
from tests.api_double import ApiDouble, api_double
from tests.cluster_objects import Object, endpoints, node, service
from tests.kernel_contract import Space
from tests.netns.conftest import assert_soon
from tests.netns.namespaces import LinuxWorld, ip
from tests.netns.talk import TIMEOUT_S, Reply, Server, ask, ask_by, socket_in
from tests.netns.underlay import GATEWAY, NODE_NAME, Underlay, UnderlayPod, running_underlay

VIP, VIP6 = "10.96.0.10", "fd96::10"
FAR = ("10.56.0.11", "10.56.0.12", "10.56.0.13")
FAR6 = ("fd56::11", "fd56::12", "fd56::13")
NODE_ADDRESS = "10.56.0.2"


@dataclass
class Scene:
    """`hosts`: endpoints, each with a server of its own name on TCP and UDP 8080 and 8081."""

    underlay: Underlay
    api: ApiDouble
    hosts: list[Space] = field(default_factory=list)

    def put(self, *objects: Object) -> None:
        for one in objects:
            self.api.put(f"{one['kind'].lower()}s", one)

    def pod(self, name: str = "client") -> UnderlayPod:
        return self.underlay.attach(self.underlay.new_pod(name))


@pytest.fixture
def scene(world: LinuxWorld, tmp_path: Path) -> Iterator[Scene]:
    with running_scene(world, tmp_path) as scene:
        yield scene


@contextlib.contextmanager
def running_scene(world: LinuxWorld, folder: Path, **options: Any) -> Iterator[Scene]:
    ip("link", "set", "lo", "up")
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(api_double())
        api.put("nodes", node(NODE_NAME, NODE_ADDRESS, **{"topology.kubernetes.io/zone": "here"}))
        kubernetes = {"kubeconfig": api.kubeconfig(folder).kubeconfig}
        asked = {"services": "in-pod"} | options
        scene = Scene(stack.enter_context(running_underlay(world, asked, kubernetes=kubernetes)), api)
        for number, addresses in enumerate(zip(FAR, FAR6, strict=True)):
            host = scene.underlay.new_host(*addresses)
            stack.enter_context(Server(host, f"far{number}", 8080, 8081))
            scene.hosts.append(host)
        yield scene


def eventually(
    pod: UnderlayPod, reply: Reply, address: str = VIP, port: int = 80, proto: str = "TCP"
) -> None:
    """It becomes so, after a change in the cluster."""

    def is_so() -> bool:
        try:
            return ask(pod.space, address, port, proto) == reply
        except OSError:
            return False

    assert_soon(is_so, f"{address} port {port} is {reply}")


def is_refused(pod: UnderlayPod, address: str, port: int, proto: str) -> bool:
    """At once. A packet that is rejected where it is sent gives a sender by UDP EPERM (ip_send_skb)."""
    began = time.monotonic()
    try:
        ask(pod.space, address, port, proto)
    except (ConnectionRefusedError, PermissionError):
        return time.monotonic() - began < TIMEOUT_S / 2
    return False


@pytest.mark.parametrize("proto", ["TCP", "UDP"])
def test_a_service_of_both_families_and_several_ports(scene: Scene, proto: str) -> None:
    first, second = ("udp-a", "udp-b") if proto == "UDP" else ("a", "b")
    ports, targets = {first: 80, second: 81}, {first: 8080, second: 8081}
    scene.put(
        service("both", VIP, VIP6, ports=ports),
        endpoints("both", FAR[0], ports=targets),
        endpoints("both", FAR6[1], ports=targets),
    )
    pod = scene.pod()
    four, six = pod.addresses_given
    for port in (80, 81):
        assert ask(pod.space, VIP, port, proto) == Reply("far0", four)
        assert ask(pod.space, VIP6, port, proto) == Reply("far1", six)
    for address in (VIP, VIP6):
        assert is_refused(pod, address, 82, proto), "a port that the service does not have"
    scene.underlay.detach(pod)
    assert scene.underlay.node.records() == []


def test_connections_are_spread_or_stay_where_they_were(scene: Scene) -> None:
    sticky: dict[str, Any] = {
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
    }
    scene.put(service("spread", VIP), endpoints("spread", *FAR))
    scene.put(service("sticky", "10.96.0.20", **sticky), endpoints("sticky", *FAR))
    pod = scene.pod()
    spread = Counter(ask(pod.space, VIP, 80).server for _ in range(60))
    assert sorted(spread) == ["far0", "far1", "far2"]
    assert min(spread.values()) > 5
    (chosen,) = {ask(pod.space, "10.96.0.20", 80).server for _ in range(20)}
    left = [address for number, address in enumerate(FAR) if f"far{number}" != chosen]
    scene.put(endpoints("sticky", *left))

    def moved() -> bool:
        return ask(pod.space, "10.96.0.20", 80).server != chosen

    assert_soon(moved, "the endpoint that is gone is forgotten")
    assert len({ask(pod.space, "10.96.0.20", 80).server for _ in range(20)}) == 1


@pytest.mark.parametrize("proto", ["TCP", "UDP"])
def test_endpoints_come_and_go(scene: Scene, proto: str) -> None:
    name = "udp" if proto == "UDP" else "web"
    pod = scene.pod()
    own = pod.address
    scene.put(service("late", VIP, ports={name: 80}))
    assert_soon(lambda: is_refused(pod, VIP, 80, proto), "a service without endpoints refuses")
    scene.put(endpoints("late", FAR[0], ports={name: 8080}))
    eventually(pod, Reply("far0", own), proto=proto)
    scene.put(endpoints("late", FAR[1], ports={name: 8081}))
    eventually(pod, Reply("far1", own), proto=proto)
    scene.api.delete("endpointslices", "default/late-four")
    assert_soon(lambda: is_refused(pod, VIP, 80, proto), "its endpoints are gone")
    scene.api.delete("services", "default/late")


def test_a_flow_of_udp_moves_on_when_its_endpoint_is_gone(scene: Scene) -> None:
    ports = {"udp-dns": 53}
    scene.put(service("dns", VIP, ports=ports), endpoints("dns", FAR[0], ports={"udp-dns": 8080}))
    pod = scene.pod()
    with socket_in(pod.space, socket.AF_INET, "UDP") as client:
        client.connect((VIP, 53))
        assert ask_by(client).server == "far0"
        scene.put(endpoints("dns", FAR[1], ports={"udp-dns": 8080}))
        assert_soon(lambda: ask_by(client).server == "far1", "the same socket is answered by the other")


def test_all_the_addresses_of_a_service(scene: Scene) -> None:
    outside: dict[str, Any] = {
        "type": "LoadBalancer",
        "externalIPs": ["192.0.2.7"],
        "externalTrafficPolicy": "Local",
    }
    found = service("open", VIP, **outside)
    found["spec"]["ports"][0]["nodePort"] = 30080
    found["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.8"}]}}
    scene.put(found, endpoints("open", FAR[2], nodeName="node-2"))
    pod = scene.pod()
    for address, port in ((VIP, 80), ("192.0.2.7", 80), ("192.0.2.8", 80), (NODE_ADDRESS, 30080)):
        assert ask(pod.space, address, port) == Reply("far2", pod.address)


def test_which_endpoints_are_chosen(scene: Scene) -> None:
    zones = [{"forZones": [{"name": zone}]} for zone in ("here", "there")]
    hinted = endpoints("zoned", FAR[0], FAR[1])
    for one, hints in zip(hinted["endpoints"], zones, strict=True):
        one |= {"zone": hints["forZones"][0]["name"], "hints": hints}
    leaving = endpoints("leaving", FAR[1])
    leaving["endpoints"][0]["conditions"] = {"ready": False, "serving": True, "terminating": True}
    local = endpoints("local", FAR[1], FAR[2])
    for one, where in zip(local["endpoints"], ("node-2", NODE_NAME), strict=True):
        one["nodeName"] = where
    scene.put(service("zoned", "10.96.0.1"), hinted, service("leaving", "10.96.0.2"), leaving)
    scene.put(service("local", "10.96.0.3", internalTrafficPolicy="Local"), local)
    pod = scene.pod()
    for address, server in (("10.96.0.1", "far0"), ("10.96.0.2", "far1"), ("10.96.0.3", "far2")):
        assert {ask(pod.space, address, 80).server for _ in range(8)} == {server}


@pytest.mark.parametrize("proto", ["TCP", "UDP"])
def test_a_pod_that_is_its_own_endpoint(scene: Scene, proto: str) -> None:
    name = "udp" if proto == "UDP" else "web"
    pod = scene.pod()
    four, six = pod.addresses_given
    with Server(pod.space, "itself", 9090):
        scene.put(
            service("self", VIP, VIP6, ports={name: 80}),
            endpoints("self", four, ports={name: 9090}),
            endpoints("self", six, ports={name: 9090}),
        )
        eventually(pod, Reply("itself", four), proto=proto)
        eventually(pod, Reply("itself", six), VIP6, proto=proto)


def test_what_is_not_ours_is_left_alone(scene: Scene) -> None:
    scene.put(service("web", VIP), endpoints("web", FAR[0]))
    pod = scene.underlay.new_pod("careful")
    nft(pod, "add table inet own; add chain inet own mine { type filter hook output priority 5; }")
    scene.underlay.attach(pod)
    assert ask(pod.space, VIP, 80) == Reply("far0", pod.address)
    assert tables(pod) == ["inet own", "inet sriov_underlay"]
    other = scene.pod("other")
    scene.underlay.detach(pod)
    assert tables(pod) == ["inet own"]
    assert ask(other.space, VIP, 80) == Reply("far0", other.address)
    assert scene.underlay.node.records() == [f"{other.container_id}@eth0.json"]


def test_an_agent_that_was_killed(scene: Scene) -> None:
    """Rules stay while it is gone, and are neither lost nor doubled after."""
    scene.put(service("web", VIP), endpoints("web", FAR[0]))
    pod = scene.pod()
    before = nft(pod, "list table inet sriov_underlay")
    scene.underlay.node.kill()
    assert ask(pod.space, VIP, 80) == Reply("far0", pod.address)
    scene.underlay.node.start()
    scene.put(endpoints("web", FAR[1]))
    eventually(pod, Reply("far1", pod.address))
    scene.put(endpoints("web", FAR[0]))
    eventually(pod, Reply("far0", pod.address))
    assert sorted(nft(pod, "list table inet sriov_underlay").splitlines()) == sorted(before.splitlines())
    scene.underlay.detach(pod)
    assert tables(pod) == []


def test_an_api_server_that_is_away(world: LinuxWorld, tmp_path: Path) -> None:
    with running_scene(world, tmp_path, syncTimeout=1) as scene:
        scene.put(service("web", VIP), endpoints("web", FAR[0]))
        pod = scene.pod()
        scene.api.go_away()
        assert ask(pod.space, VIP, 80) == Reply("far0", pod.address)
        assert_soon(lambda: "API server" in refusal_of(scene, "late"), "it is noticed")
        scene.api.come_back()
        scene.put(endpoints("web", FAR[1]))
        eventually(pod, Reply("far1", pod.address))
        late = scene.pod("late")
        assert ask(late.space, VIP, 80) == Reply("far1", late.address)


def test_a_pod_that_may_start_without_knowing(world: LinuxWorld, tmp_path: Path) -> None:
    with running_scene(world, tmp_path, syncTimeout=0, unsynced="start") as scene:
        scene.put(service("web", VIP), endpoints("web", FAR[0]))
        assert ask(scene.pod("first").space, VIP, 80).server == "far0"
        scene.api.go_away()
        pod = scene.pod()
        assert ask(pod.space, VIP, 80) == Reply("far0", pod.address), "what was known last"
        scene.api.come_back()
        scene.put(endpoints("web", FAR[1]))
        eventually(pod, Reply("far1", pod.address))


def test_a_destination_is_traced(scene: Scene) -> None:
    scene.put(service("web", VIP), endpoints("web", FAR[0]))
    pod = scene.pod()
    assert ask(pod.space, VIP, 80).server == "far0"
    code, shown = traced(scene, "default/client", "web.default:80")
    assert code == 0
    assert f"default/client, TCP to web.default:80: {VIP} leaves by eth0, by way of {GATEWAY[0]}" in shown
    assert f"TCP {VIP}:80 is the ClusterIP of service default/web port web" in shown
    assert f"{FAR[0]}:8080" in shown
    code, shown = traced(scene, "default/client", f"{VIP}:81")
    assert code == 3
    assert "rejected: a cluster IP that has other ports: TCP 80" in shown
    assert traced(scene, "default/client", FAR[1])[0] == 0, "no service's"
    assert "pod default/nobody has no VF of this node" in traced(scene, "default/nobody", VIP)[1]
    assert "DESTINATION: 'nothing.here' is not valid" in traced(scene, "default/client", "nothing.here")[1]


def traced(scene: Scene, *words: str) -> tuple[int, str]:
    command = [sys.executable, "-c", "from node_agent.cli import app; app()", "trace", *words]
    done = subprocess.run(
        [*command, "--run-dir", str(scene.underlay.node.run_dir)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def refusal_of(scene: Scene, name: str) -> str:
    pod = scene.underlay.new_pod(name)
    try:
        scene.underlay.attach(pod)
    except CniError as e:
        return e.msg
    scene.underlay.detach(pod)
    return ""


def nft(pod: UnderlayPod, command: str) -> str:
    words = ["nsenter", f"--net={pod.space.path}", "nft", command]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def tables(pod: UnderlayPod) -> list[str]:
    return [line.removeprefix("table ") for line in nft(pod, "list tables").splitlines()]
