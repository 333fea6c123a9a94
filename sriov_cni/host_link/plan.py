"""Pure: the link between the node and one attachment, piece by piece.

Decisions:
- The node's routes to its pods are in a table of their own, which only what the node itself sends looks up
  (`iif lo`). What it forwards, of other pods or of a Service, goes its usual way.
- Each attachment has a mark, derived from its name: the metric of all routes of its link, and the number of
  its table in the pod. So what belongs to it is known without its addresses, which a half-done ADD has not
  noted.
- In the pod what comes from the VF's address goes to the node's addresses by the link, by a rule before all
  others. What has no address yet goes so only where it left by the VF before: beside a VF the pod may have an
  eth0 of the cluster network, and the way to the node by it stays.
"""

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from sriov_cni.attachment import Attachment, Wanted
from sriov_cni.host_link.options import HostLink
from sriov_cni.ipam.config import IpamResult
from vf_manager.errors import Refused
from vf_manager.model import IfName, Mac, PciAddress, Vf, VlanProto

HOST_TABLE = 7240  # of the node's namespace, and the priority of the rule that leads there
POD_PRIORITY = 50  # of the rules in the pod: before those of its VFs (sriov_cni/pod_attach.py)
PREFIX = "hlk"  # all links that are made on the node begin so
_IFNAMSIZ = 15


class Linked(msgspec.Struct, frozen=True, kw_only=True):
    """One attachment that has a host link. `vlan` None: the VF is on the untagged network."""

    kind: HostLink
    key: str
    pci: PciAddress
    pf: PciAddress | None
    ifname: IfName
    vlan: int | None = None
    proto: VlanProto = VlanProto.DOT1Q

    @property
    def mark(self) -> int:
        return int(_digest(self.key)[:8], 16) | 0x8000_0000

    @property
    def mac(self) -> Mac:
        """Of both ends of a veth."""
        return Mac(f"02:{bytes.fromhex(_digest(self.key)[:10]).hex(':')}")

    @property
    def host_name(self) -> IfName:
        """Of the veth on the node."""
        return IfName(PREFIX + _digest(self.key)[:12])

    @property
    def pod_name(self) -> IfName:
        """Of the veth in the pod: `host-eth0`."""
        return pod_link_name(self.ifname)

    @property
    def vlan_name(self) -> IfName:
        """Of the link for the VLAN that is shared by the pods of one PF: `hlk-100.3b9c04`."""
        return IfName(f"{PREFIX}-{self.vlan}.{_digest(f'{self.pf} {self.proto}')[:6]}")


class HostRoute(msgspec.Struct, frozen=True):
    """To an address of the pod. `source`: IPv4 alone; IPv6 chooses by RFC 6724."""

    ifindex: int
    dst: str
    source: str | None

    def describe(self) -> str:
        return f"route of the node to {self.dst}"


class PodRoute(msgspec.Struct, frozen=True):
    """To an address of the node. `table` None: the main one."""

    dst: str
    table: int | None
    source: str | None

    def describe(self) -> str:
        return f"route of the pod to {self.dst}" + (" by its address" if self.table else "")


class PodRule(msgspec.Struct, frozen=True):
    source: str

    def describe(self) -> str:
        return f"rule of the pod for {self.source}"


class Neighbour(msgspec.Struct, frozen=True):
    """Of the node's in the pod. The node answers for an address by IPv6 only where it has it."""

    address: str
    mac: Mac

    def describe(self) -> str:
        return f"neighbour {self.address} at {self.mac} in the pod"


Piece = HostRoute | PodRoute | PodRule | Neighbour


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """The node as its pod is to see it. `addresses`: with the link that has each, in the order of links.
    `by_link`: those that leave the pod by the VF anyway. `mac`: where it is found, if that must be said."""

    ifindex: int
    addresses: Mapping[str, int]
    by_link: frozenset[str]
    mac: Mac | None = None


def refuse_unlinkable(wanted: Wanted, vf: Vf) -> None:
    """Raises Refused that says why there can be no link."""
    kind = wanted.asked.host_link
    if kind is None:
        return
    if vf.netdev is None:
        raise Refused(
            f"hostLink: {kind}: VF {vf.pci} (driver {vf.driver}) has no network interface;"
            " leave it out for this pool"
        )
    if wanted.ipam is None:
        raise Refused(f"hostLink: {kind}: network {wanted.network} gives no addresses; ipam is missing")
    if kind is HostLink.PF and vf.pf_pci is None:
        raise Refused(f"hostLink: pf: the PF of VF {vf.pci} is not on this node (withoutPf); use veth")


def linked_of(record: Attachment) -> Linked | None:
    """None: no link is asked for."""
    asked, attributes = record.asked, record.original.attributes
    if asked.host_link is None or record.original.netdev is None:
        return None
    vlan, proto = asked.change.vlan, asked.change.proto
    if vlan is None and attributes is not None:
        vlan, proto = attributes.vlan, attributes.proto
    return Linked(
        kind=asked.host_link,
        key=record.key,
        pci=record.port.pci,
        pf=record.port.pf,
        ifname=record.ifname,
        vlan=vlan or None,
        proto=proto or VlanProto.DOT1Q,
    )


def pod_link_name(ifname: str) -> IfName:
    return IfName(f"host-{ifname}"[:_IFNAMSIZ])


def pod_addresses(given: IpamResult) -> list[str]:
    """Without prefix, one spelling for each."""
    return [str(ipaddress.ip_interface(ip.address).ip) for ip in given.ips]


def plan_pieces(linked: Linked, given: IpamResult, node: Node) -> list[Piece]:
    """In the order in which they are put in place: the node's routes come last, when the pod can answer."""
    own = pod_addresses(given)
    peers = [a for a in node.addresses if a not in own and any(is_six(a) == is_six(o) for o in own)]
    pieces: list[Piece] = [PodRule(cidr(address)) for address in own]
    if node.mac is not None:
        gateways = _gateways(given)
        pieces += [Neighbour(address, node.mac) for address in peers if address not in gateways]
    for address in peers:
        source = None if is_six(address) else _first_four(own)
        pieces.append(PodRoute(cidr(address), linked.mark, source))
        if address in node.by_link:
            pieces.append(PodRoute(cidr(address), None, source))
    return pieces + [HostRoute(node.ifindex, cidr(a), _host_source(a, node)) for a in own]


def cidr(address: str) -> str:
    return f"{address}/{128 if is_six(address) else 32}"


def is_six(address: str) -> bool:
    return ":" in address


def _host_source(pod_address: str, node: Node) -> str | None:
    """Of the link itself, else of the first of the node's links. IPv6: a source must not be tentative."""
    if is_six(pod_address):
        return None
    four = [a for a in node.addresses if not is_six(a) and not ipaddress.ip_address(a).is_link_local]
    own = [address for address in four if node.addresses[address] == node.ifindex]
    return _first_four([*own, *four])


def _first_four(addresses: Sequence[str]) -> str | None:
    return next((address for address in addresses if not is_six(address)), None)


def _gateways(given: IpamResult) -> frozenset[str]:
    """They are on the pod's network, and answer for themselves, maybe by another link than the PF."""
    said: Iterable[str | None] = [*(ip.gateway for ip in given.ips), *(route.gw for route in given.routes)]
    return frozenset(str(ipaddress.ip_address(gateway)) for gateway in said if gateway)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
