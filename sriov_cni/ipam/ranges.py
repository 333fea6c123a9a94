"""Pure: ranges of addresses and the order in which they are given out.

Addresses are counted, never listed: a /64 costs the same as a /29.
"""

import ipaddress
import socket
from collections.abc import Iterable, Iterator

import msgspec

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AddressRange(msgspec.Struct, frozen=True, kw_only=True):
    """`start` to `end`, both included and both inside `subnet`. `gateway` may be outside of it."""

    subnet: Network
    start: Address
    end: Address
    gateway: Address

    def __contains__(self, address: Address) -> bool:
        return address.version == self.subnet.version and int(self.start) <= int(address) <= int(self.end)

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"

    def overlaps(self, other: "AddressRange") -> bool:
        same_family = self.subnet.version == other.subnet.version
        return same_family and int(self.start) <= int(other.end) and int(other.start) <= int(self.end)

    def reserved(self) -> set[int]:
        """Never given to a pod: the gateway, the network address (of IPv6: the subnet-router anycast
        address, RFC 4291 2.6.1) and the IPv4 broadcast address."""
        reserved = {int(self.subnet.network_address)}
        if self.gateway.version == self.subnet.version:
            reserved.add(int(self.gateway))
        if self.subnet.version == 4:
            reserved.add(int(self.subnet.broadcast_address))
        return reserved

    def with_prefix(self, address: Address | str) -> str:
        return f"{address}/{self.subnet.prefixlen}"


class RangeSet(msgspec.Struct, frozen=True, kw_only=True):
    """Ranges of one family that together give one address. `requested`: that address and no other."""

    ranges: tuple[AddressRange, ...]
    requested: Address | None = None

    def __str__(self) -> str:
        return ",".join(map(str, self.ranges))

    def range_of(self, address: Address) -> AddressRange | None:
        return next((r for r in self.ranges if address in r), None)

    def reserved(self) -> set[int]:
        return set().union(*(r.reserved() for r in self.ranges))

    @property
    def size(self) -> int:
        """How many addresses there are for pods."""
        reserved = sum(any(int(r.start) <= n <= int(r.end) for r in self.ranges) for n in self.reserved())
        return sum(int(r.end) - int(r.start) + 1 for r in self.ranges) - reserved

    def count(self, addresses: Iterable[Address]) -> int:
        """How many of these are among them."""
        reserved = self.reserved()
        return sum(self.range_of(a) is not None and int(a) not in reserved for a in addresses)

    def candidates(self, last: Address | None) -> Iterator[tuple[str, AddressRange]]:
        """Every address once, as text, round-robin: from the one after `last`, `last` itself at the end.

        So a container that fails in a loop does not see the same address again soon.
        """
        reserved = self.reserved()
        for span, low, high in self._spans(last):
            for number in range(low, high + 1):
                if number not in reserved:
                    yield address_text(number, span.subnet.version), span

    def _spans(self, last: Address | None) -> Iterator[tuple[AddressRange, int, int]]:
        current = self.range_of(last) if last is not None else None
        if last is None or current is None:
            for span in self.ranges:
                yield span, int(span.start), int(span.end)
            return
        at = self.ranges.index(current)
        yield current, int(last) + 1, int(current.end)
        for span in (*self.ranges[at + 1 :], *self.ranges[:at]):
            yield span, int(span.start), int(span.end)
        yield current, int(current.start), int(last)


def address_text(number: int, version: int) -> str:
    """The text form that Go's net.IP.String gives too: it is a file name that both must agree on."""
    if version == 4:  # the fast way: this runs once per taken address
        return socket.inet_ntoa(number.to_bytes(4, "big"))
    return str(ipaddress.IPv6Address(number))


def parse_address(text: str) -> Address | None:
    """An address, or None. IPv4-mapped IPv6 is refused: Go writes it as IPv4, so it has two names."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.version == 6 and (address.ipv4_mapped or address.scope_id):
        return None
    return address
