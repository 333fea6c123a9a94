"""Pure: what the Services and EndpointSlices of a cluster mean for traffic that starts in a pod of this node.

As kube-proxy has it, with these points to know:

- What a pod sends to an external address, a load balancer or a node port never left the node there either:
  kube-proxy sends it on by the cluster's policy whatever `externalTrafficPolicy` says, and so do we.
- No endpoint anywhere: rejected. `internalTrafficPolicy: Local` and endpoints on other nodes alone: dropped,
  so that a client's next attempt succeeds when the endpoint of this node is back.
- An address belongs to one service: cluster IPs cannot be taken by the external addresses of others; of two
  services with the same external address and port the first by namespace/name has it.
- Services labelled for another proxy, headless ones and ExternalName are none of ours.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from sriov_cni.in_pod.model import Frontend, ServiceTable, Target
from sriov_cni.in_pod.objects import SERVICE_LABEL, EndpointSlice, Service
from sriov_cni.in_pod.service_claims import Claims, claims_of, keep_equal
from sriov_cni.in_pod.service_endpoints import Place

PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"


def compile_services(
    services: Mapping[str, Service],
    slices: Mapping[str, EndpointSlice],
    node_name: str,
    zone: str | None,
    node_addresses: Sequence[str],
) -> ServiceTable:
    """All of it anew; `ServiceCompiler` remembers what it has compiled."""
    return ServiceCompiler().compile(services, slices, Place(node_name, zone, tuple(node_addresses)))


class _Compiled(msgspec.Struct, frozen=True):
    service: Service
    slices: tuple[EndpointSlice, ...]
    claims: Claims


class ServiceCompiler:
    """Compiles anew only services of which something has changed. The targets of all others are the same
    objects as before; if nothing has changed the table is. For one thread."""

    def __init__(self) -> None:
        self._place = Place("")
        self._compiled: dict[str, _Compiled] = {}
        self._table = ServiceTable()

    def compile(
        self, services: Mapping[str, Service], slices: Mapping[str, EndpointSlice], place: Place
    ) -> ServiceTable:
        if place != self._place:
            self._place, self._compiled, self._table = place, {}, ServiceTable()
        before, slices_of = self._compiled, _by_service(slices)
        after: dict[str, _Compiled] = {}
        for key in sorted(services):
            if _is_ours(services[key]):
                own = tuple(slices_of.get(key, ()))
                after[key] = _compile(services[key], own, place, before.get(key))
        if after.keys() != before.keys() or any(after[key].claims is not before[key].claims for key in after):
            self._table = _merge(after.values())
        self._compiled = after
        return self._table


def _by_service(slices: Mapping[str, EndpointSlice]) -> dict[str, list[EndpointSlice]]:
    """In the order of their names: what was compiled once is found again."""
    found: dict[str, list[EndpointSlice]] = {}
    for key in sorted(slices):
        meta = slices[key].metadata
        if name := meta.labels.get(SERVICE_LABEL):
            found.setdefault(f"{meta.namespace}/{name}", []).append(slices[key])
    return found


def _is_ours(service: Service) -> bool:
    labels, spec = service.metadata.labels, service.spec
    return (
        spec.type != "ExternalName"
        and spec.cluster_ip not in ("", "None")
        and PROXY_NAME_LABEL not in labels
        and HEADLESS_LABEL not in labels
    )


def _compile(
    service: Service, slices: tuple[EndpointSlice, ...], place: Place, known: _Compiled | None
) -> _Compiled:
    """Compared by value, which is quick for the same objects."""
    if known is not None and known.service == service and known.slices == slices:
        return known
    claims = claims_of(service, slices, place)
    return _Compiled(service, slices, keep_equal(claims, known.claims) if known else claims)


def _merge(compiled: Iterable[_Compiled]) -> ServiceTable:
    parts = [one.claims for one in compiled]
    addresses = frozenset(address for part in parts for address in part.addresses)
    targets: dict[Frontend, Target] = {}
    for part in parts:
        for frontend, target in part.internal:
            targets.setdefault(frontend, target)
    for part in parts:
        for frontend, target in part.external:
            if frontend.address not in addresses:
                targets.setdefault(frontend, target)
    return ServiceTable(targets=targets, addresses=addresses)
