"""Messages to nftables, without a kernel: a few as bytes, and what a change consists of."""

import gc
import struct

import msgspec
import pytest
from hypothesis import given, settings

from tests.nft_strategies import tables
from tests.nft_tables import (
    ACCEPT,
    INPUT,
    TCP,
    UDP,
    address,
    filter_table,
    interfaces,
    ranges,
    service_table,
)
from vf_manager.kernel import attributes
from vf_manager.kernel.nft import Base, Chain, CtState, Elements, Field, In, Is, Table, Type
from vf_manager.kernel.nft_expressions import pack_expressions, sets_of
from vf_manager.kernel.nft_messages import DELSETELEM, NEWSETELEM, Found, Memo, Message, change, create
from vf_manager.kernel.nft_sets import pack_entries, shape_of

AT = (TCP, ("10.96.0.1", 80))


def names(rule: bytes) -> list[str]:
    """Of the expressions of a rule."""
    expressions = (attributes.read(body) for _, body in attributes.each(rule))
    return [attributes.text(expression[1]) for expression in expressions]


def words(messages: tuple[Message, ...]) -> list[str]:
    return [message.what for message in messages]


class TestExpressions:
    def test_a_comparison_is_a_load_and_a_compare(self) -> None:
        rule = pack_expressions((Is(Field.L4PROTO, b"\6"), ACCEPT))
        assert rule.hex(" ", 4) == (
            # list element, name "meta", data: register 8 (NFT_REG32_00), key 16 (l4proto)
            "24000180 09000100 6d657461 00000000 14000280 08000100 00000008 08000200 00000010 "
            # "cmp", register 8, equal, one octet: 6
            "2c000180 08000100 636d7000 20000280 08000100 00000008 08000200 00000000 "
            "0c000380 05000100 06000000 "
            # "immediate" into register 0: a verdict, 1 (NF_ACCEPT)
            "30000180 0e000100 696d6d65 64696174 65000000 1c000280 08000100 00000000 "
            "10000280 0c000280 08000100 00000001"
        )

    def test_what_a_field_implies_is_said_once(self) -> None:
        """`ip saddr` is of IPv4 alone."""
        sender = In((Field.SADDR4,), "peers")
        assert names(pack_expressions((sender,))) == ["meta", "cmp", "payload", "lookup"]
        assert names(pack_expressions((sender, sender))) == ["meta", "cmp", *["payload", "lookup"] * 2]
        said = Is(Field.NFPROTO, b"\2")
        assert names(pack_expressions((said, sender))) == ["meta", "cmp", "payload", "lookup"]

    def test_bits_of_ct_state_are_of_the_machines_order(self) -> None:
        _, mask, _ = (attributes.read(body) for _, body in attributes.each(pack_expressions((CtState(6),))))
        assert attributes.read(attributes.read(mask[2])[4]) == {1: struct.pack("=I", 6)}

    def test_every_set_that_a_rule_names_is_found(self) -> None:
        table = service_table({AT: [("10.1.0.1", 8080)]}, sticky_s=10)
        found = {name for chain in table.chains.values() for rule in chain.rules for name in sets_of(rule)}
        assert found == set(table.sets)


class TestElements:
    def test_a_range_is_its_first_and_the_first_behind_it(self) -> None:
        blocks = ranges({"10.0.0.0": "10.255.255.255", "255.255.255.0": "255.255.255.255"})
        ((count, piece),) = pack_entries(blocks, blocks.entries)
        found = [attributes.read(body) for _, body in attributes.each(piece)]
        keys = [attributes.read(element[1])[1] for element in found]
        assert count == 2
        assert keys == [address("10.0.0.0"), address("11.0.0.0"), address("255.255.255.0")]
        assert [element.get(3) for element in found] == [None, b"\0\0\0\1", None]

    def test_no_piece_is_longer_than_an_attribute_can_be(self) -> None:
        entries = {n.to_bytes(16): b"" for n in range(10_000)}
        pieces = list(pack_entries(Elements(key=(Type.IPV6_ADDR,)), entries))
        assert sum(count for count, _ in pieces) == 10_000
        assert len(pieces) == 5
        assert all(4 + len(piece) <= 0xFFFF for _, piece in pieces)

    def test_types_are_numbered_as_nft_does(self) -> None:
        """inet_proto . ipv4_addr . inet_service : ipv6_addr; each part takes a multiple of four octets."""
        key = (Type.INET_PROTO, Type.IPV4_ADDR, Type.INET_SERVICE)
        shape = shape_of(Elements(key=key, value=(Type.IPV6_ADDR,)))
        assert (shape.key_type, shape.key_length) == (12 << 12 | 7 << 6 | 13, 12)
        assert (shape.data_type, shape.data_length) == (8, 16)
        assert shape_of(Elements(key=(Type.INET_SERVICE,))).key_length == 2


