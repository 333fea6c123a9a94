"""Orchestrator: what the links of all pods share on the node: a rule, a guard, and links for VLANs.

To be called with `Ground.host_lock` held: the first makes it, and the last takes it away.
"""

from collections.abc import Iterable

from sriov_cni.ground import Ground
from sriov_cni.host_link.plan import HOST_TABLE, PREFIX, Linked
from vf_manager.discovery import host_link
from vf_manager.errors import NotFound, Refused
from vf_manager.kernel.api import Kernel, LinkChange, LinkInfo, Links, NetnsHandle, RuleSpec
from vf_manager.kernel.nft import Base, Chain, Field, Hook, Is, Table, Verdict, VerdictKind
from vf_manager.model import IfName, Netdev, VlanProto

GUARD = "sriov_underlay_links"
_SYSCTLS = (("forwarding", "0"), ("accept_redirects", "0"), ("rp_filter", "1"))  # of IPv4

# A pod, or a machine on its VLAN, reaches the node by such a link, and nothing behind the node.
_GUARD = Table(
    name=GUARD,
    chains={
        "forward": Chain(
            rules=((Is(Field.IIFNAME, PREFIX.encode()), Verdict(VerdictKind.DROP)),),
            base=Base("filter", Hook.FORWARD, 0),
        )
    },
)


def host_rule(*, six: bool) -> RuleSpec:
    return RuleSpec(
        source="::/0" if six else "0.0.0.0/0", table=HOST_TABLE, priority=HOST_TABLE, iif=IfName("lo")
    )


def missing_shared(ground: Ground, families: Iterable[bool]) -> list[str]:
    """One line for each thing. `families`: True for IPv6."""
    there = ground.host.rules()
    lines = [
        f"rule of the node for table {HOST_TABLE} (IPv{6 if six else 4})"
        for six in families
        if host_rule(six=six) not in there
    ]
    guarded = GUARD in ground.kernel.nft_tables(ground.host_netns)
    return lines if guarded else [*lines, f"nftables table {GUARD} of the node"]


def make_shared(ground: Ground, families: Iterable[bool]) -> None:
    if GUARD not in ground.kernel.nft_tables(ground.host_netns):
        ground.kernel.apply_nft(ground.host_netns, None, _GUARD)
    there = ground.host.rules()
    for six in families:
        if host_rule(six=six) not in there:
            ground.host.add_rule(host_rule(six=six))


def remove_shared(ground: Ground) -> None:
    """If no link of any pod is left."""
    if ground.host.routes_of(HOST_TABLE):
        return
    for rule in ground.host.rules():
        if rule in (host_rule(six=False), host_rule(six=True)):
            ground.host.remove_rule(rule)
    if GUARD in ground.kernel.nft_tables(ground.host_netns):
        ground.kernel.delete_nft_table(ground.host_netns, GUARD)


def find_pf_end(ground: Ground, linked: Linked) -> LinkInfo | None:
    """The PF, or a link for the VLAN on it, be it ours or not."""
    netdev = host_link(ground.kernel, ground.host, linked.pf) if linked.pf else None
    if netdev is None or linked.vlan is None:
        return ground.host.read(ifindex=netdev.ifindex) if netdev else None
    own = own_vlan(ground, linked)
    if own is not None or linked.proto is not VlanProto.DOT1Q:
        return own
    return next((i for i in ground.host.dump() if (i.lower, i.vlan) == (netdev.ifindex, linked.vlan)), None)


def make_pf_end(ground: Ground, linked: Linked, *, six: bool) -> LinkInfo:
    """Up. Raises NotFound, Refused and KernelError."""
    end = find_pf_end(ground, linked)
    if end is None and linked.vlan is not None:
        _make_vlan(ground, linked)
        end = find_pf_end(ground, linked)
    if end is None:
        raise NotFound(f"hostLink: pf: PF {linked.pf} has no network interface on the node")
    name = end.netdev.name
    if end.master is not None:
        raise Refused(f"hostLink: pf: {name} is a port of a bridge or bond, which has its traffic; use veth")
    if name == linked.vlan_name:
        set_up(ground.kernel, ground.host_netns, ground.host, end.netdev, six=six)
    elif not end.netdev.up:
        raise Refused(f"hostLink: pf: {name} of the node is down; set it up, or use veth")
    return end


def remove_vlan(ground: Ground, linked: Linked) -> None:
    """Ours, if no pod uses it any more."""
    own = own_vlan(ground, linked)
    if own is not None and all(i != own.netdev.ifindex for i, _ in ground.host.routes_of(HOST_TABLE)):
        ground.host.delete_link(own.netdev.ifindex)


def own_vlan(ground: Ground, linked: Linked) -> LinkInfo | None:
    found = ground.host.read(name=linked.vlan_name) if linked.vlan is not None else None
    return found if found is not None and (found.kind, found.vlan) == ("vlan", linked.vlan) else None


def _make_vlan(ground: Ground, linked: Linked) -> None:
    netdev = host_link(ground.kernel, ground.host, linked.pf) if linked.pf else None
    if netdev is not None and linked.vlan is not None:
        ground.host.make_vlan(netdev.ifindex, linked.vlan_name, linked.vlan, linked.proto)


def set_up(kernel: Kernel, netns: NetnsHandle, links: Links, netdev: Netdev, *, six: bool) -> None:
    """Nobody at the other end may tell where routes go, use the link as a way through, or send by it from an
    address that is not answered by it."""
    four, conf6 = f"net/ipv4/conf/{netdev.name}", f"net/ipv6/conf/{netdev.name}"
    sysctls = [(f"{four}/{name}", value) for name, value in _SYSCTLS]
    sysctls += [(f"{conf6}/accept_ra", "0"), (f"{conf6}/accept_redirects", "0")]
    kernel.write_sysctls(netns, [*sysctls, *([(f"{conf6}/disable_ipv6", "0")] if six else [])])
    if not netdev.up:
        links.set_link(netdev.ifindex, LinkChange(up=True))
