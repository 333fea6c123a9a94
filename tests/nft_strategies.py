"""Tables that the kernel takes, for property tests. Names are few, so that two tables have much in common."""

from hypothesis import strategies as st

from tests.nft_tables import (
    ACCEPT,
    ADDRESS,
    DROP,
    FAMILY,
    INPUT,
    KEY,
    NAT_OUTPUT,
    OUTPUT,
    POSTROUTING,
    address,
    interfaces,
    joined,
    key_types,
    port,
)
from vf_manager.kernel.nft import (
    Base,
    Chain,
    CtState,
    Dnat,
    DnatRemembered,
    Elements,
    Field,
    Hook,
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

_PICKS, _PLAIN = ("pick-1", "pick-2"), ("plain-1", "plain-2")
_ports = st.sampled_from([port(80), port(443), port(53)])
_protocols = st.sampled_from([b"\6", b"\x11", b"\x84"])
_mark = st.sampled_from([bytes(4), b"\1\0\0\0"])


def _addresses(version: int) -> st.SearchStrategy[bytes]:
    few = ("10.0.0.1", "10.0.0.2", "255.255.255.255") if version == 4 else ("fd00::1", "fd00::2", "::")
    return st.sampled_from([address(one) for one in few])


def _keys(version: int) -> st.SearchStrategy[bytes]:
    return st.builds(joined, _protocols, _addresses(version), _ports)


def _values(version: int) -> st.SearchStrategy[bytes]:
    return st.builds(joined, _addresses(version), _ports)


def _entries(
    keys: st.SearchStrategy[bytes], values: st.SearchStrategy[bytes] | st.SearchStrategy[Verdict]
) -> st.SearchStrategy[dict[bytes, bytes | Verdict]]:
    return st.dictionaries(keys, values, max_size=5)


@st.composite
def _ranges(draw: st.DrawFn) -> Elements:
    """Some touch, some are single addresses."""
    ends = sorted(draw(st.sets(st.sampled_from([0, 1, 2, 3, 9, 255, 2**31, 2**32 - 2, 2**32 - 1]))))
    pairs = list(zip(ends[::2], ends[1::2], strict=False))
    entries = {first.to_bytes(4): last.to_bytes(4) for first, last in pairs}
    return Elements(key=(Type.IPV4_ADDR,), interval=True, entries=entries)


@st.composite
def _blocks(draw: st.DrawFn) -> Elements:
    """Of one shape or of another."""
    if draw(st.booleans()):
        return draw(_ranges())
    return Elements(key=(Type.IPV4_ADDR,), entries=draw(_entries(_addresses(4), st.just(b""))))


@st.composite
def _sets(draw: st.DrawFn, version: int) -> dict[str, Elements]:
    types, value = key_types(version), (ADDRESS[version], Type.INET_SERVICE)
    goto = st.sampled_from([Verdict(VerdictKind.GOTO, name) for name in _PICKS])
    return {
        "ifs": interfaces(*draw(st.sets(st.sampled_from(["eth0", "net1", "net2"])))),
        "blocks": draw(_blocks()),
        "services": Elements(
            key=types,
            value=(Type.VERDICT,),
            entries=draw(_entries(_keys(version), st.one_of(goto, st.just(DROP)))),
        ),
        "endpoints": Elements(
            key=(*types, Type.MARK),
            value=value,
            entries=draw(_entries(st.builds(joined, _keys(version), _mark), _values(version))),
        ),
        "sticky": Elements(key=types, value=value, dynamic=True),
        "live": Elements(
            key=types + value,
            entries=draw(_entries(st.builds(joined, _keys(version), _values(version)), st.just(b""))),
        ),
    }


def _pick_rules(version: int) -> st.SearchStrategy[Rule]:
    key, family = KEY[version], FAMILY[version]
    statements: list[Dnat | DnatRemembered] = [
        Dnat(family, (*key, Random(3)), "endpoints"),
        Dnat(family, (*key, Random(2)), "endpoints", "sticky", 10),
        DnatRemembered(family, key, "sticky", "live", 30),
    ]
    return st.sampled_from([(statement,) for statement in statements])


def _plain_rules() -> st.SearchStrategy[Rule]:
    rules: list[Rule] = [
        (In((Field.IIFNAME,), "ifs", negate=True), ACCEPT),
        (In((Field.SADDR4,), "blocks"), DROP),
        (CtState(6), ACCEPT),
        (Within(Field.ICMPV6_TYPE, b"\x85", b"\x89"), ACCEPT),
        (Is(Field.L4PROTO, b"\6"), Within(Field.DPORT, port(80), port(90)), ACCEPT),
        (Is(Field.OIFNAME, b"eth0".ljust(16, b"\0"), negate=True), Verdict(VerdictKind.RETURN)),
        (Is(Field.SADDR6, address("fd00::1")), DROP),
        (DROP,),
    ]
    return st.sampled_from(rules)


def _chains(rules: st.SearchStrategy[Rule], base: Base | None = None) -> st.SearchStrategy[Chain]:
    return st.lists(rules, max_size=3).map(lambda found: Chain(tuple(found), base))


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Its name is `test`."""
    version = draw(st.sampled_from([4, 6]))
    sets = draw(_sets(version))
    chains = {name: draw(_chains(_pick_rules(version))) for name in _PICKS}
    chains |= {name: draw(_chains(_plain_rules())) for name in _PLAIN if draw(st.booleans())}
    jumps: list[Rule] = [(Verdict(VerdictKind.JUMP, name),) for name in _PLAIN if name in chains]
    rules = st.one_of(_plain_rules(), st.sampled_from([*jumps, (Reject(),), (Reject(tcp_reset=True),)]))
    base = draw(st.sampled_from([INPUT, OUTPUT, Base("filter", Hook.INPUT, 10)]))
    chains["filter"] = draw(_chains(rules, base))
    chains["out"] = draw(_chains(_plain_rules(), POSTROUTING))
    if draw(st.booleans()):
        chains["nat"] = Chain(((VerdictMap(KEY[version], "services"),),), NAT_OUTPUT)
    return _without_unused(draw, Table(name="test", sets=sets, chains=chains))


def _without_unused(draw: st.DrawFn, table: Table) -> Table:
    """Sets that nothing names may be there or not."""
    text = repr(table.chains)
    sets = {name: one for name, one in table.sets.items() if f"'{name}'" in text or draw(st.booleans())}
    return Table(name=table.name, sets=sets, chains=table.chains)
