"""Pure: what becomes of a packet that a pod sends to an address, told to people."""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from ipaddress import ip_address, ip_network

import msgspec

from sriov_cni.in_pod.addresses import canonical_address
from sriov_cni.in_pod.model import Frontend, ServiceTable, Target
from sriov_cni.in_pod.objects import Proto


class Fate(StrEnum):
    TRANSLATED = "translated"
    REJECTED = "rejected"
    DROPPED = "dropped"
    UNTOUCHED = "untouched"  # no service has to do with it


class ServiceTrace(msgspec.Struct, frozen=True, kw_only=True):
    """`frontend` and `target` are None where no frontend matches; `why` is one sentence."""

    fate: Fate
    why: str
    frontend: Frontend | None = None
    target: Target | None = None

    def lines(self) -> Iterator[str]:
        if self.frontend is None or self.target is None:
            yield f"{self.fate}: {self.why}"
            return
        target, port = self.target, f" port {self.target.port_name}" if self.target.port_name else ""
        yield f"{_render(self.frontend)} is the {target.origin} of service {target.service}{port}"
        yield f"{self.fate}: {self.why}"
        if target.sources:
            yield f"open to {', '.join(target.sources)} alone"
        if target.affinity_s is not None:
            yield f"once chosen, an endpoint is kept for {target.affinity_s} s after the last connection"
        if self.fate is Fate.TRANSLATED:
            for endpoint in target.endpoints:
                yield f"  to {_socket(endpoint.address, endpoint.port)}"


def trace_service(
    table: ServiceTable,
    proto: Proto | None,
    address: str,
    port: int | None,
    pod_addresses: Sequence[str] = (),
) -> list[ServiceTrace]:
    """One for each frontend that matches, None being any protocol or port; one that says why not if none
    does. `pod_addresses` are what source ranges are compared with; without any all pass."""
    known = canonical_address(address)
    found = [
        _of_frontend(frontend, target, pod_addresses)
        for frontend, target in sorted(table.targets.items(), key=lambda item: _order(item[0]))
        if frontend.address == known and port in (None, frontend.port) and proto in (None, frontend.proto)
    ]
    if found:
        return found
    if known in table.addresses:
        ports = sorted((one for one in table.targets if one.address == known), key=_order)
        there = ", ".join(f"{one.proto} {one.port}" for one in ports) or "none"
        return [ServiceTrace(fate=Fate.REJECTED, why=f"a cluster IP that has other ports: {there}")]
    return [ServiceTrace(fate=Fate.UNTOUCHED, why="no service has this address and port")]


def _of_frontend(frontend: Frontend, target: Target, pod_addresses: Sequence[str]) -> ServiceTrace:
    fate, why = _fate(frontend, target, pod_addresses)
    return ServiceTrace(fate=fate, why=why, frontend=frontend, target=target)


def _fate(frontend: Frontend, target: Target, pod_addresses: Sequence[str]) -> tuple[Fate, str]:
    if not _is_let_in(frontend, target, pod_addresses):
        return Fate.DROPPED, "the pod's address is in none of the service's source ranges"
    if target.endpoints:
        return Fate.TRANSLATED, target.why or "all endpoints that are ready"
    return (Fate.DROPPED if target.dropped else Fate.REJECTED), target.why


def _is_let_in(frontend: Frontend, target: Target, pod_addresses: Sequence[str]) -> bool:
    own = [ip_address(one) for one in pod_addresses if (":" in one) == (":" in frontend.address)]
    if not target.sources or not own:
        return True
    return any(one in ip_network(source) for one in own for source in target.sources)


def _order(frontend: Frontend) -> tuple[str, int]:
    return frontend.proto, frontend.port


def _render(frontend: Frontend) -> str:
    return f"{frontend.proto} {_socket(frontend.address, frontend.port)}"


def _socket(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
