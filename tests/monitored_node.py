"""A node on which all that metrics tell of has happened: for tests of metrics, alert rules and dashboard."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from tests.agent_node import FAST, PF0, PF1, Node, Running, eventually, new_node, running
from tests.api_double import ApiDouble, api_double
from vf_manager.model import PciAddress

CONFIG = """
pools:
- name: fast
  select: {pfNames: [ens1]}
  vfs: {count: 3}
- name: slow
  select: {pfNames: [ens2]}
  vfs: {count: 3}
networks:
- name: underlay
  pools: [fast]
  services: in-pod
  policy: in-pod
  ipam: {type: host-local, subnet: 10.56.0.0/30, gateway: 10.56.0.1}
"""  # of ens2 somebody else made 2: refused
POD = "K8S_POD_NAMESPACE=ml;K8S_POD_NAME=trainer;IgnoreUnknown=1"
ONE_ADDRESS = {"type": "host-local", "subnet": "10.56.0.0/30", "gateway": "10.56.0.1"}


class Monitored:
    """`running`: its agent. One VF is attached to pod ml/trainer, and allocated by the kubelet."""

    def __init__(self, node: Node, agent: Running, double: ApiDouble | None = None) -> None:
        self.node = node
        self.running = agent
        self.attached, self.free = node.vfs(PF0)[:2]
        self._numbers = itertools.count()
        node.kubelet.wait_devices(FAST, 3)
        node.kubelet.allocate("ml", "trainer", FAST, 1)
        self.add("trainer", self.attached, CNI_ARGS=POD)
        self.churn()
        node.set_link("ens2", up=False)
        agent.agent._keeper.mark_dirty()
        eventually(lambda: agent.agent.health.transitions(), "the VFs of ens2 are Unhealthy")
        if double is not None:
            eventually(lambda: double.told("VfAttached"), "the API server has heard of it")

    def churn(self) -> None:
        """A pod comes and goes, one finds no address, and each VF has sent and received something."""
        name = f"p{next(self._numbers)}"
        self.add(name, self.free, addresses=False)
        self.node.call("DEL", {}, self.node.root / name)
        self.add(f"{name}-without", self.free, succeeds=False)
        with self.node.kernel.lock:
            for link in itertools.chain(*self.node.kernel.namespaces.values()):
                for field in ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets", "rx_dropped", "tx_dropped"):
                    link.counted[field] = link.counted.get(field, 0) + 100

    def add(
        self, name: str, vf: PciAddress, *, addresses: bool = True, succeeds: bool = True, **env: str
    ) -> Path:
        path = self.node.root / name
        self.node.kernel.new_pod(path)
        conf = {"deviceID": vf} | ({"ipam": ONE_ADDRESS} if addresses else {})
        reply = self.node.call("ADD", conf, path, **env)
        assert (reply.exit_code == 0) == succeeds, reply
        return path


@contextlib.contextmanager
def monitored_node() -> Iterator[Monitored]:
    with new_node() as node, api_double() as double:
        kubeconfig = double.kubeconfig(node.root).kubeconfig
        double.pods["ml/trainer"] = None
        with running(node, f"{CONFIG}kubernetes: {{kubeconfig: {kubeconfig}}}\n") as agent:
            assert node.vfs(PF1)
            yield Monitored(node, agent, double)
