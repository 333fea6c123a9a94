"""An in-memory kernel with SR-IOV NICs, for tests. Behaves as igb and igbvf do, and passes the contract
tests that the running kernel passes (tests/kernel_contract.py).

`on_change` is called with the name of each change before it is made: a test counts, fails or dies there.
"""

import dataclasses
import errno
import ipaddress
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from vf_manager.errors import InvalidInput, KernelError
from vf_manager.kernel.api import (
    Flow,
    Hop,
    KernelEvents,
    LinkChange,
    LinkInfo,
    Links,
    LinkTraffic,
    NetnsHandle,
    NetnsId,
    PciFunction,
    RouteSpec,
    RuleSpec,
)
from vf_manager.kernel.nft import Table
from vf_manager.model import (
    ZERO_MAC,
    IfName,
    LinkState,
    Mac,
    Netdev,
    PciAddress,
    VfAttributes,
    VfChange,
    VlanProto,
)

_NEW_VF = VfAttributes(spoofchk=True, trust=False, min_tx_rate=0, max_tx_rate=0, link_state=LinkState.AUTO)
_DRIVERS = ("igbvf", "vfio-pci")
_HOST_INO = 1


@dataclasses.dataclass
class FakeLink:
    netdev: Netdev
    parent: PciAddress | None = None
    phys_port_name: str | None = None
    type: str | None = "ether"
    permanent_mac: Mac | None = None
    addresses: list[str] = dataclasses.field(default_factory=list)
    routes: list[RouteSpec] = dataclasses.field(default_factory=list)
    counted: dict[str, int] = dataclasses.field(default_factory=dict)  # fields of LinkTraffic
    kind: str | None = None
    peer: "FakeLink | None" = dataclasses.field(default=None, repr=False)  # of a veth
    lower: "FakeLink | None" = dataclasses.field(default=None, repr=False)  # of a VLAN
    vlan: int | None = None
    master: int | None = None
    neighbours: dict[str, Mac] = dataclasses.field(default_factory=dict)  # permanent ones


@dataclasses.dataclass
class FakeFunction:
    function: PciFunction
    pf_name: str = ""
    attributes: dict[int, VfAttributes] = dataclasses.field(default_factory=dict)  # of a PF: by VF index
    mac_is_set: set[int] = dataclasses.field(default_factory=set)  # IGB_VF_FLAG_PF_SET_MAC
    override: str | None = None


@dataclasses.dataclass(frozen=True)
class FakeNetns:
    id: NetnsId

    def close(self) -> None:
        """Nothing is held."""


class FakeEvents:
    unheard: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._told = threading.Event()

    def wait(self, timeout_s: float) -> bool:
        told = self._told.wait(timeout_s)
        self._told.clear()
        return told

    def wake(self) -> None:
        self._told.set()


