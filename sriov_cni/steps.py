"""Orchestrator: the steps of an attachment, as data.

`plan_steps` is pure and makes the same list from the same record: ADD runs it forwards, and everything that
takes an attachment back (a failed ADD, DEL, an agent that was killed) runs the same list backwards.
`undo` never asks whether `apply` happened or how far it came: it reads, compares with the record and writes
what differs. So it can be repeated, and a crash at any point is like any other.
"""

import errno
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from sriov_cni.attachment import Asked, Attachment
from sriov_cni.device_info import remove_device_info, write_device_info
from sriov_cni.ground import Ground, wait_until
from sriov_cni.host_link.plan import linked_of
from sriov_cni.host_link.step import LinkToHost
from sriov_cni.in_pod.step import WriteRules, ruled_of
from sriov_cni.routes import plan_routes
from vf_manager.errors import Busy, KernelError, NotFound, Refused
from vf_manager.kernel.api import LinkChange, Links, RuleSpec
from vf_manager.model import IfName, Mac, Netdev, PciAddress, VfAttributes, VfChange
from vf_manager.vf_attributes import (
    VfPort,
    assign_mac,
    original_of,
    restore_macs,
    restore_vf_attributes,
    set_vf_attributes,
    set_vf_mac,
)

# A dying namespace gives its devices back from a work queue (net_namespace.c cleanup_net).
RETURN_TIMEOUT_S = 5.0
_CARRIER_TIMEOUT_S = 0.2
_PROBE_TIMEOUT_S = 0.3


class Step(Protocol):
    """`apply` may raise SriovError; `undo` raises what it could not put back, after trying all of it."""

    def describe(self) -> str: ...
    def apply(self, ground: Ground) -> None: ...
    def undo(self, ground: Ground) -> None: ...


class TakeAddresses(msgspec.Struct, frozen=True):
    container_id: str
    ifname: IfName
    kind: str

    def describe(self) -> str:
        return f"take addresses from {self.kind}"

    def apply(self, ground: Ground) -> None:
        if ground.ipam is not None:
            ground.addresses = ground.ipam.add(self.container_id, self.ifname)

    def undo(self, ground: Ground) -> None:
        if ground.ipam is not None:
            ground.ipam.delete(self.container_id, self.ifname)


class ProgramVf(msgspec.Struct, frozen=True):
    """The MAC goes first: what is sent after it finds it set, and the rest travels in one message."""

    port: VfPort
    change: VfChange
    original: VfAttributes
    original_mac: Mac | None

    def describe(self) -> str:
        what = ", ".join(f"{key} {value}" for key, value in self.change.items())
        return f"set {what} on vf {self.port.index} of {self.port.pf}"

    def apply(self, ground: Ground) -> None:
        if self.change.mac is not None:
            assign_mac(ground.kernel, ground.host, self.port, self.change.mac)
        set_vf_attributes(ground.kernel, ground.host, self.port, self.change)

    def undo(self, ground: Ground) -> None:
        before = original_of(self.original, self.change)
        if before.mac is not None:
            restore_macs(ground.kernel, ground.host, self.port, before.mac, self.original_mac)
        restore_vf_attributes(
            ground.kernel, ground.host, self.port, msgspec.structs.replace(before, mac=None)
        )


