"""Pure: a table of services as nftables sets and chains, the same for every pod of a node.

    map services4      frontend -> `goto pick4-N`, `goto sticky4-N-T`
    map endpoints4     frontend . 0..N-1 -> address . port
    map sticky4        frontend -> address . port; the kernel notes here what it chose
    set sticky_live4   frontend . address . port: to which choices of `sticky4` it may come back
    map unserved4      frontend -> `goto refuse`, `drop`; for these is no element in `services4`
    map guarded4       frontend -> `jump guard4-RANGES`
    set sources4-RANGES, set cluster_addresses4

and the same with 6. A frontend is protocol . address . port. `service_chains.py` says how they are used.
"""

from collections.abc import Iterator, Mapping
from sys import byteorder

import msgspec

from sriov_cni.in_pod.addresses import pack_address
from sriov_cni.in_pod.model import Frontend, ServiceTable, Target
from sriov_cni.in_pod.objects import Proto
from sriov_cni.in_pod.service_chains import (
    DROP,
    FIXED_CHAINS,
    FOUR,
    REFUSE,
    SIX,
    Family,
    family_of,
    guard_chain,
    guard_verdict,
    pick_chain,
    pick_verdict,
    source_elements,
    sources_set,
)
from vf_manager.kernel.nft import Chain, Elements, Type, Verdict

L4_NUMBERS = {Proto.TCP: 6, Proto.UDP: 17, Proto.SCTP: 132}  # IPPROTO_*

Value = bytes | Verdict
Rendered = tuple[dict[str, Elements], dict[str, Chain]]  # sets and chains by name


class ServiceRenderer:
    """Renders anew only what has changed since the last time. A set or chain in which nothing has changed is
    the same object as before. For one thread."""

    def __init__(self) -> None:
        self._table = ServiceTable()
        self._sets = _empty_sets(FOUR) | _empty_sets(SIX)

    def render(self, table: ServiceTable) -> Rendered:
        changes: dict[str, dict[bytes, Value | None]] = {}  # by set and key; None: is no more
        for name, key, _ in _entries_apart(self._table, table):
            changes.setdefault(name, {})[key] = None
        for name, key, value in _entries_apart(table, self._table):
            changes.setdefault(name, {})[key] = value
        for name, change in changes.items():
            self._sets[name] = _changed(self._sets[name], change)
        self._table = table
        picks, guards = _picks(table), _guards(table)
        sets = {sources_set(*guard): source_elements(*guard) for guard in guards}
        chains = {pick_verdict(*pick).chain: pick_chain(*pick) for pick in picks}
        chains |= {guard_verdict(*guard).chain: guard_chain(*guard) for guard in guards}
        return self._sets | sets, FIXED_CHAINS | chains


def render_services(table: ServiceTable) -> Rendered:
    return ServiceRenderer().render(table)


def _changed(old: Elements, changes: Mapping[bytes, Value | None]) -> Elements:
    changes = {key: value for key, value in changes.items() if old.entries.get(key) != value}
    if not changes:
        return old
    entries = dict(old.entries) | changes
    return msgspec.structs.replace(
        old, entries={key: value for key, value in entries.items() if value is not None}
    )


def _entries_apart(table: ServiceTable, other: ServiceTable) -> Iterator[tuple[str, bytes, Value]]:
    """Set, key and value of what one table has and another has not, or another object."""
    for frontend, target in table.targets.items():
        if other.targets.get(frontend) is not target:
            yield from _entries(frontend, target)
    for address in table.addresses - other.addresses:
        yield f"cluster_addresses{family_of(address).digit}", _packed(address), b""


def _entries(frontend: Frontend, target: Target) -> Iterator[tuple[str, bytes, Value]]:
    family, key = family_of(frontend.address), _frontend_key(frontend)
    digit = family.digit
    if target.sources:
        yield f"guarded{digit}", key, guard_verdict(family, target.sources)
    if not target.endpoints:
        yield f"unserved{digit}", key, DROP if target.dropped else REFUSE
        return
    yield f"services{digit}", key, pick_verdict(family, len(target.endpoints), target.affinity_s)
    for index, endpoint in enumerate(target.endpoints):
        socket = _socket(endpoint.address, endpoint.port)
        yield f"endpoints{digit}", key + index.to_bytes(4, byteorder), socket
        if target.affinity_s is not None:
            yield f"sticky_live{digit}", key + socket, b""


def _frontend_key(frontend: Frontend) -> bytes:
    return bytes((L4_NUMBERS[frontend.proto], 0, 0, 0)) + _socket(frontend.address, frontend.port)


def _socket(address: str, port: int) -> bytes:
    return _packed(address) + port.to_bytes(2, "big") + b"\0\0"


def _packed(address: str) -> bytes:
    packed = pack_address(address)
    assert packed is not None, f"{address!r} in a table of services is not an address"
    return packed


def _picks(table: ServiceTable) -> list[tuple[Family, int, int | None]]:
    found = {
        (":" in frontend.address, len(target.endpoints), target.affinity_s)
        for frontend, target in table.targets.items()
        if target.endpoints
    }
    return [(SIX if six else FOUR, count, affinity_s) for six, count, affinity_s in found]


def _guards(table: ServiceTable) -> set[tuple[Family, tuple[str, ...]]]:
    """Of lists of source ranges, not of services: most that have any have the same."""
    return {
        (family_of(frontend.address), target.sources)
        for frontend, target in table.targets.items()
        if target.sources
    }


def _empty_sets(family: Family) -> dict[str, Elements]:
    key, socket, verdict = family.key_types, family.socket_types, (Type.VERDICT,)
    return {
        f"services{family.digit}": Elements(key=key, value=verdict),
        f"endpoints{family.digit}": Elements(key=(*key, Type.MARK), value=socket),
        f"sticky{family.digit}": Elements(key=key, value=socket, dynamic=True),
        f"sticky_live{family.digit}": Elements(key=key + socket),
        f"unserved{family.digit}": Elements(key=key, value=verdict),
        f"guarded{family.digit}": Elements(key=key, value=verdict),
        f"cluster_addresses{family.digit}": Elements(key=(family.address,)),
    }
