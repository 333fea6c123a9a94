"""Pure: rtnetlink messages about links and the VFs of a link, packed and read.

Sources: include/uapi/linux/if_link.h, net/core/rtnetlink.c (rtnl_fill_ifinfo, do_setlink, do_setvfinfo).
"""

import struct

from vf_manager.kernel import attributes
from vf_manager.kernel.api import LinkChange, LinkInfo, LinkTraffic
from vf_manager.model import ZERO_MAC, IfName, LinkState, Mac, Netdev, VfAttributes, VfChange, VlanProto

NEWLINK, DELLINK, GETLINK, NEWLINKPROP, DELLINKPROP = 16, 17, 18, 108, 109

_IFINFO = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_LINK_TYPES = {1: "ether", 32: "infiniband"}  # include/uapi/linux/if_arp.h ARPHRD_ETHER, ARPHRD_INFINIBAND
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_VFINFO_LIST, _IFLA_NET_NS_FD = 1, 3, 4, 22, 28
_IFLA_STATS64 = 23
_IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 5, 10, 18
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER, _VLAN_ID, _VLAN_PROTOCOL = 1, 2, 1, 1, 5
_IFLA_EXT_MASK, _IFLA_CARRIER, _IFLA_PHYS_PORT_NAME = 29, 33, 38
_IFLA_PROP_LIST, _IFLA_ALT_IFNAME, _IFLA_PERM_ADDRESS, _IFLA_PARENT_DEV_NAME = 52, 53, 54, 56
_IFLA_VF_INFO, _IFLA_VF_VLAN_INFO = 1, 1
_VF_MAC, _VF_VLAN, _VF_SPOOFCHK, _VF_LINK_STATE, _VF_RATE, _VF_TRUST, _VF_VLAN_LIST = 1, 2, 4, 5, 6, 9, 12
_RTEXT_FILTER_VF, _RTEXT_FILTER_SKIP_STATS = 1, 8
_IFF_UP, _IFF_NOARP, _IFF_PROMISC, _IFF_ALLMULTI = 0x1, 0x80, 0x100, 0x200  # include/uapi/linux/if.h

_TWO, _THREE, _MAC = struct.Struct("=II"), struct.Struct("=III"), struct.Struct("=I32s")
_U16 = struct.Struct("=H")
_VLAN_INFO = struct.Struct("=III2s2x")  # 16 bytes with the padding; the kernel refuses fewer
_STATS = struct.Struct("=8Q")  # the beginning of struct rtnl_link_stats64
_ETHERTYPE = {VlanProto.DOT1Q: b"\x81\x00", VlanProto.DOT1AD: b"\x88\xa8"}
_LINK_STATE = {LinkState.AUTO: 0, LinkState.ENABLE: 1, LinkState.DISABLE: 2}
_STATE_OF = {number: state for state, number in _LINK_STATE.items()}
_NOT_REPORTED = 0xFFFFFFFF  # rtnl_fill_vfinfo sets -1 before it asks the driver


def pack_query(*, ifindex: int = 0, name: str = "", altname: str = "", with_vfs: bool = False) -> bytes:
    """For GETLINK: one link, or without any of these, all."""
    body = _IFINFO.pack(0, 0, ifindex, 0, 0)
    if name:
        body += attributes.pack_text(_IFLA_IFNAME, name)
    if altname:
        body += attributes.pack_text(_IFLA_ALT_IFNAME, altname)
    mask = _RTEXT_FILTER_SKIP_STATS | (_RTEXT_FILTER_VF if with_vfs else 0)
    return body + attributes.pack_u32(_IFLA_EXT_MASK, mask)


def pack_change(ifindex: int, change: LinkChange) -> bytes:
    """For NEWLINK."""
    wanted = [(change.up, _IFF_UP), (change.promisc, _IFF_PROMISC), (change.allmulti, _IFF_ALLMULTI)]
    flags = sum(flag for on, flag in wanted if on)
    mask = sum(flag for on, flag in wanted if on is not None)
    body = _IFINFO.pack(0, 0, ifindex, flags, mask)
    if change.name is not None:
        body += attributes.pack_text(_IFLA_IFNAME, change.name)
    if change.mac is not None:
        body += attributes.pack(_IFLA_ADDRESS, _packed_mac(change.mac))
    if change.mtu is not None:
        body += attributes.pack_u32(_IFLA_MTU, change.mtu)
    return body


