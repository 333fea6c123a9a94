"""Services and EndpointSlices as the API server sends them, and at random; what became of them, as text."""

from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
from hypothesis import strategies as st

from sriov_cni.in_pod.model import Endpoint, Frontend, ServiceTable, Target
from sriov_cni.in_pod.objects import SERVICE_LABEL, EndpointSlice, Proto, Service
from sriov_cni.in_pod.service_endpoints import Place
from sriov_cni.in_pod.services import compile_services

HERE = Place("here", "zone-a", ("192.0.2.7", "2001:db8::7"))
DNS = {"name": "dns", "protocol": "UDP", "port": 53}
WEB = {"name": "web", "protocol": "TCP", "port": 80}


def make_service(name: str = "web", status: Any = None, labels: Any = None, **spec: Any) -> Service:
    """`10.96.0.10:80` unless something else is asked."""
    whole = {"clusterIP": "10.96.0.10", "ports": [WEB]} | spec
    return msgspec.convert(
        {
            "metadata": {"name": name, "namespace": "shop", "labels": labels or {}},
            "spec": {"clusterIPs": [whole["clusterIP"]]} | whole,
            "status": status or {},
        },
        Service,
    )


def make_slice(
    *endpoints: Any,
    service: str = "web",
    name: str = "1",
    ports: Any = ({"name": "web", "protocol": "TCP", "port": 8080},),
    kind: str = "IPv4",
) -> EndpointSlice:
    """Of endpoints that are JSON objects, or addresses of ready ones on another node."""
    return msgspec.convert(
        {
            "metadata": {
                "name": f"{service}-{name}",
                "namespace": "shop",
                "labels": {SERVICE_LABEL: service},
            },
            "addressType": kind,
            "endpoints": [endpoint(one) if isinstance(one, str) else one for one in endpoints],
            "ports": list(ports),
        },
        EndpointSlice,
    )


def endpoint(address: str, node: str = "there", hints: Any = None, **conditions: bool) -> dict[str, object]:
    """`conditions` beside those of a pod that is well."""
    well = {"ready": True, "serving": True, "terminating": False}
    return {
        "addresses": [address],
        "nodeName": node,
        "conditions": well | conditions,
        "hints": hints,
    }


def ending(address: str, node: str = "there", serving: bool = True) -> dict[str, object]:
    return endpoint(address, node, ready=False, serving=serving, terminating=True)


def unready(address: str, node: str = "there") -> dict[str, object]:
    return endpoint(address, node, ready=False, serving=False)


def compile_here(*objects: Service | EndpointSlice, place: Place = HERE) -> ServiceTable:
    services = {one.metadata.key: one for one in objects if isinstance(one, Service)}
    slices = {one.metadata.key: one for one in objects if isinstance(one, EndpointSlice)}
    return compile_services(services, slices, place.node, place.zone, place.addresses)


def told(table: ServiceTable) -> dict[str, str]:
    """`TCP 10.96.0.10:80` to `10.1.0.1:8080 10.1.0.2:8080`, `rejected` or `dropped`."""
    return {frontend_text(frontend): target_text(target) for frontend, target in table.targets.items()}


def frontend_text(frontend: Frontend) -> str:
    return f"{frontend.proto} {socket_text(frontend)}"


def target_text(target: Target) -> str:
    none = "dropped" if target.dropped else "rejected"
    return " ".join(map(socket_text, target.endpoints)) or none


def socket_text(one: Frontend | Endpoint) -> str:
    return f"[{one.address}]:{one.port}" if ":" in one.address else f"{one.address}:{one.port}"


# --- at random --------------------------------------------------------------------------------------------