class FakeKernel:
    def __init__(self) -> None:
        self.on_change: Callable[[str], None] = lambda what: None
        self.functions: dict[PciAddress, FakeFunction] = {}
        self.namespaces: dict[int, list[FakeLink]] = {_HOST_INO: [_loopback()]}
        self.paths: dict[str, int] = {}
        self.sysctls: dict[tuple[int, str], str] = {}
        self.neighbours: dict[str, Mac] = {}  # who has an address (CIDR) on the wire
        self.announced: list[tuple[str, str]] = []
        self.rules: dict[int, list[RuleSpec]] = {}  # by namespace
        self.nft: dict[int, dict[str, Table]] = {}  # by namespace and name
        self.udp: dict[int, list[Flow]] = {}  # by namespace
        self.uppers_of: dict[str, tuple[str, ...]] = {}  # by the host's interface below
        self.sick: dict[PciAddress, tuple[str, ...]] = {}  # devlink health reporters
        self.resets: list[PciAddress] = []
        self.eswitch: dict[PciAddress, str] = {}  # of each PF that has one
        self.tells_parent = True  # IFLA_PARENT_DEV_NAME, since Linux 5.14
        self._numbers = itertools.count(2)
        self.lock = threading.RLock()
        self._listeners: list[FakeEvents] = []

    # --- set-up and inspection by tests

    def add_pf(
        self, pci: str, name: str, total_vfs: int = 7, numa_node: int = 0, driver: str = "igb"
    ) -> PciAddress:
        """Another driver than igb takes every attribute, and leaves the VF's own MAC to the VF."""
        address = PciAddress(pci)
        function = _new_function(address, "10c9", driver=driver, numa_node=numa_node, total_vfs=total_vfs)
        self.functions[address] = FakeFunction(function, pf_name=name)
        self._new_link(name, address)
        return address

    def add_lone(self, pci: str, name: str, driver: str = "e1000e") -> PciAddress:
        """A NIC that may be a VF whose PF is at a hypervisor."""
        address = PciAddress(pci)
        function = _new_function(address, "10d3", driver=driver, lone=True)
        self.functions[address] = FakeFunction(function)
        self._new_link(name, address)
        return address

    def add_link(self, name: str, netns: int = _HOST_INO, parent: PciAddress | None = None) -> FakeLink:
        return self._new_link(name, parent, netns)

    def new_netns(self, path: str) -> int:
        """Returns what stands for a descriptor of it."""
        number = next(self._numbers)
        self.namespaces[number] = [_loopback()]
        self.paths[path] = number
        return number

    def destroy_netns(self, number: int) -> None:
        """VFs go back to the host, under the name they have (net/core/dev.c default_device_exit_net).

        Done when it returns; the kernel waits for the last descriptor and then does it in the background.
        """
        links = self.namespaces.pop(number)
        self.nft.pop(number, None)
        self.paths = {path: n for path, n in self.paths.items() if n != number}
        self.rules.pop(number, None)
        for link in links:
            if link.peer is not None:
                self.drop_link(link.peer)
            if link.parent is not None:
                name = link.netdev.name
                if self.find(name):
                    name = IfName(f"dev{link.netdev.ifindex}")
                free = tuple(altname for altname in link.netdev.altnames if not self.find(altname))
                link.netdev = msgspec.structs.replace(link.netdev, altnames=free)
                self._place(link, _HOST_INO, name)

    def drop_link(self, link: FakeLink) -> None:
        """With the other end of a veth, and the VLANs on it."""
        above = [i for links in self.namespaces.values() for i in links if i.lower is link]
        for gone in (link, *above, *([link.peer] if link.peer else [])):
            for links in self.namespaces.values():
                links[:] = [i for i in links if i is not gone]
        self.tell()

    def set_up(self, name: str, up: bool) -> None:
        link = self.find(name)
        assert link is not None
        link.netdev = msgspec.structs.replace(link.netdev, up=up)
        self.tell()

    def find(self, name: str, netns: int = _HOST_INO) -> FakeLink | None:
        """By name or altname."""
        links = self.namespaces[netns]
        return next((i for i in links if name in (i.netdev.name, *i.netdev.altnames)), None)

    def snapshot(self) -> tuple[dict[PciAddress, object], dict[int, list[tuple[object, ...]]]]:
        """Everything that an attachment may not leave behind, comparable with ==."""
        with self.lock:
            functions: dict[PciAddress, object] = {
                pci: (f.function, dict(f.attributes), set(f.mac_is_set)) for pci, f in self.functions.items()
            }
            links = {n: sorted(map(_freeze, links)) for n, links in self.namespaces.items()}
            for number, rules in self.rules.items():
                links[number] += [(repr(rule),) for rule in rules]
            for number, tables in self.nft.items():
                links[number] += [(name,) for name in sorted(tables)]
            return functions, links

    # --- Kernel

    def read_functions(self) -> list[PciFunction]:
        found = (self.read_function(pci) for pci in sorted(self.functions))
        return [function for function in found if function is not None and _is_nic(function)]

    def read_function(self, pci: str) -> PciFunction | None:
        found = self.functions.get(PciAddress(pci))
        if found is None:
            return None
        names = tuple(sorted(i.netdev.name for i in self.namespaces[_HOST_INO] if i.parent == pci))
        return msgspec.structs.replace(found.function, netdev_names=names)

    def set_num_vfs(self, pf: PciAddress, count: int) -> None:
        self.on_change(f"set_num_vfs {count}")
        with self.lock:
            owner = self._function(pf, f"write {count} to sriov_numvfs of {pf}")
            if count == owner.function.num_vfs:
                return
            if count and owner.function.num_vfs:
                raise KernelError(f"write {count} to sriov_numvfs of {pf}", errno.EBUSY)
            if count > owner.function.total_vfs:
                raise KernelError(f"write {count} to sriov_numvfs of {pf}", errno.ERANGE)
            for _, address in owner.function.virtfns:
                self._unbind(address)
                del self.functions[address]
            virtfns = tuple((i, _vf_address(pf, i)) for i in range(count))
            owner.function = msgspec.structs.replace(owner.function, num_vfs=count, virtfns=virtfns)
            owner.attributes = dict.fromkeys(range(count), _NEW_VF)
            owner.mac_is_set = set()
            for index, address in virtfns:
                function = _new_function(address, "10ca", physfn=pf, iommu_group=10 + index)
                self.functions[address] = FakeFunction(function)
                if owner.function.autoprobe:
                    self._bind(address, "igbvf")
        self.tell()

    def set_autoprobe(self, pf: PciAddress, enabled: bool) -> None:
        self.on_change("set_autoprobe")
        owner = self._function(pf, f"write to sriov_drivers_autoprobe of {pf}")
        owner.function = msgspec.structs.replace(owner.function, autoprobe=enabled)

    def bind_driver(self, pci: PciAddress, driver: str | None) -> None:
        self.on_change(f"bind_driver {driver}")
        with self.lock:
            found = self._function(pci, f"bind {pci}").function
            if driver is not None and found.driver == driver:
                return
            self._unbind(pci)
            owner = self.functions[found.physfn] if found.physfn else None
            if driver is None and owner is not None and not owner.function.autoprobe:
                raise KernelError(f"bind {pci} to its default driver", errno.ENODEV)  # pci_device_can_probe
            if driver not in (None, *_DRIVERS):
                raise KernelError(f"bind {pci} to {driver}", errno.ENODEV)
            self._bind(pci, driver or "igbvf")
        self.tell()

    def reset_function(self, pci: PciAddress) -> None:
        self.on_change("reset_function")
        self._function(pci, f"write '1' to reset of {pci}")
        self.resets.append(pci)

    def uppers(self, name: IfName) -> tuple[str, ...]:
        return self.uppers_of.get(name, ())

    def eswitch_modes(self) -> dict[PciAddress, str]:
        return dict(self.eswitch)

    def set_eswitch_mode(self, pf: PciAddress, mode: str) -> None:
        """Drivers differ in what they do to VFs that are there; this one refuses."""
        what = f"set eswitch mode {mode} on {pf}"
        self.on_change(what)
        if pf not in self.eswitch:
            raise KernelError(what, errno.ENODEV)
        if self.eswitch[pf] != mode and self._function(pf, what).function.num_vfs:
            raise KernelError(what, errno.EBUSY)
        self.eswitch[pf] = mode

    @contextmanager
    def events(self) -> Iterator[KernelEvents]:
        events = FakeEvents()
        self._listeners.append(events)
        try:
            yield events
        finally:
            self._listeners.remove(events)

    def tell(self) -> None:
        """That something has changed. The changes that a kernel makes are told by themselves."""
        for events in tuple(self._listeners):
            events.wake()

    def sick_reporters(self) -> dict[PciAddress, tuple[str, ...]]:
        return dict(self.sick)

    def netns(self, fd: int) -> NetnsHandle:
        if fd not in self.namespaces:
            raise InvalidInput("CNI_NETNS", fd, "the path of a network namespace")
        return FakeNetns(NetnsId(4, fd))

    def netns_at(self, path: str) -> NetnsHandle | None:
        number = self.paths.get(path)
        return FakeNetns(NetnsId(4, number)) if number is not None else None

    def host_netns(self) -> NetnsHandle:
        return FakeNetns(NetnsId(4, _HOST_INO))

    @contextmanager
    def links(self, netns: NetnsHandle | None = None) -> Iterator[Links]:
        yield FakeLinks(self, self._enter(netns) if netns else _HOST_INO)

    def write_sysctls(self, netns: NetnsHandle, values: Sequence[tuple[str, str]]) -> None:
        """Those of an interface are there as long as it is; any other name is taken for a known one."""
        number = self._enter(netns)
        for name, value in values:
            self.on_change("write_sysctl")
            parts = name.split("/")
            of_link = parts[2:3] == ["conf"] and len(parts) == 5 and parts[3] not in ("all", "default")
            if not of_link or any(i.netdev.name == parts[3] for i in self.namespaces[number]):
                self.sysctls[number, name] = value

    def find_holders(
        self, netns: NetnsHandle, netdev: Netdev, addresses: Sequence[str], timeout_s: float
    ) -> dict[str, Mac]:
        return {address: self.neighbours[address] for address in addresses if address in self.neighbours}

    def announce(self, netns: NetnsHandle, netdev: Netdev, addresses: Sequence[str]) -> None:
        links = self.namespaces[self._enter(netns)]
        link = next((i for i in links if i.netdev.name == netdev.name), None)
        if link is None or not link.netdev.up:
            code = errno.ENETDOWN if link else errno.ENODEV
            raise KernelError(f"announce addresses on {netdev.name}", code)
        self.announced += [(netdev.name, address) for address in addresses]

    def apply_nft(self, netns: NetnsHandle, before: Table | None, after: Table) -> None:
        """What refers to what is not looked at."""
        self.on_change("apply_nft")
        tables = self.nft.setdefault(self._enter(netns), {})
        if before is not None and before != tables.get(after.name):
            raise KernelError(f"nftables table {after.name}: change", errno.ENOENT)
        tables[after.name] = after

    def delete_nft_table(self, netns: NetnsHandle, name: str) -> None:
        self.on_change("delete_nft_table")
        self.nft.get(self._enter(netns), {}).pop(name, None)

    def nft_tables(self, netns: NetnsHandle) -> tuple[str, ...]:
        return tuple(self.nft.get(self._enter(netns), {}))

    def udp_flows(self, netns: NetnsHandle) -> tuple[Flow, ...]:
        return tuple(self.udp.get(self._enter(netns), ()))

    def delete_flows(self, netns: NetnsHandle, flows: Sequence[Flow]) -> None:
        self.on_change("delete_flows")
        tracked = self.udp.get(self._enter(netns), [])
        tracked[:] = [flow for flow in tracked if flow not in flows]

    # --- innards

    def _enter(self, netns: NetnsHandle) -> int:
        if netns.id.ino not in self.namespaces:
            raise KernelError("enter the network namespace", errno.EINVAL)
        return netns.id.ino

    def _function(self, pci: PciAddress, operation: str) -> FakeFunction:
        if pci not in self.functions:
            raise KernelError(operation, errno.ENOENT)
        return self.functions[pci]

    def _bind(self, pci: PciAddress, driver: str) -> None:
        found = self.functions[pci]
        found.function = msgspec.structs.replace(found.function, driver=driver)
        pf = found.function.physfn
        if driver != "igbvf" or pf is None:
            return
        owner = self.functions[pf]
        index = next(i for i, address in owner.function.virtfns if address == pci)
        given = owner.attributes[index].mac if index in owner.mac_is_set else ZERO_MAC
        link = self._new_link(f"{owner.pf_name}v{index}", pci)
        if given != ZERO_MAC:
            link.netdev = msgspec.structs.replace(link.netdev, mac=given)
        if index not in owner.mac_is_set:
            self.mirror_mac(pci, link.netdev.mac)

    def _unbind(self, pci: PciAddress) -> None:
        found = self.functions[pci]
        found.function = msgspec.structs.replace(found.function, driver=None)
        for links in self.namespaces.values():
            links[:] = [i for i in links if i.parent != pci]
        self.tell()

    def mirror_mac(self, pci: PciAddress, mac: Mac) -> None:
        """igb_set_vf_mac_addr: the MAC a VF gives itself shows at its PF, unless one is set there."""
        pf = self.functions[pci].function.physfn
        if pf is None:
            return
        owner = self.functions[pf]
        if owner.function.driver != "igb":
            return
        index = next(i for i, address in owner.function.virtfns if address == pci)
        now = owner.attributes[index]
        if index in owner.mac_is_set and not now.trust:  # the same MAC is refused as any other
            raise KernelError(f"set mac {mac} on {pci}", errno.EADDRNOTAVAIL)
        if index not in owner.mac_is_set or now.trust:
            owner.attributes[index] = msgspec.structs.replace(now, mac=mac)

    def _new_link(self, name: str, parent: PciAddress | None, netns: int = _HOST_INO) -> FakeLink:
        number = next(self._numbers)
        mac = Mac(f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}")
        link = FakeLink(
            Netdev(ifindex=number, name=IfName(name), mac=mac, mtu=1500), parent, permanent_mac=mac
        )
        self.namespaces[netns].append(link)
        self.tell()
        return link

    def _place(self, link: FakeLink, netns: int, name: IfName) -> None:
        """What leaving a namespace does to a link: it goes down, its addresses and routes are gone.

        Its ifindex is another one each time: the kernel keeps it only where it happens to be free.
        """
        number = next(self._numbers)
        link.netdev = msgspec.structs.replace(link.netdev, ifindex=number, name=name, up=False, carrier=False)
        link.addresses = []
        link.routes = []
        link.neighbours = {}
        self.namespaces[netns].append(link)
        self.tell()


