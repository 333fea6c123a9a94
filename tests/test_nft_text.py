"""An nftables table as text: each kind of statement, and values of each type."""

import socket
from sys import byteorder

import pytest

from tests.nft_text import as_text, render_rule
from vf_manager.kernel.nft import (
    Chain,
    CtState,
    Dnat,
    DnatRemembered,
    Elements,
    Field,
    In,
    Is,
    Random,
    Reject,
    Rule,
    Table,
    Type,
    Verdict,
    VerdictKind,
    VerdictMap,
    Within,
)

KEY = (Field.L4PROTO, Field.DADDR4, Field.DPORT)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ((Is(Field.NFPROTO, b"\x0a"),), "meta nfproto ipv6"),
        ((Is(Field.L4PROTO, b"\x11", negate=True),), "meta l4proto != udp"),
        ((Is(Field.IIFNAME, b"eth0".ljust(16, b"\0")), Verdict(VerdictKind.RETURN)), 'iifname "eth0" return'),
        ((Is(Field.SADDR6, b"\xfe\x80" + bytes(14)), Verdict(VerdictKind.DROP)), "ip6 saddr fe80:: drop"),
        ((Within(Field.DPORT, b"\0\x50", b"\x01\xbb"),), "th dport 80-443"),
        ((Within(Field.ICMPV6_TYPE, b"\x85", b"\x89"),), "icmpv6 type 133-137"),
        ((CtState(2 | 4),), "ct state established,related"),
        ((In((Field.OIFNAME,), "ifs", negate=True),), "oifname != @ifs"),
        ((VerdictMap(KEY, "services4"),), "meta l4proto . ip daddr . th dport vmap @services4"),
        (
            (Dnat(socket.AF_INET, (*KEY, Random(3)), "endpoints4"),),
            "dnat ip to meta l4proto . ip daddr . th dport . numgen random mod 3 map @endpoints4",
        ),
        (
            (Dnat(socket.AF_INET, (*KEY, Random(3)), "endpoints4", "sticky4", 60),),
            "dnat ip to meta l4proto . ip daddr . th dport . numgen random mod 3 map @endpoints4"
            " remember in @sticky4 timeout 60s",
        ),
        (
            (DnatRemembered(socket.AF_INET6, (Field.DPORT,), "sticky6", "sticky_live6", 60),),
            "dnat ip6 to th dport map @sticky6 if in @sticky_live6 timeout 60s",
        ),
        ((Reject(tcp_reset=True),), "reject with tcp reset"),
        ((Reject(), Verdict(VerdictKind.ACCEPT)), "reject with icmpx port-unreachable accept"),
        ((Verdict(VerdictKind.JUMP, "a"),), "jump a"),
    ],
)  # fmt: skip
def test_rules(rule: Rule, expected: str) -> None:
    assert render_rule(rule) == expected


def test_elements() -> None:
    table = Table(
        "t",
        {
            "ranges": Elements(
                key=(Type.IPV4_ADDR,),
                interval=True,
                entries={b"\x0a\0\0\0": b"\x0a\0\0\x0f", b"\x0a\0\0\x20": b"\x0a\0\0\x20"},
            ),
            "ifs": Elements(key=(Type.IFNAME,), entries={b"net1".ljust(16, b"\0"): b""}),
            "to": Elements(
                key=(Type.INET_PROTO, Type.MARK),
                value=(Type.IPV6_ADDR, Type.INET_SERVICE),
                entries={b"\x84\0\0\0" + (7).to_bytes(4, byteorder): bytes(15) + b"\x01\0\x50\0\0"},
            ),
            "seen": Elements(key=(Type.INET_SERVICE,), dynamic=True),
        },
        {"c": Chain(((Verdict(VerdictKind.GOTO, "d"),),)), "d": Chain()},
    )
    assert as_text(table).splitlines() == [
        "table inet t {",
        "\tset ifs {",
        "\t\ttype ifname",
        "\t\telements = {",
        '\t\t\t"net1",',
        "\t\t}",
        "\t}",
        "\tset ranges {",
        "\t\ttype ipv4_addr",
        "\t\tflags interval",
        "\t\telements = {",
        "\t\t\t10.0.0.0-10.0.0.15,",
        "\t\t\t10.0.0.32,",
        "\t\t}",
        "\t}",
        "\tset seen {",
        "\t\ttype inet_service",
        "\t\tflags dynamic,timeout",
        "\t}",
        "\tmap to {",
        "\t\ttype inet_proto . mark : ipv6_addr . inet_service",
        "\t\telements = {",
        "\t\t\tsctp . 7 : ::1 . 80,",
        "\t\t}",
        "\t}",
        "\tchain c {",
        "\t\tgoto d",
        "\t}",
        "\tchain d {",
        "\t}",
        "}",
    ]
