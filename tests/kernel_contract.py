"""What the product relies on of a kernel. The running one and the tests' in-memory one pass the same tests.

A runner subclasses `KernelContract` (or `VfContract` of vf_contract.py, where there is an SR-IOV NIC) in a
class whose name starts with Test, and gives it a fixture `world`. Only facts stand here, never how often the
kernel is asked.
"""

import dataclasses
import errno
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import pytest

from vf_manager.errors import InvalidInput, KernelError
from vf_manager.kernel.api import (
    Kernel,
    KernelEvents,
    LinkChange,
    LinkInfo,
    Links,
    NetnsHandle,
    RouteSpec,
    RuleSpec,
)
from vf_manager.model import IfName, Mac, PciAddress

LO = 1  # the ifindex of the loopback link, in every namespace
LONG_ALTNAME = "an-altname-that-no-name-can-be"
RETURN_TIMEOUT_S = 10.0

Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True)
class Space:
    """A network namespace that the world made: an open descriptor of it and the path that names it."""

    fd: int
    path: str


class World(Protocol):
    """`spare`: the name of a link in the host's namespace that the tests may do anything to."""

    @property
    def kernel(self) -> Kernel: ...
    @property
    def spare(self) -> IfName: ...

    def new_space(self) -> Space:
        """A fresh namespace with nothing but `lo`."""

    def delete_space(self, space: Space, *, close: bool = True) -> None:
        """Remove its path and, with `close`, close its descriptor."""


@dataclasses.dataclass(frozen=True)
class Pod:
    """A namespace with everything open that a test needs of it."""

    space: Space
    netns: NetnsHandle
    links: Links


