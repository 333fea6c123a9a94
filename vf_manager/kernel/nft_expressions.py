"""Pure: a rule of nftables as the kernel's expressions: what loads, compares, looks up and decides.

Numbers and attributes: include/uapi/linux/netfilter/nf_tables.h; what an expression does:
net/netfilter/nft_*.c. All of them are in Linux 5.10; the youngest are nat in family inet (5.2) and `delete`
of dynset (5.4). An expression's attributes stand here by their numbers in its enum nft_*_attributes.
"""

import socket
import struct
from collections.abc import Iterator
from typing import assert_never

from vf_manager.kernel import attributes
from vf_manager.kernel.nft import (
    CtState,
    Dnat,
    DnatRemembered,
    Field,
    In,
    Is,
    Key,
    Random,
    Reject,
    Rule,
    Statement,
    Verdict,
    VerdictKind,
    VerdictMap,
    Within,
)

_LIST_ELEM, _EXPR_NAME, _EXPR_DATA = 1, 1, 2
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_REGISTER, _FIRST_REGISTER = 0, 8  # NFT_REG_VERDICT, NFT_REG32_00: 16 registers of four octets
_NETWORK, _TRANSPORT = 1, 2  # enum nft_payload_bases
_META_DREG, _META_KEY, _META_SREG = 1, 2, 3
_META_MARK, _META_IIFNAME, _META_OIFNAME, _META_NFPROTO, _META_L4PROTO = 3, 6, 7, 15, 16  # enum nft_meta_keys
_EQUAL, _DIFFERENT = 0, 1  # enum nft_cmp_ops
_LOOKUP_INVERTED = 1
_DYNSET_ADD, _DYNSET_UPDATE, _DYNSET_DELETE = 0, 1, 2
_NAT_DNAT, _NUMGEN_RANDOM = 1, 1
_TCP_RST, _ICMPX_UNREACH, _ICMPX_PORT_UNREACH = 1, 2, 1

_VERDICT_CODES = {
    VerdictKind.DROP: 0,
    VerdictKind.ACCEPT: 1,
    VerdictKind.JUMP: -3,
    VerdictKind.GOTO: -4,
    VerdictKind.RETURN: -5,
}
_META_KEYS = {
    Field.NFPROTO: (_META_NFPROTO, 1),
    Field.L4PROTO: (_META_L4PROTO, 1),
    Field.IIFNAME: (_META_IIFNAME, 16),
    Field.OIFNAME: (_META_OIFNAME, 16),
}  # and how long
_PAYLOADS = {
    Field.SADDR4: (_NETWORK, 12, 4),
    Field.DADDR4: (_NETWORK, 16, 4),
    Field.SADDR6: (_NETWORK, 8, 16),
    Field.DADDR6: (_NETWORK, 24, 16),
    Field.DPORT: (_TRANSPORT, 2, 2),
    Field.ICMPV6_TYPE: (_TRANSPORT, 0, 1),
}  # base, offset, length
_IPV4 = Is(Field.NFPROTO, bytes([socket.AF_INET]))
_IPV6 = Is(Field.NFPROTO, bytes([socket.AF_INET6]))
_ICMPV6 = Is(Field.L4PROTO, bytes([socket.IPPROTO_ICMPV6]))
_TCP = Is(Field.L4PROTO, bytes([socket.IPPROTO_TCP]))
_IMPLIED = {
    Field.SADDR4: _IPV4,
    Field.DADDR4: _IPV4,
    Field.SADDR6: _IPV6,
    Field.DADDR6: _IPV6,
    Field.ICMPV6_TYPE: _ICMPV6,
}
_IMPLIED_BY_FAMILY = {int(socket.AF_INET): _IPV4, int(socket.AF_INET6): _IPV6}
_ADDRESS_LENGTH = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}


def pack_expressions(rule: Rule) -> bytes:
    """What NFTA_RULE_EXPRESSIONS holds. A field of one protocol is read of packets of that protocol alone, as
    in nft's language: `ip daddr` implies `meta nfproto ipv4`."""
    return b"".join(attributes.pack_nested(_LIST_ELEM, made) for made in _expressions(rule))


def pack_verdict(verdict: Verdict) -> bytes:
    """What an attribute of type nft_data_attributes holds."""
    body = attributes.pack(1, struct.pack("!i", _VERDICT_CODES[verdict.kind]))
    if verdict.chain:
        body += attributes.pack_text(2, verdict.chain)
    return attributes.pack_nested(_DATA_VERDICT, body)


