"""Pure: what a network may ask of the VFs of a pool.

The administrator of the node sets the limits; whoever writes a network configuration is held to them.
What is not asked for counts as what the VF then may do: without `vlan` a pod is on the untagged network and
may tag frames by itself, without `max_tx_rate` it sends as fast as it can.
"""

import re
from typing import Annotated

import msgspec

from sriov_cni.attachment import Asked
from vf_manager.errors import InvalidInput, Refused
from vf_manager.meaning import meaning
from vf_manager.model import VfChange, VlanProto

_RANGE = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
_VLAN_MAX = 4094
_KEY_OF = {"qos": "vlanQoS", "proto": "vlanProto"}
_UNSAID = {"qos": 0, "proto": VlanProto.DOT1Q}  # what `vlan` alone means, too


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What a network, whoever wrote it, may ask of the VFs of a pool. What is left out is not limited."""

    vlans: Annotated[
        tuple[int | str, ...] | None,
        meaning(
            'VLANs and ranges of them within 0-4094, like `["100-199", 300]`; 0 is the untagged network,'
            " which is also what a network without `vlan` asks for"
        ),
    ] = None
    trust: Annotated[bool | None, meaning("`false` refuses `trust: on`")] = None
    spoofchk_off: Annotated[bool | None, meaning("`false` refuses `spoofchk: off`")] = None
    mac: Annotated[bool | None, meaning("`false` refuses a MAC, wherever it is asked for")] = None
    max_tx_rate_mbps: Annotated[
        int | None, meaning("refuses a higher `max_tx_rate` in Mbit/s, and none", low=1)
    ] = None
    mtu: Annotated[int | None, meaning("refuses a larger `mtu`", low=68, high=65535)] = None
    host_link: Annotated[bool | None, meaning("`false` refuses `hostLink`, a way to the node")] = None


def check_limits(limits: Limits, key: str) -> None:
    """Raises InvalidInput that names the key below `key`."""
    for index, entry in enumerate(limits.vlans or ()):
        _parse_range(entry, f"{key}.vlans[{index}]")
    if limits.max_tx_rate_mbps is not None and limits.max_tx_rate_mbps < 1:
        raise InvalidInput(f"{key}.maxTxRateMbps", limits.max_tx_rate_mbps, "a rate of 1 Mbit/s or more")
    if limits.mtu is not None and not 68 <= limits.mtu <= 65535:
        raise InvalidInput(f"{key}.mtu", limits.mtu, "an MTU of 68-65535 bytes")


def refuse_beyond(limits: Limits, asked: Asked, pool: str) -> None:
    """Raises Refused that names what is asked for and the limit."""
    change = asked.change
    vlan, rate = change.vlan or 0, change.max_tx_rate or 0
    if limits.vlans is not None and not any(a <= vlan <= b for a, b in map(_parse_range, limits.vlans)):
        shown = ", ".join(map(str, limits.vlans)) or "none"
        what = str(vlan) if change.vlan is not None else "not given, which is the untagged network (0)"
        raise _refused("vlan", what, pool, "vlans", shown)
    if limits.trust is False and change.trust:
        raise _refused("trust", "on", pool, "trust", "false")
    if limits.spoofchk_off is False and change.spoofchk is False:
        raise _refused("spoofchk", "off", pool, "spoofchkOff", "false")
    if limits.mac is False and asked.mac is not None:
        raise _refused("mac", asked.mac, pool, "mac", "false")
    if limits.max_tx_rate_mbps is not None and not 0 < rate <= limits.max_tx_rate_mbps:
        what = str(rate) if rate else "not given or 0, which is no limit"
        raise _refused("max_tx_rate", what, pool, "maxTxRateMbps", str(limits.max_tx_rate_mbps))
    if limits.mtu is not None and (asked.mtu or 0) > limits.mtu:
        raise _refused("mtu", str(asked.mtu), pool, "mtu", str(limits.mtu))
    if limits.host_link is False and asked.host_link is not None:
        raise _refused("hostLink", asked.host_link, pool, "hostLink", "false")


def refuse_what_needs_a_pf(change: VfChange, who: str) -> None:
    """For a VF whose PF is not on this node. Raises Refused that names every key. A MAC is its own to set."""
    asked = [key for key, value in change.items() if key != "mac" and value != _UNSAID.get(key)]
    keys = [_KEY_OF.get(key, key) for key in asked]
    if keys:
        raise Refused(
            f"{', '.join(keys)}: only a PF can set this, and {who} has its PF outside this node (withoutPf);"
            " leave it out here and set it where the PF is"
        )


def _refused(key: str, what: str, pool: str, limit: str, value: str) -> Refused:
    return Refused(f"{key}: {what}; pool {pool} of this node has limits.{limit}: {value}")


def _parse_range(entry: int | str, key: str = "vlans") -> tuple[int, int]:
    found = _RANGE.fullmatch(str(entry))
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not 0 <= first <= last <= _VLAN_MAX:
        raise InvalidInput(key, entry, f"a VLAN or a range like 100-199, within 0 to {_VLAN_MAX}")
    return first, last
