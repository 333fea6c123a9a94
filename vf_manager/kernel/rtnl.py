"""Adapter: rtnetlink requests on links, VFs, addresses and routes of one network namespace.

Sources: net/core/rtnetlink.c (RTM_*LINK, do_setvfinfo), include/uapi/linux/if_link.h, man 7 rtnetlink.
pyroute2 messages never leave this file.
"""

import errno
import ipaddress
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from vf_manager.errors import KernelError
from vf_manager.kernel.api import LinkChange, LinkInfo, NetnsHandle, RouteSpec, RuleSpec
from vf_manager.kernel.netns import Netns, own
from vf_manager.model import ZERO_MAC, IfName, LinkState, Mac, Netdev, VfAttributes, VfChange, VlanProto

_NLM_F_DUMP_INTR = 0x10
_IFF_UP, _IFF_PROMISC, _IFF_ALLMULTI = 0x1, 0x100, 0x200  # include/uapi/linux/if.h
_IFA_F_OPTIMISTIC = 0x04  # include/uapi/linux/if_addr.h
_FR_ACT_TO_TBL = 1  # include/uapi/linux/fib_rules.h
_RTEXT_FILTER_VF = 1
_RTEXT_FILTER_SKIP_STATS = 8
_VLAN_ETHERTYPE = {VlanProto.DOT1Q: 0x8100, VlanProto.DOT1AD: 0x88A8}
_LINK_STATE = {LinkState.AUTO: 0, LinkState.ENABLE: 1, LinkState.DISABLE: 2}
_NOT_REPORTED = 0xFFFFFFFF  # rtnl_fill_vfinfo sets -1 before it asks the driver

# struct ifla_vf_vlan_info is 16 bytes with its padding; the kernel refuses a shorter one.
ifinfmsg.vflist.vfinfo.vf_vlist.ivvi.fields = (
    ("vf", "I"),
    ("vlan", "I"),
    ("qos", "I"),
    ("proto", ">H"),
    ("pad", "H"),
)


