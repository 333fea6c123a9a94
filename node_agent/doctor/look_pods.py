"""Adapter: interfaces of attachments as they are in their pods."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from node_agent.doctor.facts import PodLink, WayOut
from sriov_cni.attachment import Attachment
from sriov_cni.in_pod.table import TABLE
from vf_manager.discovery import find_link
from vf_manager.kernel.api import Kernel, Links, NetnsHandle
from vf_manager.model import Mac, Netdev, PciAddress

_PROBE_S = 1.0
_AT_A_TIME = 32
_LOOPBACK = "lo"


def look_at_pods(
    attachments: Sequence[Attachment], kernel: Kernel, *, probe: bool
) -> dict[PciAddress, PodLink]:
    """By VF. `probe`: ask the wire for their addresses, and for the gateways of their routes: `gateway` of an
    IPAM may be one that nobody uses. All at a time, since silence takes a second."""
    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="look") as pool:
        looked = pool.map(lambda one: _look_at(one, kernel, probe), attachments)
        return {one.port.pci: link for one, link in zip(attachments, looked, strict=True) if link}


def _look_at(attachment: Attachment, kernel: Kernel, probe: bool) -> PodLink | None:
    """None: its namespace is gone, or the VF has no interface there."""
    netns = kernel.netns_at(attachment.sandbox.path)
    if netns is None:
        return None
    try:
        return _look(attachment, kernel, netns, probe) if netns.id == attachment.sandbox.id else None
    finally:
        netns.close()


def _look(attachment: Attachment, kernel: Kernel, netns: NetnsHandle, probe: bool) -> PodLink | None:
    with kernel.links(netns) as links:
        netdev = find_link(links, attachment.port.pci)
        if netdev is None:
            return None
        way_out = _way_out(links, attachment.port.pci)
        gateways = {route.gateway for route in links.routes(netdev.ifindex) if route.gateway}
        counted = next((each for each in links.traffic() if each.ifindex == netdev.ifindex), None)
    holders, silent = (
        _ask_wire(attachment, kernel, netns, netdev, gateways) if probe and netdev.up else ({}, ())
    )
    return PodLink(
        netdev=netdev,
        way_out=way_out,
        counted=counted,
        holders=holders,
        silent_gateways=silent,
        has_rules=attachment.asked.in_pod is not None and TABLE in kernel.nft_tables(netns),
    )


def _way_out(links: Links, vf: PciAddress) -> WayOut:
    """Interfaces that are PCI devices are no part of a cluster network of veths. A route by one of them
    may be to the service range alone."""
    dump = links.dump()
    parents = {link.netdev.ifindex: link.parent for link in dump}
    by_default = links.default_route_links()
    onward = {index for index in parents if any(route.gateway for route in links.routes(index))} | by_default
    others = {link.netdev.ifindex for link in dump if link.parent is None and link.netdev.name != _LOOPBACK}
    if onward & others:
        return WayOut.CLUSTER
    if any(parents.get(index) == vf for index in by_default):
        return WayOut.VF
    return WayOut.OTHER_VF if onward else WayOut.NONE


def _ask_wire(
    attachment: Attachment, kernel: Kernel, netns: NetnsHandle, netdev: Netdev, gateways: set[str]
) -> tuple[dict[str, Mac], tuple[str, ...]]:
    """Who else has the addresses, and which of the gateways nobody has."""
    own = [ip.address for ip in attachment.result.ips] if attachment.result else []
    asked = {f"{gateway}/{128 if ':' in gateway else 32}": gateway for gateway in gateways}
    if not own and not asked:
        return {}, ()
    answered = kernel.find_holders(netns, netdev, [*own, *asked], _PROBE_S)
    holders = {address: answered[address] for address in own if address in answered}
    return holders, tuple(sorted(gateway for cidr, gateway in asked.items() if cidr not in answered))
