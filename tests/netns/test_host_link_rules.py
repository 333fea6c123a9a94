"""A host link beside Services and NetworkPolicy inside of the pod, with real packets."""

from pathlib import Path

import pytest

from tests.cluster_objects import endpoints, namespace, pod, policy, service
from tests.netns.namespaces import LinuxWorld, ip
from tests.netns.talk import Reply, Server, ask
from tests.netns.test_in_pod_services import FAR, NODE_ADDRESS, VIP, running_scene
from tests.netns.underlay import WIRE


def test_a_node_port_of_the_node_is_translated_before_it_leaves_by_the_link(
    world: LinuxWorld, tmp_path: Path
) -> None:
    """The node would not forward it."""
    with running_scene(world, tmp_path, hostLink="veth") as scene:
        ip("address", "add", f"{NODE_ADDRESS}/24", "dev", WIRE)
        found = service("open", VIP, type="NodePort")
        found["spec"]["ports"][0]["nodePort"] = 30080
        scene.put(found, endpoints("open", FAR[2]))
        client = scene.pod()
        assert ask(client.space, NODE_ADDRESS, 30080) == Reply("far2", client.address)
        with Server(None, "node", 9253):
            assert ask(client.space, NODE_ADDRESS, 9253) == Reply("node", client.address)
        scene.underlay.detach(client)


@pytest.mark.parametrize("kind", ["veth", "pf"])
def test_a_policy_that_lets_nothing_in_lets_the_node_probe(
    world: LinuxWorld, tmp_path: Path, kind: str
) -> None:
    with running_scene(world, tmp_path, hostLink=kind, policy="in-pod") as scene:
        closed = policy("closed", podSelector={}, policyTypes=["Ingress", "Egress"])
        scene.api.put("namespaces", namespace("default"))
        scene.api.put("networkpolicies", closed)
        scene.api.put("pods", pod("client"))
        client = scene.pod()
        with Server(client.space, "pod", 80):
            for address in client.addresses_given:
                assert ask(None, address, 80).server == "pod"
            with pytest.raises(TimeoutError):
                ask(scene.hosts[0], client.address, 80, timeout_s=0.5)
        scene.underlay.detach(client)