class Rtnl:
    """An rtnetlink socket, bound for its life to the namespace it was opened in; a context manager.

    Only for the thread that opened it: pyroute2 keeps a socket per thread, and another thread would
    silently get one of *its own* namespace.
    """

    def __init__(self, netns: Netns | None = None) -> None:
        fd = netns.run(_open_socket) if netns else _open_socket()
        self._ipr: Any = IPRoute(fileno=fd, ext_ack=True, strict_check=True)
        self._thread = threading.get_ident()

    def __enter__(self) -> "Rtnl":
        return self

    def __exit__(self, *_: object) -> None:
        self._ipr.close()

    def _request(self, kind: str, command: str, **query: Any) -> tuple[Any, ...]:
        if threading.get_ident() != self._thread:
            raise RuntimeError("an rtnetlink socket was used by a thread that did not open it")
        return tuple(getattr(self._ipr, kind)(command, **query))

    def dump(self) -> list[LinkInfo]:
        """Every link, without VF data. A dump the kernel marks as interrupted is made again."""
        for _ in range(8):
            with _kernel_errors("list the network interfaces"):
                messages = self._request("link", "dump")
            if not any(m["header"]["flags"] & _NLM_F_DUMP_INTR for m in messages):
                return [_link_info(m) for m in messages]
        raise KernelError("list the network interfaces", errno.EAGAIN, "they kept changing meanwhile")

    def read(self, *, ifindex: int = 0, name: str = "", with_vfs: bool = False) -> LinkInfo | None:
        """One link by index or by name (not by altname); None if there is none.

        The kernel finds short altnames here too, and answers ERANGE to a name that only an altname can be
        (rtnetlink.c rtnl_dev_get, IFNAMSIZ).
        """
        query: dict[str, Any] = {"index": ifindex} if ifindex else {"ifname": name}
        if with_vfs:
            query["ext_mask"] = _RTEXT_FILTER_VF | _RTEXT_FILTER_SKIP_STATS
        try:
            messages = self._request("link", "get", **query)
        except NetlinkError as e:
            if e.code in (errno.ENODEV, errno.ENOENT, errno.ERANGE):
                return None
            raise KernelError(f"read link {name or ifindex}", e.code) from e
        found = _link_info(messages[0]) if messages else None
        return None if found and name and found.netdev.name != name else found

    def name_taken(self, name: str) -> bool:
        """Whether a link has this name or altname."""
        try:
            return bool(self._request("link", "get", altname=name))
        except NetlinkError as e:
            if e.code in (errno.ENODEV, errno.ENOENT):
                return False
            raise KernelError(f"look up link {name}", e.code) from e

    def set_link(self, ifindex: int, change: LinkChange) -> None:
        query: dict[str, Any] = {}
        if change.name is not None:
            query["ifname"] = change.name
        if change.mac is not None:
            query["address"] = change.mac
        if change.mtu is not None:
            query["mtu"] = change.mtu
        flags = [(change.up, _IFF_UP), (change.promisc, _IFF_PROMISC), (change.allmulti, _IFF_ALLMULTI)]
        if mask := sum(flag for wanted, flag in flags if wanted is not None):
            query |= {"change": mask, "flags": sum(flag for wanted, flag in flags if wanted)}
        with _kernel_errors(f"set {change.describe()} on link {ifindex}"):
            self._request("link", "set", index=ifindex, **query)

    def move(self, ifindex: int, target: NetnsHandle, name: IfName) -> None:
        """Move a link to another namespace and rename it there, in one message.

        EEXIST if `name` is taken in the target: the link may then already be there under its old name
        (net/core/dev.c __dev_change_net_namespace and rtnetlink.c do_setlink act in two steps).
        """
        with _kernel_errors(f"move link {ifindex} to the other network namespace as {name}"):
            self._request("link", "set", index=ifindex, net_ns_fd=own(target).fd, ifname=name)

    def add_altnames(self, ifindex: int, names: Sequence[str]) -> None:
        for name in names:
            with _kernel_errors(f"add altname {name} to link {ifindex}", ignore=(errno.EEXIST,)):
                self._request("link", "property_add", index=ifindex, altname=name)

    def remove_altnames(self, ifindex: int, names: Sequence[str]) -> None:
        for name in names:
            with _kernel_errors(
                f"remove altname {name} from link {ifindex}", ignore=(errno.ENOENT, errno.EINVAL)
            ):
                self._request("link", "property_del", index=ifindex, altname=name)

    def set_vf(self, pf_ifindex: int, index: int, change: VfChange) -> None:
        """Program a VF through its PF, all attributes in one message (rtnetlink.c do_setvfinfo)."""
        message = {"attrs": [("IFLA_VF_INFO", {"attrs": _vf_message(index, change)})]}
        with _kernel_errors(f"set attributes of vf {index}"):
            self._request("link", "set", index=pf_ifindex, IFLA_VFINFO_LIST=message)

    def add_address(self, ifindex: int, address: str) -> None:
        """`address`: CIDR. An IPv6 address is optimistic (RFC 4429) where the interface's sysctl
        optimistic_dad allows it: usable at once, duplicates still detected."""
        interface = ipaddress.ip_interface(address)
        query: dict[str, Any] = {"address": str(interface.ip), "prefixlen": interface.network.prefixlen}
        if interface.version == 4 and interface.network.prefixlen < 31:
            query["broadcast"] = str(interface.network.broadcast_address)
        if interface.version == 6:
            query["flags"] = _IFA_F_OPTIMISTIC  # the sysctl optimistic_dad allows it, and asks for nothing
        with _kernel_errors(f"add address {address} to link {ifindex}"):
            self._request("addr", "add", index=ifindex, **query)

    def addresses(self, ifindex: int) -> list[str]:
        """Addresses of a link as CIDRs, link-local ones included."""
        with _kernel_errors(f"list the addresses of link {ifindex}"):
            messages = self._request("addr", "dump", index=ifindex)
        found = []
        for m in messages:
            attrs = dict(m["attrs"])
            if m["index"] == ifindex:
                found.append(f"{attrs.get('IFA_LOCAL') or attrs['IFA_ADDRESS']}/{m['prefixlen']}")
        return found

    def add_route(self, ifindex: int, route: RouteSpec) -> None:
        network = ipaddress.ip_network(route.dst, strict=False)
        query: dict[str, Any] = {
            "dst": str(network),
            "oif": ifindex,
            "family": socket.AF_INET if network.version == 4 else socket.AF_INET6,
        }
        if route.gateway is not None:
            query["gateway"] = route.gateway
        elif network.version == 4:
            query["scope"] = 253  # RT_SCOPE_LINK, rtnetlink.h
        metrics: dict[str, int] = {}
        for key in ("mtu", "advmss"):
            if (value := getattr(route, key)) is not None:
                metrics[key] = value
        if metrics:
            query["metrics"] = metrics
        for key in ("priority", "table", "scope"):
            if (value := getattr(route, key)) is not None:
                query[key] = value
        via = f" via {route.gateway}" if route.gateway else ""
        hint = "the gateway is not on a network of this interface" if route.gateway else ""
        with _kernel_errors(f"add route {route.dst}{via}", hint=hint):
            self._request("route", "add", **query)

    def add_rule(self, rule: RuleSpec) -> None:
        with _kernel_errors(f"add rule from {rule.source} to table {rule.table}"):
            self._request("rule", "add", **_rule_query(rule))

    def remove_rule(self, rule: RuleSpec) -> None:
        with _kernel_errors(f"remove rule from {rule.source} to table {rule.table}", ignore=(errno.ENOENT,)):
            self._request("rule", "del", **_rule_query(rule))

    def rules(self) -> list[RuleSpec]:
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            with _kernel_errors("list the policy rules"):
                messages = self._request("rule", "dump", family=family)
            for m in messages:
                attrs = dict(m["attrs"])
                if "FRA_SRC" in attrs and m["action"] == _FR_ACT_TO_TBL:
                    source = f"{attrs['FRA_SRC']}/{m['src_len']}"
                    table = attrs.get("FRA_TABLE", m["table"])
                    found.append(RuleSpec(source=source, table=table, priority=attrs["FRA_PRIORITY"]))
        return found

    def routes(self, ifindex: int) -> list[RouteSpec]:
        messages = self._dump_routes(ifindex)
        return [_route_spec(m) for m in messages if dict(m["attrs"]).get("RTA_OIF") == ifindex]

    def has_default_route(self, ifindex: int) -> bool:
        return any(m["dst_len"] == 0 for m in self._dump_routes(ifindex))

    def _dump_routes(self, ifindex: int) -> list[Any]:
        """The kernel picks them (net/ipv4/fib_frontend.c ip_valid_fib_dump_req): it knows the links of a
        route with several hops or with a nexthop object. Without a `dump_filter` pyroute2 would ask for all
        routes and look at RTA_OIF, which such a route has not."""
        found: list[Any] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            with _kernel_errors(f"list the routes of link {ifindex}"):
                found += self._request("route", "dump", dump_filter=_all, family=family, oif=ifindex)
        return found


