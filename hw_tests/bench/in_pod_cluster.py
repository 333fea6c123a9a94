"""Pure: the cluster of the benchmark of services and policies, as objects of its API server."""

from collections.abc import Iterator
from ipaddress import IPv4Address

import msgspec

from tests.cluster_objects import Object, endpoints, namespace, node, pod, policy, service

NODE_NAME = "node-1"
PORT = 8080
CLUSTER_IP, BY_VETH = (
    "10.97.0.10",
    "10.98.0.10",
)  # of the one service that is really asked; the other's is none
HOME = "home"  # the namespace of the pods that are attached
_OTHERS = tuple(f"team-{number}" for number in range(1, 10))
_NAMESPACES = (HOME, *_OTHERS)
_APPS = 20
_DNS = {"udp": 53}
_FIRST_POD = IPv4Address("10.128.0.1")

Put = tuple[str, Object]


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """`endpoints`: of each service. `pods`: of the cluster, besides those `attached` on this node."""

    services: int = 1000
    endpoints: int = 10
    policies: int = 200
    pods: int = 5000
    attached: int = 64


def every_object(scale: Scale, server: str) -> Iterator[Put]:
    """By resource. `server`: the address of the endpoint that there really is."""
    yield "nodes", node(NODE_NAME, "192.0.2.1")
    yield from (("namespaces", namespace(name)) for name in _NAMESPACES)
    yield from (("pods", _pod(number)) for number in range(scale.pods))
    yield from (("pods", attached_pod(number)) for number in range(scale.attached + 2))
    for number in range(scale.services):
        yield "services", service(f"s{number}", f"10.96.{number // 250}.{1 + number % 250}")
        yield "endpointslices", slice_of(scale, number)
    yield "services", service("dns", "10.97.0.53", ports=_DNS)
    yield "endpointslices", dns_slice(scale)
    yield "services", service("target", CLUSTER_IP, ports={"web": PORT})
    yield "endpointslices", endpoints("target", server, ports={"web": PORT})
    yield from (("networkpolicies", _policy(number)) for number in range(scale.policies - 1))
    yield "networkpolicies", everyones_policy(0)


def slice_of(scale: Scale, number: int, changes: int = 0) -> Object:
    """The endpoints of a service; with each of its changes one of them is another pod."""
    first = number * scale.endpoints
    pods = [(first + each) % scale.pods for each in range(scale.endpoints)]
    pods[0] = (pods[0] + changes * scale.endpoints) % scale.pods
    return endpoints(f"s{number}", *(_address(pod) for pod in pods))


def dns_slice(scale: Scale, changes: int = 0) -> Object:
    """The same for the one service of UDP, which has two."""
    return endpoints("dns", _address(0), _address(1 + changes % (scale.pods - 1)), ports=_DNS)


def everyones_policy(changes: int) -> Object:
    """It is about every pod that is attached. With each of its changes one block of addresses is another."""
    blocks = [{"ipBlock": {"cidr": f"172.20.{(changes + each) % 250}.0/24"}} for each in range(4)]
    everything = {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["192.0.2.128/25"]}}
    return policy(
        "everyone",
        HOME,
        podSelector={},
        policyTypes=["Ingress", "Egress"],
        ingress=[{"from": blocks}],
        egress=[{"to": [everything]}],
    )


def attached_pod(number: int) -> Object:
    return pod(f"vf-{number}", namespace=HOME, labels={"app": f"app-{number % _APPS}"})


def _pod(number: int) -> Object:
    team, app = number % len(_NAMESPACES), number // len(_NAMESPACES) % _APPS
    return pod(
        f"pod-{number}",
        _address(number),
        namespace=_NAMESPACES[team],
        node="node-2",
        labels={"app": f"app-{app}"},
    )


def _policy(number: int) -> Object:
    """About one app of a namespace: its peers are two apps there, and one of the next namespace."""
    team, app = number % len(_NAMESPACES), number // len(_NAMESPACES)
    here, there, next_team = (
        {"matchLabels": {"app": f"app-{(app + 1) % _APPS}"}},
        {"matchLabels": {"app": f"app-{(app + 2) % _APPS}"}},
        {"matchLabels": {"kubernetes.io/metadata.name": _NAMESPACES[(team + 1) % len(_NAMESPACES)]}},
    )
    peers = [{"podSelector": here}, {"podSelector": there, "namespaceSelector": next_team}]
    return policy(
        f"p{number}",
        _NAMESPACES[team],
        podSelector={"matchLabels": {"app": f"app-{app % _APPS}"}},
        policyTypes=["Ingress", "Egress"],
        ingress=[{"from": peers, "ports": [{"port": PORT}]}],
        egress=[{"to": [{"podSelector": there}]}],
    )


def _address(number: int) -> str:
    return str(_FIRST_POD + number)