def pack_move(ifindex: int, netns_fd: int, name: IfName) -> bytes:
    """For NEWLINK."""
    target = attributes.pack_u32(_IFLA_NET_NS_FD, netns_fd)
    return _IFINFO.pack(0, 0, ifindex, 0, 0) + target + attributes.pack_text(_IFLA_IFNAME, name)


def pack_veth(name: IfName, peer: IfName, netns_fd: int, mac: Mac) -> bytes:
    """For NEWLINK. The peer is a message of its own inside (drivers/net/veth.c veth_newlink)."""
    target = attributes.pack_u32(_IFLA_NET_NS_FD, netns_fd)
    data = attributes.pack(_VETH_INFO_PEER, _veth_end(peer, mac) + target)
    return _veth_end(name, mac) + _link_info("veth", data)


def _veth_end(name: IfName, mac: Mac) -> bytes:
    own = attributes.pack_text(_IFLA_IFNAME, name) + attributes.pack(_IFLA_ADDRESS, _packed_mac(mac))
    return _IFINFO.pack(0, 0, 0, _IFF_NOARP, _IFF_NOARP) + own


def pack_vlan(lower: int, name: IfName, vlan: int, proto: VlanProto) -> bytes:
    """For NEWLINK."""
    data = attributes.pack(_VLAN_ID, _U16.pack(vlan)) + attributes.pack(_VLAN_PROTOCOL, _ETHERTYPE[proto])
    body = attributes.pack_text(_IFLA_IFNAME, name) + attributes.pack_u32(_IFLA_LINK, lower)
    return _IFINFO.pack(0, 0, 0, 0, 0) + body + _link_info("vlan", data)


def _link_info(kind: str, data: bytes) -> bytes:
    inner = attributes.pack_text(_INFO_KIND, kind) + attributes.pack_nested(_INFO_DATA, data)
    return attributes.pack_nested(_IFLA_LINKINFO, inner)


def pack_link(ifindex: int) -> bytes:
    """For DELLINK."""
    return _IFINFO.pack(0, 0, ifindex, 0, 0)


def pack_altname(ifindex: int, name: str) -> bytes:
    """For NEWLINKPROP and DELLINKPROP."""
    inner = attributes.pack_text(_IFLA_ALT_IFNAME, name)
    return _IFINFO.pack(0, 0, ifindex, 0, 0) + attributes.pack_nested(_IFLA_PROP_LIST, inner)


def pack_vf_change(pf_ifindex: int, index: int, change: VfChange) -> bytes:
    """For NEWLINK."""
    info = attributes.pack(_IFLA_VF_INFO, _vf_attributes(index, change))
    return _IFINFO.pack(0, 0, pf_ifindex, 0, 0) + attributes.pack(_IFLA_VFINFO_LIST, info)


def read_link(message: bytes) -> LinkInfo:
    _, kind, ifindex, flags, _ = _IFINFO.unpack_from(message)
    found = attributes.read(message, _IFINFO.size)
    netdev = Netdev(
        ifindex=ifindex,
        name=IfName(attributes.text(found[_IFLA_IFNAME])),
        mac=_mac(found.get(_IFLA_ADDRESS, b"")),
        mtu=attributes.u32(found[_IFLA_MTU]) if _IFLA_MTU in found else 0,
        up=bool(flags & _IFF_UP),
        carrier=any(found.get(_IFLA_CARRIER, b"")),
        altnames=_altnames(found.get(_IFLA_PROP_LIST, b"")),
        promisc=bool(flags & _IFF_PROMISC),
        allmulti=bool(flags & _IFF_ALLMULTI),
    )
    vfs = attributes.each(found.get(_IFLA_VFINFO_LIST, b""))
    made = attributes.read(found.get(_IFLA_LINKINFO, b""))
    of_kind = _optional_text(made.get(_INFO_KIND))
    data = attributes.read(made.get(_INFO_DATA, b"")) if of_kind == "vlan" else {}
    return LinkInfo(
        netdev=netdev,
        parent=_optional_text(found.get(_IFLA_PARENT_DEV_NAME)),
        phys_port_name=_optional_text(found.get(_IFLA_PHYS_PORT_NAME)),
        link_type=_LINK_TYPES.get(kind),
        permanent_mac=_station_mac(found.get(_IFLA_PERM_ADDRESS, b"")),
        vfs=dict(_read_vf(info) for _, info in vfs),
        kind=of_kind,
        lower=attributes.u32(found[_IFLA_LINK]) if _IFLA_LINK in found and data else None,
        vlan=attributes.u16(data[_VLAN_ID]) if _VLAN_ID in data else None,
        master=attributes.u32(found[_IFLA_MASTER]) if _IFLA_MASTER in found else None,
    )


