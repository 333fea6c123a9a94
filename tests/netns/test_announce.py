"""What neighbours hear when a pod gets its addresses, read from the other end of a veth pair."""

import ipaddress
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.netns.namespaces import LinuxWorld, add_veth, ip
from vf_manager.kernel.linux import LinuxKernel
from vf_manager.kernel.netns import Netns
from vf_manager.model import Netdev

ETH_P_ALL = 0x0003
ARP, IPV6 = 0x0806, 0x86DD
NEIGHBOUR_ADVERTISEMENT = 136
BROADCAST = "ff:ff:ff:ff:ff:ff"
ALL_NODES = ipaddress.IPv6Address("ff02::1")
_DEADLINE_S = 5.0


class Wire:
    """A packet socket on one link of the calling thread's namespace, open for the length of a test."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.bind((name, ETH_P_ALL))

    def close(self) -> None:
        self._socket.close()

    def announcements(self, count: int) -> list[bytes]:
        """The next `count` ARP frames and neighbour advertisements, in order."""
        found: list[bytes] = []
        deadline = time.monotonic() + _DEADLINE_S
        while len(found) < count:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                found += self._receive()
            except TimeoutError:
                pytest.fail(f"{len(found)} of {count} frames within {_DEADLINE_S:g} s")
        return found

    def heard_so_far(self) -> list[bytes]:
        self._socket.settimeout(0)
        found: list[bytes] = []
        while True:
            try:
                found += self._receive()
            except BlockingIOError:
                return found

    def _receive(self) -> list[bytes]:
        """The kernel's own chatter on a fresh link (MLD, router solicitations) is left out."""
        frame = self._socket.recv(2048)
        kind = int.from_bytes(frame[12:14], "big")
        wanted = kind == ARP or (kind == IPV6 and frame[20] == 58 and frame[54] == NEIGHBOUR_ADVERTISEMENT)
        return [frame] if wanted else []


@pytest.fixture
def wire(world: LinuxWorld) -> Iterator[Wire]:
    ip("link", "set", "peer0", "up")
    wire = Wire("peer0")
    yield wire
    wire.close()


@pytest.fixture
def pod(world: LinuxWorld, wire: Wire) -> Iterator[Netns]:
    """A namespace with `net1`, the link on the wire, up."""
    space = world.new_space()
    ip("link", "set", "spare0", "netns", space.path, "name", "net1")
    ip("link", "set", "net1", "up", space=space)
    netns = Netns(space.fd)
    yield netns
    netns.close()


def read(kernel: LinuxKernel, pod: Netns, name: str) -> Netdev:
    with kernel.links(pod) as links:
        found = links.read(name=name)
    assert found is not None
    return found.netdev


def text(mac: bytes) -> str:
    return mac.hex(":")


def test_gratuitous_arp(world: LinuxWorld, wire: Wire, pod: Netns) -> None:
    net1 = read(world.kernel, pod, "net1")
    world.kernel.announce(pod, net1, ["192.0.2.7/24"])
    (frame,) = wire.announcements(1)
    target, source, ethertype = struct.unpack_from("!6s6sH", frame)
    assert (text(target), text(source), ethertype) == (BROADCAST, net1.mac, ARP)
    hardware, protocol, hardware_size, protocol_size, operation = struct.unpack_from("!HHBBH", frame, 14)
    assert (hardware, protocol, hardware_size, protocol_size, operation) == (1, 0x0800, 6, 4, 1)
    sender_mac, sender_ip, target_mac, target_ip = struct.unpack_from("!6s4s6s4s", frame, 22)
    address = ipaddress.IPv4Address("192.0.2.7").packed
    assert (text(sender_mac), sender_ip, target_mac, target_ip) == (net1.mac, address, bytes(6), address)
    assert len(frame) == 42


def test_unsolicited_neighbour_advertisement(world: LinuxWorld, wire: Wire, pod: Netns) -> None:
    net1 = read(world.kernel, pod, "net1")
    world.kernel.announce(pod, net1, ["2001:db8::7/64"])
    (frame,) = wire.announcements(1)
    address = ipaddress.IPv6Address("2001:db8::7")
    target, source, _ = struct.unpack_from("!6s6sH", frame)
    assert (text(target), text(source)) == ("33:33:00:00:00:01", net1.mac)
    version, length, next_header, hop_limit, ip_source, ip_target = struct.unpack_from(
        "!IHBB16s16s", frame, 14
    )
    assert (version, next_header, hop_limit) == (6 << 28, socket.IPPROTO_ICMPV6, 255)
    assert (ip_source, ip_target) == (address.packed, ALL_NODES.packed)

    message = frame[54:]
    assert len(message) == length == 32
    kind, code, _, flags, about = struct.unpack_from("!BBHI16s", message)
    assert (kind, code, about) == (NEIGHBOUR_ADVERTISEMENT, 0, address.packed)
    assert flags == 0x20000000  # override alone: neither solicited nor a router
    assert message[24:] == bytes([2, 1]) + bytes.fromhex(net1.mac.replace(":", ""))

    pseudo = ip_source + ip_target + struct.pack("!II", length, socket.IPPROTO_ICMPV6)
    words = struct.unpack(f"!{(len(pseudo) + length) // 2}H", pseudo + message)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF  # RFC 1071: a right checksum makes the sum all ones


def test_one_frame_for_each_address_in_order(world: LinuxWorld, wire: Wire, pod: Netns) -> None:
    net1 = read(world.kernel, pod, "net1")
    world.kernel.announce(pod, net1, ["192.0.2.7/24", "2001:db8::7/64", "192.0.2.8/32"])
    kinds = [int.from_bytes(frame[12:14], "big") for frame in wire.announcements(3)]
    assert kinds == [ARP, IPV6, ARP]
    assert wire.heard_so_far() == []


def test_nothing_leaves_by_another_interface(world: LinuxWorld, wire: Wire, pod: Netns) -> None:
    """The other link has the same network and the default route."""
    other_end = world.new_space()

    def add_other() -> None:
        add_veth("net0", "away0", peer_space=other_end)
        ip("address", "add", "192.0.2.1/24", "dev", "net0")
        ip("address", "add", "2001:db8::1/64", "dev", "net0", "nodad")
        ip("link", "set", "net0", "up")
        ip("route", "add", "default", "dev", "net0")

    pod.run(add_other)
    ip("link", "set", "away0", "up", space=other_end)
    listening = Netns(other_end.fd)
    away = listening.run(lambda: Wire("away0"))
    try:
        net1 = read(world.kernel, pod, "net1")
        world.kernel.announce(pod, net1, ["192.0.2.7/24", "2001:db8::7/64"])
        heard = wire.announcements(2)
        assert {text(frame[6:12]) for frame in heard} == {net1.mac}
        assert away.heard_so_far() == []
        net0 = read(world.kernel, pod, "net0")
        world.kernel.announce(pod, net0, ["192.0.2.1/24"])
        assert [text(frame[6:12]) for frame in away.announcements(1)] == [net0.mac]
    finally:
        away.close()
        listening.close()
