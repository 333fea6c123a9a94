"""Pure: an nftables table, or what changes of one, as the messages of transactions.

The kernel does all of a transaction or nothing (net/netfilter/nf_tables_api.c), and looks at its messages in
order: whatever is referred to is there before, and is gone after what refers to it. Packets are judged by the
old rules or by the new ones; between them is no moment without.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TypeVar

import msgspec

from vf_manager.kernel import attributes
from vf_manager.kernel.nft import Base, Chain, Elements, Hook, Table, Type
from vf_manager.kernel.nft_expressions import pack_expressions, sets_of
from vf_manager.kernel.nft_sets import Entries, Shape, difference, pack_entries, pack_shape, shape_of

SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE = (SUBSYSTEM << 8 | n for n in range(7))
DELRULE, NEWSET, GETSET, DELSET, NEWSETELEM, _, DELSETELEM = (SUBSYSTEM << 8 | n for n in range(8, 15))
_FAMILY = b"\x01\0\0\0"  # struct nfgenmsg: NFPROTO_INET, version, resource
_CREATE, _NEW, _APPEND = 0x400, 0x400 | 0x200, 0x400 | 0x800
_TABLE, _TABLE_FLAGS, _NAME = 1, 2, 2
_CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE, _HOOK_NUMBER, _HOOK_PRIORITY = 3, 4, 5, 7, 1, 2
_RULE_EXPRESSIONS, _ELEMENTS = 4, 3
_ACCEPT = 1


Part = TypeVar("Part", Elements, Chain)


class Message(msgspec.Struct, frozen=True):
    """`what`: for people, if the kernel refuses it."""

    kind: int
    flags: int
    body: bytes
    what: str


Messages = tuple[Message, ...]


class Found(msgspec.Struct, frozen=True):
    """What there is of a table in a kernel."""

    chains: Mapping[str, Base | None] = {}
    sets: Mapping[str, Shape] = {}


class Memo:
    """The messages about a part of a table, for as long as that part lives: it may be in the tables of many
    pods, and be the very same object there. For any thread."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], Messages] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def recall(
        self,
        names: tuple[str, ...],
        parts: tuple[Elements | Chain, ...],
        make: Callable[[], Iterable[Message]],
    ) -> Messages:
        """What `make` has made of these very parts under these names, made if need be."""
        key = (*names, *map(id, parts))
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = tuple(make())
            for part in parts:  # its number may be another's once it is gone
                weakref.finalize(part, self._kept.pop, key, None).atexit = False
        return found


def create(table: Table, memo: Memo, found: Found | None = None) -> Messages:
    """Makes it, in place of what was found under this name, which is taken apart and not deleted.

    A dynamic set that is of the right shape stays with its elements: what was remembered outlives a restart
    of the agent. A chain that the kernel calls stays as well, with other rules. One in its place would be
    called ahead of it (nf_hook_entries_grow), and a packet between the two be let through by both: by the new
    one before this is done, and by the old one after. What is only deleted, the old rules still find."""
    writer = _Writer(table.name, memo)
    active = attributes.pack_be32(_TABLE_FLAGS, 0)  # not NFT_TABLE_F_DORMANT, if it was
    messages = [writer.message(NEWTABLE, _CREATE, active, f"add table {table.name}")]
    sets, chains = _kept(table, found or Found())
    if found is not None:
        messages.append(writer.delete_rules())
        for name in found.sets.keys() - sets:
            messages += writer.delete_set(name, emptied=found.sets[name].leads_to_chains)
        messages += [writer.delete_chain(name) for name in found.chains if name not in chains]
    messages += [writer.add_chain(n, chain.base) for n, chain in table.chains.items() if n not in chains]
    for name, elements in table.sets.items():
        if name not in sets:
            messages += writer.add_set(name, elements)
    for name, chain in table.chains.items():
        messages += writer.add_rules(name, chain)
    return tuple(messages)


def _kept(table: Table, found: Found) -> tuple[set[str], set[str]]:
    """The names of the sets and of the chains that stay."""
    dynamic = {name: shape_of(elements) for name, elements in table.sets.items() if elements.dynamic}
    called = {name: chain.base for name, chain in table.chains.items() if chain.base is not None}
    return (
        {name for name, shape in dynamic.items() if found.sets.get(name) == shape},
        {name for name, base in called.items() if found.chains.get(name) == base},
    )