class SetLink(msgspec.Struct, frozen=True):
    """The MTU; and the MAC, if there is no PF to set it. Taking it back restores MAC and flags as well: a pod
    may have changed them by itself. Planned before ProgramVf, so that its undo comes when no administrative
    MAC forbids the VF its own any more."""

    pci: PciAddress
    mtu: int | None
    original: Netdev
    mac: Mac | None = None

    def describe(self) -> str:
        asked = [f"{key} {value}" for key, value in (("mtu", self.mtu), ("mac", self.mac)) if value]
        return f"set {', '.join(asked)} on {self.pci}" if asked else f"leave the mtu of {self.pci} as it is"

    def apply(self, ground: Ground) -> None:
        if self.mtu is not None:
            self._set_mtu(ground, self.mtu)
        if self.mac is not None:
            self._set_mac(ground, self.mac)

    def undo(self, ground: Ground) -> None:
        self._set_mtu(ground, self.original.mtu)
        set_vf_mac(ground.kernel, ground.host, self.pci, self.original.mac)
        netdev = ground.in_host(self.pci)
        flags = (self.original.promisc, self.original.allmulti)
        if netdev is not None and (netdev.promisc, netdev.allmulti) != flags:
            ground.host.set_link(netdev.ifindex, LinkChange(promisc=flags[0], allmulti=flags[1]))

    def _set_mac(self, ground: Ground, mac: Mac) -> None:
        try:
            set_vf_mac(ground.kernel, ground.host, self.pci, mac)
        except KernelError as e:
            hint = "the VF's PF, which is not on this node, may hold it to the MAC that it has"
            raise KernelError(f"set mac {mac} on {self.original.name} ({self.pci})", e.code, hint) from e

    def _set_mtu(self, ground: Ground, mtu: int) -> None:
        netdev = ground.in_host(self.pci)
        if netdev is not None and netdev.mtu != mtu:
            ground.host.set_link(netdev.ifindex, LinkChange(mtu=mtu))


class HideAltnames(msgspec.Struct, frozen=True):
    """An altname that is taken in the target makes a move fail, and none of the host's belongs in a pod."""

    pci: PciAddress
    names: tuple[str, ...]

    def describe(self) -> str:
        return f"remove altnames {', '.join(self.names)} of {self.pci}"

    def apply(self, ground: Ground) -> None:
        if netdev := ground.in_host(self.pci):
            ground.host.remove_altnames(netdev.ifindex, netdev.altnames)

    def undo(self, ground: Ground) -> None:
        if netdev := ground.in_host(self.pci):
            ground.host.add_altnames(netdev.ifindex, [n for n in self.names if n not in netdev.altnames])


class MoveToPod(msgspec.Struct, frozen=True):
    pci: PciAddress
    original: Netdev
    ifname: IfName

    def describe(self) -> str:
        return f"move {self.original.name} ({self.pci}) into the pod as {self.ifname}"

    def apply(self, ground: Ground) -> None:
        netdev = ground.in_host(self.pci)
        if netdev is None or ground.pod_netns is None:
            raise Busy(f"the interface of VF {self.pci} left the host before it could be moved; try again")
        ground.host.move(netdev.ifindex, ground.pod_netns, self.ifname)

    def undo(self, ground: Ground) -> None:
        if ground.in_host(self.pci) is None and not self._bring_back(ground):
            return
        netdev = self._rename_back(ground)
        if netdev is not None and netdev.up != self.original.up:
            ground.host.set_link(netdev.ifindex, LinkChange(up=self.original.up))

    def _bring_back(self, ground: Ground) -> bool:
        """Out of the pod, or out of the hands of a dying namespace. False: there is no such interface any
        more, the device or its driver is gone."""
        netdev = ground.in_pod(self.pci)
        if netdev is not None and ground.pod is not None:
            ground.pod.remove_altnames(netdev.ifindex, netdev.altnames)
            name = self.original.name
            if ground.host.name_taken(name):
                name = IfName(f"vf{netdev.ifindex}")
            ground.pod.move(netdev.ifindex, ground.host_netns, name)
            return True
        if self._has_no_interface(ground):
            return False
        if wait_until(lambda: ground.in_host(self.pci) is not None, RETURN_TIMEOUT_S):
            return True
        if self._has_no_interface(ground):
            return False
        raise Busy(
            f"the interface of VF {self.pci} is in a network namespace that cannot be reached; try again"
        )

    def _has_no_interface(self, ground: Ground) -> bool:
        function = ground.kernel.read_function(self.pci)
        return function is None or function.driver is None or function.driver == "vfio-pci"

    def _rename_back(self, ground: Ground) -> Netdev | None:
        """udev may give a device that comes back an altname, even this very name, at any moment."""
        name = self.original.name
        for attempt in range(3):
            netdev = ground.in_host(self.pci)
            if netdev is None or netdev.name == name:
                return netdev
            try:
                ground.host.remove_altnames(netdev.ifindex, netdev.altnames)
                ground.host.set_link(netdev.ifindex, LinkChange(name=name))
            except KernelError as e:
                if e.code != errno.EEXIST or attempt == 2:
                    hint = (
                        f"another interface is called {name} now; rename it" if e.code == errno.EEXIST else ""
                    )
                    raise KernelError(
                        f"rename {netdev.name} ({self.pci}) back to {name}", e.code, hint
                    ) from e
        return ground.in_host(self.pci)


