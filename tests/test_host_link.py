"""Host links over the in-memory kernel: what is made, shared, refused, missed and put right."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from sriov_cni.host_addresses import node_addresses
from sriov_cni.host_link.host_side import GUARD
from sriov_cni.host_link.options import HostLink
from sriov_cni.host_link.plan import HOST_TABLE, PREFIX, HostRoute, Node, PodRoute, cidr, plan_pieces
from sriov_cni.host_link.plan import Linked as LinkPlan
from sriov_cni.ipam.config import IpamResult
from sriov_cni.reconcile import Reconciler
from sriov_cni.spec import IpConfig
from tests.cni_world import PF0, World, conf_of, error_of, quiet_log, result_of
from tests.fake_kernel import FakeLink
from vf_manager.kernel.api import LinkChange, RouteSpec, RuleSpec
from vf_manager.model import IfName, Inventory, PciAddress, parse_mac

KINDS = ("pf", "veth")
NODE = {"192.0.2.1/24", "2001:db8::1/64"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.kernel.add_link("eno1").addresses += sorted(NODE)
    world.kernel.set_up("ens0", up=True)
    return world


class Linked:
    """A pod with a host link to its VF, `net1`."""

    def __init__(self, world: World, kind: str, name: str = "a", index: int = 2, **options: Any) -> None:
        self.world, self.name = world, name
        self.vf = world.vfs(PF0)[index]
        self.pod = world.new_pod(name)
        self.conf = conf_of(self.vf, hostLink=kind, **options)

    def add(self) -> "Linked":
        self.prev = result_of(self.world.call("ADD", self.name, self.pod, self.conf))
        return self

    def check(self) -> str:
        reply = self.world.call("CHECK", self.name, self.pod, self.conf | {"prevResult": self.prev})
        return error_of(reply)[1] if reply.exit_code else ""

    def delete(self) -> None:
        assert self.world.call("DEL", self.name, self.pod, self.conf).exit_code == 0

    def refusal(self) -> str:
        return error_of(self.world.call("ADD", self.name, self.pod, self.conf))[1]

    def link(self) -> FakeLink:
        """In the pod: the one that leads to the node."""
        found = self.world.kernel.find("host-net1", self.pod) or self.world.kernel.find("net1", self.pod)
        assert found is not None
        return found

    def reached(self) -> set[str]:
        """Addresses of the node that take the link."""
        return {route.dst for route in self.link().routes if route.table and route.table > 255}


def made(world: World) -> list[str]:
    return sorted(i.netdev.name for i in world.kernel.namespaces[1] if i.netdev.name.startswith(PREFIX))


def reconciler(world: World) -> Reconciler:
    return Reconciler(world.attacher, world.kubelet, Inventory, quiet_log())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vlan", [None, 100])
def test_all_that_is_made_goes_with_the_pod(world: World, kind: str, vlan: int | None) -> None:
    options: dict[str, Any] = {"vlan": vlan} if vlan else {}
    before = world.state()
    linked = Linked(world, kind, **options).add()
    assert linked.check() == ""
    assert linked.reached() == {"192.0.2.1/32", "2001:db8::1/128"}
    with world.kernel.links() as host:
        assert len(host.routes_of(HOST_TABLE)) == 2
    linked.delete()
    assert world.state().without(linked.pod) == before


def test_the_link_of_a_vlan_goes_with_its_last_pod(world: World) -> None:
    first, second, other = (
        Linked(world, "pf", name, index, vlan=vlan).add()
        for name, index, vlan in (("a", 1, 100), ("b", 2, 100), ("c", 3, 200))
    )
    assert len(made(world)) == 2
    first.delete()
    assert len(made(world)) == 2
    assert second.check() == other.check() == ""
    second.delete()
    (left,) = made(world)
    assert left.startswith("hlk-200.")
    other.delete()
    assert made(world) == []
    assert GUARD not in world.kernel.nft[1]


def test_a_vlan_interface_that_is_not_ours_is_used_and_stays(world: World) -> None:
    pf = world.kernel.find("ens0")
    foreign = world.kernel.add_link("ens0.100")
    foreign.kind, foreign.lower, foreign.vlan = "vlan", pf, 100
    world.kernel.set_up("ens0.100", up=True)
    before = world.state()
    linked = Linked(world, "pf", vlan=100).add()
    assert made(world) == []
    assert len(foreign.routes) == 2
    linked.delete()
    assert world.state().without(linked.pod) == before


def test_a_vlan_that_the_vf_has_already_counts(world: World) -> None:
    owner = world.kernel.functions[PF0]
    owner.attributes[2] = msgspec.structs.replace(owner.attributes[2], vlan=77, qos=0)
    Linked(world, "pf").add()
    assert [name.split(".")[0] for name in made(world)] == ["hlk-77"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_somebody_took_away_is_named_and_put_right(world: World, kind: str) -> None:
    linked = Linked(world, kind, vlan=100).add()
    link = linked.link()
    world.kernel.rules[1].clear()
    world.kernel.rules[linked.pod].clear()
    world.kernel.nft[1].clear()
    link.routes = [route for route in link.routes if route.dst != "192.0.2.1/32"]
    problems = linked.check()
    for what in ("rule of the node", GUARD, "rule of the pod for 10.56.0.2/32", "pod to 192.0.2.1/32"):
        assert f"{what}" in problems
    reconciler(world).look()
    assert linked.check() == ""


def test_a_veth_that_somebody_deleted_comes_back(world: World) -> None:
    linked = Linked(world, "veth").add()
    world.kernel.drop_link(linked.link())
    assert "host link: veth of net1 is missing" in linked.check()
    reconciler(world).look()
    assert linked.check() == ""


@pytest.mark.parametrize("kind", KINDS)
def test_addresses_of_the_node_that_come_and_go(world: World, kind: str) -> None:
    linked = Linked(world, kind).add()
    uplink = world.kernel.find("eno1")
    assert uplink is not None
    uplink.addresses[:] = ["203.0.113.5/24"]
    reconciler(world).look()
    assert linked.reached() == {"203.0.113.5/32"}
    assert linked.check() == ""
    assert set(linked.link().neighbours) == ({"203.0.113.5"} if kind == "pf" else set())


@pytest.mark.parametrize("kind", KINDS)
def test_a_pf_that_is_unplugged(world: World, kind: str) -> None:
    """With its VFs, and the links for VLANs on it. The pod lives on."""
    linked, kernel = Linked(world, kind, vlan=100).add(), world.kernel
    gone = {PF0, *world.vfs(PF0)}
    kernel.functions = {pci: function for pci, function in kernel.functions.items() if pci not in gone}
    for link in [link for links in kernel.namespaces.values() for link in links if link.parent in gone]:
        kernel.drop_link(link)
    reconciler(world).look()
    linked.delete()
    assert made(world) == []
    assert kernel.rules[1] == kernel.rules[linked.pod] == []
    assert GUARD not in kernel.nft[1]
    assert kernel.find("host-net1", linked.pod) is None


def test_a_pod_with_another_way_to_the_node_keeps_it(world: World) -> None:
    """Its own eth0, of the cluster network; the answer from the VF's address takes the link all the same."""
    linked = Linked(world, "veth", ipam=conf_of("")["ipam"] | {"routes": []})
    eth0 = world.kernel.add_link("eth0", linked.pod)
    eth0.addresses.append("10.244.0.5/24")
    with world.kernel.links(world.kernel.netns(linked.pod)) as pod:
        pod.set_link(eth0.netdev.ifindex, LinkChange(up=True))
        pod.add_route(eth0.netdev.ifindex, RouteSpec(dst="0.0.0.0/0", gateway="10.244.0.1"))
    linked.add()
    assert linked.reached() == {"192.0.2.1/32", "2001:db8::1/128"}
    assert {route.dst for route in linked.link().routes if route.table is None} == {"2001:db8::1/128"}