def change(old: Table, new: Table, memo: Memo) -> tuple[Messages, ...]:
    """What makes `new` of `old`, which has the same name: no transaction, one or two. A chain whose rules
    differ is refilled; a set of another shape, and a chain of another base, is made anew.

    In the first of two is what is new and not in use yet. A packet that is on its way through the rules while
    the second is done sees the old rules, but the new elements (nft_do_chain and nft_lookup_eval each look
    for themselves which generation it is): a chain that an element leads it to has to be there. And new
    rules see a set of ranges, for a moment, without those of its own transaction, which the kernel puts in
    last of all (nf_tables_commit, nft_set_commit_update; seen with 6.18)."""
    steps = (old, _with_new_ahead(old, new), new)
    return tuple(filter(None, (_transaction(a, b, memo) for a, b in pairwise(steps))))


def _with_new_ahead(old: Table, new: Table) -> Table:
    """`old`, if something is made anew: then rules may not fit before that."""
    ahead = {n: chain for n, chain in new.chains.items() if n not in old.chains and chain.base is None}
    anew = any(n in new.sets and shape_of(one) != shape_of(new.sets[n]) for n, one in old.sets.items())
    ranges = any(one.interval for name, one in new.sets.items() if name not in old.sets)
    if (
        not (ahead or ranges)
        or anew
        or any(n in new.chains and c.base != new.chains[n].base for n, c in old.chains.items())
    ):
        return old
    return Table(old.name, {**new.sets, **old.sets}, {**old.chains, **ahead})


def _transaction(old: Table, new: Table, memo: Memo) -> Messages:
    writer = _Writer(new.name, memo)
    sets = _Parts.of(old.sets, new.sets, lambda a, b: shape_of(a) == shape_of(b))
    chains = _Parts.of(old.chains, new.chains, lambda a, b: a.base == b.base)
    refilled = [n for n in chains.kept if _needs_refill(old.chains[n], new.chains[n], sets.gone)]
    differ = [n for n in sets.kept if old.sets[n] is not new.sets[n] and not new.sets[n].dynamic]
    messages = [writer.delete_rules(name) for name in (*chains.gone, *refilled)]
    for name in differ:
        messages += writer.delete_difference(name, old.sets[name], new.sets[name])
    for name in sets.gone:
        messages += writer.delete_set(name, emptied=old.sets[name].value == (Type.VERDICT,))
    messages += [writer.delete_chain(name) for name in chains.gone]
    messages += [writer.add_chain(name, new.chains[name].base) for name in chains.added]
    for name in sets.added:
        messages += writer.add_set(name, new.sets[name])
    for name in differ:
        messages += writer.add_difference(name, old.sets[name], new.sets[name])
    for name in (*chains.added, *refilled):
        messages += writer.add_rules(name, new.chains[name])
    return tuple(messages)


def read_base(found: attributes.Attributes) -> Base | None:
    """Of the kernel's answer about a chain. None: only rules lead to it, or it is not as any of ours."""
    if _CHAIN_HOOK not in found or attributes.be32(found[_CHAIN_POLICY]) != _ACCEPT:
        return None
    hook = attributes.read(found[_CHAIN_HOOK])
    number, priority = attributes.be32(hook[_HOOK_NUMBER]), attributes.be32(hook[_HOOK_PRIORITY])
    if number not in tuple(Hook):  # such as NF_INET_INGRESS, by somebody else
        return None
    signed = priority - (priority >> 31 << 32)
    return Base(attributes.text(found[_CHAIN_TYPE]), Hook(number), signed)


def delete(name: str) -> Message:
    return _Writer(name, Memo()).message(DELTABLE, 0, b"", f"delete table {name}")


def pack_query(table: str = "") -> bytes:
    """For GETTABLE, and for lists of the sets or chains of a table; without a name for lists of all."""
    return _FAMILY + (attributes.pack_text(_TABLE, table) if table else b"")


class _Parts(msgspec.Struct, frozen=True):
    """Names of sets or of chains. What is made anew is both gone and added."""

    gone: list[str]
    added: list[str]
    kept: list[str]

    @classmethod
    def of(
        cls, old: Mapping[str, Part], new: Mapping[str, Part], may_stay: Callable[[Part, Part], bool]
    ) -> "_Parts":
        kept = [name for name, part in new.items() if name in old and may_stay(old[name], part)]
        gone = [name for name in old if name not in kept]
        return cls(gone, [name for name in new if name not in kept], kept)


