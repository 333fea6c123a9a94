"""Pure: the keys of a network in the agent's config, for readers and editors.

`network.py` knows no others. It reads them with the code that reads a CNI configuration: the options are the
same, and so are the errors.
"""

from typing import Annotated, Any, Literal

import msgspec

from sriov_cni.in_pod.options import Unsynced
from vf_manager.meaning import meaning
from vf_manager.model import LinkState, VlanProto

_Switch = Literal["on", "off"]
_U32 = 2**32 - 1


class NetworkKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the VFs of some pools are given in pods. What is not asked for is not touched."""

    name: Annotated[str, meaning("differs from every other network's; leases are kept by it")]
    pools: Annotated[
        tuple[str, ...],
        meaning("the VFs of these pools belong to this network; of several networks of a pool, to the first"),
    ]
    vlan: Annotated[int | None, meaning('0 programs "no VLAN"', low=0, high=4094)] = None
    vlan_qos: Annotated[int | None, meaning("needs `vlan`; 0 if left out", low=0, high=7)] = msgspec.field(
        default=None, name="vlanQoS"
    )
    vlan_proto: Annotated[VlanProto | None, meaning("needs `vlan`; `802.1q` if left out")] = msgspec.field(
        default=None, name="vlanProto"
    )
    spoofchk: Annotated[
        _Switch | None, meaning("whether the NIC drops frames from other MACs than the VF's")
    ] = None
    trust: Annotated[
        _Switch | None,
        meaning("whether the VF may change its MAC, listen to all, and more: the driver's affair"),
    ] = None
    min_tx_rate: Annotated[
        int | None, meaning("Mbit/s; only with `max_tx_rate`; 0: none is promised", low=0, high=_U32)
    ] = None
    max_tx_rate: Annotated[
        int | None, meaning("Mbit/s; only with `min_tx_rate`; 0: no limit", low=0, high=_U32)
    ] = None
    link_state: Annotated[LinkState | None, meaning("of the VF; not every driver has it")] = None
    mtu: Annotated[int | None, meaning("of the VF's interface", low=68, high=65535)] = None
    promisc: Annotated[_Switch | None, meaning("of the interface in the pod; many drivers want `trust`")] = (
        None
    )
    allmulti: Annotated[_Switch | None, meaning("of the interface in the pod; many drivers want `trust`")] = (
        None
    )
    services: Annotated[
        Literal["in-pod"] | None,
        meaning(
            "translate Services in the pod's own network namespace. Left out: they do not work by this VF"
        ),
    ] = None
    policy: Annotated[
        Literal["in-pod"] | None,
        meaning("enforce NetworkPolicy in the pod's own network namespace. Left out: none is, on this VF"),
    ] = None
    sync_timeout: Annotated[
        int | None,
        meaning("seconds that a pod waits while the cluster is not known; 5 if left out", low=0, high=30),
    ] = msgspec.field(default=None, name="syncTimeout")
    unsynced: Annotated[
        Unsynced | None,
        meaning(
            "what comes after that wait: `fail` (if left out; the runtime tries again), `start` with what was"
            " known last (of `policy`, if that is nothing: nothing is let through), `open` (then: everything)"
        ),
    ] = None
    host_link: Annotated[
        Literal["none", "pf", "veth"] | None,
        meaning(
            "how the node and its pods reach each other, for probes: `pf` by the switch in the NIC, `veth` by"
            " a pair of links beside the VF, `none` (if left out) by whatever routes there are"
        ),
    ] = msgspec.field(default=None, name="hostLink")
    ipam: Annotated[
        dict[str, Any] | None,
        meaning("addresses and routes: of `type` `host-local` or that of any plugin. Left out: no address"),
    ] = None
    dns: Annotated[
        dict[str, Any] | None,
        meaning("`nameservers`, `domain`, `search`, `options` of the result. Left out: those of the IPAM"),
    ] = None