def read_traffic(message: bytes) -> LinkTraffic:
    """In the order of struct rtnl_link_stats64. The kernel puts it into every answer about a link."""
    found = attributes.read(message, _IFINFO.size)
    counted = _STATS.unpack_from(found[_IFLA_STATS64])
    rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped = counted
    return LinkTraffic(
        ifindex=_IFINFO.unpack_from(message)[2],
        name=IfName(attributes.text(found[_IFLA_IFNAME])),
        rx_packets=rx_packets,
        tx_packets=tx_packets,
        rx_bytes=rx_bytes,
        tx_bytes=tx_bytes,
        rx_errors=rx_errors,
        tx_errors=tx_errors,
        rx_dropped=rx_dropped,
        tx_dropped=tx_dropped,
    )


def _read_vf(info: bytes) -> tuple[int, VfAttributes]:
    found = attributes.read(info)
    index, mac = _MAC.unpack_from(found[_VF_MAC])
    _, vlan, qos = _THREE.unpack_from(found[_VF_VLAN])
    _, low, high = _THREE.unpack_from(found[_VF_RATE]) if _VF_RATE in found else (0, None, None)
    return index, VfAttributes(
        mac=_mac(mac[:6]),
        vlan=vlan,
        qos=qos,
        proto=_protocol(found.get(_VF_VLAN_LIST, b"")),
        spoofchk=_flag(found.get(_VF_SPOOFCHK)),
        trust=_flag(found.get(_VF_TRUST)),
        min_tx_rate=low,
        max_tx_rate=high,
        link_state=_STATE_OF.get(_setting(found[_VF_LINK_STATE])) if _VF_LINK_STATE in found else None,
    )


def _vf_attributes(index: int, change: VfChange) -> bytes:
    body = b""
    if change.mac is not None:
        body += attributes.pack(_VF_MAC, _MAC.pack(index, _packed_mac(change.mac)))
    if change.vlan is not None:
        body += _vlan(index, change.vlan, change.qos or 0, change.proto or VlanProto.DOT1Q)
    if change.max_tx_rate is not None:
        rates = _THREE.pack(index, change.min_tx_rate or 0, change.max_tx_rate)
        body += attributes.pack(_VF_RATE, rates)
    if change.spoofchk is not None:
        body += attributes.pack(_VF_SPOOFCHK, _TWO.pack(index, change.spoofchk))
    if change.link_state is not None:
        body += attributes.pack(_VF_LINK_STATE, _TWO.pack(index, _LINK_STATE[change.link_state]))
    if change.trust is not None:
        body += attributes.pack(_VF_TRUST, _TWO.pack(index, change.trust))
    return body


def _vlan(index: int, vlan: int, qos: int, proto: VlanProto) -> bytes:
    """The short attribute where it says enough: more drivers and kernels take it."""
    if proto is VlanProto.DOT1Q:
        return attributes.pack(_VF_VLAN, _THREE.pack(index, vlan, qos))
    info = _VLAN_INFO.pack(index, vlan, qos, _ETHERTYPE[proto])
    return attributes.pack(_VF_VLAN_LIST, attributes.pack(_IFLA_VF_VLAN_INFO, info))


def _protocol(vlans: bytes) -> VlanProto:
    first = next((info for _, info in attributes.each(vlans)), b"")
    return VlanProto.DOT1AD if first[12:14] == _ETHERTYPE[VlanProto.DOT1AD] else VlanProto.DOT1Q


def _setting(value: bytes) -> int:
    found: int = _TWO.unpack_from(value)[1]
    return found


def _flag(value: bytes | None) -> bool | None:
    setting = _NOT_REPORTED if value is None else _setting(value)
    return None if setting == _NOT_REPORTED else bool(setting)


def _altnames(properties: bytes) -> tuple[str, ...]:
    found = attributes.each(properties)
    return tuple(attributes.text(value) for kind, value in found if kind == _IFLA_ALT_IFNAME)


def _optional_text(value: bytes | None) -> str | None:
    return attributes.text(value) if value is not None else None


def _mac(value: bytes) -> Mac:
    return Mac(value.hex(":")) if value else ZERO_MAC


def _station_mac(value: bytes) -> Mac | None:
    """None for an InfiniBand port (20 octets) and for a driver that leaves it zero."""
    return Mac(value.hex(":")) if len(value) == 6 and any(value) else None


def _packed_mac(mac: Mac) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
