"""Pure: the routes of a VF in its pod, from the answer of its IPAM."""

import ipaddress
from collections.abc import Sequence

import msgspec

from sriov_cni.attachment import Asked
from sriov_cni.ipam.config import IpamResult
from sriov_cni.spec import Route
from vf_manager.kernel.api import RouteSpec


def plan_routes(given: IpamResult, asked: Asked) -> list[RouteSpec]:
    """The routes of the IPAM's answer. One without a gateway goes through the gateway of the first address
    of its family, as the reference plugins do; without any it is on link.

    With a table of its own the VF has them there too, with its connected networks, and a default route where
    a gateway is known; a secondary VF has its default route nowhere else, and its other routes stand back
    behind those of the first.
    """
    routes = [_route(route, given) for route in given.routes]
    if asked.table is None:
        return routes
    main = [_behind(route, asked.table) for route in routes if not _is_default(route.dst)]
    main = main if asked.secondary else routes
    return main + [
        msgspec.structs.replace(route, table=asked.table, priority=None)
        for route in _connected(given) + routes + _missing_defaults(given, routes)
        if route.table is None
    ]


def _behind(route: RouteSpec, table: int) -> RouteSpec:
    """1024 is the metric that IPv6 gives a route without one (IP6_RT_PRIO_USER, net/ip6_route.h)."""
    return msgspec.structs.replace(route, priority=(route.priority or 1024) + table)


def _connected(given: IpamResult) -> list[RouteSpec]:
    networks = {str(ipaddress.ip_interface(ip.address).network) for ip in given.ips}
    return [RouteSpec(dst=network) for network in sorted(networks)]


def _missing_defaults(given: IpamResult, routes: Sequence[RouteSpec]) -> list[RouteSpec]:
    there = {":" in route.dst for route in routes if _is_default(route.dst)}
    gateways = {":" in ip.gateway: ip.gateway for ip in reversed(given.ips) if ip.gateway}
    return [
        RouteSpec(dst="::/0" if six else "0.0.0.0/0", gateway=gateway)
        for six, gateway in gateways.items()
        if six not in there
    ]


def _is_default(dst: str) -> bool:
    return ipaddress.ip_network(dst, strict=False).prefixlen == 0


def _route(route: Route, given: IpamResult) -> RouteSpec:
    six = ":" in route.dst
    gateways = (ip.gateway for ip in given.ips if ip.gateway and (":" in ip.gateway) == six)
    return RouteSpec(
        dst=route.dst,
        gateway=route.gw or next(gateways, None),
        mtu=route.mtu,
        advmss=route.advmss,
        priority=route.priority,
        table=route.table,
        scope=route.scope,
    )
