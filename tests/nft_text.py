"""Pure: an nftables table as text for people, in nft's own language with all values decoded.

Where a statement is several in that language, and cannot be said in one, it is said in its words.
"""

from collections.abc import Iterator
from ipaddress import ip_address
from sys import byteorder
from typing import assert_never

from vf_manager.kernel.nft import (
    Chain,
    CtState,
    Dnat,
    DnatRemembered,
    Elements,
    Field,
    In,
    Is,
    Key,
    Random,
    Reject,
    Rule,
    Statement,
    Table,
    Type,
    Verdict,
    VerdictKind,
    VerdictMap,
    Within,
)

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
NFPROTOS = {2: "ipv4", 10: "ipv6"}
FAMILIES = {2: "ip", 10: "ip6"}  # socket.AF_INET, AF_INET6
CT_STATES = {1: "invalid", 2: "established", 4: "related", 8: "new", 64: "untracked"}
SIZES = {Type.IPV6_ADDR: 16, Type.IFNAME: 16}  # in a concatenation; all others take 4


def as_text(table: Table) -> str:
    """Sets and chains in the order of their names, elements in that of their keys."""
    lines = [f"table inet {table.name} {{"]
    for name in sorted(table.sets):
        lines += _elements(name, table.sets[name])
    for name in sorted(table.chains):
        lines += _chain(name, table.chains[name])
    return "\n".join([*lines, "}"]) + "\n"


def _elements(name: str, elements: Elements) -> Iterator[str]:
    yield f"\t{'map' if elements.value else 'set'} {name} {{"
    yield f"\t\ttype {_types(elements.key)}" + (f" : {_types(elements.value)}" if elements.value else "")
    if elements.interval:
        yield "\t\tflags interval"
    if elements.dynamic:
        yield "\t\tflags dynamic,timeout"
    if elements.entries:
        yield "\t\telements = {"
        for key in sorted(elements.entries):
            yield f"\t\t\t{_element(elements, key)},"
        yield "\t\t}"
    yield "\t}"


def _types(types: tuple[Type, ...]) -> str:
    return " . ".join(types)


def _element(elements: Elements, key: bytes) -> str:
    value, text = elements.entries[key], decode_value(elements.key, key)
    if isinstance(value, Verdict):
        return f"{text} : {_verdict(value)}"
    if elements.interval:
        return text if value == key else f"{text}-{decode_value(elements.key, value)}"
    return f"{text} : {decode_value(elements.value, value)}" if elements.value else text


def decode_value(types: tuple[Type, ...], octets: bytes) -> str:
    parts = []
    for type_ in types:
        size = SIZES.get(type_, 4)
        parts.append(_decode(type_, octets[:size]))
        octets = octets[size:]
    return " . ".join(parts)


def _decode(type_: Type, octets: bytes) -> str:
    match type_:
        case Type.IPV4_ADDR | Type.IPV6_ADDR:
            return str(ip_address(octets))
        case Type.INET_PROTO:
            return PROTOCOLS.get(octets[0], str(octets[0]))
        case Type.INET_SERVICE:
            return str(int.from_bytes(octets[:2], "big"))
        case Type.IFNAME:
            return f'"{octets.rstrip(bytes(1)).decode()}"'
        case Type.MARK:
            return str(int.from_bytes(octets, byteorder))
        case Type.VERDICT:
            return octets.hex()  # never: verdicts are no octets
        case _:
            assert_never(type_)


def _chain(name: str, chain: Chain) -> Iterator[str]:
    yield f"\tchain {name} {{"
    if base := chain.base:
        hook = base.hook.name.lower()
        yield f"\t\ttype {base.kind} hook {hook} priority {base.priority}; policy accept;"
    for rule in chain.rules:
        yield f"\t\t{render_rule(rule)}"
    yield "\t}"


def render_rule(rule: Rule) -> str:
    return " ".join(map(_statement, rule))


def _statement(statement: Statement) -> str:
    match statement:
        case Is() | Within() | CtState() | In():
            return _condition(statement)
        case VerdictMap(key, name):
            return f"{_key(key)} vmap @{name}"
        case Dnat():
            return _dnat(statement)
        case DnatRemembered(family, key, remember, live, timeout_s):
            return (
                f"dnat {FAMILIES[family]} to {_key(key)} map @{remember} if in @{live} timeout {timeout_s}s"
            )
        case Reject(tcp_reset):
            return f"reject with {'tcp reset' if tcp_reset else 'icmpx port-unreachable'}"
        case Verdict():
            return _verdict(statement)
        case _:
            assert_never(statement)


def _condition(statement: Is | Within | CtState | In) -> str:
    match statement:
        case Is(field, value, negate):
            return f"{field} {'!= ' if negate else ''}{_field_value(field, value)}"
        case Within(field, low, high):
            return f"{field} {_field_value(field, low)}-{_field_value(field, high)}"
        case CtState(bits):
            return f"ct state {','.join(name for bit, name in CT_STATES.items() if bits & bit)}"
        case In(key, name, negate):
            return f"{_key(key)} {'!= ' if negate else ''}@{name}"
        case _:
            assert_never(statement)


def _dnat(dnat: Dnat) -> str:
    text = f"dnat {FAMILIES[dnat.family]} to {_key(dnat.key)} map @{dnat.map}"
    return f"{text} remember in @{dnat.remember} timeout {dnat.timeout_s}s" if dnat.remember else text


def _verdict(verdict: Verdict) -> str:
    match verdict.kind:
        case VerdictKind.JUMP | VerdictKind.GOTO:
            return f"{verdict.kind} {verdict.chain}"
        case VerdictKind.ACCEPT | VerdictKind.DROP | VerdictKind.RETURN:
            return verdict.kind
        case _:
            assert_never(verdict.kind)


def _key(key: Key) -> str:
    return " . ".join(
        f"numgen random mod {part.modulus}" if isinstance(part, Random) else part for part in key
    )


def _field_value(field: Field, octets: bytes) -> str:
    match field:
        case Field.NFPROTO:
            return NFPROTOS.get(octets[0], str(octets[0]))
        case Field.L4PROTO:
            return _decode(Type.INET_PROTO, octets)
        case Field.IIFNAME | Field.OIFNAME:
            return _decode(Type.IFNAME, octets)
        case Field.SADDR4 | Field.DADDR4 | Field.SADDR6 | Field.DADDR6:
            return str(ip_address(octets))
        case Field.DPORT:
            return _decode(Type.INET_SERVICE, octets)
        case Field.ICMPV6_TYPE:
            return str(octets[0])
        case Field.CT_STATE:
            return octets.hex()  # CtState is used instead
        case _:
            assert_never(field)
