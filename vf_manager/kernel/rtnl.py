"""Adapter: links, VFs, addresses, neighbours, routes and rules of one network namespace, by rtnetlink.

Sources: net/core/rtnetlink.c (RTM_*LINK, do_setvfinfo), man 7 rtnetlink. The messages themselves:
link_messages.py, route_messages.py.
"""

import errno
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from vf_manager.errors import KernelError
from vf_manager.kernel import link_messages, route_messages
from vf_manager.kernel.api import Hop, LinkChange, LinkInfo, LinkTraffic, NetnsHandle, RouteSpec, RuleSpec
from vf_manager.kernel.meter import Meter
from vf_manager.kernel.netlink import CREATE, REPLACE, Netlink, NetlinkRefusal, open_socket, strerror_or
from vf_manager.kernel.netns import Netns, own
from vf_manager.model import IfName, Mac, VfChange, VlanProto

_NOT_THERE = (errno.ENODEV, errno.ENOENT)

Answer = TypeVar("Answer")


class Rtnl:
    """An rtnetlink socket, bound for its life to the namespace it was opened in; a context manager.

    Only for the thread that opened it: answers to two threads would get mixed up.
    """

    def __init__(self, netns: Netns | None = None, meter: Meter | None = None) -> None:
        self._opened = Netlink(netns.run(open_socket) if netns else open_socket(), meter)
        self._thread = threading.get_ident()

    def __enter__(self) -> "Rtnl":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def _netlink(self) -> Netlink:
        if threading.get_ident() != self._thread:
            raise RuntimeError("an rtnetlink socket was used by a thread that did not open it")
        return self._opened

    def dump(self) -> list[LinkInfo]:
        """Every link, without VF data."""
        return self._each_link(link_messages.read_link, "list the network interfaces")

    def traffic(self) -> list[LinkTraffic]:
        """What every link has counted."""
        return self._each_link(link_messages.read_traffic, "read what the network interfaces have counted")

    def _each_link(self, read: Callable[[bytes], Answer], operation: str) -> list[Answer]:
        with _kernel_errors(operation):
            messages = self._netlink.dump(link_messages.GETLINK, link_messages.pack_query())
        return [_parsed(read, message, operation) for message in messages]

    def read(self, *, ifindex: int = 0, name: str = "", with_vfs: bool = False) -> LinkInfo | None:
        """One link by index or by name (not by altname); None if there is none.

        The kernel finds short altnames here too, and answers ERANGE to a name that only an altname can be
        (rtnetlink.c rtnl_dev_get, IFNAMSIZ).
        """
        query = link_messages.pack_query(ifindex=ifindex, name="" if ifindex else name, with_vfs=with_vfs)
        try:
            message = self._netlink.get(link_messages.GETLINK, query)
        except NetlinkRefusal as e:
            if e.code in (*_NOT_THERE, errno.ERANGE):
                return None
            raise KernelError(f"read link {name or ifindex}", e.code) from e
        found = parsed_link(message, f"read link {name or ifindex}")
        return None if name and found.netdev.name != name else found

    def name_taken(self, name: str) -> bool:
        """Whether a link has this name or altname."""
        try:
            self._netlink.get(link_messages.GETLINK, link_messages.pack_query(altname=name))
        except NetlinkRefusal as e:
            if e.code in _NOT_THERE:
                return False
            raise KernelError(f"look up link {name}", e.code) from e
        return True

    def set_link(self, ifindex: int, change: LinkChange) -> None:
        with _kernel_errors(f"set {change.describe()} on link {ifindex}"):
            self._netlink.change(link_messages.NEWLINK, link_messages.pack_change(ifindex, change))

    def move(self, ifindex: int, target: NetnsHandle, name: IfName) -> None:
        """Move a link to another namespace and rename it there, in one message.

        EEXIST if `name` is taken in the target: the link may then already be there under its old name
        (net/core/dev.c __dev_change_net_namespace and rtnetlink.c do_setlink act in two steps).
        """
        message = link_messages.pack_move(ifindex, own(target).fd, name)
        with _kernel_errors(f"move link {ifindex} to the other network namespace as {name}"):
            self._netlink.change(link_messages.NEWLINK, message)

    def make_veth(self, name: IfName, peer: IfName, target: NetnsHandle, mac: Mac) -> None:
        message = link_messages.pack_veth(name, peer, own(target).fd, mac)
        with _kernel_errors(f"make the links {name} and, in the other network namespace, {peer}"):
            self._netlink.change(link_messages.NEWLINK, message, CREATE)

    def make_vlan(self, lower: int, name: IfName, vlan: int, proto: VlanProto) -> None:
        message = link_messages.pack_vlan(lower, name, vlan, proto)
        with _kernel_errors(f"make the link {name} for VLAN {vlan} of link {lower}"):
            self._netlink.change(link_messages.NEWLINK, message, CREATE)

    def delete_link(self, ifindex: int) -> None:
        with _kernel_errors(f"delete link {ifindex}", ignore=(errno.ENODEV,)):
            self._netlink.change(link_messages.DELLINK, link_messages.pack_link(ifindex))

    def add_altnames(self, ifindex: int, names: Sequence[str]) -> None:
        for name in names:
            message = link_messages.pack_altname(ifindex, name)
            with _kernel_errors(f"add altname {name} to link {ifindex}", ignore=(errno.EEXIST,)):
                self._netlink.change(link_messages.NEWLINKPROP, message, CREATE)

    def remove_altnames(self, ifindex: int, names: Sequence[str]) -> None:
        for name in names:
            message = link_messages.pack_altname(ifindex, name)
            with _kernel_errors(
                f"remove altname {name} from link {ifindex}", ignore=(errno.ENOENT, errno.EINVAL)
            ):
                self._netlink.change(link_messages.DELLINKPROP, message)

    def set_vf(self, pf_ifindex: int, index: int, change: VfChange) -> None:
        """Program a VF through its PF, all attributes in one message (rtnetlink.c do_setvfinfo)."""
        message = link_messages.pack_vf_change(pf_ifindex, index, change)
        with _kernel_errors(f"set attributes of vf {index}"):
            self._netlink.change(link_messages.NEWLINK, message)

    def add_address(self, ifindex: int, address: str) -> None:
        """`address`: CIDR."""
        message = route_messages.pack_address(ifindex, address)
        with _kernel_errors(f"add address {address} to link {ifindex}"):
            self._netlink.change(route_messages.NEWADDR, message, CREATE)

    def addresses(self, ifindex: int) -> list[str]:
        return [address for index, address in self.all_addresses() if index == ifindex]

    def all_addresses(self) -> list[tuple[int, str]]:
        with _kernel_errors("list addresses"):
            messages = self._netlink.dump(route_messages.GETADDR, route_messages.pack_address_query())
        return [route_messages.read_address(message) for message in messages]

    def add_route(self, ifindex: int, route: RouteSpec) -> None:
        via = f" via {route.gateway}" if route.gateway else ""
        hint = "the gateway is not on a network of this interface" if route.gateway else ""
        message = route_messages.pack_route(ifindex, route)
        with _kernel_errors(f"add route {route.dst}{via}", hint=hint):
            self._netlink.change(route_messages.NEWROUTE, message, CREATE)

    def remove_route(self, ifindex: int, route: RouteSpec) -> None:
        """ESRCH: there is no such route. ENODEV: it went with its link."""
        message = route_messages.pack_route(ifindex, route)
        with _kernel_errors(f"remove route {route.dst}", ignore=(errno.ESRCH, errno.ENODEV)):
            self._netlink.change(route_messages.DELROUTE, message)

    def routes_of(self, table: int) -> list[tuple[int, RouteSpec]]:
        """The kernel picks them. ENOENT: nothing was ever put into that table."""
        messages: list[bytes] = []
        for family in route_messages.FAMILIES:
            query = route_messages.pack_table_query(family, table)
            with _kernel_errors(f"list the routes of table {table}", ignore=(errno.ENOENT,)):
                messages += self._netlink.dump(route_messages.GETROUTE, query)
        found = map(route_messages.read_route, messages)
        return [(index, route) for index, route in found if index is not None]

    def set_neighbour(self, ifindex: int, address: str, mac: Mac) -> None:
        message = route_messages.pack_neighbour(ifindex, address, mac)
        with _kernel_errors(f"set the MAC of {address} to {mac} on link {ifindex}"):
            self._netlink.change(route_messages.NEWNEIGH, message, REPLACE)

    def remove_neighbour(self, ifindex: int, address: str) -> None:
        message = route_messages.pack_neighbour(ifindex, address)
        with _kernel_errors(f"forget the MAC of {address} on link {ifindex}", ignore=_NOT_THERE):
            self._netlink.change(route_messages.DELNEIGH, message)

    def neighbours(self, ifindex: int) -> dict[str, Mac]:
        with _kernel_errors("list the neighbours"):
            messages = self._netlink.dump(route_messages.GETNEIGH, route_messages.pack_neighbour_query())
        found = filter(None, map(route_messages.read_neighbour, messages))
        return {address: mac for index, address, mac in found if index == ifindex}

    def routes(self, ifindex: int) -> list[RouteSpec]:
        found = (route_messages.read_route(message) for message in self._dump_routes(ifindex))
        return [route for index, route in found if index == ifindex]

    def find_hop(self, address: str) -> Hop | None:
        """Unreachable, prohibited and the like: the kernel answers with the errno that a sender would get."""
        try:
            answer = self._netlink.get(route_messages.GETROUTE, route_messages.pack_hop_query(address))
        except NetlinkRefusal as e:
            if e.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
                return None
            raise KernelError(f"find the route to {address}", e.code, e.said) from e
        return _parsed(route_messages.read_hop, answer, f"find the route to {address}")

    def has_default_route(self, ifindex: int) -> bool:
        return any(map(route_messages.is_default, self._dump_routes(ifindex)))

    def default_route_links(self) -> frozenset[int]:
        """One dump of each family, and one of the nexthop objects if a default route goes by one."""
        links: set[int] = set()
        objects: set[int] = set()
        for message in filter(route_messages.is_default, self._dump_all_routes()):
            direct, nexthop = route_messages.read_hops(message)
            links.update(direct)
            objects.update([nexthop] if nexthop is not None and not direct else [])
        return frozenset(links | (self._links_of_nexthops(objects) if objects else set()))

    def _dump_all_routes(self) -> list[bytes]:
        found: list[bytes] = []
        for family in route_messages.FAMILIES:
            with _kernel_errors("list the routes"):
                found += self._netlink.dump(route_messages.GETROUTE, route_messages.pack_route_query(family))
        return found

    def _links_of_nexthops(self, wanted: set[int]) -> set[int]:
        with _kernel_errors("list the nexthop objects"):
            messages = self._netlink.dump(route_messages.GETNEXTHOP, route_messages.pack_nexthop_query())
        by_id = {number: (link, group) for number, link, group in map(route_messages.read_nexthop, messages)}
        members = {member for number in wanted & by_id.keys() for member in by_id[number][1]}
        hops = (by_id[number][0] for number in (wanted | members) & by_id.keys())
        return {link for link in hops if link is not None}

    def _dump_routes(self, ifindex: int) -> list[bytes]:
        """The kernel picks them (net/ipv4/fib_frontend.c ip_valid_fib_dump_req): it knows the links of a
        route with several hops or with a nexthop object. ENODEV: there is no such link."""
        found: list[bytes] = []
        for family in route_messages.FAMILIES:
            query = route_messages.pack_route_query(family, ifindex)
            with _kernel_errors(f"list the routes of link {ifindex}", ignore=(errno.ENODEV,)):
                found += self._netlink.dump(route_messages.GETROUTE, query)
        return found

    def add_rule(self, rule: RuleSpec) -> None:
        with _kernel_errors(f"add rule from {rule.source} to table {rule.table}"):
            self._netlink.change(route_messages.NEWRULE, route_messages.pack_rule(rule), CREATE)

    def remove_rule(self, rule: RuleSpec) -> None:
        with _kernel_errors(f"remove rule from {rule.source} to table {rule.table}", ignore=(errno.ENOENT,)):
            self._netlink.change(route_messages.DELRULE, route_messages.pack_rule(rule))

    def rules(self) -> list[RuleSpec]:
        found: list[RuleSpec] = []
        for family in route_messages.FAMILIES:
            with _kernel_errors("list the policy rules"):
                messages = self._netlink.dump(route_messages.GETRULE, route_messages.pack_rule_query(family))
            found += [rule for m in messages if (rule := route_messages.read_rule(m))]
        return found


def parsed_link(message: bytes, operation: str) -> LinkInfo:
    """Raises KernelError for one that does not parse: more VFs than fit into one attribute may come with a
    wrong length (rtnetlink.c rtnl_fill_vf)."""
    return _parsed(link_messages.read_link, message, operation)


def _parsed(read: Callable[[bytes], Answer], message: bytes, operation: str) -> Answer:
    try:
        return read(message)
    except (ValueError, KeyError, struct.error) as e:
        raise KernelError(operation, errno.EPROTO, "the answer does not parse") from e


@contextmanager
def _kernel_errors(operation: str, *, hint: str = "", ignore: tuple[int, ...] = ()) -> Iterator[None]:
    try:
        yield
    except NetlinkRefusal as e:
        if e.code not in ignore:
            raise KernelError(operation, e.code, strerror_or(e.said, e.code, hint)) from e
