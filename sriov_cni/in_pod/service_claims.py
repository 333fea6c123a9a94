"""Pure: the addresses and ports that one service claims, and where each leads."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

import msgspec

from sriov_cni.in_pod.addresses import canonical_address
from sriov_cni.in_pod.model import Endpoint, Frontend, Origin, Target
from sriov_cni.in_pod.objects import (
    AffinityConfig,
    ClientIpConfig,
    EndpointSlice,
    Proto,
    Service,
    ServicePort,
)
from sriov_cni.in_pod.service_endpoints import (
    Choice,
    Place,
    choose_in_cluster,
    choose_on_node,
    find_candidates,
)

Claim = tuple[Frontend, Target]


class Claims(msgspec.Struct, frozen=True):
    """`addresses`: cluster IPs, which are the service's own, with all ports; `internal` are of these.
    `external`: whatever else, which others may claim as well."""

    addresses: tuple[str, ...]
    internal: tuple[Claim, ...]
    external: tuple[Claim, ...]


def claims_of(service: Service, slices: Sequence[EndpointSlice], place: Place) -> Claims:
    """In the families in which the service has a cluster IP, and in no other."""
    spec = service.spec
    addresses = _canonical(spec.cluster_ips or (spec.cluster_ip,))
    internal: list[Claim] = []
    external: list[Claim] = []
    for address in addresses:
        six = ":" in address
        for port in spec.ports:
            if not port.port:
                continue
            candidates = find_candidates(slices, port, "IPv6" if six else "IPv4", place.node)
            in_cluster = choose_in_cluster(candidates, place)
            inside = choose_on_node(candidates) if spec.internal_traffic_policy == "Local" else in_cluster
            frontend = Frontend(port.protocol, address, port.port)
            internal.append((frontend, _target(service, port, inside, Origin.CLUSTER_IP)))
            external += _external(service, port, in_cluster, six, place)
    return Claims(addresses, tuple(internal), tuple(external))


def keep_equal(new: Claims, old: Claims) -> Claims:
    """The new claims with the old objects for all that is equal: the whole, or single targets."""
    if new == old:
        return old
    known = dict(old.internal + old.external)
    return Claims(new.addresses, _keep_equal(new.internal, known), _keep_equal(new.external, known))


def _keep_equal(claims: Iterable[Claim], known: Mapping[Frontend, Target]) -> tuple[Claim, ...]:
    return tuple(
        (frontend, known[frontend] if known.get(frontend) == target else target)
        for frontend, target in claims
    )


def _external(
    service: Service, port: ServicePort, choice: Choice, six: bool, place: Place
) -> Iterator[Claim]:
    """Load balancers come first: an address that is an external IP besides is guarded by its ranges."""
    balancers = [one.ip for one in service.status.load_balancer.ingress if one.ip_mode != "Proxy"]
    for origin, addresses, number in (
        (Origin.LOAD_BALANCER, balancers, port.port),
        (Origin.EXTERNAL_IP, service.spec.external_ips, port.port),
        (Origin.NODE_PORT, place.addresses, port.node_port),
    ):
        mine = [address for address in _canonical(addresses) if (":" in address) == six]
        if not mine or not number:
            continue
        target = _target(service, port, choice, origin)
        if origin is Origin.LOAD_BALANCER:
            ranges = _source_ranges(service.spec.load_balancer_source_ranges, six)
            target = msgspec.structs.replace(target, sources=ranges)
        yield from ((Frontend(port.protocol, address, number), target) for address in mine)


def _target(service: Service, port: ServicePort, choice: Choice, origin: Origin) -> Target:
    return Target(
        service=service.metadata.key,
        port_name=port.name,
        origin=origin,
        endpoints=choice.endpoints,
        others=_others(choice) if port.protocol is Proto.UDP else (),
        dropped=choice.elsewhere,
        affinity_s=_affinity(service),
        why=choice.why,
    )


def _others(choice: Choice) -> tuple[Endpoint, ...]:
    chosen = set(choice.endpoints)
    return tuple(endpoint for endpoint in choice.serving if endpoint not in chosen)


def _affinity(service: Service) -> int | None:
    """A day at most, says the API; a time that is none is as no affinity."""
    if service.spec.session_affinity != "ClientIP":
        return None
    config = service.spec.session_affinity_config or AffinityConfig()
    timeout_s = (config.client_ip or ClientIpConfig()).timeout_seconds
    return timeout_s if timeout_s > 0 else None


def _source_ranges(ranges: Iterable[str], six: bool) -> tuple[str, ...]:
    """Those of a family. A VIP of a family that has none is open, as it is with kube-proxy. The API lets
    pass spaces around a range."""
    found = [network for network in map(_network, ranges) if network and (network.version == 6) == six]
    return tuple(sorted(str(network) for network in found))


def _network(cidr: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(cidr.strip(), strict=False)
    except ValueError:
        return None


def _canonical(addresses: Iterable[str]) -> tuple[str, ...]:
    """Each once; what is none is left out."""
    found = (canonical_address(address) for address in addresses)
    return tuple(dict.fromkeys(address for address in found if address is not None))
