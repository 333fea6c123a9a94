"""Pure: rtnetlink messages about addresses, neighbours, routes and policy rules, packed and read.

Sources: include/uapi/linux/if_addr.h, neighbour.h, rtnetlink.h, fib_rules.h, nexthop.h; man 7 rtnetlink.
"""

import socket
import struct

from vf_manager.kernel import attributes
from vf_manager.kernel.api import Hop, RouteSpec, RuleSpec
from vf_manager.model import IfName, Mac

NEWADDR, GETADDR, NEWROUTE, DELROUTE, GETROUTE = 20, 22, 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWRULE, DELRULE, GETRULE, GETNEXTHOP = 32, 33, 34, 106
FAMILIES = (socket.AF_INET, socket.AF_INET6)

_IFADDR = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_RULE = struct.Struct(
    "=BBBBBxxBI"
)  # struct fib_rule_hdr: family, dst_len, src_len, tos, table, action, flags
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_IFA_F_OPTIMISTIC = 0x04
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS, _RTA_TABLE, _RTA_VIA = 1, 4, 5, 6, 8, 15, 18
_RTA_PREFSRC, _RTA_MULTIPATH, _RTA_NH_ID = 7, 9, 30
_RTNH = struct.Struct("=HBBI")  # struct rtnexthop: length with attributes, flags, hops, index
_NHMSG = struct.Struct("=BBBxI")  # struct nhmsg: family, scope, protocol, flags
_NHA_ID, _NHA_GROUP, _NHA_OIF = 1, 2, 5
_GROUP_ENTRY = struct.Struct("=I4x")  # struct nexthop_grp: id, weight
_RTAX_MTU, _RTAX_ADVMSS = 2, 8
_FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_TABLE = 2, 3, 6, 15
_NDMSG = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, index, state, flags, type
_NDA_DST, _NDA_LLADDR, _NUD_PERMANENT = 1, 2, 0x80
_RTN_UNICAST, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK = 1, 4, 0, 253
_RT_TABLE_MAIN, _RT_TABLE_COMPAT = 254, 252
_FR_ACT_TO_TBL = 1


def pack_address(ifindex: int, address: str) -> bytes:
    """For NEWADDR. `address`: CIDR. An IPv6 address is optimistic (RFC 4429) where the interface's sysctl
    optimistic_dad allows it: usable at once, duplicates still detected."""
    family, packed, prefix = _parse_cidr(address)
    flags = _IFA_F_OPTIMISTIC if family == socket.AF_INET6 else 0
    body = _IFADDR.pack(family, prefix, flags, 0, ifindex)
    body += attributes.pack(_IFA_LOCAL, packed) + attributes.pack(_IFA_ADDRESS, packed)
    if family == socket.AF_INET and prefix < 31:
        broadcast = int.from_bytes(packed) | (1 << 32 - prefix) - 1
        body += attributes.pack(_IFA_BROADCAST, broadcast.to_bytes(4))
    return body


def pack_address_query() -> bytes:
    """For GETADDR: of all links. Asked for one that is not there, the kernel would answer ENODEV."""
    return _IFADDR.pack(0, 0, 0, 0, 0)


def read_address(message: bytes) -> tuple[int, str]:
    """(ifindex, CIDR)."""
    family, prefix, _, _, ifindex = _IFADDR.unpack_from(message)
    found = attributes.read(message, _IFADDR.size)
    return ifindex, f"{socket.inet_ntop(family, found.get(_IFA_LOCAL) or found[_IFA_ADDRESS])}/{prefix}"


def pack_route(ifindex: int, route: RouteSpec) -> bytes:
    """For NEWROUTE."""
    family, address, prefix = _parse_cidr(route.dst)
    default = _RT_SCOPE_LINK if family == socket.AF_INET and route.gateway is None else _RT_SCOPE_UNIVERSE
    scope = default if route.scope is None else route.scope
    table = _RT_TABLE_MAIN if route.table is None else route.table
    short = table if table < 256 else _RT_TABLE_COMPAT
    head = (family, prefix, 0, 0, short, _RTPROT_STATIC, scope, _RTN_UNICAST, 0)
    body = _RTMSG.pack(*head) + attributes.pack(_RTA_DST, _network_of(address, prefix))
    body += attributes.pack_u32(_RTA_OIF, ifindex) + attributes.pack_u32(_RTA_TABLE, table)
    if route.gateway is not None:
        body += _gateway(family, route.gateway)
    if metrics := _metrics(route):
        body += attributes.pack(_RTA_METRICS, metrics)
    if route.source is not None:
        body += attributes.pack(_RTA_PREFSRC, socket.inet_pton(family, route.source))
    if route.priority is not None:
        body += attributes.pack_u32(_RTA_PRIORITY, route.priority)
    return body


