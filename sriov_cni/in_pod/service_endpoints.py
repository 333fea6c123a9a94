"""Pure: which endpoints of a service's port traffic from this node goes to, by kube-proxy's rules.

The rules are those of CategorizeEndpoints and topologyModeFromHints (kubernetes, pkg/proxy/topology.go).
`trafficDistribution` and the topology annotation are not read: the controller of the EndpointSlices turns
them into hints.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from sriov_cni.in_pod.addresses import canonical_address
from sriov_cni.in_pod.model import Endpoint
from sriov_cni.in_pod.objects import EndpointSlice, Hints, Proto, ServicePort, SliceEndpoint


class Place(msgspec.Struct, frozen=True):
    """Where the pods are: this node. `addresses`: those on which it has its node ports."""

    node: str
    zone: str | None = None
    addresses: tuple[str, ...] = ()


class Candidate(msgspec.Struct, frozen=True):
    """`serving` without `ready`: it may be used if it is `terminating` and nothing is ready."""

    endpoint: Endpoint
    ready: bool
    serving: bool
    terminating: bool
    local: bool
    hints: Hints | None

    @property
    def last_resort(self) -> bool:
        return self.serving and self.terminating and not self.ready

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """If several slices have an endpoint, as while it moves from one to another, the highest counts."""
        return self.ready, self.last_resort, self.local


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """`serving`: all that answer, chosen or not. `elsewhere`: none is chosen, though other nodes have some.
    `why`: as in `Target`."""

    endpoints: tuple[Endpoint, ...] = ()
    serving: tuple[Endpoint, ...] = ()
    elsewhere: bool = False
    why: str = ""


def find_candidates(
    slices: Iterable[EndpointSlice], port: ServicePort, address_type: str, node: str
) -> list[Candidate]:
    """Of one port and family (`IPv4`, `IPv6`), sorted, each endpoint once. What is malformed is left out."""
    best: dict[Endpoint, Candidate] = {}
    for slice_ in slices:
        if slice_.address_type != address_type:
            continue
        for number in _numbers(slice_, port):
            for one in slice_.endpoints or ():
                candidate = _candidate(one, number, node)
                if candidate is None or (":" in candidate.endpoint.address) != (address_type == "IPv6"):
                    continue
                known = best.get(candidate.endpoint)
                if known is None or known.rank < candidate.rank:
                    best[candidate.endpoint] = candidate
    return [best[endpoint] for endpoint in sorted(best)]


def _numbers(slice_: EndpointSlice, port: ServicePort) -> Iterator[int]:
    """A named target port may have another number in each slice; its name there is that of the service."""
    for one in slice_.ports or ():
        if one.port and (one.name or "") == port.name and (one.protocol or Proto.TCP) == port.protocol:
            yield one.port


def _candidate(one: SliceEndpoint, port: int, node: str) -> Candidate | None:
    """Of several addresses the first alone counts, says the API."""
    address = canonical_address(one.addresses[0]) if one.addresses else None
    if address is None:
        return None
    conditions = one.conditions
    ready = conditions.ready is not False
    return Candidate(
        Endpoint(address, port),
        ready,
        ready if conditions.serving is None else conditions.serving,
        bool(conditions.terminating),
        one.node_name == node,
        one.hints,
    )


def choose_in_cluster(candidates: Sequence[Candidate], place: Place) -> Choice:
    """By hints if they hold, else all that are ready, else those that end but still answer."""
    ready = [one for one in candidates if one.ready]
    if not ready:
        return _last_resort(candidates)
    for near, why in _topologies(place):
        hinted = [near(one) for one in ready]
        if None not in hinted and any(hinted):
            return _choice([one for one in ready if near(one)], candidates, why)
    return _choice(ready, candidates)


def choose_on_node(candidates: Sequence[Candidate]) -> Choice:
    """Traffic policy Local. Hints do not matter."""
    local = [one for one in candidates if one.local]
    ready = [one for one in local if one.ready]
    if ready:
        return _choice(ready, candidates, "traffic policy Local: those on this node")
    if any(one.last_resort for one in local):
        chosen = [one for one in local if one.last_resort]
        return _choice(
            chosen, candidates, "traffic policy Local: terminating ones on this node that still serve"
        )
    if any(one.ready or one.last_resort for one in candidates):
        why = "traffic policy Local: there are endpoints, but none on this node"
        return Choice(elsewhere=True, serving=_serving(candidates), why=why)
    return _last_resort(candidates)


def _last_resort(candidates: Sequence[Candidate]) -> Choice:
    chosen = [one for one in candidates if one.last_resort]
    why = "none is ready: terminating ones that still serve" if chosen else "no endpoint is ready"
    return _choice(chosen, candidates, why)


def _choice(chosen: Iterable[Candidate], candidates: Iterable[Candidate], why: str = "") -> Choice:
    return Choice(endpoints=tuple(one.endpoint for one in chosen), serving=_serving(candidates), why=why)


def _serving(candidates: Iterable[Candidate]) -> tuple[Endpoint, ...]:
    return tuple(one.endpoint for one in candidates if one.serving)


Near = Callable[[Candidate], bool | None]  # None: it has no hint of this kind


def _topologies(place: Place) -> Iterator[tuple[Near, str]]:
    """In the order in which they are tried. One holds if every ready endpoint has a hint of its kind, and
    one of them is for here."""

    def for_node(one: Candidate) -> bool | None:
        nodes = one.hints.for_nodes if one.hints else ()
        return any(hint.name == place.node for hint in nodes) if nodes else None

    def for_zone(one: Candidate) -> bool | None:
        zones = one.hints.for_zones if one.hints else ()
        return any(hint.name == place.zone for hint in zones) if zones else None

    yield for_node, f"those with a hint for node {place.node}"
    if place.zone:
        yield for_zone, f"those with a hint for zone {place.zone}"
