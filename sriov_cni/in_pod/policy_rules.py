"""Pure: what one NetworkPolicy lets through, with the peers that a cluster has for it.

What cannot be understood lets nothing through and is said: the API server checks what it takes, so this is
an object that is newer than we are, or damaged.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from sriov_cni.in_pod.ip_ranges import Span, read_block, to_range, unite
from sriov_cni.in_pod.model import Allow, Direction, Peers, PortRange
from sriov_cni.in_pod.objects import EgressRule, IngressRule, NetworkPolicy, Peer, PolicyPort, Proto
from sriov_cni.in_pod.peers import NamedPort, PeerIndex
from sriov_cni.in_pod.selectors import Requirements, parse_selector
from vf_manager.errors import InvalidInput


class Rule(msgspec.Struct, frozen=True):
    """`names`: ports that each pod which the policy is for has a number of its own for."""

    allow: Allow
    names: tuple[NamedPort, ...] = ()

    def for_pod(self, ports: Mapping[NamedPort, list[int]]) -> Allow:
        if not self.names:
            return self.allow
        named = [PortRange(name[1], n, n) for name in self.names for n in ports.get(name, ())]
        return msgspec.structs.replace(self.allow, ports=_unite_ports((*(self.allow.ports or ()), *named)))


class PolicyRules(msgspec.Struct, frozen=True, kw_only=True):
    """`selector` None: it is not understood, and so the policy isolates every pod of its namespace."""

    policy: NetworkPolicy
    selector: Requirements | None
    directions: frozenset[Direction]
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Allow, ...] = ()
    problems: tuple[str, ...] = ()


def read_policy(policy: NetworkPolicy, index: PeerIndex) -> PolicyRules:
    reader = _Reader(policy, index)
    try:
        selector = parse_selector(policy.spec.pod_selector, "spec.podSelector")
    except InvalidInput as e:
        reader.note(e)
        return PolicyRules(
            policy=policy, selector=None, directions=_directions(policy), problems=tuple(reader.problems)
        )
    return PolicyRules(
        policy=policy,
        selector=selector,
        directions=_directions(policy),
        ingress=tuple(reader.ingress(at, rule) for at, rule in enumerate(policy.spec.ingress or ())),
        egress=tuple(reader.egress(at, rule) for at, rule in enumerate(policy.spec.egress or ())),
        problems=tuple(reader.problems),
    )


def _directions(policy: NetworkPolicy) -> frozenset[Direction]:
    types = policy.spec.policy_types
    if not types:
        types = ("Ingress", "Egress") if policy.spec.egress else ("Ingress",)
    return frozenset(direction for direction in Direction if direction in types)


class _Reader:
    """Of one policy; collects what it could not understand."""

    def __init__(self, policy: NetworkPolicy, index: PeerIndex) -> None:
        self._key = policy.metadata.key
        self._namespace = policy.metadata.namespace
        self._index = index
        self.problems: list[str] = []

    def note(self, error: InvalidInput) -> None:
        self.problems.append(f"NetworkPolicy {self._key}: {error}; this lets nothing through")

    def ingress(self, at: int, rule: IngressRule) -> Rule:
        path = f"spec.ingress[{at}]"
        numbers, names = self._read_ports(rule.ports, path)
        peers, _, _ = self._read_peers(rule.from_, f"{path}.from")
        return Rule(Allow(policy=self._key, rule=at, peers=peers, ports=numbers), names)

    def egress(self, at: int, rule: EgressRule) -> Allow:
        path = f"spec.egress[{at}]"
        numbers, names = self._read_ports(rule.ports, path)
        peers, pods, spans = self._read_peers(rule.to, f"{path}.to")
        sockets = self._index.sockets(names, pods, spans)
        named = tuple(f"{name}/{proto}" for name, proto in names)
        return Allow(policy=self._key, rule=at, peers=peers, ports=numbers, named=named, sockets=sockets)

    def _read_peers(
        self, peers: Sequence[Peer] | None, path: str
    ) -> tuple[Peers | None, frozenset[str] | None, tuple[Span, ...]]:
        """Also the keys of the pods, and the ranges as numbers."""
        if not peers:
            return None, None, ()
        pods: list[frozenset[str]] = []
        spans: list[Span] = []
        for at, peer in enumerate(peers):
            try:
                if peer.ip_block is None:
                    pods.append(self._read_selectors(peer, f"{path}[{at}]"))
                else:
                    spans += _read_block(peer, f"{path}[{at}]")
            except InvalidInput as e:
                self.note(e)
        keys = pods[0] if len(pods) == 1 else frozenset().union(*pods)
        united = unite(spans)
        found = Peers(
            name=_name(self._namespace, peers),
            addresses=self._index.addresses(keys),
            ranges=tuple(map(to_range, united)),
        )
        return found, keys, united

    def _read_selectors(self, peer: Peer, path: str) -> frozenset[str]:
        if peer.pod_selector is None and peer.namespace_selector is None:
            raise InvalidInput(path, "{}", "podSelector, namespaceSelector or ipBlock")
        pods, namespaces = peer.pod_selector, peer.namespace_selector
        return self._index.select(
            parse_selector(pods, f"{path}.podSelector") if pods else (),
            parse_selector(namespaces, f"{path}.namespaceSelector") if namespaces else self._namespace,
        )

    def _read_ports(
        self, ports: Iterable[PolicyPort] | None, path: str
    ) -> tuple[tuple[PortRange, ...] | None, tuple[NamedPort, ...]]:
        """Numbers, and names that have yet to be looked up."""
        if not ports:
            return None, ()
        numbers: list[PortRange] = []
        names: list[NamedPort] = []
        for at, port in enumerate(ports):
            try:
                if isinstance(port.port, str):
                    names.append(_read_name(port.port, port, f"{path}.ports[{at}]"))
                else:
                    numbers.append(_read_number(port, f"{path}.ports[{at}]"))
            except InvalidInput as e:
                self.note(e)
        return _unite_ports(numbers), tuple(names)


def _name(namespace: str, peers: Sequence[Peer]) -> str:
    """Of what is said, not of whom it means today."""
    said = msgspec.json.encode((namespace, peers), order="deterministic")
    return hashlib.sha256(said).hexdigest()[:12]


def _read_block(peer: Peer, path: str) -> list[Span]:
    assert peer.ip_block is not None
    if peer.pod_selector is not None or peer.namespace_selector is not None:
        raise InvalidInput(path, "ipBlock and a selector", "one of them in each peer")
    return read_block(peer.ip_block, f"{path}.ipBlock")


def _read_name(name: str, port: PolicyPort, path: str) -> NamedPort:
    if port.end_port is not None:
        raise InvalidInput(f"{path}.endPort", port.end_port, f"none, with the named port {name}")
    return name, port.protocol


def _read_number(port: PolicyPort, path: str) -> PortRange:
    if not isinstance(port.port, int):
        if port.end_port is not None:
            raise InvalidInput(f"{path}.endPort", port.end_port, "none, without a port")
        return PortRange(port.protocol)
    last = port.port if port.end_port is None else port.end_port
    if not 1 <= port.port <= 65535:
        raise InvalidInput(f"{path}.port", port.port, "a number from 1 to 65535, or a name")
    if not port.port <= last <= 65535:
        raise InvalidInput(f"{path}.endPort", last, f"a number from {port.port} to 65535")
    return PortRange(port.protocol, port.port, last)


def _unite_ports(ports: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """Sorted; what overlaps or touches is one."""
    spans = unite(Span(_ORDER.index(port.proto), port.low, port.high) for port in ports)
    return tuple(PortRange(_ORDER[span.version], span.first, span.last) for span in spans)


_ORDER = tuple(Proto)
