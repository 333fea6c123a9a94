"""Pure: what services and policies mean for one node's pods, before it is said in any firewall's language."""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from sriov_cni.in_pod.objects import Proto


class Endpoint(msgspec.Struct, frozen=True, order=True):
    address: str
    port: int


class Frontend(msgspec.Struct, frozen=True):
    """What a pod may send to so that it is sent on: one address and port of a service."""

    proto: Proto
    address: str
    port: int


class Origin(StrEnum):
    CLUSTER_IP = "ClusterIP"
    EXTERNAL_IP = "external IP"
    LOAD_BALANCER = "load balancer"
    NODE_PORT = "node port"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a frontend leads. No endpoints: it is rejected, or `dropped` in silence. `others`, of UDP alone:
    endpoints that still answer and were not chosen, to which what flows may flow on. `why`: how the endpoints
    were chosen, where those are not all that are ready (local ones, those of the zone, terminating ones), in
    words for people."""

    service: str  # namespace/name
    port_name: str = ""
    origin: Origin = Origin.CLUSTER_IP
    endpoints: tuple[Endpoint, ...] = ()  # sorted; of the frontend's own family
    others: tuple[Endpoint, ...] = ()
    dropped: bool = False
    affinity_s: int | None = None
    sources: tuple[str, ...] = ()  # loadBalancerSourceRanges: CIDRs that alone may send here; (): everybody
    why: str = ""


class ServiceTable(msgspec.Struct, frozen=True, kw_only=True):
    """`addresses`: cluster IPs. A port of theirs that no frontend has is rejected, as kube-proxy does."""

    targets: Mapping[Frontend, Target] = {}
    addresses: frozenset[str] = frozenset()


class IpRange(msgspec.Struct, frozen=True, order=True):
    """First and last address, both included, of one family."""

    first: str
    last: str


class PortRange(msgspec.Struct, frozen=True, order=True):
    proto: Proto
    low: int = 0
    high: int = 65535


class Peers(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """Whom a rule is about: pods by their addresses, and ranges."""

    name: str = ""  # the same as long as the policies say the same, whatever pods there are
    addresses: frozenset[str] = frozenset()
    ranges: tuple[IpRange, ...] = ()  # sorted, without overlap


class Direction(StrEnum):
    INGRESS = "Ingress"
    EGRESS = "Egress"


class Allow(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """Something that is let through: these peers on these ports. `peers` None: everybody; `ports` None: all
    protocols, ICMP too. `sockets`: (address, protocol, port) besides, for egress by the ports `named`."""

    policy: str  # namespace/name
    rule: int = 0  # which of the policy's rules of that direction, from 0
    peers: Peers | None = None
    ports: tuple[PortRange, ...] | None = None  # sorted, without overlap
    named: tuple[str, ...] = ()  # such as http/TCP
    sockets: frozenset[tuple[str, Proto, int]] = frozenset()


class PodPolicy(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """None: this direction is not isolated, all is let through. (): nothing is. `problems`: what of the
    policies could not be understood, and so lets nothing through."""

    ingress: tuple[Allow, ...] | None = None
    egress: tuple[Allow, ...] | None = None
    problems: tuple[str, ...] = ()