def pack_value(value: bytes) -> bytes:
    """What an attribute of type nft_data_attributes holds."""
    return attributes.pack(_DATA_VALUE, value)


def sets_of(rule: Rule) -> Iterator[str]:
    """The sets and maps that a rule names."""
    for statement in rule:
        match statement:
            case In():
                yield statement.set
            case VerdictMap():
                yield statement.map
            case Dnat():
                yield from filter(None, (statement.map, statement.remember))
            case DnatRemembered():
                yield from (statement.remember, statement.live)


def _expressions(rule: Rule) -> Iterator[bytes]:
    known: set[Statement] = set()
    for statement in rule:
        for implied in _implied_by(statement):
            if implied not in known:
                known.add(implied)
                yield from _pack(implied)
        if isinstance(statement, Is):
            known.add(statement)
        yield from _pack(statement)


def _implied_by(statement: Statement) -> Iterator[Is]:
    match statement:
        case Is() | Within():
            yield from _implied_by_key((statement.field,))
        case In() | VerdictMap():
            yield from _implied_by_key(statement.key)
        case Dnat() | DnatRemembered():
            yield _IMPLIED_BY_FAMILY[statement.family]
            yield from _implied_by_key(statement.key)
        case Reject(tcp_reset=True):
            yield _TCP


def _implied_by_key(key: Key) -> Iterator[Is]:
    return (_IMPLIED[part] for part in key if isinstance(part, Field) and part in _IMPLIED)


def _pack(statement: Statement) -> Iterator[bytes]:
    match statement:
        case Is():
            yield _load(statement.field, _FIRST_REGISTER)
            yield _compare(_DIFFERENT if statement.negate else _EQUAL, statement.value)
        case Within():
            yield _load(statement.field, _FIRST_REGISTER)
            yield _range(statement.low, statement.high)
        case CtState():
            yield _load(Field.CT_STATE, _FIRST_REGISTER)
            yield _mask(struct.pack("=I", statement.bits))
            yield _compare(_DIFFERENT, bytes(4))
        case In():
            yield from _load_key(statement.key)
            yield _lookup(statement.set, flags=_LOOKUP_INVERTED if statement.negate else 0)
        case VerdictMap():
            yield from _load_key(statement.key)
            yield _lookup(statement.map, target=_VERDICT_REGISTER)
        case Dnat():
            yield from _dnat(statement)
        case DnatRemembered():
            yield from _dnat_remembered(statement)
        case Reject():
            yield _reject(tcp_reset=statement.tcp_reset)
        case Verdict():
            yield _immediate(statement)
        case _:
            assert_never(statement)


def _dnat(statement: Dnat) -> Iterator[bytes]:
    """The kernel's `add` leaves an element as it is that is there already (nft_dynset_eval)."""
    chosen = _behind(statement.key)
    yield from _load_key(statement.key)
    if statement.remember:
        yield from _lookup_for_more(statement.map, chosen, statement.family)
        yield _dynset(_DYNSET_DELETE, statement.remember, chosen)
        yield _dynset(_DYNSET_ADD, statement.remember, chosen, statement.timeout_s)
    else:
        yield _lookup(statement.map, target=chosen)
    yield _nat(statement.family, chosen)


def _dnat_remembered(statement: DnatRemembered) -> Iterator[bytes]:
    """The choice is loaded behind the key: together they are the key of `live`."""
    chosen = _behind(statement.key)
    yield from _load_key(statement.key)
    yield from _lookup_for_more(statement.remember, chosen, statement.family)
    yield _lookup(statement.live)
    yield _dynset(_DYNSET_UPDATE, statement.remember, chosen, statement.timeout_s)
    yield _nat(statement.family, chosen)