class SetUpInPod(msgspec.Struct, frozen=True):
    """Sysctls, addresses, link up, routes. Leaving the namespace undoes it all: the kernel drops addresses
    and routes, and sysctls of an interface are made anew in the next namespace."""

    pci: PciAddress
    ifname: IfName
    asked: Asked

    def describe(self) -> str:
        return f"bring {self.ifname} up in the pod with its addresses and routes"

    def apply(self, ground: Ground) -> None:
        netns, pod, netdev = ground.pod_side(self.pci)
        addresses = [ip.address for ip in ground.addresses.ips]
        sysctls = _sysctls(self.ifname, addresses, shared=self.asked.table is not None)
        ground.kernel.write_sysctls(netns, sysctls)
        change = LinkChange(up=True, promisc=self.asked.promisc, allmulti=self.asked.allmulti)
        if self.asked.probe and addresses:
            pod.set_link(netdev.ifindex, change)
            _refuse_duplicates(ground, self.pci, addresses)
        for address in addresses:
            pod.add_address(netdev.ifindex, address)
        pod.set_link(netdev.ifindex, change)
        for route in plan_routes(ground.addresses, self.asked):
            pod.add_route(netdev.ifindex, route)

    def undo(self, ground: Ground) -> None:
        """Nothing: see above."""


class AddRules(msgspec.Struct, frozen=True):
    """Policy rules, in a pod with several VFs: an answer leaves by the VF whose address was asked."""

    table: int

    def describe(self) -> str:
        return f"send what comes from the VF's addresses by table {self.table}"

    def apply(self, ground: Ground) -> None:
        if ground.pod is None:
            raise NotFound("the pod's network namespace is gone")
        for ip in ground.addresses.ips:
            source = str(ipaddress.ip_network(ipaddress.ip_interface(ip.address).ip))
            ground.pod.add_rule(RuleSpec(source=source, table=self.table, priority=self.table))

    def undo(self, ground: Ground) -> None:
        if ground.pod is not None:
            for rule in ground.pod.rules():
                if rule.table == rule.priority == self.table:
                    ground.pod.remove_rule(rule)


class WriteDeviceInfo(msgspec.Struct, frozen=True):
    pci: PciAddress
    path: str

    def describe(self) -> str:
        return f"write {self.path}"

    def apply(self, ground: Ground) -> None:
        write_device_info(Path(self.path), self.pci)

    def undo(self, ground: Ground) -> None:
        remove_device_info(Path(self.path), self.pci)


class Announce(msgspec.Struct, frozen=True):
    """Best effort: who is not told now learns it by ARP or neighbour discovery.

    IPv6 addresses are announced by the kernel (ndisc_notify), after duplicate address detection: an
    advertisement that comes back before its end, from a NIC or a wire that echoes, fails it (ndisc_recv_na).
    """

    pci: PciAddress

    def describe(self) -> str:
        return "announce the addresses on the wire"

    def apply(self, ground: Ground) -> None:
        netns, pod, netdev = ground.pod_side(self.pci)
        if not netdev.carrier:
            wait_until(lambda: _has_carrier(pod, netdev.ifindex), _CARRIER_TIMEOUT_S)
        four = [ip.address for ip in ground.addresses.ips if ":" not in ip.address]
        try:
            ground.kernel.announce(netns, netdev, four)
        except KernelError:
            return

    def undo(self, ground: Ground) -> None:
        """Nothing: neighbours forget."""