class KernelContract:
    @pytest.fixture
    def kernel(self, world: World) -> Kernel:
        return world.kernel

    @pytest.fixture
    def host(self, kernel: Kernel) -> Iterator[Links]:
        with kernel.links() as links:
            yield links

    @pytest.fixture
    def host_netns(self, kernel: Kernel) -> Iterator[NetnsHandle]:
        handle = kernel.host_netns()
        yield handle
        handle.close()

    @pytest.fixture
    def pod(self, world: World) -> Iterator[Pod]:
        space = world.new_space()
        netns = world.kernel.netns(space.fd)
        try:
            with world.kernel.links(netns) as links:
                yield Pod(space, netns, links)
        finally:
            netns.close()

    @pytest.fixture
    def spare(self, world: World, host: Links) -> int:
        """Its ifindex on the host, for as long as it stays there."""
        return named(host, world.spare).netdev.ifindex

    # -- reading

    def test_a_link_is_found_by_name_and_by_index(self, world: World, host: Links) -> None:
        by_name = named(host, world.spare)
        assert by_name.netdev.name == world.spare
        assert host.read(ifindex=by_name.netdev.ifindex) == by_name

    def test_a_link_that_is_not_there_is_none(self, host: Links) -> None:
        assert host.read(name="nope0") is None
        assert host.read(ifindex=999_999) is None
        assert host.read(name=LONG_ALTNAME) is None

    def test_an_altname_is_no_name(self, host: Links, spare: int) -> None:
        host.add_altnames(spare, ["other0", LONG_ALTNAME])
        assert host.read(name="other0") is None
        assert host.read(name=LONG_ALTNAME) is None

    def test_every_link_tells_what_it_has_counted(self, world: World, host: Links, pod: Pod) -> None:
        counted = {link.name: link.ifindex for link in host.traffic()}
        assert counted == {link.netdev.name: link.netdev.ifindex for link in host.dump()}
        (loopback,) = pod.links.traffic()
        assert (loopback.name, loopback.rx_packets, loopback.tx_bytes) == ("lo", 0, 0)

    def test_dump_has_every_link_once(self, world: World, host: Links) -> None:
        found = host.dump()
        assert {"lo", world.spare} <= {link.netdev.name for link in found}
        assert len({link.netdev.ifindex for link in found}) == len(found)
        assert named(host, world.spare) in found

    def test_a_link_tells_its_type(self, world: World, host: Links) -> None:
        assert named(host, world.spare).link_type == "ether"
        assert named(host, "lo").link_type is None

    def test_lo_is_link_1(self, pod: Pod) -> None:
        assert [(link.netdev.ifindex, link.netdev.name) for link in pod.links.dump()] == [(LO, "lo")]

    def test_a_name_is_taken_by_names_and_altnames(self, world: World, host: Links, spare: int) -> None:
        host.add_altnames(spare, ["other0", LONG_ALTNAME])
        assert all(host.name_taken(name) for name in ("lo", world.spare, "other0", LONG_ALTNAME))
        assert not any(host.name_taken(name) for name in ("nope0", "other", LONG_ALTNAME + "-2"))

    # -- changing

    def test_mtu_mac_name_and_state_change_in_one_message(self, host: Links, spare: int) -> None:
        mac = Mac("02:00:00:5e:00:01")
        host.set_link(spare, LinkChange(name=IfName("renamed0"), mac=mac, mtu=1400, up=True))
        now = named(host, "renamed0").netdev
        assert (now.ifindex, now.mac, now.mtu, now.up) == (spare, mac, 1400, True)

    def test_what_is_not_asked_for_stays(self, host: Links, spare: int) -> None:
        before = indexed(host, spare).netdev
        host.set_link(spare, LinkChange(mtu=1400))
        after = indexed(host, spare).netdev
        assert (after.name, after.mac, after.up, after.mtu) == (before.name, before.mac, before.up, 1400)

    def test_promiscuous_and_allmulti_are_set_and_read_back(self, host: Links, spare: int) -> None:
        host.set_link(spare, LinkChange(promisc=True, allmulti=True))
        now = indexed(host, spare).netdev
        assert (now.promisc, now.allmulti) == (True, True)
        host.set_link(spare, LinkChange(promisc=False))
        now = indexed(host, spare).netdev
        assert (now.promisc, now.allmulti) == (False, True)

    def test_a_link_goes_down_again(self, host: Links, spare: int) -> None:
        host.set_link(spare, LinkChange(up=True))
        host.set_link(spare, LinkChange(up=False))
        assert not indexed(host, spare).netdev.up

    def test_a_change_that_is_so_already_is_no_error(self, world: World, host: Links, spare: int) -> None:
        before = indexed(host, spare)
        host.set_link(spare, LinkChange(name=world.spare, mtu=before.netdev.mtu, up=before.netdev.up))
        assert indexed(host, spare) == before

    def test_an_mtu_out_of_bounds_is_refused(self, host: Links, spare: int) -> None:
        before = indexed(host, spare)
        with refused(errno.EINVAL):
            host.set_link(spare, LinkChange(mtu=60))
        with refused(errno.EINVAL):
            host.set_link(spare, LinkChange(mtu=70_000))
        assert indexed(host, spare) == before

    def test_a_multicast_mac_is_refused(self, host: Links, spare: int) -> None:
        before = indexed(host, spare)
        with refused(errno.EADDRNOTAVAIL):
            host.set_link(spare, LinkChange(mac=Mac("01:00:5e:00:00:01")))
        assert indexed(host, spare) == before

    def test_a_link_that_is_not_there_cannot_be_changed(self, host: Links) -> None:
        with refused(errno.ENODEV):
            host.set_link(999_999, LinkChange(mtu=1400))
        with refused(errno.ENODEV):
            host.add_altnames(999_999, ["other0"])
        with refused(errno.ENODEV):
            host.add_address(999_999, "192.0.2.1/24")

    def test_a_taken_name_is_refused(self, world: World, host: Links, spare: int) -> None:
        with refused(errno.EEXIST):
            host.set_link(spare, LinkChange(name=IfName("lo")))
        assert indexed(host, spare).netdev.name == world.spare

    def test_a_link_cannot_take_its_own_altname(self, world: World, host: Links, spare: int) -> None:
        host.add_altnames(spare, ["other0"])
        with refused(errno.EEXIST):
            host.set_link(spare, LinkChange(name=IfName("other0")))
        assert indexed(host, spare).netdev.name == world.spare
        host.remove_altnames(spare, ["other0"])
        host.set_link(spare, LinkChange(name=IfName("other0")))
        assert indexed(host, spare).netdev.name == "other0"

    # -- altnames

    def test_an_altname_may_be_added_twice(self, host: Links, spare: int) -> None:
        host.add_altnames(spare, ["other0", LONG_ALTNAME])
        host.add_altnames(spare, [LONG_ALTNAME, "other1"])
        assert sorted(altnames(host, spare)) == [LONG_ALTNAME, "other0", "other1"]

    def test_an_altname_that_is_absent_may_be_removed(self, host: Links, spare: int) -> None:
        host.add_altnames(spare, ["other0", "other1"])
        host.remove_altnames(spare, ["nope0", "other0"])
        host.remove_altnames(spare, ["other0"])
        assert altnames(host, spare) == ("other1",)

    def test_the_altname_of_another_link_stays(self, host: Links, spare: int, pod: Pod) -> None:
        pod.links.add_altnames(LO, ["other0"])
        host.move(spare, pod.netns, IfName("net1"))
        moved = named(pod.links, "net1").netdev.ifindex
        pod.links.remove_altnames(moved, ["other0"])
        assert altnames(pod.links, LO) == ("other0",)

    # -- moving

    def test_a_move_renames_and_sets_down(self, world: World, host: Links, spare: int, pod: Pod) -> None:
        host.add_altnames(spare, ["other0"])
        host.add_address(spare, "192.0.2.1/24")
        host.set_link(spare, LinkChange(mtu=1400, up=True))
        before = indexed(host, spare).netdev

        host.move(spare, pod.netns, IfName("net1"))
        moved = named(pod.links, "net1").netdev
        assert host.read(name=world.spare) is None
        assert (moved.mac, moved.mtu, moved.altnames) == (before.mac, 1400, ("other0",))
        assert not moved.up
        assert pod.links.addresses(moved.ifindex) == []

    def test_and_back(self, world: World, host: Links, spare: int, pod: Pod, host_netns: NetnsHandle) -> None:
        before = indexed(host, spare).netdev
        host.move(spare, pod.netns, IfName("net1"))
        moved = named(pod.links, "net1").netdev.ifindex
        pod.links.add_address(moved, "192.0.2.1/24")
        pod.links.set_link(moved, LinkChange(up=True))

        pod.links.move(moved, host_netns, world.spare)
        after = named(host, world.spare).netdev
        assert (after.mac, after.mtu, after.up) == (before.mac, before.mtu, False)
        assert host.addresses(after.ifindex) == []
        assert pod.links.read(name="net1") is None

    @pytest.mark.parametrize("taken_by", ["name", "altname"])
    def test_a_move_to_a_taken_name_leaves_the_link_in_one_place(
        self, world: World, host: Links, spare: int, pod: Pod, host_netns: NetnsHandle, taken_by: str
    ) -> None:
        pod.links.add_altnames(LO, ["other0"])
        with refused(errno.EEXIST):
            host.move(spare, pod.netns, IfName("lo" if taken_by == "name" else "other0"))
        here, there = host.read(name=world.spare), pod.links.read(name=world.spare)
        assert [here is None, there is None] in ([True, False], [False, True])
        if there is not None:
            pod.links.move(there.netdev.ifindex, host_netns, world.spare)
        assert named(host, world.spare)
        assert pod.links.read(name=world.spare) is None

    def test_a_move_to_its_own_altname_is_refused_too(
        self, world: World, host: Links, spare: int, pod: Pod
    ) -> None:
        host.add_altnames(spare, ["other0"])
        with refused(errno.EEXIST):
            host.move(spare, pod.netns, IfName("other0"))
        links = [host.read(name=world.spare), pod.links.read(name=world.spare)]
        assert len([link for link in links if link is not None]) == 1

    def test_a_link_whose_own_name_is_taken_there_moves_under_the_new_one(
        self, world: World, host: Links, spare: int, pod: Pod
    ) -> None:
        pod.links.add_altnames(LO, [world.spare])
        host.move(spare, pod.netns, IfName("net1"))
        assert named(pod.links, "net1")
        assert host.read(name=world.spare) is None

    def test_a_link_stays_if_both_names_are_taken_there(
        self, world: World, host: Links, spare: int, pod: Pod
    ) -> None:
        pod.links.add_altnames(LO, [world.spare])
        before = indexed(host, spare)
        with refused(errno.EEXIST):
            host.move(spare, pod.netns, IfName("lo"))
        assert indexed(host, spare) == before
        assert [link.netdev.name for link in pod.links.dump()] == ["lo"]

    def test_a_link_stays_if_one_of_its_altnames_is_taken_there(
        self, host: Links, spare: int, pod: Pod
    ) -> None:
        host.add_altnames(spare, ["other0"])
        pod.links.add_altnames(LO, ["other0"])
        before = indexed(host, spare)
        with refused(errno.EEXIST):
            host.move(spare, pod.netns, IfName("net1"))
        assert indexed(host, spare) == before
        assert [link.netdev.name for link in pod.links.dump()] == ["lo"]

    def test_a_link_that_is_not_there_cannot_be_moved(self, host: Links, pod: Pod) -> None:
        with refused(errno.ENODEV):
            host.move(999_999, pod.netns, IfName("net1"))

    # -- devlink

    @pytest.mark.parametrize("mode", ["legacy", "switchdev"])
    def test_what_has_no_eswitch_has_no_mode(self, kernel: Kernel, mode: str) -> None:
        with pytest.raises(KernelError) as caught:
            kernel.set_eswitch_mode(PciAddress("0000:ff:1f.7"), mode)
        assert caught.value.code in (errno.ENODEV, errno.EOPNOTSUPP)

    # -- addresses and routes

    def test_addresses_are_listed_as_cidrs(self, host: Links, spare: int) -> None:
        host.add_address(spare, "192.0.2.1/24")
        host.add_address(spare, "2001:db8::1/64")
        assert sorted(host.addresses(spare)) == ["192.0.2.1/24", "2001:db8::1/64"]
        assert host.addresses(999_999) == []

    @pytest.mark.parametrize("address", ["192.0.2.1/24", "2001:db8::1/64"])
    def test_an_address_cannot_be_added_twice(self, host: Links, spare: int, address: str) -> None:
        host.add_address(spare, address)
        with refused(errno.EEXIST):
            host.add_address(spare, address)
        assert host.addresses(spare) == [address]

    @pytest.mark.parametrize("dst", ["198.51.100.0/24", "0.0.0.0/0", "2001:db8:1::/48"])
    def test_a_route_needs_its_link_up(self, host: Links, spare: int, pod: Pod, dst: str) -> None:
        net1 = moved_in(host, spare, pod)
        with refused(errno.ENETDOWN):
            pod.links.add_route(net1, RouteSpec(dst=dst))
        pod.links.set_link(net1, LinkChange(up=True))
        pod.links.add_route(net1, RouteSpec(dst=dst))

    @pytest.mark.parametrize(
        ("address", "dst", "near", "far", "code"),
        [
            ("192.0.2.1/24", "198.51.100.0/24", "192.0.2.254", "203.0.113.1", errno.ENETUNREACH),
            ("192.0.2.1/24", "0.0.0.0/0", "192.0.2.254", "203.0.113.1", errno.ENETUNREACH),
            ("2001:db8::1/64", "::/0", "2001:db8::fe", "2001:db8:9::1", errno.EHOSTUNREACH),
        ],
    )
    def test_a_gateway_must_be_on_a_network_of_the_link(
        self, host: Links, spare: int, pod: Pod, address: str, dst: str, near: str, far: str, code: int
    ) -> None:
        net1 = moved_in(host, spare, pod)
        pod.links.add_address(net1, address)
        pod.links.set_link(net1, LinkChange(up=True))
        with refused(code):
            pod.links.add_route(net1, RouteSpec(dst=dst, gateway=far))
        pod.links.add_route(net1, RouteSpec(dst=dst, gateway=near, mtu=1300, advmss=1200))

    def test_a_gateway_may_be_reached_by_a_route_of_the_link(self, host: Links, spare: int, pod: Pod) -> None:
        net1 = moved_in(host, spare, pod)
        pod.links.add_address(net1, "192.0.2.1/32")
        pod.links.set_link(net1, LinkChange(up=True))
        pod.links.add_route(net1, RouteSpec(dst="203.0.113.1/32"))
        pod.links.add_route(net1, RouteSpec(dst="0.0.0.0/0", gateway="203.0.113.1"))

    def test_a_route_cannot_be_added_twice(self, host: Links, spare: int, pod: Pod) -> None:
        net1 = moved_in(host, spare, pod)
        pod.links.add_address(net1, "192.0.2.1/24")
        pod.links.set_link(net1, LinkChange(up=True))
        with refused(errno.EEXIST):
            pod.links.add_route(net1, RouteSpec(dst="192.0.2.0/24"))  # made by the kernel for the address
        route = RouteSpec(dst="198.51.100.0/24", gateway="192.0.2.2")
        pod.links.add_route(net1, route)
        with refused(errno.EEXIST):
            pod.links.add_route(net1, route)
        pod.links.add_route(net1, RouteSpec(dst=route.dst, gateway=route.gateway, priority=50))
        pod.links.add_route(net1, RouteSpec(dst=route.dst, gateway=route.gateway, table=100))

    def test_routes_are_listed_as_they_were_added(self, host: Links, spare: int, pod: Pod) -> None:
        net1 = moved_in(host, spare, pod)
        pod.links.add_address(net1, "192.0.2.1/24")
        pod.links.add_address(net1, "2001:db8::1/64")
        pod.links.set_link(net1, LinkChange(up=True))
        added = {
            RouteSpec(dst="0.0.0.0/0", gateway="192.0.2.2", table=254),
            RouteSpec(dst="198.51.100.0/24", gateway="192.0.2.2", mtu=1300, advmss=1200, table=100),
            RouteSpec(dst="203.0.113.0/24", table=254),
            RouteSpec(dst="2001:db8:1::/48", gateway="2001:db8::2", table=254),
        }
        for route in added:
            pod.links.add_route(net1, route)
        assert added <= {
            RouteSpec(dst=r.dst, gateway=r.gateway, mtu=r.mtu, advmss=r.advmss, table=r.table)
            for r in pod.links.routes(net1)
        }
        assert pod.links.routes(LO) == []
        assert pod.links.routes(999_999) == []

    @pytest.mark.parametrize(
        ("address", "default", "other", "gateway"),
        [
            ("192.0.2.1/24", "0.0.0.0/0", "198.51.100.0/24", "192.0.2.2"),
            ("2001:db8::1/64", "::/0", "2001:db8:1::/48", "2001:db8::2"),
        ],
    )
    @pytest.mark.parametrize("table", [None, 100])
    def test_a_default_route_of_any_table_is_one_of_its_link(
        self,
        host: Links,
        spare: int,
        pod: Pod,
        address: str,
        default: str,
        other: str,
        gateway: str,
        table: int | None,
    ) -> None:
        net1 = moved_in(host, spare, pod)
        pod.links.add_address(net1, address)
        pod.links.set_link(net1, LinkChange(up=True))
        pod.links.add_route(net1, RouteSpec(dst=other, gateway=gateway))
        assert not pod.links.has_default_route(net1)
        assert pod.links.default_route_links() == frozenset()
        pod.links.add_route(net1, RouteSpec(dst=default, gateway=gateway, table=table))
        assert pod.links.has_default_route(net1)
        assert not pod.links.has_default_route(LO)
        assert pod.links.default_route_links() == {net1}

    @pytest.mark.parametrize("source", ["192.0.2.1/32", "2001:db8::/64"])
    def test_a_rule_is_added_once_and_removed(self, pod: Pod, source: str) -> None:
        rule = RuleSpec(source=source, table=100, priority=1000)
        pod.links.remove_rule(rule)
        pod.links.add_rule(rule)
        with refused(errno.EEXIST):
            pod.links.add_rule(rule)
        other = RuleSpec(source=source, table=101, priority=1001)
        pod.links.add_rule(other)
        assert sorted(pod.links.rules(), key=lambda r: r.table) == [rule, other]
        pod.links.remove_rule(rule)
        assert pod.links.rules() == [other]

    # -- events

    def test_nothing_is_heard_while_nothing_changes(self, kernel: Kernel, host: Links, spare: int) -> None:
        with kernel.events() as events:
            assert events.unheard == ()
            become_quiet(events)

    @pytest.mark.parametrize(
        "change", [LinkChange(mtu=1400), LinkChange(name=IfName("renamed0")), LinkChange(up=True)]
    )
    def test_a_change_of_a_link_is_heard(
        self, kernel: Kernel, host: Links, spare: int, change: LinkChange
    ) -> None:
        with kernel.events() as events:
            become_quiet(events)
            host.set_link(spare, change)
            assert events.wait(RETURN_TIMEOUT_S)

    def test_a_link_that_leaves_and_comes_back_is_heard(
        self, world: World, host: Links, spare: int, pod: Pod, host_netns: NetnsHandle
    ) -> None:
        with world.kernel.events() as events:
            become_quiet(events)
            net1 = moved_in(host, spare, pod)
            assert events.wait(RETURN_TIMEOUT_S)
            become_quiet(events)
            pod.links.move(net1, host_netns, world.spare)
            assert events.wait(RETURN_TIMEOUT_S)

    @pytest.mark.parametrize("dst", ["0.0.0.0/0", "::/0"])
    def test_a_default_route_is_heard(self, kernel: Kernel, host: Links, spare: int, dst: str) -> None:
        host.set_link(spare, LinkChange(up=True))
        with kernel.events() as events:
            become_quiet(events)
            host.add_route(spare, RouteSpec(dst=dst, table=1000))
            assert events.wait(RETURN_TIMEOUT_S)

    def test_what_changed_before_the_wait_is_heard(self, kernel: Kernel, host: Links, spare: int) -> None:
        with kernel.events() as events:
            become_quiet(events)
            for mtu in (1400, 1300, 1200):
                host.set_link(spare, LinkChange(mtu=mtu))
            assert events.wait(0)
            become_quiet(events)

    def test_a_wait_can_be_ended_by_another_thread(self, kernel: Kernel) -> None:
        with kernel.events() as events:
            become_quiet(events)
            waker = threading.Timer(0.01, events.wake)
            waker.start()
            assert events.wait(RETURN_TIMEOUT_S)
            waker.join()
            events.wake()
            assert events.wait(0)
        events.wake()  # nobody is there any more

    # -- namespaces

    def test_a_namespace_has_one_id(self, world: World, kernel: Kernel) -> None:
        one, two = world.new_space(), world.new_space()
        handles = [kernel.netns(one.fd), kernel.netns(one.fd), kernel.netns_at(one.path)]
        handles += [kernel.netns(two.fd), kernel.host_netns()]
        first, same, at_path, other, host = (handle.id for handle in handles if handle is not None)
        for handle in handles:
            if handle is not None:
                handle.close()
        assert first == same == at_path
        assert len({first, other, host}) == 3

    def test_a_descriptor_of_something_else_is_refused(self, kernel: Kernel) -> None:
        with tempfile.TemporaryFile() as file, pytest.raises(InvalidInput, match="CNI_NETNS"):
            kernel.netns(file.fileno())
        with pytest.raises(InvalidInput, match="CNI_NETNS"):
            kernel.netns(999_999)

    def test_a_handle_outlives_the_descriptor_it_came_from(self, kernel: Kernel, pod: Pod) -> None:
        again = kernel.netns_at(pod.space.path)
        assert again is not None
        with kernel.links(again) as links:
            assert named(links, "lo")
        again.close()

    def test_a_path_that_names_no_namespace_is_none(self, world: World, kernel: Kernel) -> None:
        space = world.new_space()
        world.delete_space(space)
        assert kernel.netns_at(space.path) is None
        assert kernel.netns_at("/nope/netns") is None
        with tempfile.NamedTemporaryFile() as file:
            assert kernel.netns_at(file.name) is None

    def test_a_deleted_namespace_still_works_or_fails_cleanly(self, world: World, kernel: Kernel) -> None:
        space = world.new_space()
        handle = kernel.netns(space.fd)
        world.delete_space(space, close=False)
        assert kernel.netns_at(space.path) is None
        try:
            with kernel.links(handle) as links:
                assert named(links, "lo")
        except KernelError:
            pass
        finally:
            handle.close()

    def test_links_are_of_the_namespace_asked_for(self, world: World, host: Links, pod: Pod) -> None:
        assert pod.links.read(name=world.spare) is None
        assert host.read(name=world.spare) is not None

    def test_a_sysctl_that_is_absent_is_no_error(self, kernel: Kernel, pod: Pod) -> None:
        names = ("lo/arp_notify", "lo/nobody_knows_this", "nope0/arp_notify", "lo/arp_ignore")
        kernel.write_sysctls(pod.netns, [(f"net/ipv4/conf/{name}", "1") for name in names])
        kernel.write_sysctls(pod.netns, [])

    # -- announcements

    def test_announcing_needs_the_link_up(self, kernel: Kernel, host: Links, spare: int, pod: Pod) -> None:
        addresses = ["192.0.2.1/24", "2001:db8::1/64"]
        net1 = moved_in(host, spare, pod)
        netdev = indexed(pod.links, net1).netdev
        with refused(errno.ENETDOWN):
            kernel.announce(pod.netns, netdev, addresses)
        pod.links.set_link(net1, LinkChange(up=True))
        kernel.announce(pod.netns, netdev, addresses)
        pod.links.set_link(net1, LinkChange(up=False))
        pod.links.set_link(net1, LinkChange(name=IfName("net2")))
        with refused(errno.ENODEV):
            kernel.announce(pod.netns, netdev, addresses)