def _lookup_for_more(name: str, chosen: int, family: int) -> Iterator[bytes]:
    """As `_lookup`, of an address and a port that are a part of a key or a value later. To the kernel all the
    rest is nothing: what is loaded first is overwritten, and the packet has its mark again. But nft does not
    know how long it is what a map gives, and dies of an assertion when it lists a rule that goes on with it
    (netlink_parse_concat_expr, seen with 1.0.6); how long a mark is it knows."""
    port = chosen + _ADDRESS_LENGTH[family] // 4
    mark = port + 1
    if family == socket.AF_INET6:
        yield _expression("payload", (1, chosen + 1), (2, _NETWORK), (3, 28), (4, 12))
    yield _load(Field.DPORT, port)
    yield _expression("meta", (_META_DREG, mark), (_META_KEY, _META_MARK))
    yield _lookup(name, target=chosen)
    yield _expression("meta", (_META_KEY, _META_MARK), (_META_SREG, chosen))
    yield _expression("meta", (_META_DREG, chosen), (_META_KEY, _META_MARK))
    yield _expression("meta", (_META_KEY, _META_MARK), (_META_SREG, mark))


def _behind(key: Key) -> int:
    return _FIRST_REGISTER + sum(map(_registers, key))


def _load_key(key: Key) -> Iterator[bytes]:
    register = _FIRST_REGISTER
    for part in key:
        yield _load(part, register)
        register += _registers(part)


def _registers(part: Field | Random) -> int:
    return (_length(part) + 3) // 4


def _length(part: Field | Random) -> int:
    if isinstance(part, Random) or part is Field.CT_STATE:
        return 4
    return _META_KEYS[part][1] if part in _META_KEYS else _PAYLOADS[part][2]


def _load(part: Field | Random, register: int) -> bytes:
    if isinstance(part, Random):
        return _expression("numgen", (1, register), (2, part.modulus), (3, _NUMGEN_RANDOM), (4, 0))
    if part is Field.CT_STATE:
        return _expression("ct", (1, register), (2, 0))
    if part in _META_KEYS:
        return _expression("meta", (_META_DREG, register), (_META_KEY, _META_KEYS[part][0]))
    base, offset, length = _PAYLOADS[part]
    return _expression("payload", (1, register), (2, base), (3, offset), (4, length))


def _compare(operator: int, value: bytes) -> bytes:
    return _expression("cmp", (1, _FIRST_REGISTER), (2, operator), (3, pack_value(value)))


def _range(low: bytes, high: bytes) -> bytes:
    limits = (3, pack_value(low)), (4, pack_value(high))
    return _expression("range", (1, _FIRST_REGISTER), (2, _EQUAL), *limits)


def _mask(bits: bytes) -> bytes:
    registers = (1, _FIRST_REGISTER), (2, _FIRST_REGISTER), (3, len(bits))
    return _expression("bitwise", *registers, (4, pack_value(bits)), (5, pack_value(bytes(len(bits)))))


def _lookup(name: str, *, target: int | None = None, flags: int = 0) -> bytes:
    """No target: only whether it is there."""
    into = [(3, target)] if target is not None else []
    return _expression("lookup", (1, name), (2, _FIRST_REGISTER), *into, (5, flags))


def _dynset(operation: int, name: str, value: int, timeout_s: int = 0) -> bytes:
    """Of a map the value has to be named for whatever operation (nft_dynset_init)."""
    timeout = attributes.pack_be64(6, timeout_s * 1000) if timeout_s else b""
    return _expression("dynset", (1, name), (3, operation), (4, _FIRST_REGISTER), (5, value), more=timeout)


def _nat(family: int, address: int) -> bytes:
    port = address + _ADDRESS_LENGTH[family] // 4
    return _expression("nat", (1, _NAT_DNAT), (2, family), (3, address), (5, port))


def _reject(*, tcp_reset: bool) -> bytes:
    if tcp_reset:
        return _expression("reject", (1, _TCP_RST), more=attributes.pack(2, b"\0"))
    return _expression("reject", (1, _ICMPX_UNREACH), more=attributes.pack(2, bytes([_ICMPX_PORT_UNREACH])))


def _immediate(verdict: Verdict) -> bytes:
    return _expression("immediate", (1, _VERDICT_REGISTER), (2, pack_verdict(verdict)))


def _expression(name: str, *pairs: tuple[int, int | str | bytes], more: bytes = b"") -> bytes:
    """(attribute, a number, a name or what is nested in it)."""
    body = b"".join(_attribute(kind, value) for kind, value in pairs) + more
    return attributes.pack_text(_EXPR_NAME, name) + attributes.pack_nested(_EXPR_DATA, body)


def _attribute(kind: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return attributes.pack_be32(kind, value)
    return (
        attributes.pack_text(kind, value) if isinstance(value, str) else attributes.pack_nested(kind, value)
    )