class TestChanges:
    ONE = service_table({AT: [("10.1.0.1", 8080)]})

    def changed(self, old: Table, new: Table) -> list[str]:
        """The words of one transaction."""
        (messages,) = change(old, new, Memo())
        return words(messages)

    @settings(max_examples=25)
    @given(table=tables())
    def test_nothing_differs(self, table: Table) -> None:
        copy = msgspec.structs.replace(table, sets=dict(table.sets), chains=dict(table.chains))
        assert change(table, copy, Memo()) == ()

    def test_an_element_that_differs_is_all_that_is_sent(self) -> None:
        other = service_table({AT: [("10.1.0.2", 8080)]})
        assert self.changed(self.ONE, other) == [
            "delete an element from map endpoints",
            "add an element to map endpoints",
        ]

    def test_another_number_of_endpoints(self) -> None:
        more = service_table({AT: [("10.1.0.1", 8080), ("10.1.0.2", 8080)]})
        ahead, then = change(self.ONE, more, Memo())
        assert words(ahead) == [
            "add chain pick4-2",
            "add rule 1 of chain pick4-2",
            "add rule 2 of chain pick4-2",
        ]
        assert words(then) == [
            "delete the rules of chain pick4-1",
            "delete an element from map services",
            "delete chain pick4-1",
            "add an element to map services",
            "add an element to map endpoints",
        ]

    def test_a_set_of_ranges_is_there_before_a_rule_names_it(self) -> None:
        old = filter_table(INPUT, (ACCEPT,))
        rule = (In((Field.SADDR4,), "peers"), ACCEPT)
        new = filter_table(INPUT, rule, sets={"peers": ranges({"10.0.0.0": "10.0.0.255"})})
        ahead, then = change(old, new, Memo())
        assert words(ahead) == ["add set peers", "add an element to set peers"]
        assert words(then) == ["delete the rules of chain base", "add rule 1 of chain base"]

    def test_chains_are_not_ahead_of_a_set_that_is_made_anew(self) -> None:
        """They may name it."""
        old = service_table({AT: [("10.1.0.1", 8080)]}, sticky_s=10)
        new = service_table({AT: [("10.1.0.1", 8080), ("10.1.0.2", 8080)]}, sticky_s=10)
        plain = Elements(key=old.sets["live"].key, dynamic=True)
        old = msgspec.structs.replace(old, sets={**old.sets, "live": plain})
        assert "delete set live" in self.changed(old, new)

    def test_a_set_of_another_type_is_made_anew_with_what_names_it(self) -> None:
        rule = (In((Field.SADDR4,), "peers"), ACCEPT)
        plain = Elements(key=(Type.IPV4_ADDR,), entries={address("10.0.0.0"): b""})
        old, new = (filter_table(INPUT, rule, sets={"peers": one}) for one in (plain, ranges({})))
        assert self.changed(old, new) == [
            "delete the rules of chain base",
            "delete set peers",
            "add set peers",
            "add rule 1 of chain base",
        ]

    def test_a_chain_at_another_hook_is_made_anew(self) -> None:
        old = filter_table(INPUT, (ACCEPT,))
        new = filter_table(Base(INPUT.kind, INPUT.hook, 5), (ACCEPT,))
        assert self.changed(old, new) == [
            "delete the rules of chain base",
            "delete chain base",
            "add chain base",
            "add rule 1 of chain base",
        ]

    def test_a_memory_stays_when_a_table_is_replaced(self) -> None:
        table = service_table({AT: [("10.1.0.1", 8080)]}, sticky_s=10)
        shapes = {name: shape_of(elements) for name, elements in table.sets.items()}
        found = words(create(table, Memo(), Found({"services": None}, shapes)))
        assert "delete set live" in found
        assert not [said for said in found if said.endswith("sticky")]

    @pytest.mark.parametrize("base", [INPUT, Base(INPUT.kind, INPUT.hook, 5), None])
    def test_a_chain_of_the_right_place_stays(self, base: Base | None) -> None:
        """And sets keep their elements for whoever goes by the old rules, save for those that lead to
        chains."""
        table = filter_table(INPUT, (ACCEPT,), sets={"ifs": interfaces("eth0")})
        shapes = {"ifs": shape_of(table.sets["ifs"])}
        found = words(create(table, Memo(), Found({"base": base}, shapes)))
        assert ("delete chain base" in found, "add chain base" in found) == (base != INPUT, base != INPUT)
        assert "delete the elements of set ifs" not in found

    @pytest.mark.parametrize("dynamic", [True, False])
    def test_a_memory_of_another_shape_does_not(self, dynamic: bool) -> None:
        table = service_table({AT: [("10.1.0.1", 8080)]}, sticky_s=10)
        other = Elements(key=(Type.IPV4_ADDR,), dynamic=dynamic)
        found = words(create(table, Memo(), Found({}, {"sticky": shape_of(other)})))
        assert found.index("delete set sticky") < found.index("add map sticky")


class TestMemo:
    def test_what_pods_have_in_common_is_packed_once(self) -> None:
        memo, shared = Memo(), service_table({AT: [("10.1.0.1", 8080)]})
        first, second = (
            create(msgspec.structs.replace(shared, sets={**shared.sets, "own": ranges({})}), memo)
            for _ in range(2)
        )
        assert [a is b for a, b in zip(first, second, strict=True) if "endpoints" in a.what] == [True, True]
        (own,) = {id(m) for m in first if m.what == "add set own"} - {id(m) for m in second}
        assert own

    def test_so_is_a_difference(self) -> None:
        memo = Memo()
        old, new = (service_table({AT: [(to, 8080)]}) for to in ("10.1.0.1", "10.1.0.2"))
        (first,), (second,) = change(old, new, memo), change(old, new, memo)
        assert [message.kind for message in first] == [DELSETELEM, NEWSETELEM]
        assert all(a is b for a, b in zip(first, second, strict=True))

    def test_the_same_part_of_another_name_is_another(self) -> None:
        memo, chain = Memo(), Chain(((ACCEPT,),))
        table = Table(name="test", chains={"a": chain, "b": chain})
        assert words(create(table, memo))[-2:] == ["add rule 1 of chain a", "add rule 1 of chain b"]

    def test_it_ends_with_the_parts(self) -> None:
        memo = Memo()
        tables = [service_table({(UDP, ("10.96.0.1", 53)): [(f"10.1.0.{n}", 53)]}) for n in range(3)]
        for table in tables:
            create(table, memo)
            change(tables[0], table, memo)
        assert len(memo) > 0
        tables.clear()
        del table
        gc.collect()
        assert len(memo) == 0