def _rule_query(rule: RuleSpec) -> dict[str, Any]:
    network = ipaddress.ip_network(rule.source)
    return {
        "family": socket.AF_INET if network.version == 4 else socket.AF_INET6,
        "src": str(network.network_address),
        "src_len": network.prefixlen,
        "table": rule.table,
        "priority": rule.priority,
        "action": _FR_ACT_TO_TBL,
    }


def _route_spec(message: Any) -> RouteSpec:
    attrs = dict(message["attrs"])
    six = message["family"] == socket.AF_INET6
    dst = attrs.get("RTA_DST", "::" if six else "0.0.0.0")
    metrics = dict(attrs["RTA_METRICS"]["attrs"]) if "RTA_METRICS" in attrs else {}
    return RouteSpec(
        dst=f"{dst}/{message['dst_len']}",
        gateway=attrs.get("RTA_GATEWAY"),
        mtu=metrics.get("RTAX_MTU"),
        advmss=metrics.get("RTAX_ADVMSS"),
        priority=attrs.get("RTA_PRIORITY"),
        table=attrs.get("RTA_TABLE", message["table"]),
        scope=message["scope"],
    )


def _all(_: Any) -> bool:
    return True


def _open_socket() -> int:
    """A descriptor, and not a pyroute2 object: only the socket may be made inside the other namespace."""
    return socket.socket(
        socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ).detach()


