"""Pure: what a pod's policy does with one packet that begins something, and by which rule."""

from collections.abc import Iterable
from ipaddress import ip_address

import msgspec

from sriov_cni.in_pod.ip_ranges import find_span, to_range, to_span
from sriov_cni.in_pod.model import Allow, Direction, Peers, PodPolicy
from sriov_cni.in_pod.objects import Proto


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """One rule that lets it through. `why`: whom it means, in words for people."""

    policy: str  # namespace/name
    rule: int  # of that direction, from 0
    why: str


class PolicyTrace(msgspec.Struct, frozen=True, kw_only=True):
    """`isolated`: some policy is about this direction; else `passages` is empty and all is let through."""

    isolated: bool
    passages: tuple[Passage, ...] = ()

    @property
    def allowed(self) -> bool:
        return not self.isolated or bool(self.passages)


def trace_policy(
    policy: PodPolicy, direction: Direction, address: str, proto: Proto | None = None, port: int | None = None
) -> PolicyTrace:
    """`address` is the other side's, `port` that of whoever is called; proto None is ICMP, say.

    Replies are let through whatever this says, and so is what this node sends to its pod.
    """
    allows = policy.ingress if direction is Direction.INGRESS else policy.egress
    if allows is None:
        return PolicyTrace(isolated=False)
    passages = _passages(allows, str(ip_address(address)), proto, port)
    return PolicyTrace(isolated=True, passages=tuple(passages))


def _passages(
    allows: Iterable[Allow], address: str, proto: Proto | None, port: int | None
) -> Iterable[Passage]:
    for allow in allows:
        why = _peer(allow.peers, address) if _has_port(allow, proto, port) else ""
        if not why and (address, proto, port) in allow.sockets:
            why = f"{' or '.join(allow.named)} of the pod with {address}"
        if why:
            yield Passage(policy=allow.policy, rule=allow.rule, why=why)


def _has_port(allow: Allow, proto: Proto | None, port: int | None) -> bool:
    if allow.ports is None:
        return True
    if port is None:
        return False
    return any(ports.proto == proto and ports.low <= port <= ports.high for ports in allow.ports)


def _peer(peers: Peers | None, address: str) -> str:
    """Whom it means that this address is let through; "" if it is not."""
    if peers is None:
        return "everybody"
    if address in peers.addresses:
        return f"the pod with {address}"
    span = find_span(address, [to_span(range_) for range_ in peers.ranges])
    if span is None:
        return ""
    range_ = to_range(span)
    return f"{range_.first} to {range_.last}"