def _needs_refill(old: Chain, new: Chain, gone_sets: list[str]) -> bool:
    if old is not new and old.rules != new.rules:
        return True
    return any(name in gone_sets for rule in new.rules for name in sets_of(rule))


class _Writer:
    """Messages about one table."""

    def __init__(self, table: str, memo: Memo) -> None:
        self._table = table
        self._memo = memo
        self._head = _FAMILY + attributes.pack_text(_TABLE, table)

    def message(self, kind: int, flags: int, body: bytes, what: str) -> Message:
        return Message(kind, flags, self._head + body, what)

    def add_chain(self, name: str, base: Base | None) -> Message:
        body = attributes.pack_text(_CHAIN_NAME, name)
        if base is not None:
            hook = attributes.pack_be32(_HOOK_NUMBER, base.hook)
            hook += attributes.pack_be32(_HOOK_PRIORITY, base.priority & 0xFFFFFFFF)
            body += attributes.pack_nested(_CHAIN_HOOK, hook)
            body += attributes.pack_be32(_CHAIN_POLICY, _ACCEPT) + attributes.pack_text(
                _CHAIN_TYPE, base.kind
            )
        return self.message(NEWCHAIN, _NEW, body, f"add chain {name}")

    def delete_chain(self, name: str) -> Message:
        return self.message(DELCHAIN, 0, attributes.pack_text(_CHAIN_NAME, name), f"delete chain {name}")

    def add_rules(self, name: str, chain: Chain) -> Messages:
        return self._memo.recall((self._table, name), (chain,), lambda: self._rules(name, chain))

    def delete_rules(self, chain: str = "") -> Message:
        """Of a chain, or of all."""
        body = attributes.pack_text(_NAME, chain) if chain else b""
        return self.message(
            DELRULE, 0, body, f"delete the rules of chain {chain}" if chain else "delete the rules"
        )

    def add_set(self, name: str, elements: Elements) -> Messages:
        return self._memo.recall((self._table, name), (elements,), lambda: self._new_set(name, elements))

    def delete_set(self, name: str, *, emptied: bool) -> Iterator[Message]:
        """`emptied`: its elements go first. Not every kernel knows at once that a map that is deleted leads
        to its chains no more (fixed in 6.5, and in the stable ones before)."""
        body = attributes.pack_text(_NAME, name)
        if emptied:
            yield self.message(DELSETELEM, 0, body, f"delete the elements of set {name}")
        yield self.message(DELSET, 0, body, f"delete set {name}")

    def delete_difference(self, name: str, old: Elements, new: Elements) -> Messages:
        return self._memo.recall(
            (self._table, name, "delete"),
            (old, new),
            lambda: self._elements(DELSETELEM, name, old, difference(old.entries, new.entries)),
        )

    def add_difference(self, name: str, old: Elements, new: Elements) -> Messages:
        return self._memo.recall(
            (self._table, name, "add"),
            (old, new),
            lambda: self._elements(NEWSETELEM, name, new, difference(new.entries, old.entries)),
        )

    def _new_set(self, name: str, elements: Elements) -> Iterator[Message]:
        body = attributes.pack_text(_NAME, name) + pack_shape(elements)
        yield self.message(NEWSET, _NEW, body, f"add {_kind(elements)} {name}")
        yield from self._elements(NEWSETELEM, name, elements, elements.entries)

    def _elements(self, kind: int, name: str, elements: Elements, entries: Entries) -> Iterator[Message]:
        """One that is to be new must not be there: what is there would not be what it was thought to be."""
        verb, flags = ("add", _NEW) if kind == NEWSETELEM else ("delete", 0)
        for number, piece in pack_entries(elements, entries):
            body = attributes.pack_text(_NAME, name) + attributes.pack_nested(_ELEMENTS, piece)
            where = "to" if kind == NEWSETELEM else "from"
            many = f"{number} elements" if number > 1 else "an element"
            what = f"{verb} {many} {where} {_kind(elements)} {name}"
            yield self.message(kind, flags, body, what)

    def _rules(self, name: str, chain: Chain) -> Iterator[Message]:
        for number, rule in enumerate(chain.rules, start=1):
            body = attributes.pack_text(_NAME, name)
            body += attributes.pack_nested(_RULE_EXPRESSIONS, pack_expressions(rule))
            yield self.message(NEWRULE, _APPEND, body, f"add rule {number} of chain {name}")


def _kind(elements: Elements) -> str:
    return "map" if elements.value else "set"
