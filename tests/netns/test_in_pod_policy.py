"""NetworkPolicy inside of pods by the real agent and executable: when it is in force, and for whom. What each
policy means is in test_policy_packets.py."""

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.api_double import ApiDouble, api_double
from tests.cluster_objects import Object, endpoints, namespace, node, policy, service
from tests.cluster_objects import pod as pod_object
from tests.netns.conftest import assert_soon
from tests.netns.namespaces import LinuxWorld, ip
from tests.netns.talk import Reply, Server, ask
from tests.netns.underlay import (
    CLUSTER_NETWORK,
    GATEWAY,
    NODE_NAME,
    Underlay,
    UnderlayPod,
    add_cluster_network,
    running_underlay,
)

VIP = "10.96.0.10"
NODE_ADDRESS = "10.56.0.2"
SHORT_S = 0.5  # for what must not come through
DENY = policy("deny", podSelector={}, policyTypes=["Ingress", "Egress"])


@dataclass
class Scene:
    underlay: Underlay
    api: ApiDouble

    def put(self, *objects: Object) -> None:
        for one in objects:
            plural = "networkpolicies" if one["kind"] == "NetworkPolicy" else f"{one['kind'].lower()}s"
            self.api.put(plural, one)

    def pod(self, name: str, **labels: str) -> UnderlayPod:
        """As it goes in a cluster: there is a pod, then it is attached, then its address is known."""
        made = self.underlay.new_pod(name)
        self.put(pod_object(name, labels=labels))
        self.underlay.attach(made)
        self.put(pod_object(name, *made.addresses_given, labels=labels))
        return made


@pytest.fixture
def scene(world: LinuxWorld, tmp_path: Path) -> Iterator[Scene]:
    with running_scene(world, tmp_path) as scene:
        yield scene


@contextlib.contextmanager
def running_scene(world: LinuxWorld, folder: Path, **options: Any) -> Iterator[Scene]:
    ip("link", "set", "lo", "up")
    with api_double() as api:
        api.put("nodes", node(NODE_NAME, NODE_ADDRESS))
        api.put("namespaces", namespace("default"))
        kubernetes = {"kubeconfig": api.kubeconfig(folder).kubeconfig}
        asked = {"services": "in-pod", "policy": "in-pod"} | options
        with running_underlay(world, asked, kubernetes=kubernetes) as underlay:
            yield Scene(underlay, api)


def gets_through(source: UnderlayPod, address: str, port: int, proto: str = "TCP") -> bool:
    try:
        ask(source.space, address, port, proto, timeout_s=SHORT_S)
    except TimeoutError:
        return False
    except OSError as e:
        if e.errno == errno.EPERM:  # dropped where it is sent
            return False
        raise
    return True


def is_answered(source: UnderlayPod, address: str, port: int, proto: str) -> bool:
    """Before there are rules for a service its address is the gateway's business, which may refuse it."""
    try:
        return gets_through(source, address, port, proto)
    except OSError:
        return False


def test_a_policy_is_in_force_when_add_returns(scene: Scene) -> None:
    scene.put(DENY)
    pod = scene.pod("db")
    with Server(pod.space, "db", 80), Server(None, "node", 8080):
        far = scene.underlay.new_host("10.56.0.9")
        assert ask(None, pod.address, 80).server == "db", "this node probes it"
        with Server(far, "far", 80):
            assert not gets_through(pod, "10.56.0.9", 80)
            assert not gets_through(pod, "10.56.0.9", 80, "UDP")
        with pytest.raises(TimeoutError):
            ask(far, pod.address, 80, timeout_s=SHORT_S)


@pytest.mark.parametrize("proto", ["TCP", "UDP"])
def test_egress_is_judged_after_the_service(scene: Scene, proto: str) -> None:
    name = "udp" if proto == "UDP" else "web"
    ports = [{"protocol": proto, "port": 8080}]
    to = [{"podSelector": {"matchLabels": {"app": "web"}}}]
    scene.put(
        policy(
            "out",
            podSelector={"matchLabels": {"app": "db"}},
            egress=[{"to": to, "ports": ports}],
            policyTypes=["Egress"],
        )
    )
    client, web, other = scene.pod("client", app="db"), scene.pod("web", app="web"), scene.pod("other")
    with Server(web.space, "web", 8080), Server(other.space, "other", 8080):
        scene.put(service("web", VIP, ports={name: 80}), endpoints("web", web.address, ports={name: 8080}))
        scene.put(
            service("no", "10.96.0.11", ports={name: 80}), endpoints("no", other.address, ports={name: 8080})
        )
        assert_soon(lambda: gets_through(client, VIP, 80, proto), "the service's pod is allowed")
        assert ask(client.space, VIP, 80, proto) == Reply("web", client.address)
        assert not gets_through(client, "10.96.0.11", 80, proto)
        assert_soon(lambda: is_answered(other, VIP, 80, proto), "who has no policy comes everywhere")