def named(links: Links, name: str) -> LinkInfo:
    found = links.read(name=name)
    assert found is not None, f"no link {name}: {[link.netdev.name for link in links.dump()]}"
    return found


def indexed(links: Links, ifindex: int) -> LinkInfo:
    found = links.read(ifindex=ifindex)
    assert found is not None, f"no link {ifindex}: {[link.netdev.name for link in links.dump()]}"
    return found


def altnames(links: Links, ifindex: int) -> tuple[str, ...]:
    return indexed(links, ifindex).netdev.altnames


def moved_in(host: Links, spare: int, pod: Pod) -> int:
    """The spare link into the pod as `net1`; its ifindex there."""
    host.move(spare, pod.netns, IfName("net1"))
    return named(pod.links, "net1").netdev.ifindex


def become_quiet(events: KernelEvents) -> None:
    """What was going on before is over, e.g. the carrier of a link that just came up."""
    deadline = time.monotonic() + RETURN_TIMEOUT_S
    while events.wait(0.05):
        assert time.monotonic() < deadline, f"still events after {RETURN_TIMEOUT_S:g} s"


@contextmanager
def refused(code: int) -> Iterator[None]:
    with pytest.raises(KernelError) as caught:
        yield
    assert caught.value.code == code, str(caught.value)
    assert os.strerror(code) in str(caught.value)


def eventually(look: Callable[[], Found | None], what: str) -> Found:
    deadline = time.monotonic() + RETURN_TIMEOUT_S
    while (found := look()) is None:
        assert time.monotonic() < deadline, f"{what}: not within {RETURN_TIMEOUT_S:g} s"
        time.sleep(0.005)
    return found
