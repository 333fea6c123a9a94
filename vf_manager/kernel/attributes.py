"""Pure: netlink attributes, packed and read (man 7 netlink, include/net/netlink.h)."""

import struct
from collections.abc import Iterator

_HEADER = struct.Struct("=HH")
_U16, _U32, _S32 = struct.Struct("=H"), struct.Struct("=I"), struct.Struct("=i")
_BE16, _BE32, _BE64 = struct.Struct("!H"), struct.Struct("!I"), struct.Struct("!Q")
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")

Attributes = dict[int, bytes]


def pack(kind: int, value: bytes) -> bytes:
    return _HEADER.pack(4 + len(value), kind) + value + _PADDING[len(value) & 3]


def pack_u32(kind: int, value: int) -> bytes:
    return pack(kind, _U32.pack(value))


def pack_be32(kind: int, value: int) -> bytes:
    """In network byte order, as all of netfilter has its numbers."""
    return pack(kind, _BE32.pack(value))


def pack_be64(kind: int, value: int) -> bytes:
    return pack(kind, _BE64.pack(value))


def pack_text(kind: int, text: str) -> bytes:
    return pack(kind, text.encode() + b"\0")


def pack_nested(kind: int, inner: bytes) -> bytes:
    """Marked as nested, as attributes that came with strict checking have to be (NL_VALIDATE_NESTED)."""
    return pack(kind | _NESTED, inner)


def each(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Every attribute of `data` from `start` on, in order. Raises ValueError for one that does not fit in."""
    end = len(data)
    while start + 4 <= end:
        length, kind = _HEADER.unpack_from(data, start)
        if length < 4 or start + length > end:
            raise _misfit(length, kind, start, end)
        yield kind & _TYPE_MASK, data[start + 4 : start + length]
        start += (length + 3) & ~3


def read(data: bytes, start: int = 0) -> Attributes:
    """By type; of several of one type the last. A link has some forty: no generator in between here."""
    found: Attributes = {}
    unpack, end = _HEADER.unpack_from, len(data)
    while start + 4 <= end:
        length, kind = unpack(data, start)
        if length < 4 or start + length > end:
            raise _misfit(length, kind, start, end)
        found[kind & _TYPE_MASK] = data[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


def u16(value: bytes) -> int:
    found: int = _U16.unpack_from(value)[0]
    return found


def u32(value: bytes) -> int:
    found: int = _U32.unpack_from(value)[0]
    return found


def be16(value: bytes) -> int:
    found: int = _BE16.unpack_from(value)[0]
    return found


def be32(value: bytes) -> int:
    found: int = _BE32.unpack_from(value)[0]
    return found


def s32(value: bytes) -> int:
    found: int = _S32.unpack_from(value)[0]
    return found


def text(value: bytes) -> str:
    """Up to the NUL. Names in the kernel are bytes; one that is not UTF-8 is shown as it can be."""
    return value.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def _misfit(length: int, kind: int, start: int, end: int) -> ValueError:
    return ValueError(f"netlink attribute {kind & _TYPE_MASK} of {length} bytes at {start} of {end}")