class FakeLinks:
    def __init__(self, kernel: FakeKernel, netns: int) -> None:
        self._kernel = kernel
        self._netns = netns

    def _links(self) -> list[FakeLink]:
        return self._kernel.namespaces[self._netns]

    def _get(self, ifindex: int, what: str) -> FakeLink:
        found = next((i for i in self._links() if i.netdev.ifindex == ifindex), None)
        if found is None:
            raise KernelError(what, errno.ENODEV)
        return found

    def _change(self, ifindex: int, what: str) -> FakeLink:
        self._kernel.on_change(what)
        return self._get(ifindex, what)

    def dump(self) -> list[LinkInfo]:
        return [self._info(link) for link in self._links()]

    def traffic(self) -> list[LinkTraffic]:
        return [
            LinkTraffic(ifindex=link.netdev.ifindex, name=link.netdev.name, **link.counted)
            for link in self._links()
        ]

    def read(self, *, ifindex: int = 0, name: str = "", with_vfs: bool = False) -> LinkInfo | None:
        for link in self._links():
            if link.netdev.ifindex == ifindex or (not ifindex and link.netdev.name == name):
                owner = self._kernel.functions.get(link.parent) if link.parent else None
                return self._info(link, dict(owner.attributes) if owner and with_vfs else {})
        return None

    def _info(self, link: FakeLink, vfs: dict[int, VfAttributes] | None = None) -> LinkInfo:
        parent = link.parent if self._kernel.tells_parent else None
        return LinkInfo(
            netdev=link.netdev,
            parent=parent,
            phys_port_name=link.phys_port_name,
            link_type=link.type,
            permanent_mac=link.permanent_mac,
            vfs=vfs or {},
            kind=link.kind,
            lower=link.lower.netdev.ifindex if link.lower else None,
            vlan=link.vlan,
            master=link.master,
        )

    def name_taken(self, name: str) -> bool:
        return self._kernel.find(name, self._netns) is not None

    def set_link(self, ifindex: int, change: LinkChange) -> None:
        """As rtnetlink.c do_setlink: part by part, up to the first that is refused."""
        with self._kernel.lock:
            what = f"set {change.describe()}"
            link = self._change(ifindex, what)
            if change.mac is not None and change.mac != link.netdev.mac:
                if int(change.mac[:2], 16) & 1 or change.mac == ZERO_MAC:
                    raise KernelError(what, errno.EADDRNOTAVAIL)
                if link.parent is not None:
                    self._kernel.mirror_mac(link.parent, change.mac)
            self._replace(link, mac=change.mac)
            if change.mtu is not None and not 68 <= change.mtu <= 9216:
                raise KernelError(what, errno.EINVAL, "mtu outside the device's limits")
            self._replace(link, mtu=change.mtu)
            if change.name is not None and change.name != link.netdev.name and self.name_taken(change.name):
                raise KernelError(what, errno.EEXIST)
            self._replace(link, name=change.name, up=change.up, carrier=change.up)
            self._replace(link, promisc=change.promisc, allmulti=change.allmulti)

    def _replace(self, link: FakeLink, **fields: object) -> None:
        asked = {key: value for key, value in fields.items() if value is not None}
        link.netdev = msgspec.structs.replace(link.netdev, **asked)
        self._kernel.tell()

    def move(self, ifindex: int, target: NetnsHandle, name: IfName) -> None:
        """As __dev_change_net_namespace, where the name it has now counts first, and then do_setlink."""
        with self._kernel.lock:
            what = f"move link {ifindex}"
            link = self._change(ifindex, what)
            number = self._kernel._enter(target)
            if number == self._netns:
                return self.set_link(ifindex, LinkChange(name=name))
            own_is_taken = self._kernel.find(link.netdev.name, number) is not None
            new_is_taken = self._kernel.find(name, number) is not None
            if own_is_taken and new_is_taken:
                raise KernelError(what, errno.EEXIST)
            if any(self._kernel.find(altname, number) for altname in link.netdev.altnames):
                raise KernelError(what, errno.EEXIST)
            self._links().remove(link)
            new_is_taken = new_is_taken or name in link.netdev.altnames
            self._kernel._place(link, number, link.netdev.name if new_is_taken else name)
            if new_is_taken:
                raise KernelError(what, errno.EEXIST)
            return None

    def make_veth(self, name: IfName, peer: IfName, target: NetnsHandle, mac: Mac) -> None:
        with self._kernel.lock:
            what = f"make the links {name} and {peer}"
            self._kernel.on_change(what)
            number = self._kernel._enter(target)
            if self.name_taken(name) or self._kernel.find(peer, number):
                raise KernelError(what, errno.EEXIST)
            here = self._made("veth", name, mac, self._netns)
            there = self._made("veth", peer, mac, number)
            here.peer, there.peer = there, here

    def make_vlan(self, lower: int, name: IfName, vlan: int, proto: VlanProto) -> None:
        with self._kernel.lock:
            what = f"make the link {name}"
            below = self._change(lower, what)
            if self.name_taken(name) or any(i.lower is below and i.vlan == vlan for i in self._links()):
                raise KernelError(what, errno.EEXIST)
            made = self._made("vlan", name, below.netdev.mac, self._netns)
            made.lower, made.vlan = below, vlan

    def _made(self, kind: str, name: IfName, mac: Mac, netns: int) -> FakeLink:
        link = self._kernel.add_link(name, netns)
        link.kind = kind
        link.netdev = msgspec.structs.replace(link.netdev, mac=mac)
        return link

    def delete_link(self, ifindex: int) -> None:
        self._kernel.on_change("delete link")
        found = next((i for i in self._links() if i.netdev.ifindex == ifindex), None)
        if found is not None:
            if found.kind is None:
                raise KernelError(f"delete link {ifindex}", errno.EOPNOTSUPP)
            self._kernel.drop_link(found)

    def add_altnames(self, ifindex: int, names: Sequence[str]) -> None:
        for name in names:
            link = self._change(ifindex, f"add altname {name}")
            if not self.name_taken(name):
                self._replace(link, altnames=(*link.netdev.altnames, name))

    def remove_altnames(self, ifindex: int, names: Sequence[str]) -> None:
        for name in names:
            link = self._change(ifindex, f"remove altname {name}")
            self._replace(link, altnames=tuple(n for n in link.netdev.altnames if n != name))

    def set_vf(self, pf_ifindex: int, index: int, change: VfChange) -> None:
        """As rtnetlink.c do_setvfinfo over igb: attribute by attribute, up to the first that is refused."""
        with self._kernel.lock:
            link = self._change(pf_ifindex, "set_vf")
            assert link.parent is not None
            owner = self._kernel.functions[link.parent]
            if index not in owner.attributes:
                raise KernelError(f"set attributes of vf {index}", errno.EINVAL)
            for keys in (("mac",), ("vlan", "qos", "proto"), ("min_tx_rate", "max_tx_rate"), ("spoofchk",)):
                self._set(owner, index, change, keys)
            self._set(owner, index, change, ("link_state",))
            self._set(owner, index, change, ("trust",))

    def _set(self, owner: FakeFunction, index: int, change: VfChange, keys: Sequence[str]) -> None:
        values = {key: value for key, value in change.items() if key in keys}
        if owner.function.driver == "igb":
            code = _refused_by_igb(values)
            if code:
                raise KernelError(f"set attributes of vf {index}", code)
        if "mac" in values:
            (owner.mac_is_set.discard if values["mac"] == ZERO_MAC else owner.mac_is_set.add)(index)
        owner.attributes[index] = msgspec.structs.replace(owner.attributes[index], **values)

    def add_address(self, ifindex: int, address: str) -> None:
        what = f"add address {address}"
        link = self._change(ifindex, what)
        new = ipaddress.ip_interface(address)
        for known in map(ipaddress.ip_interface, link.addresses):
            if known == new or (known.ip == new.ip and new.version == 6):
                raise KernelError(what, errno.EEXIST)
        link.addresses.append(address)

    def addresses(self, ifindex: int) -> list[str]:
        return [address for index, address in self.all_addresses() if index == ifindex]

    def all_addresses(self) -> list[tuple[int, str]]:
        return [(link.netdev.ifindex, address) for link in self._links() for address in link.addresses]

    def add_route(self, ifindex: int, route: RouteSpec) -> None:
        what = f"add route {route.dst}"
        link = self._change(ifindex, what)
        if not link.netdev.up:
            raise KernelError(what, errno.ENETDOWN)
        if route.gateway is not None and not _is_on_link(link, ipaddress.ip_address(route.gateway)):
            raise KernelError(what, errno.EHOSTUNREACH if ":" in route.gateway else errno.ENETUNREACH)
        known = {_route_key(known) for i in self._links() for known in i.routes}
        connected = {_route_key(RouteSpec(dst=_network(a))) for i in self._links() for a in i.addresses}
        if _route_key(route) in known or (":" not in route.dst and _route_key(route) in connected):
            raise KernelError(what, errno.EEXIST)
        link.routes.append(route)
        if _is_default(route):
            self._kernel.tell()

    def remove_route(self, ifindex: int, route: RouteSpec) -> None:
        self._kernel.on_change(f"remove route {route.dst}")
        for link in self._links():
            if link.netdev.ifindex == ifindex:
                link.routes = [known for known in link.routes if _route_key(known) != _route_key(route)]

    def routes_of(self, table: int) -> list[tuple[int, RouteSpec]]:
        found = [(i.netdev.ifindex, route) for i in self._links() for route in self.routes(i.netdev.ifindex)]
        return [(ifindex, route) for ifindex, route in found if route.table == table]

    def set_neighbour(self, ifindex: int, address: str, mac: Mac) -> None:
        self._change(ifindex, f"set the MAC of {address}").neighbours[address] = mac

    def remove_neighbour(self, ifindex: int, address: str) -> None:
        self._change(ifindex, f"forget the MAC of {address}").neighbours.pop(address, None)

    def neighbours(self, ifindex: int) -> dict[str, Mac]:
        return {
            key: mac
            for i in self._links()
            if i.netdev.ifindex == ifindex
            for key, mac in i.neighbours.items()
        }

    def add_rule(self, rule: RuleSpec) -> None:
        self._kernel.on_change(f"add rule {rule.source}")
        rules = self._kernel.rules.setdefault(self._netns, [])
        if rule in rules:
            raise KernelError(f"add rule {rule.source}", errno.EEXIST)
        rules.append(rule)

    def remove_rule(self, rule: RuleSpec) -> None:
        self._kernel.on_change(f"remove rule {rule.source}")
        rules = self._kernel.rules.get(self._netns, [])
        if rule in rules:
            rules.remove(rule)

    def rules(self) -> list[RuleSpec]:
        return list(self._kernel.rules.get(self._netns, []))

    def routes(self, ifindex: int) -> list[RouteSpec]:
        found = [r for i in self._links() if i.netdev.ifindex == ifindex for r in i.routes]
        return [r if r.table else msgspec.structs.replace(r, table=254) for r in found]

    def find_hop(self, address: str) -> Hop | None:
        wanted, best, hop = ipaddress.ip_address(address), -1, None
        for link in self._links():
            connected = [RouteSpec(dst=_network(one)) for one in link.addresses] if link.netdev.up else []
            for route in (*connected, *(r for r in link.routes if r.table in (None, 254))):
                network = ipaddress.ip_network(route.dst, strict=False)
                if wanted in network and network.prefixlen > best:
                    best, hop = network.prefixlen, Hop(ifindex=link.netdev.ifindex, gateway=route.gateway)
        return hop

    def has_default_route(self, ifindex: int) -> bool:
        return ifindex in self.default_route_links()

    def default_route_links(self) -> frozenset[int]:
        return frozenset(i.netdev.ifindex for i in self._links() if any(map(_is_default, i.routes)))


