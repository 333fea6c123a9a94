"""Pure: nftables tables for tests, of the pieces that a pod's table is made of."""

import socket
import struct
from collections.abc import Iterable, Mapping

from vf_manager.kernel.nft import (
    Base,
    Chain,
    Dnat,
    DnatRemembered,
    Elements,
    Field,
    Hook,
    In,
    Key,
    Random,
    Rule,
    Table,
    Type,
    Verdict,
    VerdictKind,
    VerdictMap,
)

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
ACCEPT, DROP = Verdict(VerdictKind.ACCEPT), Verdict(VerdictKind.DROP)
KEY: dict[int, Key] = {
    4: (Field.L4PROTO, Field.DADDR4, Field.DPORT),
    6: (Field.L4PROTO, Field.DADDR6, Field.DPORT),
}
ADDRESS = {4: Type.IPV4_ADDR, 6: Type.IPV6_ADDR}
FAMILY = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
OUTPUT, NAT_OUTPUT = Base("filter", Hook.OUTPUT, -110), Base("nat", Hook.OUTPUT, -100)
INPUT, POSTROUTING = Base("filter", Hook.INPUT, 0), Base("filter", Hook.POSTROUTING, 0)

Socket = tuple[str, int]


def address(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def port(number: int) -> bytes:
    return struct.pack("!H", number)


def ifname(name: str) -> bytes:
    return name.encode().ljust(16, b"\0")


def joined(*parts: bytes) -> bytes:
    """A key or a value of several parts."""
    return b"".join(part + bytes(-len(part) % 4) for part in parts)


def key_types(version: int) -> tuple[Type, ...]:
    return (Type.INET_PROTO, ADDRESS[version], Type.INET_SERVICE)


def key(protocol: int, at: Socket) -> bytes:
    return joined(bytes([protocol]), address(at[0]), port(at[1]))


def interfaces(*names: str) -> Elements:
    return Elements(key=(Type.IFNAME,), entries={ifname(name): b"" for name in names})


def ranges(pairs: Mapping[str, str]) -> Elements:
    entries = {address(first): address(last) for first, last in pairs.items()}
    return Elements(key=(Type.IPV4_ADDR,), interval=True, entries=entries)


def filter_table(base: Base, *rules: Rule, sets: Mapping[str, Elements] | None = None) -> Table:
    return Table(name="test", sets=sets or {}, chains={"base": Chain(rules, base)})


def service_table(
    services: Mapping[tuple[int, Socket], Iterable[Socket]], *, sticky_s: int = 0, version: int = 4
) -> Table:
    """(protocol, where) to endpoints. `sticky_s`: the affinity of all of them."""
    verdicts: dict[bytes, bytes | Verdict] = {}
    endpoints: dict[bytes, bytes | Verdict] = {}
    live: dict[bytes, bytes | Verdict] = {}
    chains: dict[str, Chain] = {}
    for (protocol, at), targets in services.items():
        values = [joined(address(where), port(number)) for where, number in targets]
        service = key(protocol, at)
        chain = f"pick{version}-{len(values)}"
        verdicts[service] = Verdict(VerdictKind.GOTO, chain)
        chains[chain] = Chain(_pick(version, len(values), sticky_s))
        endpoints |= {service + struct.pack("=I", n): value for n, value in enumerate(values)}
        live |= {service + value: b"" for value in values}
    chains["services"] = Chain(
        ((In((Field.OIFNAME,), "ifs", negate=True), ACCEPT), (VerdictMap(KEY[version], "services"),)),
        NAT_OUTPUT,
    )
    types, value_types = key_types(version), (ADDRESS[version], Type.INET_SERVICE)
    sets = {
        "ifs": interfaces("eth0"),
        "services": Elements(key=types, value=(Type.VERDICT,), entries=verdicts),
        "endpoints": Elements(key=(*types, Type.MARK), value=value_types, entries=endpoints),
    }
    if sticky_s:
        sets["sticky"] = Elements(key=types, value=value_types, dynamic=True)
        sets["live"] = Elements(key=types + value_types, entries=live)
    return Table(name="test", sets=sets, chains=chains)


def _pick(version: int, count: int, sticky_s: int) -> tuple[Rule, ...]:
    """The second try is for a packet that meets a change half-way: the first endpoint is always there."""
    key, family = KEY[version], FAMILY[version]
    if not sticky_s:
        return tuple((Dnat(family, (*key, Random(n)), "endpoints"),) for n in (count, 1))
    remembered = DnatRemembered(family, key, "sticky", "live", sticky_s)
    return ((remembered,), (Dnat(family, (*key, Random(count)), "endpoints", "sticky", sticky_s),))
