"""Nine pods in three namespaces, a node and two hosts beyond the cluster; what may happen to them.

Each pod has an address of both families, as `address` says. Every one of them serves TCP and UDP on PORTS.
Pod `a` calls port 80 `web`, pod `b` port 81; pod `c` calls so a port of UDP. `b` has a sidecar with the port
`side` (81); what `c` calls so is of a container that has ended.
"""

from collections.abc import Iterator
from copy import deepcopy
from ipaddress import ip_address
from textwrap import dedent
from typing import Any, TypeVar

import msgspec
import yaml

from sriov_cni.in_pod.objects import Cluster, Namespace, NetworkPolicy, Node, Pod

Object = dict[str, Any]
_T = TypeVar("_T")

NAMESPACES = {"x": {"ns": "x", "team": "red"}, "y": {"ns": "y", "team": "red"}, "z": {"ns": "z"}}
PODS = {
    "a": {"pod": "a", "tier": "web"},
    "b": {"pod": "b", "tier": "web", "canary": ""},
    "c": {"pod": "c"},
}
PORTS = (80, 81)
PROTOCOLS = ("TCP", "UDP")

NODE = {4: "10.0.0.1", 6: "fd00::1"}
OUTSIDE = {4: ("192.0.2.10", "192.0.2.200"), 6: ("2001:db8::10", "2001:db8::8:10")}
RECREATED = {4: "10.0.0.41", 6: "fd00::41"}  # another address for a pod

_WEB: dict[str, list[Object]] = {
    "a": [{"name": "web", "containerPort": 80}, {"name": "dns", "containerPort": 80, "protocol": "UDP"}],
    "b": [{"name": "web", "containerPort": 81}, {"name": "dns", "containerPort": 81, "protocol": "UDP"}],
    "c": [{"name": "web", "containerPort": 80, "protocol": "UDP"}],
}
_INIT: dict[str, list[Object]] = {
    "a": [],
    "b": [{"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 81}]}],
    "c": [{"ports": [{"name": "side", "containerPort": 81}]}],
}


def pod_keys() -> list[str]:
    return [f"{namespace}/{pod}" for namespace in NAMESPACES for pod in PODS]


def address(key: str, version: int) -> str:
    """At the beginning."""
    namespace, pod = key.split("/")
    number = 10 * (1 + list(NAMESPACES).index(namespace)) + 1 + list(PODS).index(pod)
    return f"10.0.0.{number}" if version == 4 else f"fd00::{number}"


def objects() -> list[Object]:
    """As the API server has them, without policies."""
    node = {"metadata": {"name": "node1"}, "status": {"addresses": [_internal(a) for a in NODE.values()]}}
    return [
        {"kind": "Node", **node},
        *({"kind": "Namespace", "metadata": {"name": n, "labels": NAMESPACES[n]}} for n in NAMESPACES),
        *map(_pod, pod_keys()),
    ]


def _internal(text: str) -> Object:
    return {"type": "InternalIP", "address": text}


def _pod(key: str) -> Object:
    namespace, name = key.split("/")
    return {
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": PODS[name]},
        "spec": {
            "nodeName": "node1",
            "containers": [{"ports": _WEB[name]}],
            "initContainers": _INIT[name],
        },
        "status": {"phase": "Running", "podIPs": [{"ip": address(key, v)} for v in (4, 6)]},
    }


def states(text: str) -> Iterator[list[Object]]:
    """What there is at the beginning and after each change. A set is YAML: first policies (namespace/name:
    spec), then changes (`Kind namespace/name`: what is laid over the object; null: it is deleted)."""
    policies, *changes = yaml.safe_load_all(dedent(text))
    now = objects()
    for key, spec in policies.items():
        now = changed(now, f"NetworkPolicy {key}", {"spec": spec})
    yield now
    for change in changes:
        for what, patch in change.items():
            now = changed(now, what, patch)
        yield now


def changed(before: list[Object], what: str, patch: Object | None) -> list[Object]:
    """By one line of a change."""
    kind, key = what.split()
    namespace, _, name = key.rpartition("/")
    metadata = {"namespace": namespace, "name": name} if namespace else {"name": name}
    found = [o for o in before if o["kind"] == kind and metadata.items() <= o["metadata"].items()]
    others = [o for o in before if o not in found]
    if patch is None:
        return others
    old = found[0] if found else {"kind": kind, "metadata": metadata}
    return [*others, _laid_over(old, patch)]


def _laid_over(old: Object, patch: Object) -> Object:
    """RFC 7386, but labels are replaced as a whole."""
    new = deepcopy(old)
    for key, value in patch.items():
        if isinstance(value, dict) and key != "labels":
            new[key] = _laid_over(new.get(key, {}), value)
        else:
            new[key] = value
    return new


def cluster(state: list[Object]) -> Cluster:
    """As the agent knows it."""

    def every(kind: str, type_: type[_T]) -> list[_T]:
        return [msgspec.convert(o, type_) for o in state if o["kind"] == kind]

    return Cluster(
        pods={pod.metadata.key: pod for pod in every("Pod", Pod)},
        namespaces={namespace.metadata.key: namespace for namespace in every("Namespace", Namespace)},
        policies={policy.metadata.key: policy for policy in every("NetworkPolicy", NetworkPolicy)},
        node=next(iter(every("Node", Node)), None),
    )


def packed(text: str) -> bytes:
    """An address as it is on the wire."""
    return ip_address(text).packed
