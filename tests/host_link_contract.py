"""What host links rely on of a kernel. The running one and the tests' in-memory one pass the same tests.

VLANs only in `VlanContract`: they take a kernel with 802.1q.
"""

import errno
from collections.abc import Iterator

import pytest

from tests.kernel_contract import Pod, Space, World, indexed, named, refused
from vf_manager.kernel.api import Kernel, LinkChange, Links, RouteSpec, RuleSpec
from vf_manager.model import IfName, Mac, VlanProto

TABLE = 5000
MAC = Mac("02:00:00:00:56:01")
HERE, THERE = IfName("here0"), IfName("there0")


class HostLinkContract:
    @pytest.fixture
    def kernel(self, world: World) -> Kernel:
        return world.kernel

    @pytest.fixture
    def host(self, kernel: Kernel) -> Iterator[Links]:
        with kernel.links() as links:
            yield links

    @pytest.fixture
    def space(self, world: World) -> Space:
        return world.new_space()

    @pytest.fixture
    def pod(self, world: World, space: Space) -> Iterator[Pod]:
        netns = world.kernel.netns(space.fd)
        with world.kernel.links(netns) as links:
            yield Pod(space, netns, links)
        netns.close()

    @pytest.fixture
    def spare(self, world: World, host: Links) -> int:
        """Up, with an address."""
        ifindex = named(host, world.spare).netdev.ifindex
        host.set_link(ifindex, LinkChange(up=True))
        host.add_address(ifindex, "192.0.2.1/24")
        return ifindex

    # -- veth

    def test_a_pair_has_one_mac_and_is_down(self, host: Links, pod: Pod) -> None:
        host.make_veth(HERE, THERE, pod.netns, MAC)
        here, there = named(host, HERE), named(pod.links, THERE)
        for end in (here, there):
            assert (end.kind, end.netdev.mac, end.netdev.up, end.vlan) == ("veth", MAC, False, None)
        assert host.read(name=THERE) is None
        host.set_link(here.netdev.ifindex, LinkChange(up=True))
        pod.links.set_link(there.netdev.ifindex, LinkChange(up=True))
        assert indexed(pod.links, there.netdev.ifindex).netdev.up

    @pytest.mark.parametrize("taken", ["here", "there"])
    def test_a_pair_is_not_made_by_halves(self, world: World, host: Links, pod: Pod, taken: str) -> None:
        name, peer = (world.spare, THERE) if taken == "here" else (HERE, IfName("lo"))
        with refused(errno.EEXIST):
            host.make_veth(name, peer, pod.netns, MAC)
        assert host.read(name=HERE) is None
        assert pod.links.read(name=THERE) is None

    def test_both_ends_go_together(self, host: Links, pod: Pod) -> None:
        host.make_veth(HERE, THERE, pod.netns, MAC)
        ifindex = named(host, HERE).netdev.ifindex
        host.delete_link(ifindex)
        assert host.read(name=HERE) is None
        assert pod.links.read(name=THERE) is None
        host.delete_link(ifindex)

    def test_what_is_no_pair_or_vlan_has_no_kind(self, host: Links) -> None:
        assert named(host, "lo").kind is None
        with refused(errno.EOPNOTSUPP):
            host.delete_link(1)

    # -- routes

    @pytest.mark.parametrize("dst", ["198.51.100.7/32", "2001:db8:7::7/128"])
    def test_a_route_of_a_table_is_listed_and_removed(self, host: Links, spare: int, dst: str) -> None:
        source = None if ":" in dst else "192.0.2.1"
        route = RouteSpec(dst=dst, table=TABLE, priority=0x8000_0001, source=source)
        other = RouteSpec(dst=dst, table=TABLE, priority=0x8000_0002)
        assert host.routes_of(TABLE) == []
        host.add_route(spare, route)
        host.add_route(spare, other)
        found = {(ifindex, r.dst, r.priority, r.source) for ifindex, r in host.routes_of(TABLE)}
        assert found == {(spare, dst, 0x8000_0001, source), (spare, dst, 0x8000_0002, None)}
        host.remove_route(spare, route)
        assert [r.priority for _, r in host.routes_of(TABLE)] == [0x8000_0002]
        host.remove_route(spare, route)
        host.remove_route(spare, other)
        assert host.routes_of(TABLE) == []

    # -- rules

    @pytest.mark.parametrize("everything", ["0.0.0.0/0", "::/0"])
    def test_a_rule_for_what_the_host_sends(self, host: Links, everything: str) -> None:
        rule = RuleSpec(source=everything, table=TABLE, priority=TABLE, iif=IfName("lo"))
        host.add_rule(rule)
        assert rule in host.rules()
        with refused(errno.EEXIST):
            host.add_rule(rule)
        host.remove_rule(rule)
        assert rule not in host.rules()
        host.remove_rule(rule)

    # -- neighbours

    @pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
    def test_a_neighbour_is_set_again_and_removed(self, host: Links, spare: int, address: str) -> None:
        host.set_neighbour(spare, address, MAC)
        other = Mac("02:00:00:00:56:02")
        host.set_neighbour(spare, address, other)
        assert host.neighbours(spare) == {address: other}
        assert host.neighbours(1) == {}
        host.remove_neighbour(spare, address)
        assert host.neighbours(spare) == {}
        host.remove_neighbour(spare, address)


class VlanContract(HostLinkContract):
    def test_a_vlan_tells_what_it_is_of(self, host: Links, spare: int) -> None:
        host.make_vlan(spare, HERE, 100, VlanProto.DOT1Q)
        made = named(host, HERE)
        assert (made.kind, made.lower, made.vlan, made.netdev.up) == ("vlan", spare, 100, False)
        assert made.netdev.mac == indexed(host, spare).netdev.mac
        with refused(errno.EEXIST):
            host.make_vlan(spare, IfName("other0"), 100, VlanProto.DOT1Q)
        host.make_vlan(spare, IfName("other0"), 101, VlanProto.DOT1Q)
        for name in (HERE, "other0"):
            host.delete_link(named(host, name).netdev.ifindex)
        assert host.read(name=HERE) is None
