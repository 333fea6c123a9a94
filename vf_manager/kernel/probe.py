"""Adapter: asks the wire whether somebody has an address, from the calling thread's namespace.

Raw frames on a packet socket that is bound to one interface, which needs no address for that. Sources: RFC
5227 2.1.1 (ARP probe: sender address 0.0.0.0), RFC 4862 5.4 (solicitation from the unspecified address).
"""

import ipaddress
import socket
import struct
import time
from collections.abc import Iterable, Sequence

from vf_manager.kernel.announce import ETH_P_ARP, ETH_P_IPV6, Address, icmpv6_checksum
from vf_manager.model import Mac, Netdev

_PROBES = 2
_ETH_P_ALL = 0x0003
_ETH_HEADER = 14
_IPV6_HEADER = 40
_NEIGHBOUR_ADVERTISEMENT = 136
_ICMPV6 = 58


def find_holders(netdev: Netdev, addresses: Sequence[str], timeout_s: float) -> dict[str, Mac]:
    """Of these addresses (CIDRs) those that somebody has, with the MAC that said so. Returns early if all are
    taken, else after `timeout_s`. Raises OSError, e.g. ENETDOWN."""
    mac = bytes.fromhex(netdev.mac.replace(":", ""))
    wanted = {ipaddress.ip_interface(text).ip: text for text in addresses}
    holders: dict[str, Mac] = {}
    start = time.monotonic()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _ETH_P_ALL) as raw:
        raw.bind((netdev.name, _ETH_P_ALL))
        for number in range(_PROBES):
            _send(raw, mac, wanted)
            until = start + timeout_s * (number + 1) / _PROBES
            for frame in _frames(raw, until):
                address, holder = _holder_in(frame, mac)
                if address in wanted:
                    holders[wanted[address]] = holder
                if len(holders) == len(wanted):
                    return holders
    return holders


def arp_probe(mac: bytes, address: ipaddress.IPv4Address) -> bytes:
    header = b"\xff" * 6 + mac + struct.pack("!H", ETH_P_ARP)
    fixed = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    return header + fixed + mac + bytes(4) + bytes(6) + address.packed


def neighbour_solicitation(mac: bytes, address: ipaddress.IPv6Address) -> bytes:
    """To the solicited-node multicast address, without a source address: duplicate address detection."""
    group = ipaddress.IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + address.packed[-3:])
    source = ipaddress.IPv6Address("::")
    body = struct.pack("!BBHI", 135, 0, 0, 0) + address.packed
    body = body[:2] + struct.pack("!H", icmpv6_checksum(source, group, body)) + body[4:]
    ip = struct.pack("!IHBB", 0x60000000, len(body), _ICMPV6, 255) + source.packed + group.packed
    return b"\x33\x33" + group.packed[-4:] + mac + struct.pack("!H", ETH_P_IPV6) + ip + body


def _send(raw: socket.socket, mac: bytes, addresses: Iterable[Address]) -> None:
    for address in addresses:
        raw.send(
            arp_probe(mac, address)
            if isinstance(address, ipaddress.IPv4Address)
            else neighbour_solicitation(mac, address)
        )


def _frames(raw: socket.socket, until: float) -> Iterable[bytes]:
    while (left_s := until - time.monotonic()) > 0:
        raw.settimeout(left_s)
        try:
            yield raw.recv(2048)
        except TimeoutError:
            return


def _holder_in(frame: bytes, own: bytes) -> tuple[Address | None, Mac]:
    """The address that a frame claims for its sender. What a NIC or a wire echoes of ours claims nothing."""
    source, kind, body = frame[6:12], int.from_bytes(frame[12:14], "big"), frame[_ETH_HEADER:]
    mac = Mac(source.hex(":"))
    if source == own:
        return None, mac
    if kind == ETH_P_ARP and len(body) >= 28:
        sender, target = body[14:18], body[24:28]
        claimed = sender if any(sender) else target  # a probe like ours: whoever is first has it
        return ipaddress.IPv4Address(claimed), mac
    icmp = body[_IPV6_HEADER:]
    if kind == ETH_P_IPV6 and body[6:7] == bytes([_ICMPV6]) and icmp[:1] == bytes([_NEIGHBOUR_ADVERTISEMENT]):
        return (ipaddress.IPv6Address(icmp[8:24]) if len(icmp) >= 24 else None), mac
    return None, mac
