"""Pure: an nftables table as data, for one network namespace.

Named sets and maps hold all that changes; chains hold few rules, which say nothing of single services or
peers. So a change of the data is a difference of elements, and rules are written once.

Names and numbers as in include/uapi/linux/netfilter/nf_tables.h; what each statement means in nft's own
language is said with it. Values are bytes as they are on the wire: numbers in network byte order, addresses
of 4 or 16 octets, interface names padded with zeros to 16 (IFNAMSIZ).
"""

from collections.abc import Mapping
from enum import IntEnum, StrEnum

import msgspec


class Field(StrEnum):
    """What a rule reads of a packet, by its name in nft's language."""

    NFPROTO = "meta nfproto"
    L4PROTO = "meta l4proto"
    IIFNAME = "iifname"
    OIFNAME = "oifname"
    CT_STATE = "ct state"
    SADDR4 = "ip saddr"
    DADDR4 = "ip daddr"
    SADDR6 = "ip6 saddr"
    DADDR6 = "ip6 daddr"
    DPORT = "th dport"
    ICMPV6_TYPE = "icmpv6 type"


class Random(msgspec.Struct, frozen=True):
    """`numgen random mod N`: four octets, as the kernel's own number (host byte order)."""

    modulus: int


Key = tuple[Field | Random, ...]


class Type(StrEnum):
    """Of a part of a key or a value. In a concatenation each takes a multiple of four octets."""

    IPV4_ADDR = "ipv4_addr"
    IPV6_ADDR = "ipv6_addr"
    INET_PROTO = "inet_proto"
    INET_SERVICE = "inet_service"
    IFNAME = "ifname"
    MARK = "mark"  # a number of the kernel's own, in host byte order
    VERDICT = "verdict"


class VerdictKind(StrEnum):
    ACCEPT = "accept"
    DROP = "drop"
    RETURN = "return"
    JUMP = "jump"
    GOTO = "goto"


class Verdict(msgspec.Struct, frozen=True):
    """`chain` only with JUMP and GOTO. As a statement it ends the rule."""

    kind: VerdictKind
    chain: str = ""


class Is(msgspec.Struct, frozen=True):
    """`FIELD == VALUE`, or `!=`."""

    field: Field
    value: bytes
    negate: bool = False


class Within(msgspec.Struct, frozen=True):
    """`FIELD LOW-HIGH`, both included."""

    field: Field
    low: bytes
    high: bytes


class CtState(msgspec.Struct, frozen=True):
    """`ct state established,related`: any of these bits (NF_CT_STATE_BIT)."""

    bits: int


class In(msgspec.Struct, frozen=True):
    """`KEY @SET`, or `!= @SET`."""

    key: Key
    set: str
    negate: bool = False


class VerdictMap(msgspec.Struct, frozen=True):
    """`KEY vmap @MAP`. Not in it: the next rule."""

    key: Key
    map: str


class Dnat(msgspec.Struct, frozen=True):
    """`dnat ip to KEY map @MAP`, whose values are address . port. Not in it: the next rule. With `remember`
    the choice is noted in that map instead of an earlier one, under the key without its random part, which is
    the last, for `timeout_s`."""

    family: int  # socket.AF_INET, AF_INET6
    key: Key
    map: str
    remember: str = ""
    timeout_s: int = 0


class DnatRemembered(msgspec.Struct, frozen=True):
    """The choice that `Dnat` has noted, once more, if KEY . address . port is in the set `live`; the time
    begins anew. Is it not in it, the next rule is read: a `Dnat` that notes another."""

    family: int
    key: Key
    remember: str
    live: str
    timeout_s: int


class Reject(msgspec.Struct, frozen=True):
    """`reject with icmpx port-unreachable`, or `reject with tcp reset`. A datagram that the pod itself sends
    is refused by EPERM, and by ECONNREFUSED after that; a connection at once only by the reset."""

    tcp_reset: bool = False


Statement = Is | Within | CtState | In | VerdictMap | Dnat | DnatRemembered | Reject | Verdict
Rule = tuple[Statement, ...]


class Hook(IntEnum):
    """NF_INET_*."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


class Base(msgspec.Struct, frozen=True):
    """Makes a chain one that the kernel calls. `kind`: `filter` or `nat`. The policy is always accept."""

    kind: str
    hook: Hook
    priority: int


class Chain(msgspec.Struct, frozen=True, weakref=True):
    rules: tuple[Rule, ...] = ()
    base: Base | None = None


class Elements(msgspec.Struct, frozen=True, kw_only=True, weakref=True):
    """A named set, or a map if `value` has types.

    `entries`: key to value; the value of a set is b"", that of a verdict map a Verdict. With `interval` a key
    is the first of a range, of one type alone, and its value the last. `dynamic`: the kernel's rules write
    into it and elements end by themselves; `entries` stay empty.
    """

    key: tuple[Type, ...]
    value: tuple[Type, ...] = ()
    interval: bool = False
    dynamic: bool = False
    entries: Mapping[bytes, bytes | Verdict] = {}


class Table(msgspec.Struct, frozen=True):
    """One table of family inet. The order of sets and chains means nothing."""

    name: str
    sets: Mapping[str, Elements] = {}
    chains: Mapping[str, Chain] = {}