PROTOS = [str(proto) for proto in Proto]
CLUSTER_IPS = {"IPv4": "10.96.0.{}", "IPv6": "fd00:96::{:x}"}
POD_IPS = {"IPv4": "10.1.0.{}", "IPv6": "fd00:1::{:x}"}
ZONES = ["zone-a", "zone-b"]
NODES = ["here", "there"]
SERVICE_PORTS = [
    {"name": name, "protocol": proto, "port": port, "nodePort": node_port}
    for name, proto, port, node_port in (
        ("web", "TCP", 80, 0),
        ("dns", "UDP", 53, 30053),
        ("sig", "SCTP", 53, 0),
        ("node", "TCP", 81, 30081),
    )
]
conditions = st.fixed_dictionaries(
    {name: st.sampled_from([None, True, False]) for name in ("ready", "serving", "terminating")}
)
hints = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "forZones": st.lists(st.sampled_from(ZONES).map(lambda name: {"name": name}), max_size=2),
        "forNodes": st.lists(st.sampled_from(NODES).map(lambda name: {"name": name}), max_size=2),
    },
)


@st.composite
def slices(draw: st.DrawFn, service: str, name: str) -> EndpointSlice:
    kind = draw(st.sampled_from(["IPv4", "IPv4", "IPv6"]))
    addresses = st.integers(1, 9).map(POD_IPS[kind].format) | st.sampled_from(["10.1.0.3", "fd00:1::3", "?"])
    one = st.fixed_dictionaries(
        {
            "addresses": st.lists(addresses, min_size=1, max_size=2),
            "conditions": conditions,
            "nodeName": st.sampled_from([None, *NODES]),
            "hints": hints,
        }
    )
    port = st.fixed_dictionaries(
        {
            "name": st.sampled_from([one["name"] for one in SERVICE_PORTS] + [None]),
            "protocol": st.sampled_from([None, *PROTOS]),
            "port": st.sampled_from([None, 0, 8080, 8081]),
        }
    )
    endpoints = draw(st.lists(one, max_size=5))
    ports = draw(st.lists(port, min_size=1, max_size=4))
    return make_slice(*endpoints, service=service, name=name, ports=ports, kind=kind)


@st.composite
def services(draw: st.DrawFn, name: str, number: int) -> Service:
    kinds = draw(st.sampled_from([["IPv4"], ["IPv6"], ["IPv4", "IPv6"]]))
    ips = [CLUSTER_IPS[kind].format(number) for kind in kinds]
    shared = ["198.51.100.1", "198.51.100.2", "2001:db8:1::1", "10.96.0.1", "no address"]
    ingress = st.fixed_dictionaries(
        {"ip": st.sampled_from(shared)}, optional={"ipMode": st.sampled_from(["VIP", "Proxy"])}
    )
    ranges = [[], ["10.0.0.0/8"], ["10.1.0.0/16", " 10.0.0.0/8 ", "fd00::/8", "nonsense"]]
    spec = {
        "clusterIP": ips[0],
        "clusterIPs": ips,
        "ports": draw(st.lists(st.sampled_from(SERVICE_PORTS), unique_by=lambda one: one["name"])),
        "externalIPs": draw(st.lists(st.sampled_from(shared), max_size=2)),
        "sessionAffinity": draw(st.sampled_from(["None", "ClientIP"])),
        "internalTrafficPolicy": draw(st.sampled_from(["Cluster", "Local"])),
        "loadBalancerSourceRanges": draw(st.sampled_from(ranges)),
    }
    status = {"loadBalancer": {"ingress": draw(st.lists(ingress, max_size=2))}}
    return make_service(name, status, **spec)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[dict[str, Service], dict[str, EndpointSlice]]:
    names = ["a", "b", "c"][: draw(st.integers(1, 3))]
    found = [draw(services(name, number)) for number, name in enumerate(names, 1)]
    parts = [draw(slices(name, str(n))) for name in names for n in range(draw(st.integers(0, 3)))]
    return _by_key(found), _by_key(parts)


_Object = TypeVar("_Object", Service, EndpointSlice)


def _by_key(objects: Iterable[_Object]) -> dict[str, _Object]:
    return {one.metadata.key: one for one in objects}
