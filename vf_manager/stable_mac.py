"""Pure: MACs of VFs that stay the same over reboots, as `mac: stable` gives them.

They are derived from the PF's burnt-in MAC and the VF's index, and from nothing else. The burnt-in MAC is
unique in the world by the vendor's care, the same on the host and in a container, and does not change when a
disk is exchanged, a netbooted node makes up its machine-id anew, or another card shifts the bus numbers. (The
PF's present MAC is no such thing: ports of a bond share one.) VFs of a PF have consecutive MACs, so two of
them never meet; those of two PFs start at places of a space of 2^46 that a hash picks.
"""

import hashlib

from vf_manager.model import Mac

_NAMESPACE = b"sriov-underlay stable mac 1\0"
_BITS = 46  # of 48: one says "locally administered", one "unicast" (IEEE 802, clause 8)
_LOCALLY_ADMINISTERED = 0x02


def stable_mac(burnt_in: Mac, index: int) -> Mac:
    """Of the VF with this index at the PF that has this burnt-in MAC."""
    digest = hashlib.sha256(_NAMESPACE + bytes.fromhex(burnt_in.replace(":", ""))).digest()
    number = (int.from_bytes(digest[:8], "big") + index) % (1 << _BITS)
    octets = bytearray((number & ((1 << 40) - 1)).to_bytes(5, "big"))
    first = ((number >> 40) << 2) | _LOCALLY_ADMINISTERED
    return Mac(bytes([first, *octets]).hex(":"))
