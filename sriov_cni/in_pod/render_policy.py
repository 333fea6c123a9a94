"""Pure: a pod's policy as parts of its nftables table.

Whom a rule of a policy means are sets, named after what the policy says; which ports, a chain that accepts
them. So rules change when policies do, and a pod that comes or goes anywhere in the cluster is an element.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import TypeVar

import msgspec

from sriov_cni.in_pod.ip_ranges import pack
from sriov_cni.in_pod.model import Allow, Direction, IpRange, Peers, PodPolicy, PortRange
from sriov_cni.in_pod.objects import Proto
from sriov_cni.in_pod.peers import Socket
from vf_manager.kernel.nft import (
    Base,
    Chain,
    CtState,
    Elements,
    Field,
    Hook,
    In,
    Is,
    Rule,
    Statement,
    Table,
    Type,
    Verdict,
    VerdictKind,
    Within,
)

POLICY_IFS = "policy_ifs"  # a set of the table: the interfaces of the pod that policies are for
_NODE_ADDRESSES = "node_addresses"
_PARTS = (_NODE_ADDRESSES, "peers-", "sockets-", "ports-", "policy-")  # how all names here begin
_LONGEST_NAME = 40  # the kernel takes 255 octets (NFT_NAME_MAXLEN); people read less

_ACCEPT, _DROP = Verdict(VerdictKind.ACCEPT), Verdict(VerdictKind.DROP)
_PROTOCOLS = {Proto.TCP: b"\x06", Proto.UDP: b"\x11", Proto.SCTP: b"\x84"}
_ICMPV6 = b"\x3a"
_ESTABLISHED_OR_RELATED = 0b110  # NF_CT_STATE_BIT(IP_CT_ESTABLISHED) | NF_CT_STATE_BIT(IP_CT_RELATED)

# Types of ICMPv6: 133 to 137 are neighbour discovery, which is by multicast; 130 to 132 and 143 say who
# listens to which group. A switch with MLD snooping (RFC 4541) hands it on to those alone. conntrack follows
# neither.
_DISCOVERY = (Within(Field.ICMPV6_TYPE, b"\x82", b"\x89"), Is(Field.ICMPV6_TYPE, b"\x8f"))

_Source = TypeVar("_Source")


class _Family(msgspec.Struct, frozen=True):
    version: int
    type: Type


class _Side(msgspec.Struct, frozen=True):
    """Where a direction is judged: egress last of all, when services have been translated."""

    name: str
    hook: Hook
    interface: Field
    peer: Mapping[int, Field]  # by the version of IP


_FAMILIES = (_Family(4, Type.IPV4_ADDR), _Family(6, Type.IPV6_ADDR))
_SIDES = {
    Direction.INGRESS: _Side("in", Hook.INPUT, Field.IIFNAME, {4: Field.SADDR4, 6: Field.SADDR6}),
    Direction.EGRESS: _Side("out", Hook.POSTROUTING, Field.OIFNAME, {4: Field.DADDR4, 6: Field.DADDR6}),
}


class PolicyParts(msgspec.Struct, frozen=True):
    """Parts of a table, by name; none for a direction that is open. The table must have POLICY_IFS."""

    sets: Mapping[str, Elements]
    chains: Mapping[str, Chain]


def policy_parts_of(table: Table) -> PolicyParts:
    """Those that are in a pod's table."""
    sets = {name: elements for name, elements in table.sets.items() if name.startswith(_PARTS)}
    return PolicyParts(sets, {name: chain for name, chain in table.chains.items() if name.startswith(_PARTS)})


class PolicyRenderer:
    """For all pods of a node. What several of them have, or had by `previous`, is the same object: a set of a
    thousand addresses is made once, kept once, and compared by `is`.

    `node_addresses`: of the node, whose kubelet probes its pods.
    """

    def __init__(self, node_addresses: Iterable[str], previous: "PolicyRenderer | None" = None) -> None:
        self._node = frozenset(node_addresses)
        self._policies: dict[PodPolicy, PolicyParts] = {}
        self._elements: dict[object, Elements] = {}
        self._chains: dict[Chain, Chain] = {}
        self._earlier: Mapping[object, Elements] = previous._elements if previous else {}
        self._earlier_chains: Mapping[Chain, Chain] = previous._chains if previous else {}

    def render(self, policy: PodPolicy) -> PolicyParts:
        found = self._policies.get(policy)
        if found is None:
            sides = {Direction.INGRESS: policy.ingress, Direction.EGRESS: policy.egress}
            isolated = [(_SIDES[d], allows) for d, allows in sides.items() if allows is not None]
            sets = {name: elements for isolation in isolated for name, elements in self._sets(*isolation)}
            chains = {n: self._same(chain) for isolation in isolated for n, chain in _chains(*isolation)}
            found = self._policies[policy] = PolicyParts(sets, chains)
        return found

    def _sets(self, side: _Side, allows: Iterable[Allow]) -> Iterator[tuple[str, Elements]]:
        for family in _FAMILIES:
            if side.hook is Hook.INPUT:
                yield f"{_NODE_ADDRESSES}{family.version}", self._make(_addresses, self._node, family)
            for allow in allows:
                if allow.named:
                    yield _sockets_name(allow, family), self._make(_sockets, allow.sockets, family)
                if allow.peers is None or allow.ports == ():
                    continue
                addresses, ranges = _peer_names(allow.peers, family)
                yield addresses, self._make(_addresses, allow.peers.addresses, family)
                if ranges:
                    yield ranges, self._make(_ranges, allow.peers.ranges, family)

    def _make(
        self, how: Callable[[_Source, _Family], Elements], source: _Source, family: _Family
    ) -> Elements:
        key = how, source, family
        found = self._elements.get(key) or self._earlier.get(key) or how(source, family)
        self._elements[key] = found
        return found

    def _same(self, chain: Chain) -> Chain:
        return self._chains.setdefault(chain, self._earlier_chains.get(chain, chain))


