"""Pure: what the rooms may ask of the kernel, and the values of the answers.

`LinuxKernel` (kernel/linux.py) asks the running kernel. The tests' in-memory kernel answers the same
questions and passes the same contract tests (tests/kernel_contract.py).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from vf_manager.kernel.nft import Table
from vf_manager.model import IfName, Mac, Netdev, PciAddress, VfAttributes, VfChange, VlanProto


class NetnsId(msgspec.Struct, frozen=True):
    """(device, inode) of the nsfs file: tells one network namespace from all others (man 7 namespaces)."""

    dev: int
    ino: int


class PciFunction(msgspec.Struct, frozen=True, kw_only=True):
    """What sysfs says of one PCI function. `virtfns`: PCI addresses of its VFs by index."""

    pci: PciAddress
    vendor: str
    device: str
    driver: str | None = None
    numa_node: int | None = None
    iommu_group: int | None = None
    netdev_names: tuple[str, ...] = ()
    physfn: PciAddress | None = None
    total_vfs: int = 0
    num_vfs: int = 0
    autoprobe: bool = True
    virtfns: tuple[tuple[int, PciAddress], ...] = ()
    lone: bool = False  # a NIC with neither a PF nor an SR-IOV capability: maybe a VF whose PF is elsewhere
    link_type: str | None = None  # what its PCI class says: "ether", "infiniband"
    acpi_index: int | None = None
    pcie_root: str | None = None
    rdma_devices: tuple[str, ...] = ()
    pkey: str | None = None
    vfio_device: str | None = None
    uio_device: str | None = None


class LinkInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One link with what ties it to its device. `vfs`: by VF index, empty unless asked for.

    `kind`: "veth", "vlan", "bridge", ...; None: a driver's. `lower`: the ifindex of the link that a VLAN
    stands on. `master`: that of the bridge or bond it is a port of.
    """

    netdev: Netdev
    parent: str | None = None  # IFLA_PARENT_DEV_NAME: the PCI address, since Linux 5.14
    phys_port_name: str | None = None
    link_type: str | None = None  # "ether", "infiniband"; None: neither
    permanent_mac: Mac | None = None  # IFLA_PERM_ADDRESS, since Linux 5.6; None: it has none of six octets
    vfs: dict[int, VfAttributes] = {}
    kind: str | None = None
    lower: int | None = None
    vlan: int | None = None
    master: int | None = None


class LinkTraffic(msgspec.Struct, frozen=True, kw_only=True):
    """What one link has counted since its driver made it (struct rtnl_link_stats64, if_link.h). A link that
    moves to another namespace goes on counting."""

    ifindex: int
    name: IfName
    rx_packets: int = 0
    tx_packets: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_errors: int = 0
    tx_errors: int = 0
    rx_dropped: int = 0
    tx_dropped: int = 0


class LinkChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What to change on one link, in one message. `None` = leave as it is."""

    name: IfName | None = None
    mac: Mac | None = None
    mtu: int | None = None
    up: bool | None = None
    promisc: bool | None = None
    allmulti: bool | None = None

    def describe(self) -> str:
        """`mtu 9000, up True`."""
        pairs = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return ", ".join(f"{k} {v}" for k, v in pairs if v is not None)


class RouteSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One route. `dst`: CIDR. `gateway` None = on link. `source`: the address that its packets are sent from,
    if their sender chose none. Numbers as in rtnetlink; None = kernel default."""

    dst: str
    gateway: str | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None
    source: str | None = None


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """Where a packet goes first. `gateway` None: to the destination itself."""

    ifindex: int
    gateway: str | None = None


class RuleSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A policy rule: packets from `source` (CIDR) look in `table` first (man 8 ip-rule). `iif`: only those
    that came in by this link; `lo`: that are sent by this host itself."""

    source: str
    table: int
    priority: int
    iif: IfName | None = None


class FlowSide(msgspec.Struct, frozen=True):
    """Who sends, and where to, in one direction of a connection."""

    source: str
    source_port: int
    destination: str
    destination_port: int


class Flow(msgspec.Struct, frozen=True):
    """A connection that the kernel tracks. `reply`: as answers come, before they are translated back: its
    source is who really was sent to."""

    protocol: int  # IPPROTO_*
    original: FlowSide
    reply: FlowSide
    snat: bool = False
    dnat: bool = False


class NetnsHandle(Protocol):
    """An open network namespace."""

    @property
    def id(self) -> NetnsId: ...
    def close(self) -> None: ...


class Links(Protocol):
    """Links, VFs, addresses and routes of one network namespace. Every method raises KernelError when the
    kernel refuses. To be used by the thread that opened it."""

    def dump(self) -> list[LinkInfo]:
        """Every link, without VF data."""

    def traffic(self) -> list[LinkTraffic]:
        """What every link has counted, by one question."""

    def read(self, *, ifindex: int = 0, name: str = "", with_vfs: bool = False) -> LinkInfo | None:
        """One link by index or by its name (altnames do not count); None if there is none."""

    def name_taken(self, name: str) -> bool:
        """Whether a link has this name or altname."""

    def set_link(self, ifindex: int, change: LinkChange) -> None: ...

    def move(self, ifindex: int, target: NetnsHandle, name: IfName) -> None:
        """Move a link to another namespace and rename it there, in one message.

        EEXIST if `name` is taken in the target: the link may then be there already, under its old name.
        """

    def make_veth(self, name: IfName, peer: IfName, target: NetnsHandle, mac: Mac) -> None:
        """A pair of links, the peer in another namespace. Both are down, have this one MAC, and send each
        other all that they are given, without asking for a hardware address (IFF_NOARP)."""

    def make_vlan(self, lower: int, name: IfName, vlan: int, proto: VlanProto) -> None:
        """A link, down, for one VLAN of the link `lower`. EEXIST if that has one for it already."""

    def delete_link(self, ifindex: int) -> None:
        """A virtual one; both ends of a veth. One that is not there is no error."""

    def add_altnames(self, ifindex: int, names: Sequence[str]) -> None:
        """A name that the link has already is no error."""

    def remove_altnames(self, ifindex: int, names: Sequence[str]) -> None:
        """A name that is not there is no error."""

    def set_vf(self, pf_ifindex: int, index: int, change: VfChange) -> None:
        """Program a VF through its PF. On an error some of the attributes may have been taken."""

    def add_address(self, ifindex: int, address: str) -> None:
        """`address`: CIDR."""

    def addresses(self, ifindex: int) -> list[str]:
        """CIDRs, link-local ones included."""

    def all_addresses(self) -> list[tuple[int, str]]:
        """(ifindex, CIDR) of every link, by one question."""

    def add_route(self, ifindex: int, route: RouteSpec) -> None: ...

    def remove_route(self, ifindex: int, route: RouteSpec) -> None:
        """One that is not there is no error."""

    def routes_of(self, table: int) -> list[tuple[int, RouteSpec]]:
        """(ifindex, route): all of one table, that go by one link each."""

    def set_neighbour(self, ifindex: int, address: str, mac: Mac) -> None:
        """Whoever has this address (no prefix) on this link is not asked for its MAC: a permanent entry."""

    def remove_neighbour(self, ifindex: int, address: str) -> None:
        """One that is not there is no error."""

    def neighbours(self, ifindex: int) -> dict[str, Mac]:
        """The permanent ones, by address."""

    def find_hop(self, address: str) -> Hop | None:
        """Where a packet to this address (no prefix) would go now; None: nowhere."""

    def add_rule(self, rule: RuleSpec) -> None: ...

    def remove_rule(self, rule: RuleSpec) -> None:
        """A rule that is not there is no error."""

    def rules(self) -> list[RuleSpec]:
        """Those that match nothing but a source, or where a packet came in."""

    def routes(self, ifindex: int) -> list[RouteSpec]:
        """Of every table, those that the kernel makes by itself included. `dst` is always a CIDR; numbers
        that the kernel does not tell are None, `table` never is."""

    def has_default_route(self, ifindex: int) -> bool:
        """Whether a default route of any table and family goes by this link, be it one of several hops."""

    def default_route_links(self) -> frozenset[int]:
        """The ifindexes for which `has_default_route`, by one look at all routes."""


class KernelEvents(Protocol):
    """Hints that a NIC, its driver, a link or a default route may have changed, never which or how: look. For
    the thread that opened it."""

    @property
    def unheard(self) -> tuple[str, ...]:
        """The sources of events that could not be opened, each with the reason."""

    def wait(self, timeout_s: float) -> bool:
        """Until something may have changed since the call before (True), or the time is over."""

    def wake(self) -> None:
        """Ends a wait as an event does, the next one if there is none. For any thread, at any time."""


class Kernel(Protocol):
    """The kernel of the node. Methods raise KernelError when the kernel refuses."""

    def read_functions(self) -> list[PciFunction]:
        """Every NIC, be it a PF, a VF or neither, in address order."""

    def read_function(self, pci: str) -> PciFunction | None:
        """A PCI function of any kind; None if there is no such device."""

    def set_num_vfs(self, pf: PciAddress, count: int) -> None: ...
    def set_autoprobe(self, pf: PciAddress, enabled: bool) -> None: ...

    def bind_driver(self, pci: PciAddress, driver: str | None) -> None:
        """Bind a function to this driver, or to its default driver with None."""

    def reset_function(self, pci: PciAddress) -> None:
        """Function-level reset: the queues and interrupts that its last user left are gone, its driver stays.
        ENOENT where it cannot be reset by itself."""

    def uppers(self, name: IfName) -> tuple[str, ...]:
        """The host's interfaces that stand on this one of the host's: bridges, bonds, VLANs."""

    def eswitch_modes(self) -> dict[PciAddress, str]:
        """`legacy` or `switchdev` of each PF whose driver has devlink and an eswitch."""

    def sick_reporters(self) -> dict[PciAddress, tuple[str, ...]]:
        """The devlink health reporters that are in the state `error`, of each function that has any."""

    def events(self) -> AbstractContextManager[KernelEvents]:
        """Of the host, from now on."""

    def set_eswitch_mode(self, pf: PciAddress, mode: str) -> None:
        """`legacy` or `switchdev`. EOPNOTSUPP or ENODEV where the driver has no eswitch."""

    def netns(self, fd: int) -> NetnsHandle:
        """Duplicates the descriptor. InvalidInput if it is not a network namespace."""

    def netns_at(self, path: str) -> NetnsHandle | None:
        """The namespace that a path names, or None if it names none (any more)."""

    def host_netns(self) -> NetnsHandle: ...

    def links(self, netns: NetnsHandle | None = None) -> AbstractContextManager[Links]:
        """Of the given namespace, or of the host's."""

    def write_sysctls(self, netns: NetnsHandle, values: Sequence[tuple[str, str]]) -> None:
        """(name, value) in this order, e.g. `net/ipv4/conf/eth0/arp_notify`. A sysctl that this kernel does
        not have is left alone."""

    def announce(self, netns: NetnsHandle, netdev: Netdev, addresses: Sequence[str]) -> None:
        """Tell the wire who has these addresses (CIDRs) now: gratuitous ARP, unsolicited neighbour
        advertisement (RFC 5227, RFC 4861 7.2.6)."""

    def find_holders(
        self, netns: NetnsHandle, netdev: Netdev, addresses: Sequence[str], timeout_s: float
    ) -> dict[str, Mac]:
        """Those of the addresses (CIDRs) that somebody on the wire has, with the MAC of who said so, after
        `timeout_s` at the latest. The interface is up and need not have an address (RFC 5227 2.1.1, RFC 4862
        5.4)."""

    def apply_nft(self, netns: NetnsHandle, before: Table | None, after: Table) -> None:
        """At one moment the table becomes `after`; if that is refused it is as before, save for chains and
        sets that no rule leads to. `before`: what it is, of the same name. If it is not, this may be refused,
        by ENOENT, EEXIST or EBUSY. None: whatever is there under this name is replaced. What rules have put
        into dynamic sets stays either way, where a set of that name and types is still wanted. No other table
        is touched."""

    def delete_nft_table(self, netns: NetnsHandle, name: str) -> None:
        """One that is not there is no error."""

    def nft_tables(self, netns: NetnsHandle) -> tuple[str, ...]:
        """The names of all tables of family inet, whoever made them."""

    def udp_flows(self, netns: NetnsHandle) -> tuple[Flow, ...]:
        """The UDP connections that are tracked."""

    def delete_flows(self, netns: NetnsHandle, flows: Sequence[Flow]) -> None:
        """Their next packet begins a connection anew, and is translated by the rules of then. One that is not
        there is no error."""