def plan_steps(attachment: Attachment) -> tuple[Step, ...]:
    """Every step of this attachment, in the order of ADD. Only what is asked for and differs is touched."""
    original, asked, pci = attachment.original, attachment.asked, attachment.port.pci
    netdev = original.netdev
    steps: list[Step] = []
    if attachment.lease is not None:
        steps.append(TakeAddresses(attachment.container_id, attachment.ifname, attachment.lease.kind))
    if netdev is not None:
        steps.append(SetLink(pci, asked.mtu, netdev, None if attachment.port.pf else asked.mac))
    if original.attributes is not None and not asked.change.is_empty():
        own_mac = netdev.mac if netdev else None
        steps.append(ProgramVf(attachment.port, asked.change, original.attributes, own_mac))
    if asked.device_info is not None:
        steps.append(WriteDeviceInfo(pci, asked.device_info))
    if netdev is None:
        return tuple(steps)
    if netdev.altnames:
        steps.append(HideAltnames(pci, netdev.altnames))
    steps.append(MoveToPod(pci, netdev, attachment.ifname))
    if (ruled := ruled_of(attachment)) is not None:
        steps.append(WriteRules(attachment.sandbox, ruled))
    steps.append(SetUpInPod(pci, attachment.ifname, asked))
    if asked.table is not None:
        steps.append(AddRules(asked.table))
    if (linked := linked_of(attachment)) is not None:
        steps.append(LinkToHost(linked))
    if attachment.lease is not None:
        steps.append(Announce(pci))
    return tuple(steps)


def _sysctls(ifname: str, addresses: Sequence[str], *, shared: bool) -> list[tuple[str, str]]:
    """Documentation/networking/ip-sysctl.rst. Only for families in use: a pod may have no IPv6. `shared`: the
    pod has several VFs, maybe on one wire; each answers ARP for its own addresses alone."""
    four = f"net/ipv4/conf/{ifname}"
    found = [(f"{four}/arp_notify", "1")]
    if shared:
        found += [(f"{four}/arp_ignore", "1"), (f"{four}/arp_announce", "2")]
    if any(":" in address for address in addresses):
        six = f"net/ipv6/conf/{ifname}"
        found += [(f"{six}/disable_ipv6", "0"), (f"{six}/ndisc_notify", "1"), (f"{six}/optimistic_dad", "1")]
    return found


def _refuse_duplicates(ground: Ground, pci: PciAddress, addresses: Sequence[str]) -> None:
    """Raises Busy with what was found. The next ADD gets another address from host-local: it goes round."""
    netns, pod, netdev = ground.pod_side(pci)
    wait_until(lambda: _has_carrier(pod, netdev.ifindex), _CARRIER_TIMEOUT_S)
    holders = ground.kernel.find_holders(netns, netdev, addresses, _PROBE_TIMEOUT_S)
    if holders:
        found = ", ".join(f"{address} is in use by {mac}" for address, mac in holders.items())
        raise Busy(f"ipam.probe: {found} on the network of VF {pci}")


def _has_carrier(links: Links, ifindex: int) -> bool:
    link = links.read(ifindex=ifindex)
    return link is None or link.netdev.carrier


def refuse_taken_name(pod: Links, ifname: IfName) -> None:
    """Raises Refused if the pod has an interface or altname of this name: it is not ours to touch."""
    if pod.name_taken(ifname):
        raise Refused(f"CNI_IFNAME: the pod already has an interface called {ifname!r}; it is left as it was")