# -- chains


def _chains(side: _Side, allows: Sequence[Allow]) -> Iterator[tuple[str, Chain]]:
    said = {rule for allow in allows for rule in _rules_of(allow, side)}
    in_order = sorted(said, key=str)  # whatever the order of the policies
    rules = (*_rules_before(side), *in_order, (_DROP,))
    yield f"policy-{side.name}", Chain(rules=rules, base=Base("filter", side.hook, 0))
    for allow in allows:
        if allow.ports:
            yield _ports_name(allow.ports), Chain(rules=tuple((*_is_port(p), _ACCEPT) for p in allow.ports))


def _rules_before(side: _Side) -> Iterator[Rule]:
    yield In((side.interface,), POLICY_IFS, negate=True), _ACCEPT
    yield CtState(_ESTABLISHED_OR_RELATED), _ACCEPT
    for types in _DISCOVERY:
        yield Is(Field.L4PROTO, _ICMPV6), types, _ACCEPT
    if side.hook is Hook.INPUT:
        for family in _FAMILIES:
            yield In((side.peer[family.version],), f"{_NODE_ADDRESSES}{family.version}"), _ACCEPT


def _rules_of(allow: Allow, side: _Side) -> Iterator[Rule]:
    for family in _FAMILIES if allow.named else ():
        key = side.peer[family.version], Field.L4PROTO, Field.DPORT
        yield In(key, _sockets_name(allow, family)), _ACCEPT
    if allow.ports == ():
        return
    verdict = Verdict(VerdictKind.JUMP, _ports_name(allow.ports)) if allow.ports else _ACCEPT
    if allow.peers is None:
        yield (verdict,)
        return
    for family in _FAMILIES:
        for name in filter(None, _peer_names(allow.peers, family)):
            yield In((side.peer[family.version],), name), verdict


def _is_port(port: PortRange) -> tuple[Statement, ...]:
    protocol = Is(Field.L4PROTO, _PROTOCOLS[port.proto])
    if (port.low, port.high) == (0, 65535):
        return (protocol,)
    if port.low == port.high:
        return protocol, Is(Field.DPORT, _number(port.low))
    return protocol, Within(Field.DPORT, _number(port.low), _number(port.high))


def _number(port: int) -> bytes:
    return port.to_bytes(2, "big")


# -- names


def _peer_names(peers: Peers, family: _Family) -> tuple[str, str]:
    """Of the set of addresses, and of that of ranges; "" if there are none in this family."""
    name = f"peers-{peers.name}"
    has_ranges = any((":" in range_.first) == (family.version == 6) for range_ in peers.ranges)
    return f"{name}-{family.version}", f"{name}-ranges{family.version}" if has_ranges else ""


def _sockets_name(allow: Allow, family: _Family) -> str:
    """Other rules that say the same have the same."""
    whose = allow.peers.name if allow.peers else ""
    return f"sockets-{_digest(' '.join((whose, *allow.named)))}-{family.version}"


def _ports_name(ports: Iterable[PortRange]) -> str:
    """Such as `ports-tcp80-udp53`; where that is too long, a name that nobody can read."""
    text = "-".join(map(_spell, ports))
    return f"ports-{text if len(text) <= _LONGEST_NAME else _digest(text)}"


def _spell(port: PortRange) -> str:
    proto = port.proto.lower()
    if (port.low, port.high) == (0, 65535):
        return proto
    return f"{proto}{port.low}" if port.low == port.high else f"{proto}{port.low}_{port.high}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# -- elements


def _addresses(addresses: Iterable[str], family: _Family) -> Elements:
    six = family.version == 6
    entries = {pack(text, family.version): b"" for text in addresses if (":" in text) == six}
    return Elements(key=(family.type,), entries=entries)


def _ranges(ranges: Iterable[IpRange], family: _Family) -> Elements:
    ends = ((ip_address(range_.first), ip_address(range_.last)) for range_ in ranges)
    entries = {first.packed: last.packed for first, last in ends if first.version == family.version}
    return Elements(key=(family.type,), interval=True, entries=entries)


def _sockets(sockets: Iterable[Socket], family: _Family) -> Elements:
    """Each part of a key takes four octets at least."""
    six = family.version == 6
    entries = {
        pack(address, family.version) + _PROTOCOLS[proto].ljust(4, b"\0") + _number(port).ljust(4, b"\0"): b""
        for address, proto, port in sockets
        if (":" in address) == six
    }
    return Elements(key=(family.type, Type.INET_PROTO, Type.INET_SERVICE), entries=entries)