def pack_route_query(family: int, ifindex: int | None = None) -> bytes:
    """For GETROUTE: the routes that leave by this link, or all."""
    by_link = attributes.pack_u32(_RTA_OIF, ifindex) if ifindex is not None else b""
    return _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + by_link


def pack_table_query(family: int, table: int) -> bytes:
    """For GETROUTE: those of one table."""
    return _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + attributes.pack_u32(_RTA_TABLE, table)


def pack_hop_query(address: str) -> bytes:
    """For GETROUTE: where a packet to this address would go."""
    family, packed, prefix = _parse_cidr(address)
    return _RTMSG.pack(family, prefix, 0, 0, 0, 0, 0, 0, 0) + attributes.pack(_RTA_DST, packed)


def read_hop(message: bytes) -> Hop:
    found = attributes.read(message, _RTMSG.size)
    return Hop(ifindex=attributes.u32(found[_RTA_OIF]), gateway=_read_gateway(message[0], found))


def is_default(message: bytes) -> bool:
    return message[1] == 0  # dst_len


def read_hops(message: bytes) -> tuple[list[int], int | None]:
    """(ifindexes, nexthop object) of a route. One by a nexthop object may tell the object alone
    (ip-sysctl.rst nexthop_compat_mode)."""
    found = attributes.read(message, _RTMSG.size)
    links = [attributes.u32(found[_RTA_OIF])] if _RTA_OIF in found else []
    return links + _read_multipath(found.get(_RTA_MULTIPATH, b"")), _number(found.get(_RTA_NH_ID))


def pack_nexthop_query() -> bytes:
    """For GETNEXTHOP: all nexthop objects, groups of them included."""
    return _NHMSG.pack(0, 0, 0, 0)


def read_nexthop(message: bytes) -> tuple[int, int | None, list[int]]:
    """(id, ifindex, ids of the members of a group)."""
    found = attributes.read(message, _NHMSG.size)
    members = [member for (member,) in _GROUP_ENTRY.iter_unpack(found.get(_NHA_GROUP, b""))]
    return attributes.u32(found[_NHA_ID]), _number(found.get(_NHA_OIF)), members


def read_route(message: bytes) -> tuple[int | None, RouteSpec]:
    """(ifindex, route); no ifindex: the route has several hops, or none."""
    family, prefix, _, _, table, _, scope, _, _ = _RTMSG.unpack_from(message)
    found = attributes.read(message, _RTMSG.size)
    dst = socket.inet_ntop(family, found[_RTA_DST]) if _RTA_DST in found else _any(family)
    metrics = attributes.read(found.get(_RTA_METRICS, b""))
    return _number(found.get(_RTA_OIF)), RouteSpec(
        dst=f"{dst}/{prefix}",
        gateway=_read_gateway(family, found),
        mtu=_number(metrics.get(_RTAX_MTU)),
        advmss=_number(metrics.get(_RTAX_ADVMSS)),
        priority=_number(found.get(_RTA_PRIORITY)),
        table=attributes.u32(found[_RTA_TABLE]) if _RTA_TABLE in found else table,
        scope=scope,
        source=socket.inet_ntop(family, found[_RTA_PREFSRC]) if _RTA_PREFSRC in found else None,
    )


def pack_neighbour(ifindex: int, address: str, mac: Mac | None = None) -> bytes:
    """For NEWNEIGH, and without a MAC for DELNEIGH."""
    family = _family_of(address)
    body = _NDMSG.pack(family, ifindex, _NUD_PERMANENT, 0, 0)
    body += attributes.pack(_NDA_DST, socket.inet_pton(family, address))
    return body + (attributes.pack(_NDA_LLADDR, bytes.fromhex(mac.replace(":", ""))) if mac else b"")


def pack_neighbour_query() -> bytes:
    """For GETNEIGH: of all links."""
    return _NDMSG.pack(0, 0, 0, 0, 0)


