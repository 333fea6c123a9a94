"""Pure: the options of a VF in a network config, with the meaning they have in sriov-cni."""

from sriov_cni.attachment import Asked
from sriov_cni.fields import Fields
from sriov_cni.host_link.options import HOST_LINK_KEYS, parse_host_link
from sriov_cni.in_pod.options import IN_POD_KEYS, parse_in_pod
from vf_manager.errors import InvalidInput
from vf_manager.model import LinkState, Mac, VfChange, VlanProto

_OWN_KEYS = frozenset(
    {
        *("vlan", "vlanQoS", "vlanProto", "spoofchk", "trust", "link_state", "min_tx_rate", "max_tx_rate"),
        *("mtu", "promisc", "allmulti"),
    }
)
VF_KEYS = _OWN_KEYS | IN_POD_KEYS | HOST_LINK_KEYS


def parse_vf_options(top: Fields, mac: Mac | None = None) -> Asked:
    """`mac` may come from several places, so it is the caller's to find. Raises InvalidInput that names the
    key."""
    return Asked(
        change=_parse_change(top, mac),
        mac=mac,
        mtu=top.integer("mtu", 68, 65535),  # 68: the least that IPv4 works with (RFC 791)
        promisc=top.switch("promisc"),
        allmulti=top.switch("allmulti"),
        probe=_parse_probe(top),
        in_pod=parse_in_pod(top),
        host_link=parse_host_link(top),
    )


def _parse_probe(top: Fields) -> bool:
    """`ipam.probe`, for any kind of IPAM: it is the VF that asks the wire."""
    ipam = top.child("ipam")
    return bool(ipam and ipam.boolean("probe"))


def _parse_change(top: Fields, mac: Mac | None) -> VfChange:
    vlan, qos, proto = _parse_vlan(top)
    min_rate, max_rate = _parse_rates(top)
    link_state = top.choice("link_state", tuple(LinkState))
    return VfChange(
        mac=mac,
        vlan=vlan,
        qos=qos,
        proto=proto,
        spoofchk=top.switch("spoofchk"),
        trust=top.switch("trust"),
        min_tx_rate=min_rate,
        max_tx_rate=max_rate,
        link_state=LinkState(link_state) if link_state else None,
    )


def _parse_vlan(top: Fields) -> tuple[int | None, int | None, VlanProto | None]:
    """All three or none: they are one kernel attribute. VLAN 0 actively programs "no VLAN"."""
    vlan = top.integer("vlan", 0, 4094)
    qos = top.integer("vlanQoS", 0, 7)
    proto = top.choice("vlanProto", tuple(VlanProto), fold=True)
    if vlan is None:
        for key, value in (("vlanQoS", qos), ("vlanProto", proto)):
            if value is not None:
                raise InvalidInput(key, value, "the key vlan beside it")
        return None, None, None
    if vlan == 0 and qos:
        raise InvalidInput("vlanQoS", qos, "0 when vlan is 0: an untagged frame has no priority")
    if vlan == 0 and proto == VlanProto.DOT1AD:
        raise InvalidInput("vlanProto", proto, "802.1q when vlan is 0: there is no outer tag")
    return vlan, qos or 0, VlanProto(proto or VlanProto.DOT1Q)


def _parse_rates(top: Fields) -> tuple[int | None, int | None]:
    """Mbit/s, both or none: they are one kernel attribute, and with one alone somebody would have to guess
    the other. A maximum of 0 means no limit."""
    low = top.integer("min_tx_rate", 0, 2**32 - 1)
    high = top.integer("max_tx_rate", 0, 2**32 - 1)
    for key, value, other in (("min_tx_rate", low, high), ("max_tx_rate", high, low)):
        if value is not None and other is None:
            missing = "max_tx_rate" if key == "min_tx_rate" else "min_tx_rate"
            raise InvalidInput(top.path_of(key), value, f"the key {missing} beside it (0: no limit)")
    if low is not None and high and low > high:
        raise InvalidInput(
            "min_tx_rate", low, f"at most max_tx_rate ({high}), or a max_tx_rate of 0 (no limit)"
        )
    return low, high
