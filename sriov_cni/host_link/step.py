"""Orchestrator: the step of an attachment that links the node and the pod, and what is amiss later."""

from collections.abc import Iterable
from contextlib import ExitStack

import msgspec

from sriov_cni.ground import Ground
from sriov_cni.host_addresses import node_addresses
from sriov_cni.host_link.ends import Ends, find_ends, make_ends, remove_veth
from sriov_cni.host_link.host_side import make_shared, missing_shared, remove_shared, remove_vlan
from sriov_cni.host_link.plan import (
    HOST_TABLE,
    POD_PRIORITY,
    HostRoute,
    Linked,
    Neighbour,
    Node,
    Piece,
    PodRoute,
    PodRule,
    is_six,
    plan_pieces,
    pod_addresses,
)
from sriov_cni.ipam.config import IpamResult
from vf_manager.errors import NotFound
from vf_manager.kernel.api import Links, RouteSpec, RuleSpec

_MAIN_TABLE = 254  # RT_TABLE_MAIN, rtnetlink.h


class LinkToHost(msgspec.Struct, frozen=True):
    """After the VF has its addresses. What is of one attachment has its mark or its name: nothing else is
    taken away."""

    linked: Linked

    def describe(self) -> str:
        return f"link the node and {self.linked.ifname} of the pod by {self.linked.kind}"

    def apply(self, ground: Ground) -> None:
        with ground.host_lock:
            make_link(ground, self.linked, ground.addresses)

    def undo(self, ground: Ground) -> None:
        """All of it, past errors; the last one comes out."""
        with ground.host_lock, ExitStack() as last_first:
            last_first.callback(remove_shared, ground)
            last_first.callback(remove_vlan, ground, self.linked)
            last_first.callback(remove_veth, ground, self.linked)
            last_first.callback(_forget, ground, self.linked)


def make_link(ground: Ground, linked: Linked, given: IpamResult) -> None:
    """What is not as it should be, is made so. Raises SriovError."""
    families = _families(given)
    make_shared(ground, families)
    ends = make_ends(ground, linked, six=True in families)
    wanted, there = _plan(ground, linked, given, ends), _read(ground, linked, ends)
    for piece in there:
        if piece not in wanted:
            _take(ground, linked, ends, piece)
    for piece in wanted:
        if piece not in there:
            _put(ground, linked, ends, piece)


def find_link_drift(ground: Ground, linked: Linked, given: IpamResult) -> list[str]:
    """One line for each thing that is not as it should be."""
    lines = missing_shared(ground, _families(given))
    ends = find_ends(ground, linked)
    if ends is None or ground.pod is None:
        return [f"host link: {what} is missing" for what in (*lines, f"{linked.kind} of {linked.ifname}")]
    if not ends.are_up:
        lines.append(f"{linked.kind} that is up")
    wanted, there = _plan(ground, linked, given, ends), _read(ground, linked, ends)
    lines += [piece.describe() for piece in wanted if piece not in there]
    return [f"host link: {what} is missing" for what in lines] + [
        f"host link: {piece.describe()} is too much" for piece in there if piece not in wanted
    ]


def _families(given: IpamResult) -> tuple[bool, ...]:
    """True: IPv6."""
    return tuple(sorted({is_six(address) for address in pod_addresses(given)}))


def _plan(ground: Ground, linked: Linked, given: IpamResult, ends: Ends) -> list[Piece]:
    addresses = node_addresses(ground.host)
    links = {ends.pod.ifindex, *((vf.ifindex,) if (vf := ground.in_pod(linked.pci)) else ())}
    by_link = frozenset(a for a in addresses if _leaves_by(_pod(ground), a, links))
    node = Node(ifindex=ends.host.ifindex, addresses=addresses, by_link=by_link, mac=ends.mac)
    return plan_pieces(linked, given, node)


def _leaves_by(pod: Links, address: str, links: Iterable[int]) -> bool:
    """Or by nothing."""
    hop = pod.find_hop(address)
    return hop is None or hop.ifindex in links


def _read(ground: Ground, linked: Linked, ends: Ends) -> list[Piece]:
    """Those that are there."""
    pod = _pod(ground)
    found: list[Piece] = [
        HostRoute(ifindex, route.dst, route.source)
        for ifindex, route in ground.host.routes_of(HOST_TABLE)
        if route.priority == linked.mark
    ]
    found += [
        PodRoute(route.dst, None if route.table == _MAIN_TABLE else route.table, route.source)
        for route in pod.routes(ends.pod.ifindex)
        if route.priority == linked.mark
    ]
    found += [PodRule(rule.source) for rule in pod.rules() if rule.table == linked.mark]
    if ends.mac is not None:
        neighbours = pod.neighbours(ends.pod.ifindex).items()
        found += [Neighbour(address, mac) for address, mac in neighbours if mac == ends.mac]
    return found


def _put(ground: Ground, linked: Linked, ends: Ends, piece: Piece) -> None:
    match piece:
        case HostRoute():
            ground.host.add_route(piece.ifindex, _host_route(linked, piece))
        case PodRoute():
            _pod(ground).add_route(ends.pod.ifindex, _pod_route(linked, piece))
        case PodRule():
            _pod(ground).add_rule(_pod_rule(linked, piece))
        case Neighbour():
            _pod(ground).set_neighbour(ends.pod.ifindex, piece.address, piece.mac)


def _take(ground: Ground, linked: Linked, ends: Ends, piece: Piece) -> None:
    match piece:
        case HostRoute():
            ground.host.remove_route(piece.ifindex, _host_route(linked, piece))
        case PodRoute():
            _pod(ground).remove_route(ends.pod.ifindex, _pod_route(linked, piece))
        case PodRule():
            _pod(ground).remove_rule(_pod_rule(linked, piece))
        case Neighbour():
            _pod(ground).remove_neighbour(ends.pod.ifindex, piece.address)


def _forget(ground: Ground, linked: Linked) -> None:
    """What does not go with its link."""
    for ifindex, route in ground.host.routes_of(HOST_TABLE):
        if route.priority == linked.mark:
            ground.host.remove_route(ifindex, route)
    for rule in ground.pod.rules() if ground.pod is not None else ():
        if rule.table == linked.mark:
            _pod(ground).remove_rule(rule)


def _host_route(linked: Linked, piece: HostRoute) -> RouteSpec:
    return RouteSpec(dst=piece.dst, table=HOST_TABLE, priority=linked.mark, source=piece.source)


def _pod_route(linked: Linked, piece: PodRoute) -> RouteSpec:
    return RouteSpec(dst=piece.dst, table=piece.table, priority=linked.mark, source=piece.source)


def _pod_rule(linked: Linked, piece: PodRule) -> RuleSpec:
    return RuleSpec(source=piece.source, table=linked.mark, priority=POD_PRIORITY)


def _pod(ground: Ground) -> Links:
    if ground.pod is None:
        raise NotFound("the pod's network namespace is gone")
    return ground.pod
