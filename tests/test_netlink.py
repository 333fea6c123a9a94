"""Netlink by hand: framing, attributes, and messages about VFs, without a kernel."""

import contextlib
import errno
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vf_manager.errors import KernelError
from vf_manager.kernel import attributes, link_messages, route_messages
from vf_manager.kernel.api import LinkTraffic, RouteSpec, RuleSpec
from vf_manager.kernel.netlink import BUFFER_SIZE, NetlinkRefusal, split_messages
from vf_manager.kernel.rtnl import parsed_link
from vf_manager.model import IfName, LinkState, Mac, Netdev, VfAttributes, VfChange, VlanProto

_IFINFO_SIZE = 16


def message(kind: int, payload: bytes, flags: int = 0, sequence: int = 1) -> bytes:
    head = struct.pack("=IHHII", 16 + len(payload), kind, flags, sequence, 0)
    return head + payload + bytes(-len(payload) % 4)


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=64))))
def test_attributes_come_back_as_they_were_packed(pairs: list[tuple[int, bytes]]) -> None:
    packed = b"".join(attributes.pack(kind, value) for kind, value in pairs)
    assert len(packed) % 4 == 0
    assert list(attributes.each(packed)) == pairs


def test_a_nested_attribute_is_read_by_its_type_alone() -> None:
    packed = attributes.pack_nested(52, attributes.pack_text(53, "other0"))
    ((kind, inner),) = attributes.each(packed)
    assert (kind, attributes.read(inner)) == (52, {53: b"other0\0"})


@pytest.mark.parametrize("data", [b"\x03\x00\x01\x00", b"\x09\x00\x01\x00abcd", b"\xff\xff\x01\x00"])
def test_an_attribute_that_does_not_fit_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="netlink attribute 1 of"):
        attributes.read(data)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_readers_loop_or_crash(data: bytes) -> None:
    with contextlib.suppress(NetlinkRefusal):
        list(split_messages(data))
    with contextlib.suppress(ValueError):
        list(attributes.each(data))


def test_a_message_that_is_cut_off_is_an_error() -> None:
    with pytest.raises(NetlinkRefusal) as caught:
        list(split_messages(message(16, b"abcde")[:18]))
    assert caught.value.code == errno.EPROTO


def test_a_datagram_is_split_into_its_messages() -> None:
    data = message(16, b"abcde", flags=2, sequence=7) + message(3, b"\0\0\0\0", sequence=7)
    assert list(split_messages(data)) == [(16, 2, 7, b"abcde"), (3, 0, 7, b"\0\0\0\0")]


VF = VfAttributes(
    mac=Mac("02:00:00:5e:00:01"),
    vlan=100,
    qos=3,
    proto=VlanProto.DOT1AD,
    spoofchk=True,
    trust=False,
    min_tx_rate=10,
    max_tx_rate=200,
    link_state=LinkState.DISABLE,
)


def vf_info(index: int, *, spoofchk: int = 1, more: bool = False) -> bytes:
    """As rtnl_fill_vfinfo makes it. `more`: with what nobody here reads."""
    vlan_info = struct.pack("=III", index, 100, 3) + b"\x88\xa8\0\0"
    parts: tuple[tuple[int, bytes], ...] = (
        (1, struct.pack("=I32s", index, bytes.fromhex("0200005e0001"))),
        (2, struct.pack("=III", index, 100, 3)),
        (3, struct.pack("=II", index, 200)),
        (4, struct.pack("=II", index, spoofchk)),
        (5, struct.pack("=II", index, 2)),
        (6, struct.pack("=III", index, 10, 200)),
        (9, struct.pack("=II", index, 0)),
        (12, attributes.pack(1, vlan_info)),
    )
    if more:  # broadcast address, GUIDs of node and port, RSS queries
        guid = struct.pack("=IxxxxQ", index, 2**64 - 1)
        parts += ((13, bytes(32)), (10, guid), (11, guid), (7, bytes(8)))
    return attributes.pack(1, b"".join(attributes.pack(kind, value) for kind, value in parts))


def test_a_link_with_vfs_is_read() -> None:
    body = struct.pack("=BxHiII", 0, 1, 7, 0x1 | 0x100, 0)
    body += attributes.pack_text(3, "ens1f0") + attributes.pack_u32(4, 1500)
    body += attributes.pack(1, bytes.fromhex("0200005e0009")) + attributes.pack(33, b"\1")
    body += attributes.pack_text(56, "0000:3b:00.0") + attributes.pack_text(38, "p0")
    body += attributes.pack_nested(52, attributes.pack_text(53, "one") + attributes.pack_text(53, "two"))
    body += attributes.pack(22, vf_info(0) + vf_info(1, spoofchk=0xFFFFFFFF))
    found = link_messages.read_link(body)
    assert found.netdev == Netdev(
        ifindex=7,
        name=IfName("ens1f0"),
        mac=Mac("02:00:00:5e:00:09"),
        mtu=1500,
        up=True,
        carrier=True,
        altnames=("one", "two"),
        promisc=True,
    )
    assert (found.parent, found.phys_port_name) == ("0000:3b:00.0", "p0")
    assert found.vfs[0] == VF
    assert (found.vfs[1].spoofchk, found.vfs[1].trust) == (None, False)


