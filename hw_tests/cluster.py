"""Orchestrator: a node whose pods are made by containerd with our CNI executable as its only network, and the
network that the pods are to be reached from."""

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import yaml

from hw_tests.containerd import REFERENCE_PLUGINS, Containerd, running_containerd
from hw_tests.cri.api import cri_runtime_v1_pb2 as pb
from hw_tests.cri.client import Cri
from hw_tests.cri.pods import NAMESPACE, PodRunner, SandboxPod
from hw_tests.nics import Nic, ip, ip_json
from hw_tests.node import Node, pool_of, render_config, resource_of
from hw_tests.runtime import NETNS_DIR, Pod, network
from node_agent.agent import CHAIN, SOCKET_NAME
from tests.stub_kubelet import InsufficientDevices

BRIDGE = "cni-rig0"
BRIDGE_ADDRESS = "10.88.0.1"
FAR = "203.0.113.9"  # behind the gateways: who answers it needs a route
_RESULTS = Path("/var/lib/cni/results")  # where containerd keeps what plugins answered
_ALLOCATE_TIMEOUT_S = 60.0


def vlan_of(number: int) -> int:
    """Of the pods with a VF of this PF."""
    return 100 * (number + 1)


def gateway_of(number: int) -> str:
    return f"198.18.{number + 1}.1"


@dataclass
class Cluster:
    """`run` pods, `remove` them; `left` says what there is of them on the node."""

    node: Node
    containerd: Containerd
    cri: Cri
    outside: Pod
    chain_leases: Path
    runner: PodRunner = field(init=False)

    def __post_init__(self) -> None:
        self.runner = PodRunner(self.cri)

    def allocate(self, name: str, nics: Sequence[Nic]) -> None:
        """A VF of each of these PFs, one PF after the other; waits until the kubelet has them."""
        deadline = time.monotonic() + _ALLOCATE_TIMEOUT_S
        for nic in sorted(nics, key=lambda nic: nic.pci):
            while True:
                try:
                    self.node.kubelet.allocate(NAMESPACE, name, resource_of(nic))
                    break
                except (InsufficientDevices, grpc.RpcError):
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)

    def run(self, name: str, *nics: Nic, ports: Sequence[pb.PortMapping] = ()) -> SandboxPod:
        """A pod with a VF of each of these PFs. A PF may be named more than once."""
        self.allocate(name, nics)
        return self.runner.run(name, ports)

    def remove(self, name: str) -> None:
        self.runner.remove(name)
        self.node.kubelet.free(NAMESPACE, name)

    def remove_all(self) -> None:
        for sandbox in self.cri.sandboxes():
            self.remove(sandbox.metadata.name)

    def left(self) -> list[str]:
        """All but the VFs themselves, their records and their leases, which the fixture `before` looks at."""
        chain = self.node.run_dir / CHAIN
        rules = [*ip_json("-4", "rule", "show"), *ip_json("-6", "rule", "show")]
        return [
            *(f"sandbox {one.metadata.name}" for one in self.cri.sandboxes()),
            *(f"netns {path.name}" for path in NETNS_DIR.iterdir() if path.name != self.outside.netns),
            *(f"chain {path.name}" for path in (chain.iterdir() if chain.is_dir() else ())),
            *(f"lease {path.name}" for path in self.chain_leases.glob("plain/10.*")),
            *(f"nat {line}" for line in _nat_rules() if "10.88." in line),
            *(f"result {path.name}" for path in (_RESULTS.iterdir() if _RESULTS.is_dir() else ())),
            *(f"link {link['ifname']}" for link in ip_json("link", "show", "type", "veth")),
            *(f"rule {rule}" for rule in rules),
        ]


def _nat_rules() -> list[str]:
    done = subprocess.run(["iptables-save", "-t", "nat"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def chain_conflist(lease_dir: Path) -> str:
    """For pods without VFs. portmap's CHECK of a mapping fails in its version 1.1.1 (plugins#819)."""
    ipam = {"type": "host-local", "dataDir": str(lease_dir), "ranges": [[{"subnet": "10.88.0.0/24"}]]}
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipam": ipam}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    plugins = [bridge, portmap]
    return json.dumps({"cniVersion": "1.0.0", "name": "plain", "disableCheck": True, "plugins": plugins})


def pods_conflist() -> str:
    """The node's only configuration: all else is the agent's to know."""
    plugin = {"type": network("pods")["type"], "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin]})


def agent_config(nics: tuple[Nic, ...], fallback: Path) -> str:
    """A network for the pool of each PF, with a VLAN of its own."""
    networks = []
    for number, nic in enumerate(nics):
        one = {"subnet": f"198.18.{number + 1}.0/24", "gateway": gateway_of(number)}
        ipam = {"type": "host-local", "ranges": [[one]], "routes": [{"dst": "0.0.0.0/0"}]}
        networks.append(
            {"name": f"net-{number}", "pools": [pool_of(nic)], "vlan": vlan_of(number), "ipam": ipam}
        )
    config = yaml.safe_load(render_config(nics)) | {"networks": networks, "fallback": str(fallback)}
    return yaml.safe_dump(config, sort_keys=False)


@contextlib.contextmanager
def running_cluster(node: Node, folder: Path) -> Iterator[Cluster]:
    """Over a node whose agent runs; the agent gets its own config back in the end."""
    fallback = folder / "fallback.conflist"
    folder.mkdir(exist_ok=True)
    leases = folder / "chain-leases"
    fallback.write_text(chain_conflist(leases))
    with _configured(node, agent_config(node.nics, fallback)), outside(node.nics) as world:
        containerd = Containerd(folder / "containerd", pods_conflist(), node.run_dir / SOCKET_NAME)
        with running_containerd(containerd) as cri:
            yield Cluster(node, containerd, cri, world, leases)


@contextlib.contextmanager
def _configured(node: Node, config: str) -> Iterator[None]:
    kept, dirs = node.config.read_text(), node.plugin_dirs
    try:
        _restart(node, config, (str(REFERENCE_PLUGINS),))
        yield
    finally:
        _restart(node, kept, dirs)
        with contextlib.suppress(RuntimeError):  # no pod has had it made
            ip("link", "delete", BRIDGE)


def _restart(node: Node, config: str, plugin_dirs: tuple[str, ...]) -> None:
    node.stop()
    node.config.write_text(config)
    node.plugin_dirs = plugin_dirs
    node.start()
    node.wait_registered()


@contextlib.contextmanager
def outside(nics: tuple[Nic, ...]) -> Iterator[Pod]:
    """A router on the wire, with an interface in the VLAN of each PF's pods, by another PF where there is
    one. It takes packets only from where it would send the answer to (rp_filter)."""
    world = Pod("outside").create()
    try:
        for number in range(len(nics)):
            link, below = f"out{number}", nics[(number + 1) % len(nics)].name
            ip("link", "add", "link", below, "name", link, "type", "vlan", "id", str(vlan_of(number)))
            ip("link", "set", link, "netns", world.netns)
            ip("-n", world.netns, "address", "add", f"{gateway_of(number)}/24", "dev", link)
            for scope in ("all", link):
                setting = f"/proc/sys/net/ipv4/conf/{scope}/rp_filter"
                ip("netns", "exec", world.netns, "sh", "-c", f"echo 1 >{setting}")
            ip("-n", world.netns, "link", "set", link, "up")
        ip("-n", world.netns, "address", "add", f"{FAR}/32", "dev", "lo")
        yield world
    finally:
        world.destroy()
