"""Pure: named sets and maps of nftables, and their elements, as attributes of messages.

Numbers: include/uapi/linux/netfilter/nf_tables.h; those of types are of nft's own (its include/datatype.h):
the kernel only keeps them, for whoever lists a table. Every set that is not an interval is a hash table that
grows (net/netfilter/nft_set_hash.c, rhash), an interval set a tree (nft_set_rbtree.c).
"""

import struct
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from vf_manager.kernel import attributes
from vf_manager.kernel.nft import Elements, Type, Verdict
from vf_manager.kernel.nft_expressions import pack_value, pack_verdict

_FLAGS, _KEY_TYPE, _KEY_LEN, _DATA_TYPE, _DATA_LEN = 3, 4, 5, 6, 7
_ID, _GC_INTERVAL, _USERDATA = 10, 12, 13
_INTERVAL, _MAP, _TIMEOUT, _EVAL = 0x4, 0x8, 0x10, 0x20
_VERDICT_TYPE = 0xFFFFFF00
_LIST_ELEM, _ELEM_KEY, _ELEM_DATA, _ELEM_FLAGS, _INTERVAL_END = 1, 1, 2, 3, 1
_ELEMENTS_ROOM = 0xFFFF - 4  # an attribute tells its length in 16 bits
_GC_INTERVAL_MS = 60_000
_TYPES = {
    Type.IPV4_ADDR: (7, 4),
    Type.IPV6_ADDR: (8, 16),
    Type.INET_PROTO: (12, 1),
    Type.INET_SERVICE: (13, 2),
    Type.MARK: (19, 4),
    Type.IFNAME: (41, 16),
}  # the number, and how long a value of it is
_IN_HOST_ORDER = ((Type.IFNAME,), (Type.MARK,))  # as keys by themselves
_HOST_ORDER = struct.pack(
    "=BBI", 0, 4, 1
)  # nft's own: NFTNL_UDATA_SET_KEYBYTEORDER; what it lists is wrong else

Entries = Mapping[bytes, bytes | Verdict]


class Shape(msgspec.Struct, frozen=True):
    """What cannot be changed of a set that is there."""

    flags: int
    key_type: int
    key_length: int
    data_type: int = 0
    data_length: int = 0

    @property
    def leads_to_chains(self) -> bool:
        return self.data_type == _VERDICT_TYPE


def shape_of(elements: Elements) -> Shape:
    is_verdict = elements.value == (Type.VERDICT,)
    return Shape(
        flags=(_MAP if elements.value else 0)
        | (_INTERVAL if elements.interval else 0)
        | (_EVAL | _TIMEOUT if elements.dynamic else 0),
        key_type=_number(elements.key),
        key_length=_length(elements.key),
        data_type=_VERDICT_TYPE if is_verdict else _number(elements.value),
        data_length=0 if is_verdict else _length(elements.value),
    )


def pack_shape(elements: Elements) -> bytes:
    """What NEWSET has besides the names. An id is asked for, and needed for sets without a name alone. What
    has timed out is not found any more; that it is thrown away can wait. No size is said: a dynamic set holds
    65535 elements then (nft_dynset_init), and has not the memory for them from the beginning."""
    shape = shape_of(elements)
    body = attributes.pack_be32(_FLAGS, shape.flags)
    body += attributes.pack_be32(_KEY_TYPE, shape.key_type) + attributes.pack_be32(_KEY_LEN, shape.key_length)
    if elements.value:
        body += attributes.pack_be32(_DATA_TYPE, shape.data_type)
        body += attributes.pack_be32(_DATA_LEN, shape.data_length)
    body += attributes.pack_be32(_ID, 1)
    if elements.key in _IN_HOST_ORDER:
        body += attributes.pack(_USERDATA, _HOST_ORDER)
    if elements.dynamic:
        body += attributes.pack_be32(_GC_INTERVAL, _GC_INTERVAL_MS)
    return body


def read_shape(found: attributes.Attributes) -> Shape:
    """Of the kernel's answer about a set."""
    kinds = (_FLAGS, _KEY_TYPE, _KEY_LEN, _DATA_TYPE, _DATA_LEN)
    return Shape(*(attributes.be32(found[kind]) if kind in found else 0 for kind in kinds))


def pack_entries(elements: Elements, entries: Entries) -> Iterator[tuple[int, bytes]]:
    """What NFTA_SET_ELEM_LIST_ELEMENTS holds, in as many pieces as it takes, each with the number of its
    entries. `entries`: some or all of those of `elements`."""
    packed = _pack_ranges(entries) if elements.interval else _pack_pairs(elements, entries)
    piece: list[bytes] = []
    room = _ELEMENTS_ROOM
    for item in packed:
        if len(item) > room:
            yield len(piece), b"".join(piece)
            piece, room = [], _ELEMENTS_ROOM
        piece.append(item)
        room -= len(item)
    if piece:
        yield len(piece), b"".join(piece)


def difference(these: Entries, others: Entries) -> Entries:
    """What is in `these` and not in `others`, or with another value there."""
    return {key: value for key, value in these.items() if others.get(key) != value}


def _pack_pairs(elements: Elements, entries: Entries) -> Iterable[bytes]:
    if not elements.value:
        return (_element(_key(key)) for key in entries)
    return _pack_map(entries)


def _pack_map(entries: Entries) -> Iterator[bytes]:
    """The same few values again and again: verdicts of one map are, and so are ports on an address."""
    packed: dict[bytes | Verdict, bytes] = {}
    for key, value in entries.items():
        data = packed.get(value)
        if data is None:
            inner = pack_verdict(value) if isinstance(value, Verdict) else pack_value(value)
            data = packed[value] = attributes.pack_nested(_ELEM_DATA, inner)
        yield _element(_key(key) + data)


def _pack_ranges(entries: Entries) -> Iterator[bytes]:
    """Two elements each: the first of the range, and the first behind it. None is behind the last of all."""
    for first, last in sorted(entries.items()):
        item = _element(_key(first))
        if not isinstance(last, Verdict) and any(octet != 0xFF for octet in last):
            behind = (int.from_bytes(last) + 1).to_bytes(len(last))
            item += _element(_key(behind) + attributes.pack_be32(_ELEM_FLAGS, _INTERVAL_END))
        yield item


def _key(key: bytes) -> bytes:
    return attributes.pack_nested(_ELEM_KEY, pack_value(key))


def _element(body: bytes) -> bytes:
    return attributes.pack_nested(_LIST_ELEM, body)


def _number(types: tuple[Type, ...]) -> int:
    """Six bits each, as nft has it."""
    number = 0
    for one in types:
        number = number << 6 | _TYPES[one][0]
    return number


def _length(types: tuple[Type, ...]) -> int:
    lengths = [_TYPES[one][1] for one in types]
    return lengths[0] if len(lengths) == 1 else sum((length + 3) & ~3 for length in lengths)
