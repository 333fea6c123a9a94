"""What services inside of pods are about and what not, and from when on, with real packets."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster_objects import Object, endpoints, service
from tests.kernel_contract import Space
from tests.netns.conftest import assert_soon
from tests.netns.namespaces import LinuxWorld, entered, ip
from tests.netns.talk import TIMEOUT_S, Reply, Server, ask, ask_by, socket_in
from tests.netns.test_in_pod_policy import gets_through
from tests.netns.test_in_pod_services import (
    FAR,
    FAR6,
    NODE_ADDRESS,
    VIP,
    VIP6,
    Scene,
    eventually,
    is_refused,
    nft,
    refusal_of,
    running_scene,
    tables,
)
from tests.netns.underlay import CLUSTER_NETWORK, GATEWAY, IFNAME, NODE_NAME, RESOURCE, add_cluster_network

OTHER_VIP = "10.96.0.11"
HELD_S = 1.0


@pytest.fixture
def scene(world: LinuxWorld, tmp_path: Path) -> Iterator[Scene]:
    with running_scene(world, tmp_path) as scene:
        yield scene


# -- addresses


def test_a_service_of_ipv6_alone(scene: Scene) -> None:
    scene.put(service("six", VIP6, ipFamilies=["IPv6"]), endpoints("six", FAR6[2]))
    pod = scene.pod()
    assert ask(pod.space, VIP6, 80) == Reply("far2", pod.addresses_given[1])
    assert is_refused(pod, VIP6, 81, "TCP")


def test_sctp(scene: Scene) -> None:
    """The kernel of the tests may know the protocol for its connection tracking alone, so the first packet of
    an association (RFC 9260 3.3.2) is written and read by hand."""
    found, slice_ = service("sctp", VIP, ports={"sctp": 132}), endpoints("sctp", FAR[1], ports={"sctp": 3868})
    found["spec"]["ports"][0]["protocol"] = slice_["ports"][0]["protocol"] = "SCTP"
    scene.put(found, slice_)
    pod = scene.pod()
    init = struct.pack("!HHII", 5000, 132, 0, 0) + struct.pack("!BBHIIHHI", 1, 0, 20, 7, 65536, 1, 1, 1)
    with raw_sctp(pod.space) as client, raw_sctp(scene.hosts[1]) as server:
        client.sendto(init, (VIP, 0))
        packet, (source, _) = server.recvfrom(256)
    assert source == pod.address
    assert struct.unpack_from("!HH", packet, (packet[0] & 15) * 4) == (5000, 3868)


def raw_sctp(space: Space) -> socket.socket:
    with entered(space):
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)
    made.settimeout(TIMEOUT_S)
    return made


def test_endpoints_that_are_pods_of_this_node(scene: Scene) -> None:
    client, other = scene.pod(), scene.pod("other")
    with Server(other.space, "other", 8080):
        near = endpoints("near", other.address, nodeName=NODE_NAME)
        scene.put(service("near", VIP, internalTrafficPolicy="Local"), near)
        eventually(client, Reply("other", client.address))


@pytest.mark.parametrize("proto", ["TCP", "UDP"])
def test_who_may_use_the_address_of_a_load_balancer(scene: Scene, proto: str) -> None:
    name = "udp" if proto == "UDP" else "web"
    first, second = scene.pod("first"), scene.pod("second")
    ranges = [f"{first.address}/32", "192.0.2.0/24"]
    found = service("open", VIP, ports={name: 80}, type="LoadBalancer", loadBalancerSourceRanges=ranges)
    found["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.8"}]}}
    scene.put(found, endpoints("open", FAR[2], ports={name: 8080}))
    eventually(first, Reply("far2", first.address), "192.0.2.8", proto=proto)
    assert ask(second.space, VIP, 80, proto) == Reply("far2", second.address)
    assert not gets_through(second, "192.0.2.8", 80, proto)


def test_node_ports_are_those_of_this_node(scene: Scene) -> None:
    """To an endpoint for this zone; those of another node are answered by it."""
    zoned = endpoints("zoned", FAR[0], FAR[1])
    for one, zone in zip(zoned["endpoints"], ("there", "here"), strict=True):
        one |= {"zone": zone, "hints": {"forZones": [{"name": zone}]}}
    found = service("zoned", VIP, type="NodePort")
    found["spec"]["ports"][0]["nodePort"] = 30080
    scene.put(found, zoned)
    pod = scene.pod()
    other_node = scene.underlay.new_host("10.56.0.3")
    with Server(other_node, "other-node", 30080):
        assert {ask(pod.space, NODE_ADDRESS, 30080).server for _ in range(8)} == {"far1"}
        assert ask(pod.space, "10.56.0.3", 30080) == Reply("other-node", pod.address)


# -- what is in the cluster


def test_slices_that_somebody_wrote_by_hand(scene: Scene) -> None:
    """Several, with names of their own, for a service that selects nothing."""
    scene.put(service("manual", VIP), *(_slice(f"by-hand-{n}", FAR[n]) for n in range(2)))
    pod = scene.pod()
    assert {ask(pod.space, VIP, 80).server for _ in range(40)} == {"far0", "far1"}
    scene.api.delete("endpointslices", "default/by-hand-0")
    assert_soon(lambda: {ask(pod.space, VIP, 80).server for _ in range(8)} == {"far1"}, "one is gone")


def _slice(name: str, address: str) -> Object:
    found = endpoints("manual", address)
    found["metadata"]["name"] = name
    return found


def test_services_that_are_not_translated(scene: Scene) -> None:
    """One without an address of its own, one that is a name, and one that has another proxy."""
    elsewhere = service("elsewhere", OTHER_VIP)
    elsewhere["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "another"}
    scene.put(service("web", VIP), endpoints("web", FAR[0]))
    scene.put(service("headless"), endpoints("headless", FAR[1]), elsewhere, endpoints("elsewhere", FAR[1]))
    scene.put(service("name", type="ExternalName", externalName="www.example.com", clusterIP=None))
    pod = scene.pod()
    assert ask(pod.space, VIP, 80).server == "far0"
    assert ask(pod.space, FAR[1], 8080) == Reply("far1", pod.address)
    ip("address", "add", f"{OTHER_VIP}/32", "dev", "lo")
    with Server(None, "node", 80):
        assert ask(pod.space, OTHER_VIP, 80) == Reply("node", pod.address), "as if there were no service"


# -- interfaces of a pod


def test_every_vf_of_a_pod(scene: Scene) -> None:
    """One call, two VFs. What the pod sends by the second is translated as well."""
    scene.put(service("web", VIP), endpoints("web", FAR[0]))
    pod = scene.underlay.new_pod("two")
    scene.underlay.node.kubelet.allocate("default", "two", RESOURCE, 2)
    pod.answer = scene.underlay.node.runtime.call("ADD", pod, scene.underlay.conf, IFNAME)
    fours = [address for address in pod.addresses_given if "." in address]
    assert len(fours) == 2
    for address in fours:
        with socket_in(pod.space, socket.AF_INET, "TCP") as client:
            client.bind((address, 0))
            client.connect((VIP, 80))
            assert ask_by(client) == Reply("far0", address)
    scene.underlay.detach(pod)
    assert tables(pod) == []


def test_a_vf_beside_an_interface_of_the_cluster(scene: Scene) -> None:
    """What the pod sends by the other interface is not ours, be it to a service."""
    scene.put(service("web", VIP), endpoints("web", FAR[0]))
    scene.put(service("other", OTHER_VIP), endpoints("other", FAR[1]))
    pod, cluster = scene.underlay.new_pod("both"), scene.underlay.world.new_space()
    add_cluster_network(pod.space, cluster)
    ip("address", "add", f"{OTHER_VIP}/32", "dev", "lo", space=cluster)
    ip("route", "add", f"{OTHER_VIP}/32", "via", CLUSTER_NETWORK[0], "dev", "eth0", space=pod.space)
    scene.underlay.attach(pod, "net1")
    with Server(cluster, "cluster", 80):
        assert ask(pod.space, VIP, 80) == Reply("far0", pod.address)
        assert ask(pod.space, OTHER_VIP, 80) == Reply("cluster", CLUSTER_NETWORK[1])
    listed = nft(pod, "list set inet sriov_underlay service_ifs")
    assert '"net1"' in listed
    assert '"eth0"' not in listed


def test_an_interface_more_and_less(scene: Scene) -> None:
    """By calls of their own; the table is that of both, and goes with the last."""
    scene.put(service("web", VIP), endpoints("web", FAR[0]))
    pod = scene.pod()
    runtime, conf = scene.underlay.node.runtime, scene.underlay.conf
    (device,) = scene.underlay.node.kubelet.allocate(pod.namespace, pod.name, RESOURCE).ids
    ranges = [[{"subnet": "10.56.0.0/24", "rangeStart": "10.56.0.200"}]]
    more = conf | {"services": "in-pod", "ipam": {"type": "host-local", "ranges": ranges}}
    second = runtime.add(pod, more, device, "net1").address
    ip("route", "add", f"{OTHER_VIP}/32", "via", GATEWAY[0], "dev", "net1", space=pod.space)
    scene.put(service("other", OTHER_VIP), endpoints("other", FAR[1]))
    eventually(pod, Reply("far1", second), OTHER_VIP)
    runtime.delete(pod, more, device, "net1")
    assert tables(pod) == ["inet sriov_underlay"]
    assert ask(pod.space, VIP, 80) == Reply("far0", pod.address)
    scene.underlay.detach(pod)
    assert tables(pod) == []


# -- while the cluster is not known


def test_an_add_waits_until_the_cluster_is_known(scene: Scene) -> None:
    scene.put(service("web", VIP), endpoints("web", FAR[0]))
    node = scene.underlay.node
    node.kill()
    scene.api.gate.clear()
    scene.underlay.start_again()
    opener = threading.Timer(HELD_S, scene.api.gate.set)
    began = time.monotonic()
    opener.start()
    pod = scene.pod()
    assert time.monotonic() - began >= HELD_S
    assert ask(pod.space, VIP, 80) == Reply("far0", pod.address)
    opener.join()


def test_a_pod_that_is_not_started_is_told_why(world: LinuxWorld, tmp_path: Path) -> None:
    with running_scene(world, tmp_path, syncTimeout=0) as scene:
        scene.underlay.node.kill()
        scene.api.go_away()
        scene.underlay.start_again()
        assert "nothing was heard of the cluster yet" in refusal_of(scene, "early")
        scene.api.come_back()
        assert_soon(lambda: scene.api.told("ClusterUnknown"), "the pod is told")
        (event,) = scene.api.told("ClusterUnknown")
        assert event["regarding"]["name"] == "early"
        assert "the kubelet tries again (unsynced: fail)" in event["note"]
        scene.put(service("web", VIP), endpoints("web", FAR[0]))
        pod: Any = None

        def starts() -> bool:
            nonlocal pod
            if not refusal_of(scene, "late"):
                pod = scene.pod("late")
            return pod is not None

        assert_soon(starts, "the cluster is known")
        eventually(pod, Reply("far0", pod.address))