def _refused_by_igb(values: dict[str, object]) -> int:
    """The errno of igb_main.c igb_ndo_set_vf_*, 0 for none."""
    if values.get("min_tx_rate"):
        return errno.EINVAL
    if values.get("proto") == VlanProto.DOT1AD:
        return errno.EPROTONOSUPPORT
    return errno.EOPNOTSUPP if "link_state" in values else 0


def _new_function(pci: PciAddress, device: str, *, numa_node: int = 0, **fields: Any) -> PciFunction:
    return PciFunction(
        pci=pci,
        vendor="8086",
        device=device,
        numa_node=numa_node,
        link_type="ether",
        pcie_root=f"pci{pci[:4]}:00",
        **fields,
    )


def _is_nic(function: PciFunction) -> bool:
    return bool(function.total_vfs or function.physfn or function.lone)


def _is_default(route: RouteSpec) -> bool:
    return ipaddress.ip_network(route.dst).prefixlen == 0


def _is_on_link(link: FakeLink, gateway: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    reached = [_network(a) for a in link.addresses] + [r.dst for r in link.routes if r.gateway is None]
    if isinstance(gateway, ipaddress.IPv6Address) and gateway.is_link_local:
        return True
    return any(gateway in ipaddress.ip_network(dst, strict=False) for dst in reached)


def _network(address: str) -> str:
    return str(ipaddress.ip_interface(address).network)


def _route_key(route: RouteSpec) -> tuple[object, ...]:
    """What two routes of one table may not have in common."""
    return ipaddress.ip_network(route.dst, strict=False), route.priority or 0, route.table or 254


def _loopback() -> FakeLink:
    return FakeLink(Netdev(ifindex=1, name=IfName("lo"), mac=ZERO_MAC, mtu=65536), type=None)


def _vf_address(pf: PciAddress, index: int) -> PciAddress:
    return PciAddress(f"{pf[:-4]}1{index // 4:x}.{index % 4}")


def _freeze(link: FakeLink) -> tuple[object, ...]:
    """Without the ifindex, which a link does not keep when it leaves and comes back."""
    netdev = msgspec.structs.replace(link.netdev, ifindex=0, altnames=tuple(sorted(link.netdev.altnames)))
    told = (link.addresses, link.routes, sorted(link.neighbours.items()))
    return (netdev.name, os.fspath(link.parent or ""), repr(netdev), *map(repr, told))
