"""Orchestrator: the two ends of a host link: the VF and its PF, or a pair of links made for it."""

from dataclasses import dataclass

from sriov_cni.ground import Ground
from sriov_cni.host_link.host_side import find_pf_end, make_pf_end, set_up
from sriov_cni.host_link.options import HostLink
from sriov_cni.host_link.plan import Linked
from vf_manager.errors import NotFound, Refused
from vf_manager.kernel.api import LinkInfo, Links, NetnsHandle
from vf_manager.model import Mac, Netdev


@dataclass(frozen=True)
class Ends:
    """`mac`: what the pod must know of the node's end, if anything."""

    host: Netdev
    pod: Netdev
    mac: Mac | None = None

    @property
    def are_up(self) -> bool:
        return self.host.up and self.pod.up


def find_ends(ground: Ground, linked: Linked) -> Ends | None:
    """As they are; None if one is missing."""
    match linked.kind:
        case HostLink.PF:
            end, vf = find_pf_end(ground, linked), ground.in_pod(linked.pci)
            return Ends(end.netdev, vf, end.netdev.mac) if end and vf else None
        case HostLink.VETH:
            here = own_veth(ground, linked)
            there = ground.pod.read(name=linked.pod_name) if ground.pod else None
            return Ends(here.netdev, there.netdev) if here and there and _is_ours(there, linked) else None


def make_ends(ground: Ground, linked: Linked, *, six: bool) -> Ends:
    """Both up. What is there already is used. Raises SriovError."""
    netns, pod, vf = ground.pod_side(linked.pci)
    match linked.kind:
        case HostLink.PF:
            end = make_pf_end(ground, linked, six=six)
            return Ends(end.netdev, vf, end.netdev.mac)
        case HostLink.VETH:
            return _make_veth(ground, linked, netns, pod, six=six)


def remove_veth(ground: Ground, linked: Linked) -> None:
    if (here := own_veth(ground, linked)) is not None:
        ground.host.delete_link(here.netdev.ifindex)


def own_veth(ground: Ground, linked: Linked) -> LinkInfo | None:
    found = ground.host.read(name=linked.host_name)
    return found if found is not None and _is_ours(found, linked) else None


def _make_veth(ground: Ground, linked: Linked, netns: NetnsHandle, pod: Links, *, six: bool) -> Ends:
    ends = find_ends(ground, linked)
    if ends is None:
        remove_veth(ground, linked)  # the pod has renamed its end, or given it away
        if pod.name_taken(linked.pod_name):
            raise Refused(
                f"hostLink: veth: the pod already has an interface called {linked.pod_name!r};"
                " it is left as it was"
            )
        ground.host.make_veth(linked.host_name, linked.pod_name, netns, linked.mac)
        ends = find_ends(ground, linked)
    if ends is None:
        raise NotFound(f"hostLink: veth: {linked.host_name} went away as soon as it was made")
    set_up(ground.kernel, ground.host_netns, ground.host, ends.host, six=six)
    set_up(ground.kernel, netns, pod, ends.pod, six=six)
    return ends


def _is_ours(link: LinkInfo, linked: Linked) -> bool:
    return (link.kind, link.netdev.mac) == ("veth", linked.mac)