def test_a_gateway_answers_for_itself(world: World) -> None:
    """It is the node, by another link than the PF: its MAC is not laid down."""
    wire = world.kernel.add_link("wire0")
    wire.addresses.append("10.56.0.1/24")
    assert set(Linked(world, "pf").add().link().neighbours) == {"192.0.2.1", "2001:db8::1"}


def test_refusals(world: World) -> None:
    world.kernel.bind_driver(world.vfs(PF0)[2], "vfio-pci")
    assert (
        "veth: VF 0000:01:10.2 (driver vfio-pci) has no network interface" in Linked(world, "veth").refusal()
    )
    without = Linked(world, "pf", "b", 1)
    del without.conf["ipam"]
    assert "network underlay gives no addresses" in without.refusal()
    lone = Linked(world, "pf", "c", 1)
    lone.conf["deviceID"] = world.kernel.add_lone("0000:05:00.0", "ens5")
    world.pooled.add(PciAddress("0000:05:00.0"))
    assert "the PF of VF 0000:05:00.0 is not on this node" in lone.refusal()
    lone.conf["hostLink"] = "veth"
    lone.add()
    world.kernel.set_up("ens0", up=False)
    assert "ens0 of the node is down" in Linked(world, "pf", "d", 3).refusal()
    pf = world.kernel.find("ens0")
    assert pf is not None
    pf.master = 99
    assert "ens0 is a port of a bridge or bond" in Linked(world, "pf", "e", 4).refusal()
    assert "expected one of none, pf, veth" in Linked(world, "bridge", "f", 5).refusal()


