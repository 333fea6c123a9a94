"""Pure: what a network asks for between the node and its pods: `hostLink`."""

from enum import StrEnum

from sriov_cni.fields import Fields

HOST_LINK_KEYS = frozenset({"hostLink"})
_NONE = "none"


class HostLink(StrEnum):
    """`PF`: by the switch in the NIC. `VETH`: by a pair of links beside the VF."""

    PF = "pf"
    VETH = "veth"


def parse_host_link(top: Fields) -> HostLink | None:
    """Raises InvalidInput that names the key."""
    asked = top.choice("hostLink", (_NONE, *HostLink))
    return None if asked in (None, _NONE) else HostLink(asked)