def _vf_message(index: int, change: VfChange) -> list[tuple[str, Any]]:
    attrs: list[tuple[str, Any]] = []
    if change.mac is not None:
        attrs.append(("IFLA_VF_MAC", {"vf": index, "mac": change.mac}))
    if change.vlan is not None:
        attrs.append(_vlan_attribute(index, change))
    if change.max_tx_rate is not None:
        low = change.min_tx_rate or 0
        attrs.append(("IFLA_VF_RATE", {"vf": index, "min_tx_rate": low, "max_tx_rate": change.max_tx_rate}))
    if change.spoofchk is not None:
        attrs.append(("IFLA_VF_SPOOFCHK", {"vf": index, "spoofchk": int(change.spoofchk)}))
    if change.link_state is not None:
        attrs.append(("IFLA_VF_LINK_STATE", {"vf": index, "link_state": _LINK_STATE[change.link_state]}))
    if change.trust is not None:
        attrs.append(("IFLA_VF_TRUST", {"vf": index, "trust": int(change.trust)}))
    return attrs


def _vlan_attribute(index: int, change: VfChange) -> tuple[str, Any]:
    """The short attribute where it says enough: more drivers and kernels take it."""
    proto = change.proto or VlanProto.DOT1Q
    if proto is VlanProto.DOT1Q:
        return ("IFLA_VF_VLAN", {"vf": index, "vlan": change.vlan, "qos": change.qos or 0})
    info = {
        "vf": index,
        "vlan": change.vlan,
        "qos": change.qos or 0,
        "proto": _VLAN_ETHERTYPE[proto],
        "pad": 0,
    }
    return ("IFLA_VF_VLAN_LIST", {"attrs": [("IFLA_VF_VLAN_INFO", info)]})


def _link_info(message: Any) -> LinkInfo:
    attrs = dict(message["attrs"])
    flags = message["flags"]
    properties = attrs.get("IFLA_PROP_LIST")
    altnames = tuple(v for k, v in properties["attrs"] if k == "IFLA_ALT_IFNAME") if properties else ()
    netdev = Netdev(
        ifindex=message["index"],
        name=IfName(attrs["IFLA_IFNAME"]),
        mac=Mac(attrs.get("IFLA_ADDRESS") or ZERO_MAC),
        mtu=attrs.get("IFLA_MTU") or 0,
        up=bool(flags & _IFF_UP),
        carrier=bool(attrs.get("IFLA_CARRIER")),
        altnames=altnames,
        promisc=bool(flags & _IFF_PROMISC),
        allmulti=bool(flags & _IFF_ALLMULTI),
    )
    vfs = attrs.get("IFLA_VFINFO_LIST")
    return LinkInfo(
        netdev=netdev,
        parent=attrs.get("IFLA_PARENT_DEV_NAME"),
        phys_port_name=attrs.get("IFLA_PHYS_PORT_NAME"),
        vfs=dict(_vf_attributes(info) for _, info in vfs["attrs"]) if vfs else {},
    )


def _vf_attributes(info: Any) -> tuple[int, VfAttributes]:
    attrs = dict(info["attrs"])
    mac = attrs["IFLA_VF_MAC"]
    vlan = attrs["IFLA_VF_VLAN"]
    rate = attrs.get("IFLA_VF_RATE", {})
    vlans = attrs.get("IFLA_VF_VLAN_LIST")
    proto = VlanProto.DOT1Q
    if vlans and vlans["attrs"] and vlans["attrs"][0][1]["proto"] == _VLAN_ETHERTYPE[VlanProto.DOT1AD]:
        proto = VlanProto.DOT1AD
    state = attrs.get("IFLA_VF_LINK_STATE", {}).get("link_state")
    return mac["vf"], VfAttributes(
        mac=Mac(mac["mac"]),
        vlan=vlan["vlan"],
        qos=vlan["qos"],
        proto=proto,
        spoofchk=_flag(attrs.get("IFLA_VF_SPOOFCHK", {}).get("spoofchk")),
        trust=_flag(attrs.get("IFLA_VF_TRUST", {}).get("trust")),
        min_tx_rate=rate.get("min_tx_rate"),
        max_tx_rate=rate.get("max_tx_rate"),
        link_state=next((s for s, number in _LINK_STATE.items() if number == state), None),
    )


def _flag(value: int | None) -> bool | None:
    return None if value is None or value == _NOT_REPORTED else bool(value)


@contextmanager
def _kernel_errors(operation: str, *, hint: str = "", ignore: tuple[int, ...] = ()) -> Iterator[None]:
    try:
        yield
    except NetlinkError as e:
        if e.code not in ignore:
            said = e.args[1] if len(e.args) > 1 else ""  # extended ack; without one, the errno's own text
            raise KernelError(operation, e.code, hint if said == os.strerror(e.code) else said) from e