def read_neighbour(message: bytes) -> tuple[int, str, Mac] | None:
    """(ifindex, address, MAC); None: it is not a permanent one."""
    family, ifindex, state, _, _ = _NDMSG.unpack_from(message)
    found = attributes.read(message, _NDMSG.size)
    if family not in FAMILIES or not state & _NUD_PERMANENT or _NDA_LLADDR not in found:
        return None
    return ifindex, socket.inet_ntop(family, found[_NDA_DST]), Mac(found[_NDA_LLADDR].hex(":"))


def pack_rule(rule: RuleSpec) -> bytes:
    """For NEWRULE and DELRULE."""
    family, source, prefix = _parse_cidr(rule.source)
    short = rule.table if rule.table < 256 else 0
    body = _RULE.pack(family, 0, prefix, 0, short, _FR_ACT_TO_TBL, 0)
    if prefix:
        body += attributes.pack(_FRA_SRC, source)
    if rule.iif is not None:
        body += attributes.pack_text(_FRA_IIFNAME, rule.iif)
    body += attributes.pack_u32(_FRA_PRIORITY, rule.priority)
    return body + attributes.pack_u32(_FRA_TABLE, rule.table)


def pack_rule_query(family: int) -> bytes:
    """For GETRULE."""
    return _RULE.pack(family, 0, 0, 0, 0, 0, 0)


def read_rule(message: bytes) -> RuleSpec | None:
    """None: it has neither a source nor a link, or leads to no table."""
    family, _, prefix, _, table, action, _ = _RULE.unpack_from(message)
    found = attributes.read(message, _RULE.size)
    if not found.keys() & {_FRA_SRC, _FRA_IIFNAME} or action != _FR_ACT_TO_TBL:
        return None
    source = socket.inet_ntop(family, found[_FRA_SRC]) if _FRA_SRC in found else _any(family)
    return RuleSpec(
        source=f"{source}/{prefix}",
        table=attributes.u32(found[_FRA_TABLE]) if _FRA_TABLE in found else table,
        priority=attributes.u32(found[_FRA_PRIORITY]) if _FRA_PRIORITY in found else 0,
        iif=IfName(attributes.text(found[_FRA_IIFNAME])) if _FRA_IIFNAME in found else None,
    )


def _gateway(family: int, gateway: str) -> bytes:
    """One of the other family is said with its family (RFC 5549)."""
    own = _family_of(gateway)
    packed = socket.inet_pton(own, gateway)
    if own == family:
        return attributes.pack(_RTA_GATEWAY, packed)
    return attributes.pack(_RTA_VIA, struct.pack("=H", own) + packed)


def _read_gateway(family: int, found: attributes.Attributes) -> str | None:
    if _RTA_GATEWAY in found:
        return socket.inet_ntop(family, found[_RTA_GATEWAY])
    via = found.get(_RTA_VIA)
    return socket.inet_ntop(attributes.u16(via), via[2:]) if via else None


def _metrics(route: RouteSpec) -> bytes:
    pairs = ((_RTAX_MTU, route.mtu), (_RTAX_ADVMSS, route.advmss))
    return b"".join(attributes.pack_u32(kind, value) for kind, value in pairs if value is not None)


def _read_multipath(hops: bytes) -> list[int]:
    links, start = [], 0
    while start + _RTNH.size <= len(hops):
        length, _, _, ifindex = _RTNH.unpack_from(hops, start)
        links.append(ifindex)
        start += max(_RTNH.size, (length + 3) & ~3)
    return links


def _number(value: bytes | None) -> int | None:
    return attributes.u32(value) if value is not None else None


def _any(family: int) -> str:
    return "0.0.0.0" if family == socket.AF_INET else "::"


def _parse_cidr(text: str) -> tuple[int, bytes, int]:
    """(family, address, prefix length). It was checked where it came from; here it is on the way of each ADD,
    and the objects of `ipaddress` take as long as the kernel does."""
    address, _, prefix = text.partition("/")
    family = _family_of(address)
    packed = socket.inet_pton(family, address)
    return family, packed, int(prefix) if prefix else len(packed) * 8


def _network_of(address: bytes, prefix: int) -> bytes:
    host_bits = len(address) * 8 - prefix
    return (int.from_bytes(address) >> host_bits << host_bits).to_bytes(len(address))


def _family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