def test_another_interface_of_the_pod_is_not_judged(scene: Scene) -> None:
    """The pod's `eth0` is of a cluster network, the VF is `net1`."""
    scene.put(DENY, pod_object("db"))
    pod = scene.underlay.new_pod("db")
    cluster, far = scene.underlay.world.new_space(), scene.underlay.new_host("10.56.0.9")
    add_cluster_network(pod.space, cluster)
    scene.underlay.attach(pod, "net1")
    with Server(pod.space, "db", 80), Server(cluster, "cluster", 80):
        assert ask(cluster, CLUSTER_NETWORK[1], 80).server == "db"
        assert ask(pod.space, CLUSTER_NETWORK[0], 80) == Reply("cluster", CLUSTER_NETWORK[1])
        assert not gets_through(pod, "10.56.0.9", 80)
        with pytest.raises(TimeoutError):
            ask(far, pod.address, 80, timeout_s=SHORT_S)


def test_policies_follow_labels_and_go(scene: Scene) -> None:
    allow = [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}]
    db, stranger = scene.pod("db", app="db"), scene.pod("stranger")
    with Server(db.space, "db", 80):
        assert gets_through(stranger, db.address, 80)
        scene.put(policy("in", podSelector={"matchLabels": {"app": "db"}}, ingress=allow))
        assert_soon(lambda: not gets_through(stranger, db.address, 80), "strangers are kept out")
        scene.put(pod_object("stranger", *stranger.addresses_given, labels={"role": "friend"}))
        assert_soon(lambda: gets_through(stranger, db.address, 80), "a friend is let in")
        scene.put(pod_object("stranger", *stranger.addresses_given))
        assert_soon(lambda: not gets_through(stranger, db.address, 80), "and is no friend any more")
        scene.api.delete("networkpolicies", "default/in")
        assert_soon(lambda: gets_through(stranger, db.address, 80), "without a policy all is let through")


def test_a_policy_outlives_its_agent_and_the_api_server(scene: Scene) -> None:
    scene.put(DENY)
    pod = scene.pod("db")
    far = scene.underlay.new_host("10.56.0.9")
    with Server(far, "far", 80):
        assert not gets_through(pod, "10.56.0.9", 80)
        scene.api.go_away()
        assert not gets_through(pod, "10.56.0.9", 80)
        scene.underlay.node.kill()
        assert not gets_through(pod, "10.56.0.9", 80)
        scene.underlay.start_again()
        assert not gets_through(pod, "10.56.0.9", 80), "nothing is known of the cluster, and nothing changed"
        scene.api.delete("networkpolicies", "default/deny")
        scene.api.come_back()
        assert_soon(lambda: gets_through(pod, "10.56.0.9", 80), "what changed meanwhile is in force")


@pytest.mark.parametrize(("unsynced", "passes"), [("start", False), ("open", True)])
def test_a_pod_that_starts_while_no_policy_is_known(
    world: LinuxWorld, tmp_path: Path, unsynced: str, passes: bool
) -> None:
    with running_scene(world, tmp_path, syncTimeout=0, unsynced=unsynced) as scene:
        scene.api.go_away()
        scene.underlay.node.kill()
        scene.underlay.start_again()
        pod = scene.underlay.attach(scene.underlay.new_pod("early"))
        far = scene.underlay.new_host("10.56.0.9")
        with Server(far, "far", 80):
            assert gets_through(pod, "10.56.0.9", 80) is passes
            scene.api.put("pods", pod_object("early", pod.address))
            scene.api.come_back()
            assert_soon(lambda: gets_through(pod, "10.56.0.9", 80), "no policy is about it")
        assert_soon(lambda: scene.api.told("ClusterUnknown"), "the pod is told")


def test_the_gateway_is_no_neighbour_of_nobody(scene: Scene) -> None:
    """Neighbour discovery goes on under a policy that denies all: the pod's own node still reaches it by
    IPv6."""
    scene.put(DENY)
    pod = scene.pod("db")
    with Server(pod.space, "db", 80):
        assert ask(None, pod.addresses_given[1], 80) == Reply("db", GATEWAY[1])
