"""Pure: addresses as text and as octets. The C library reads and writes them: a cluster has many."""

import socket


def pack_address(address: str) -> bytes | None:
    """4 or 16 octets; None if it is not an address. A scope (`%eth0`) makes it none."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    except (OSError, ValueError):  # ValueError: a NUL in it
        return None


def unpack_address(octets: bytes) -> str:
    """In the one form that is used in comparisons: RFC 5952 for IPv6."""
    return socket.inet_ntop(socket.AF_INET6 if len(octets) == 16 else socket.AF_INET, octets)


def canonical_address(address: str) -> str | None:
    octets = pack_address(address)
    return None if octets is None else unpack_address(octets)
