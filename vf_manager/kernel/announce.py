"""Adapter: gratuitous ARP and unsolicited neighbour advertisements, sent from the calling thread's namespace.

Raw frames on a packet socket that is bound to one interface: nothing can leave by another one, and the
frame has the interface's own MAC as its source. Formats: RFC 826 and RFC 5227 (ARP), RFC 4861 4.4 (NA).
"""

import ipaddress
import socket
import struct
from collections.abc import Sequence

from vf_manager.model import Netdev

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD
_ALL_NODES = ipaddress.IPv6Address("ff02::1")


def send_announcements(netdev: Netdev, addresses: Sequence[str]) -> socket.socket:
    """One frame per address (CIDRs). Raises OSError, e.g. ENETDOWN.

    Returns the socket: to close it takes a grace period of the kernel's, 10 ms and more (af_packet.c
    packet_release), which nobody has to wait for.
    """
    mac = bytes.fromhex(netdev.mac.replace(":", ""))
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        raw.bind((netdev.name, 0))
        for text in addresses:
            address = ipaddress.ip_interface(text).ip
            frame = (
                gratuitous_arp(mac, address)
                if isinstance(address, ipaddress.IPv4Address)
                else unsolicited_advertisement(mac, address)
            )
            raw.send(frame)
    except BaseException:
        raw.close()
        raise
    return raw


def gratuitous_arp(mac: bytes, address: ipaddress.IPv4Address) -> bytes:
    """An ARP request for the sender's own address, as an Ethernet frame (RFC 5227 section 3)."""
    header = b"\xff" * 6 + mac + struct.pack("!H", ETH_P_ARP)
    fixed = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    return header + fixed + mac + address.packed + bytes(6) + address.packed


def unsolicited_advertisement(mac: bytes, address: ipaddress.IPv6Address) -> bytes:
    """A neighbour advertisement to all nodes with the override flag, as an Ethernet frame."""
    option = struct.pack("!BB", 2, 1) + mac  # target link-layer address
    flags = 0x20000000  # override
    body = struct.pack("!BBHI", 136, 0, 0, flags) + address.packed + option
    checksum = icmpv6_checksum(address, _ALL_NODES, body)
    body = body[:2] + struct.pack("!H", checksum) + body[4:]
    ip = struct.pack("!IHBB", 0x60000000, len(body), 58, 255) + address.packed + _ALL_NODES.packed
    header = b"\x33\x33" + _ALL_NODES.packed[-4:] + mac + struct.pack("!H", ETH_P_IPV6)
    return header + ip + body


def icmpv6_checksum(source: ipaddress.IPv6Address, target: ipaddress.IPv6Address, body: bytes) -> int:
    """Of a message whose checksum field is zero, with its pseudo-header (RFC 4443 2.3, RFC 8200 8.1)."""
    data = source.packed + target.packed + struct.pack("!II", len(body), 58) + body
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
