"""Adapter: the connections that a network namespace tracks, by ctnetlink.

Sources: include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c. The kernel
picks those of one protocol since Linux 5.8 (CTA_FILTER).
"""

import errno
import socket
from collections.abc import Iterable

from vf_manager.errors import KernelError
from vf_manager.kernel import attributes
from vf_manager.kernel.api import Flow, FlowSide
from vf_manager.kernel.meter import Meter
from vf_manager.kernel.netfilter import inside
from vf_manager.kernel.netlink import Netlink, NetlinkRefusal
from vf_manager.kernel.netns import Netns

_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*
_GET_STATS, _ENTRIES = 1 << 8 | 5, 1  # IPCTNL_MSG_CT_GET_STATS, CTA_STATS_GLOBAL_ENTRIES
_NFGENMSG_SIZE = 4
_ORIGINAL, _REPLY, _STATUS, _FILTER = 1, 2, 3, 25  # enum ctattr_type
_IP, _PROTO, _PROTO_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 1, 2, 3
_ADDRESSES = {socket.AF_INET: (1, 2), socket.AF_INET6: (3, 4)}  # CTA_IP_V4_SRC, ..._DST, CTA_IP_V6_*
_FILTER_ORIGINAL, _BY_PROTO_NUMBER = 1, 1 << 3
_FEW = 256
_SNAT, _DNAT = 1 << 4, 1 << 5  # IPS_SRC_NAT, IPS_DST_NAT


def read_flows(netns: Netns, protocol: int, meter: Meter, few: int = _FEW) -> tuple[Flow, ...]:
    """Those of one protocol that has ports (IPPROTO_UDP, ...), of either family. For each list the kernel
    looks through the connections of all namespaces, which takes it some 10 ms: not at all if this one has
    none, and once for both families if it has so `few` that those of other protocols may come along."""

    def ask(netlink: Netlink) -> list[bytes]:
        count = _count(netlink)
        if not count:
            return []
        if count <= few:
            return [one for one in netlink.dump(_GET, _nfgenmsg(0)) if _protocol_of(one) == protocol]
        return [one for family in _ADDRESSES for one in netlink.dump(_GET, pack_query(family, protocol))]

    try:
        return tuple(map(read_flow, inside(netns, ask, meter)))
    except NetlinkRefusal as e:
        raise KernelError("list the tracked connections", e.code, e.said) from e


def delete_flows(netns: Netns, flows: Iterable[Flow], meter: Meter) -> None:
    """One that is not there is no error."""

    def ask(netlink: Netlink) -> None:
        for flow in flows:
            _delete(netlink, flow)

    inside(netns, ask, meter)


def pack_query(family: int, protocol: int) -> bytes:
    """Pure: for a list of those of one family and protocol."""
    number = attributes.pack(_PROTO_NUMBER, bytes([protocol]))
    by_number = attributes.pack_u32(_FILTER_ORIGINAL, _BY_PROTO_NUMBER)
    body = attributes.pack_nested(_ORIGINAL, attributes.pack_nested(_PROTO, number))
    return _nfgenmsg(family) + body + attributes.pack_nested(_FILTER, by_number)


def pack_flow(flow: Flow) -> bytes:
    """Pure: what tells it from all others."""
    side = flow.original
    family = socket.AF_INET6 if ":" in side.source else socket.AF_INET
    addresses = zip(_ADDRESSES[family], (side.source, side.destination), strict=True)
    ip = b"".join(attributes.pack(kind, socket.inet_pton(family, address)) for kind, address in addresses)
    proto = attributes.pack(_PROTO_NUMBER, bytes([flow.protocol]))
    proto += attributes.pack(_SOURCE_PORT, side.source_port.to_bytes(2))
    proto += attributes.pack(_DESTINATION_PORT, side.destination_port.to_bytes(2))
    body = attributes.pack_nested(_IP, ip) + attributes.pack_nested(_PROTO, proto)
    return _nfgenmsg(family) + attributes.pack_nested(_ORIGINAL, body)


def read_flow(message: bytes) -> Flow:
    """Pure."""
    found = attributes.read(message, _NFGENMSG_SIZE)
    protocol, original = _read_side(message[0], found[_ORIGINAL])
    _, reply = _read_side(message[0], found[_REPLY])
    status = attributes.be32(found[_STATUS]) if _STATUS in found else 0
    return Flow(protocol, original, reply, snat=bool(status & _SNAT), dnat=bool(status & _DNAT))


def _protocol_of(message: bytes) -> int:
    original = attributes.read(attributes.read(message, _NFGENMSG_SIZE)[_ORIGINAL])
    return attributes.read(original[_PROTO])[_PROTO_NUMBER][0]


def _read_side(family: int, attribute: bytes) -> tuple[int, FlowSide]:
    found = attributes.read(attribute)
    ip, proto = attributes.read(found[_IP]), attributes.read(found[_PROTO])
    source, destination = (
        socket.inet_ntop(family, ip[kind]) for kind in _ADDRESSES[socket.AddressFamily(family)]
    )
    ports = (attributes.be16(proto[kind]) for kind in (_SOURCE_PORT, _DESTINATION_PORT))
    return proto[_PROTO_NUMBER][0], FlowSide(source, next(ports), destination, next(ports))


def _count(netlink: Netlink) -> int:
    """Connections of the namespace, of any protocol (ctnetlink_stat_ct)."""
    return attributes.be32(attributes.read(netlink.get(_GET_STATS, _nfgenmsg(0)), _NFGENMSG_SIZE)[_ENTRIES])


def _delete(netlink: Netlink, flow: Flow) -> None:
    try:
        netlink.change(_DELETE, pack_flow(flow))
    except NetlinkRefusal as e:
        if e.code != errno.ENOENT:
            side = flow.original
            what = f"forget the connection to {side.destination} port {side.destination_port}"
            raise KernelError(what, e.code, e.said) from e


def _nfgenmsg(family: int) -> bytes:
    return bytes([family, 0, 0, 0])