def test_a_pf_with_256_vfs_is_one_message() -> None:
    """With everything that the kernel tells of a VF without statistics (rtnl_fill_vfinfo), the GUIDs of
    InfiniBand included: close to the 64 KiB that one attribute can have, and to be received whole."""
    vfs = b"".join(vf_info(index, more=True) for index in range(256))
    body = struct.pack("=BxHiII", 0, 1, 7, 1, 0) + attributes.pack_text(3, "ens1f0")
    body += attributes.pack(22, vfs)
    assert 56 * 1024 < len(body) < 64 * 1024
    assert len(body) < BUFFER_SIZE
    found = link_messages.read_link(body)
    assert sorted(found.vfs) == list(range(256))
    assert set(found.vfs.values()) == {VF}


def test_more_vfs_than_fit_into_an_attribute_are_an_error_of_the_kernel() -> None:
    """A kernel that does not look at their length (rtnl_fill_vf) cuts it: then nothing makes sense."""
    vfs = b"".join(vf_info(index, more=True) for index in range(400))
    body = struct.pack("=BxHiII", 0, 1, 7, 1, 0) + attributes.pack_text(3, "ens1f0")
    wrapped = struct.pack("=HH", (4 + len(vfs)) & 0xFFFF, 22) + vfs
    with pytest.raises(KernelError, match=r"read link ens1f0: EPROTO .*; the answer does not parse"):
        parsed_link(body + wrapped, "read link ens1f0")


@pytest.mark.parametrize(
    ("octets", "mac"),
    [("b49691a00010", Mac("b4:96:91:a0:00:10")), ("000000000000", None), ("80" * 20, None), ("", None)],
)
def test_the_mac_that_is_burnt_in_is_told_apart(octets: str, mac: Mac | None) -> None:
    """A veth has none, an InfiniBand port one of 20 octets, a kernel before 5.6 says nothing of it."""
    body = struct.pack("=BxHiII", 0, 1, 7, 0, 0) + attributes.pack_text(3, "ens1f0")
    body += attributes.pack(1, bytes.fromhex("0200005e0009"))
    if octets:
        body += attributes.pack(54, bytes.fromhex(octets))
    assert link_messages.read_link(body).permanent_mac == mac


def test_what_is_sent_for_a_vf_reads_back_as_it_was_meant() -> None:
    change = VfChange(**{key: getattr(VF, key) for key in VfAttributes.__struct_fields__})
    sent = link_messages.pack_vf_change(7, 5, change)
    assert struct.unpack_from("=i", sent, 4)[0] == 7
    (info,) = (value for _, value in attributes.each(attributes.read(sent, _IFINFO_SIZE)[22]))
    kinds = [kind for kind, _ in attributes.each(info)]
    assert kinds == [1, 12, 6, 4, 5, 9]
    assert all(attributes.u32(value) == 5 for kind, value in attributes.each(info) if kind != 12)
    short = link_messages.pack_vf_change(7, 5, VfChange(vlan=9, qos=1, proto=VlanProto.DOT1Q))
    (info,) = (value for _, value in attributes.each(attributes.read(short, _IFINFO_SIZE)[22]))
    assert list(attributes.each(info)) == [(2, struct.pack("=III", 5, 9, 1))]


@pytest.mark.parametrize(
    "route",
    [
        RouteSpec(dst="0.0.0.0/0", gateway="192.0.2.1", table=254, scope=0),
        RouteSpec(dst="198.51.100.0/24", table=1000, scope=253, mtu=1300, advmss=1200, priority=5),
        RouteSpec(dst="2001:db8::/32", gateway="2001:db8:1::1", table=100, scope=0),
        RouteSpec(dst="198.51.100.0/24", gateway="fe80::1", table=254, scope=0),
    ],
)
def test_a_route_reads_back_as_it_was_meant(route: RouteSpec) -> None:
    assert route_messages.read_route(route_messages.pack_route(3, route)) == (3, route)


@pytest.mark.parametrize("table", [100, 1000])
def test_a_rule_reads_back_as_it_was_meant(table: int) -> None:
    rule = RuleSpec(source="192.0.2.1/32", table=table, priority=table)
    assert route_messages.read_rule(route_messages.pack_rule(rule)) == rule


@pytest.mark.parametrize("address", ["192.0.2.1/24", "2001:db8::1/64", "192.0.2.1/32"])
def test_an_address_reads_back_as_it_was_meant(address: str) -> None:
    assert route_messages.read_address(route_messages.pack_address(3, address)) == (3, address)


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6), st.integers(0, 128))
def test_addresses_and_networks_are_those_of_the_standard_library(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, prefix: int
) -> None:
    cidr = f"{address}/{min(prefix, address.max_prefixlen)}"
    interface = ipaddress.ip_interface(cidr)
    sent = attributes.read(route_messages.pack_address(3, cidr), 8)
    expected = {1: interface.ip.packed, 2: interface.ip.packed}
    if interface.version == 4 and interface.network.prefixlen < 31:
        expected[4] = interface.network.broadcast_address.packed
    assert sent == expected
    _, route = route_messages.read_route(route_messages.pack_route(3, RouteSpec(dst=cidr)))
    assert ipaddress.ip_network(route.dst) == interface.network


def test_counters_are_read_by_their_place() -> None:
    body = link_messages.pack_query(ifindex=7)[:_IFINFO_SIZE] + attributes.pack_text(3, "net1")
    body += attributes.pack(23, struct.pack("=24Q", *range(1, 25)))
    assert link_messages.read_traffic(body) == LinkTraffic(
        ifindex=7,
        name=IfName("net1"),
        rx_packets=1,
        tx_packets=2,
        rx_bytes=3,
        tx_bytes=4,
        rx_errors=5,
        tx_errors=6,
        rx_dropped=7,
        tx_dropped=8,
    )
