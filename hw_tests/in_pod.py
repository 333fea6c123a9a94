"""Orchestrator: a node whose agent knows a cluster: an API server in memory, and pods that it tells of."""

import contextlib
import errno
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from hw_tests.nics import Nic
from hw_tests.node import Node
from hw_tests.runtime import Conf, Pod
from hw_tests.stage import Stage
from tests.api_double import ApiDouble, api_double
from tests.cluster_objects import Object, namespace, node
from tests.cluster_objects import pod as pod_object
from tests.kernel_contract import Space
from tests.netns.talk import ask

NAMESPACE = "rig"  # of the pods
_NODE_NAME = "rig-node"
_NODE_ADDRESS = "198.18.100.2"
_SHORT_S = 0.5  # for what must not come through
_SILENCE = (errno.EPERM, errno.EHOSTUNREACH)  # dropped where it is sent; no such neighbour


@dataclass
class ClusterPod(Pod):
    """`address`: "" before its ADD."""

    labels: dict[str, str] = field(default_factory=dict)
    address: str = ""

    @property
    def space(self) -> Space:
        return Space(-1, str(self.path))

    def tables(self) -> list[str]:
        """As nft names them."""
        return [line.removeprefix("table ") for line in self.nft("list tables").splitlines()]

    def nft(self, command: str) -> str:
        words = self.command("nft", command)
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    def reaches(self, address: str, port: int, proto: str) -> bool:
        """Whoever is there answers, and soon."""
        try:
            ask(self.space, address, port, proto, timeout_s=_SHORT_S)
        except TimeoutError:
            return False
        except OSError as e:
            if e.errno in _SILENCE:
                return False
            raise
        return True


@dataclass
class Scene:
    """A context manager: what a test told the API server is taken back in the end."""

    stage: Stage
    api: ApiDouble
    _told: dict[tuple[str, str], None] = field(default_factory=dict)

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *_: object) -> None:
        for resource, key in list(self._told):
            self.delete(resource, key)

    def put(self, *objects: Object) -> None:
        for one in objects:
            plural = "networkpolicies" if one["kind"] == "NetworkPolicy" else f"{one['kind'].lower()}s"
            meta = one["metadata"]
            self._told[plural, f"{meta['namespace']}/{meta['name']}"] = None
            self.api.put(plural, one)

    def delete(self, resource: str, key: str) -> None:
        del self._told[resource, key]
        self.api.delete(resource, key)

    def pod(self, name: str, **labels: str) -> ClusterPod:
        """Not attached yet."""
        pod = ClusterPod(name, NAMESPACE, labels=labels)
        pod.create()
        self.stage.pods.append(pod)
        self._tell(pod)
        return pod

    def attach(self, pod: ClusterPod, nic: Nic, conf: Conf) -> ClusterPod:
        """As it goes in a cluster: there is a pod, then it is attached, then its address is known."""
        pod.address = self.stage.attach(pod, conf, self.stage.allocate(pod, nic)).address
        self._tell(pod)
        return pod

    def attach_new(self, name: str, nic: Nic, conf: Conf, **labels: str) -> ClusterPod:
        return self.attach(self.pod(name, **labels), nic, conf)

    def _tell(self, pod: ClusterPod) -> None:
        ips = [pod.address] if pod.address else []
        found = pod_object(pod.name, *ips, namespace=pod.namespace, node=_NODE_NAME, labels=pod.labels)
        found["metadata"]["uid"] = pod.uid
        self.put(found)


@contextlib.contextmanager
def knowing_a_cluster(agent: Node, folder: Path) -> Iterator[ApiDouble]:
    """Over a node whose agent runs; the agent gets its own config back in the end."""
    kept, options = agent.config.read_text(), agent.options
    with api_double() as api:
        api.put("nodes", node(_NODE_NAME, _NODE_ADDRESS))
        api.put("namespaces", namespace(NAMESPACE))
        config = yaml.safe_load(kept) | {"kubernetes": {"kubeconfig": api.kubeconfig(folder).kubeconfig}}
        try:
            _restart(agent, yaml.safe_dump(config), (*options, f"--node-name={_NODE_NAME}"))
            yield api
        finally:
            _restart(agent, kept, options)


def _restart(agent: Node, config: str, options: tuple[str, ...]) -> None:
    agent.stop()
    agent.config.write_text(config)
    agent.options = options
    agent.start()
    agent.wait_registered()