def test_none_is_nothing(world: World) -> None:
    linked = Linked(world, "none").add()
    assert made(world) == []
    assert linked.reached() == set()
    assert world.kernel.rules == {}


def test_which_addresses_of_the_node_count(world: World) -> None:
    kernel = world.kernel
    kernel.add_link("kube-ipvs0").addresses += ["10.96.0.1/32", "10.96.0.10/32"]
    kernel.add_link("nodelocaldns").addresses.append("169.254.20.10/32")
    kernel.add_link("usb0").addresses += ["169.254.3.1/16", "fe80::1/64"]
    kernel.namespaces[1][0].addresses += ["127.0.0.1/8", "::1/128"]
    with kernel.links() as host:
        assert set(node_addresses(host)) == {"192.0.2.1", "2001:db8::1", "169.254.20.10"}


def test_what_the_node_sends_alone_looks_up_its_routes(world: World) -> None:
    Linked(world, "veth").add()
    lo = IfName("lo")
    assert world.kernel.rules[1] == [
        RuleSpec(source=everything, table=HOST_TABLE, priority=HOST_TABLE, iif=lo)
        for everything in ("0.0.0.0/0", "::/0")
    ]


def test_nobody_at_the_other_end_changes_routes(world: World) -> None:
    linked = Linked(world, "veth").add()
    for netns, name in ((1, made(world)[0]), (linked.pod, "host-net1")):
        for key, value in (
            ("ipv4", ("forwarding", "0")),
            ("ipv4", ("rp_filter", "1")),
            ("ipv6", ("accept_ra", "0")),
            ("ipv6", ("disable_ipv6", "0")),
        ):
            assert world.kernel.sysctls[netns, f"net/{key}/conf/{name}/{value[0]}"] == value[1]


ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)


@given(
    st.lists(ADDRESSES, min_size=1, max_size=3, unique=True), st.dictionaries(ADDRESSES, st.integers(1, 9))
)
def test_a_plan_leads_to_the_nodes_addresses_and_nowhere_else(own: list[str], node: dict[str, int]) -> None:
    given_by_ipam = IpamResult(ips=tuple(IpConfig(address=cidr(address)) for address in own))
    linked = LinkPlan(kind=HostLink.VETH, key="c1@eth0", pci=PF0, pf=PF0, ifname=IfName("eth0"))
    seen = Node(ifindex=3, addresses=node, by_link=frozenset(list(node)[:2]))
    pieces = plan_pieces(linked, given_by_ipam, seen)
    assert len(set(pieces)) == len(pieces)
    to_node = {piece.dst for piece in pieces if isinstance(piece, PodRoute)}
    assert to_node <= {cidr(address) for address in node if address not in own}
    assert {piece.dst for piece in pieces if isinstance(piece, HostRoute)} == {cidr(a) for a in own}
    assert all(piece.source in (None, *node) for piece in pieces if isinstance(piece, HostRoute))
    assert {(":" in dst) for dst in to_node} <= {(":" in address) for address in own}


@given(st.text("abc123", min_size=1, max_size=20), st.integers(1, 4094))
def test_names_fit(key: str, vlan: int) -> None:
    linked = LinkPlan(kind=HostLink.PF, key=key, pci=PF0, pf=PF0, ifname=IfName("a-long-name-123"), vlan=vlan)
    for name in (linked.host_name, linked.pod_name, linked.vlan_name):
        assert len(name) <= 15
    assert linked.mark >= 0x8000_0000
    assert parse_mac(linked.mac)
