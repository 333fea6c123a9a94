"""The whole agent and an API server that knows the shipped RBAC rules: what is told, and no rule is idle."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.agent import Agent
from node_agent.config_file import ConfigFile
from node_agent.node_summary import ANNOTATION
from node_agent.pod_annotations import ANNOTATION as CHOICE
from tests.agent_node import FAST, PF0, SLOW, Node, eventually, new_node, running
from tests.api_double import ApiDouble, Right, api_double, rights_of
from vf_manager.model import PciAddress

CONFIG = """
pools:
- {name: fast, select: {pfNames: [ens1]}, vfs: {count: 3}}
- {name: slow, select: {pfNames: [ens2]}}
networks:
- {name: blue, pools: [fast]}
- name: red
  pools: [fast]
  ipam: {type: host-local, ranges: [[{subnet: 10.1.1.0/24}]], routes: [{dst: 0.0.0.0/0}]}
"""
SHIPPED = rights_of()


@pytest.fixture
def node() -> Iterator[Node]:
    with new_node() as node:
        node.set_link("ens1", up=True)
        yield node


@pytest.fixture
def double() -> Iterator[ApiDouble]:
    with api_double(SHIPPED) as double:
        yield double


class Cluster:
    """An agent that has an API server, and the file of its config."""

    def __init__(self, node: Node, agent: Agent, path: Path, text: str) -> None:
        self.node = node
        self.look = agent._keeper.mark_dirty  # as at an event of the kernel's
        self._path = path
        self.text = text
        self._given: list[PciAddress] = []

    def add(self, name: str, ifname: str = "eth0") -> str:
        """The pod gets a VF of pool fast. Its network, or the error."""
        vf = next(v for v in self.node.vfs(PF0) if v not in self._given)
        self._given.append(vf)
        self.node.kubelet.give("ml", name, FAST, vf)
        pod = self.node.root / name
        self.node.kernel.new_pod(pod)
        args = f"K8S_POD_NAMESPACE=ml;K8S_POD_NAME={name};IgnoreUnknown=1"
        reply = self.node.call("ADD", {}, pod, CNI_ARGS=args, CNI_IFNAME=ifname)
        if reply.exit_code:
            return str(json.loads(reply.stdout)["msg"])
        (record,) = (self.node.run_dir / "attachments").glob(f"{name}@*")
        return str(json.loads(record.read_text())["network"])

    def change_config(self, text: str, said: str) -> None:
        before = len(self.node.events(said))
        self._path.write_text(text)
        eventually(lambda: len(self.node.events(said)) > before, said)

    def spoil_config(self) -> None:
        self.change_config("pools: 1", "config refused, the one before stays in force")

    def mend_config(self) -> None:
        self.change_config(self.text + "\n", "config in force")
        self.text += "\n"


@contextlib.contextmanager
def cluster(node: Node, double: ApiDouble) -> Iterator[Cluster]:
    kubeconfig = double.kubeconfig(node.root).kubeconfig
    path, text = node.root / "config.yaml", f"{CONFIG}kubernetes: {{kubeconfig: {kubeconfig}}}\n"
    path.write_text(text)
    file = ConfigFile(path, look_s=0.005)
    file.read()
    with running(node, text, file) as live:
        node.kubelet.wait_devices(FAST, 3)
        yield Cluster(node, live.agent, path, text)


def test_a_pod_hears_of_its_vf_and_of_what_it_bypasses(node: Node, double: ApiDouble) -> None:
    double.pods |= {"ml/a": {CHOICE: "red"}, "ml/b": None}
    with cluster(node, double) as live:
        assert live.add("a") == "red"
        assert live.add("b", "net1") == "blue"
        eventually(lambda: len(double.told("VfAttached")) == 2, "both are told")
        a, b = double.told("VfAttached")
        assert a["note"].startswith(f"VF {node.vfs(PF0)[0]} of PF ens1 attached as eth0 to network red, in ")
        assert (a["regarding"]["name"], a["regarding"]["uid"], a["metadata"]["namespace"]) == (
            "a",
            "u1",
            "ml",
        )
        assert b["note"].startswith(f"VF {node.vfs(PF0)[1]} of PF ens1 attached as net1 to network blue, in ")
        (bypassed,) = double.told("KubeProxyBypassed")
        assert bypassed["regarding"]["name"] == "a"
        assert "ClusterIPs and cluster DNS do not work" in bypassed["note"]


def test_a_node_hears_of_its_health_once_for_all_vfs_of_a_pool(node: Node, double: ApiDouble) -> None:
    with cluster(node, double) as live:
        node.set_link("ens1", up=False)
        live.look()
        eventually(lambda: double.told("VfUnhealthy"), "it is told")
        node.set_link("ens1", up=True)
        live.look()
        eventually(lambda: double.told("VfHealthy"), "it is told")
        (ill,), (well,) = double.told("VfUnhealthy"), double.told("VfHealthy")
        assert ill["note"].startswith("3 VFs of pool fast unhealthy: its PF ens1 (0000:01:00.0) is down (")
        assert well["note"].startswith("3 VFs of pool fast healthy again: ")


def test_a_node_hears_of_provisioning_that_is_held_back(node: Node, double: ApiDouble) -> None:
    with cluster(node, double) as live:
        more = live.text.replace("pfNames: [ens2]}", "pfNames: [ens2]}, vfs: {count: 4}")
        live.change_config(more, "config in force")
        eventually(lambda: double.told("VfProvisioningRefused"), "it is told")
        (event,) = double.told("VfProvisioningRefused")
        assert event["note"].startswith("PF ens2 (0000:02:00.0): ")


def test_an_api_server_that_hangs_holds_up_no_pod(node: Node, double: ApiDouble) -> None:
    double.pods["ml/b"] = None
    with cluster(node, double) as live:
        live.spoil_config()
        eventually(lambda: double.told("ConfigRefused"), "it is told")
        live.mend_config()
        double.gate.clear()
        live.spoil_config()
        eventually(lambda: "PATCH" in double.requests[-1], "the events thread waits for an answer")
        vf = node.vfs(PF0)[2]
        pod = node.root / "pod-c"
        node.kernel.new_pod(pod)
        asked = len(double.requests)
        assert node.call("ADD", {"deviceID": vf}, pod).exit_code == 0
        assert node.call("DEL", {}, pod).exit_code == 0
        assert len(double.requests) == asked
        double.gate.set()


def test_without_an_api_server_everything_else_works(node: Node) -> None:
    with api_double() as gone:
        pass
    with cluster(node, gone) as live:
        eventually(lambda: node.events("the node's annotation cannot be written now"), "it is said")
        assert "cannot be reached" in live.add("a"), "of two networks, which?"
        node.kubelet.wait_devices(SLOW, 2)
        live.spoil_config()
        eventually(lambda: node.events("events cannot be posted now"), "it is said")
        live.mend_config()


def test_a_config_without_an_api_server_ends_it(node: Node, double: ApiDouble) -> None:
    with cluster(node, double) as live:
        eventually(lambda: ANNOTATION in double.nodes.get("node-1", {}), "it is written")
        live.change_config(CONFIG, "config in force")
        asked = len(double.requests)
        live.spoil_config()
        assert live.add("a") == "blue"
        assert len(double.requests) == asked
        live.mend_config()
        live.spoil_config()
        eventually(lambda: len(double.told("ConfigRefused")) == 1, "it is told from then on")
        assert double.told("VfAttached") == []


# -- RBAC: what works, and what does not without a right

CHOOSE, TELL, COUNT, SUM_UP = "a pod's choice", "an event", "an event again", "the node's annotation"
LOST = {
    Right("", "pods", "get"): {CHOOSE, TELL},
    Right("events.k8s.io", "events", "create"): {TELL, COUNT},
    Right("events.k8s.io", "events", "patch"): {COUNT},
    Right("", "nodes", "patch"): {SUM_UP},
}
ALL = set[str]().union(*LOST.values())


def do_everything(live: Cluster, double: ApiDouble) -> None:
    double.pods["ml/a"] = {CHOICE: "red"}
    live.add("a")
    live.spoil_config()
    live.mend_config()
    live.spoil_config()


def what_works(node: Node, double: ApiDouble) -> set[str]:
    """By what is there."""
    records = [json.loads(path.read_text()) for path in (node.run_dir / "attachments").iterdir()]
    there = {
        CHOOSE: any(record["network"] == "red" for record in records),
        TELL: bool(double.told("VfAttached")),
        COUNT: any(event.get("series") for event in double.told("ConfigRefused")),
        SUM_UP: ANNOTATION in double.nodes.get("node-1", {}),
    }
    return {what for what, is_there in there.items() if is_there}


def test_the_shipped_rules_are_enough(node: Node, double: ApiDouble) -> None:
    with cluster(node, double) as live:
        do_everything(live, double)
        eventually(lambda: what_works(node, double) == ALL, "everything works")
    assert double.forbidden == []


@pytest.mark.parametrize("right", sorted(SHIPPED), ids=" ".join)
def test_no_shipped_rule_is_idle(node: Node, double: ApiDouble, right: Right) -> None:
    double.rights = SHIPPED - {right}
    rest = ALL - LOST[right]
    with cluster(node, double) as live:
        do_everything(live, double)
        eventually(lambda: double.forbidden and what_works(node, double) == rest, "the rest works")
    assert set(double.forbidden) == {right}
