"""VFs whose PF is not on this node: a virtual machine has them from its hypervisor."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sriov_cni.messages import CniReply
from tests.cni_world import IPAM, World, conf_of, error_of, result_of
from tests.fake_kernel import FakeKernel
from vf_manager.discovery import read_lone, read_vf
from vf_manager.errors import KernelError
from vf_manager.kernel.api import LinkChange, RouteSpec
from vf_manager.model import IfName, Mac, PciAddress

LONE = PciAddress("0000:05:00.0")
MAC = "02:00:00:00:aa:01"


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.pooled.add(world.kernel.add_lone(LONE, "ens5"))
    with world.kernel.links() as host:
        host.add_altnames(ifindex_of(world.kernel), ["enp5s0"])
    return world


def ifindex_of(kernel: FakeKernel, name: str = "ens5") -> int:
    link = kernel.find(name)
    assert link is not None
    return link.netdev.ifindex


class TestAttachment:
    def test_add_check_and_del(self, world: World) -> None:
        pod = world.new_pod("a")
        before = world.state()
        conf = conf_of(LONE, mac=MAC, mtu=1400, promisc="on")
        result = result_of(world.call("ADD", "c1", pod, conf))
        interface = {"name": "net1", "mac": MAC, "mtu": 1400, "sandbox": "/run/netns/a", "pciID": LONE}
        assert result["interfaces"] == [interface]
        link = world.kernel.find("net1", pod)
        assert link is not None
        assert (link.netdev.mac, link.netdev.mtu, link.netdev.up) == (MAC, 1400, True)
        assert link.addresses == ["10.56.0.2/24", "fd00:56::2/64"]
        assert world.call("CHECK", "c1", pod, conf | {"prevResult": result}) == CniReply(0, b"")
        assert world.call("ADD", "c1", pod, conf).stdout  # a replay has the same result
        world.start_agent()
        assert world.call("DEL", "c1", pod, conf).exit_code == 0
        assert world.state() == before

    def test_check_sees_another_mac(self, world: World) -> None:
        pod = world.new_pod("a")
        conf = conf_of(LONE, mac=MAC)
        result = result_of(world.call("ADD", "c1", pod, conf))
        link = world.kernel.find("net1", pod)
        assert link is not None
        link.netdev = msgspec.structs.replace(link.netdev, mac=Mac("02:00:00:00:aa:02"))
        code, message = error_of(world.call("CHECK", "c1", pod, conf | {"prevResult": result}))
        assert code == 100
        assert message == f"mac of net1 is 02:00:00:00:aa:02, not {MAC}"

    def test_a_pod_that_ends_before_its_del(self, world: World) -> None:
        pod = world.new_pod("a")
        before = world.state()
        result_of(world.call("ADD", "c1", pod, conf_of(LONE, mac=MAC, mtu=1400)))
        world.kernel.destroy_netns(pod)
        assert world.call("DEL", "c1", None, conf_of(LONE)).exit_code == 0
        assert world.state() == before.without(pod)

    def test_it_has_one_owner(self, world: World) -> None:
        result_of(world.call("ADD", "c1", world.new_pod("a"), conf_of(LONE)))
        code, message = error_of(world.call("ADD", "c2", world.new_pod("b"), conf_of(LONE)))
        assert (code, f"VF {LONE} is attached to another pod" in message) == (11, True)

    def test_a_mac_that_the_hypervisor_forbids(self, world: World) -> None:
        def refuse(what: str) -> None:
            if MAC in what:
                raise KernelError(what, errno.EACCES)

        pod = world.new_pod("a")
        before = world.state()
        world.kernel.on_change = refuse
        code, message = error_of(world.call("ADD", "c1", pod, conf_of(LONE, mac=MAC, mtu=1400)))
        assert f"set mac {MAC} on ens5 ({LONE}): EACCES" in message
        assert "which is not on this node" in message
        assert (code, world.state()) == (5, before)

    def test_a_userspace_driver_has_it(self, world: World) -> None:
        world.kernel.bind_driver(LONE, "vfio-pci")
        pod = world.new_pod("a")
        before = world.state()
        code, message = error_of(world.call("ADD", "c1", pod, conf_of(LONE, mac=MAC)))
        assert (code, world.state()) == (7, before)
        assert message.startswith(f"mac: VF {LONE} (driver vfio-pci) has no PF on this node")
        result = result_of(world.call("ADD", "c1", pod, conf_of(LONE)))
        assert result["interfaces"] == [{"name": "net1", "sandbox": "/run/netns/a", "pciID": LONE}]
        assert world.call("CHECK", "c1", pod, conf_of(LONE) | {"prevResult": result}) == CniReply(0, b"")
        assert world.call("DEL", "c1", pod, conf_of(LONE)).exit_code == 0
        assert world.state() == before


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"vlan": 100}, "vlan"),
        ({"vlan": 0}, "vlan"),
        ({"vlan": 100, "vlanQoS": 3, "vlanProto": "802.1ad"}, "vlan, vlanQoS, vlanProto"),
        ({"spoofchk": "off"}, "spoofchk"),
        ({"trust": "on", "mac": MAC}, "trust"),
        ({"min_tx_rate": 0, "max_tx_rate": 100}, "min_tx_rate, max_tx_rate"),
        ({"link_state": "auto"}, "link_state"),
    ],
)
def test_what_only_a_pf_can_do_is_refused(world: World, options: dict[str, Any], keys: str) -> None:
    pod = world.new_pod("a")
    before = world.state()
    code, message = error_of(world.call("ADD", "c1", pod, conf_of(LONE, **options)))
    assert code == 7
    assert message.startswith(f"{keys}: only a PF can set this, and VF {LONE} has its PF outside this node")
    assert world.state() == before


# -- what the host needs


def default_route(kernel: FakeKernel) -> None:
    with kernel.links() as host:
        ifindex = ifindex_of(kernel)
        host.set_link(ifindex, LinkChange(up=True))
        host.add_route(ifindex, RouteSpec(dst="::/0", gateway="fe80::1"))


def bridge(kernel: FakeKernel) -> None:
    kernel.uppers_of["ens5"] = ("br0", "ens5.7")


def virtio(kernel: FakeKernel) -> None:
    found = kernel.functions[LONE]
    found.function = msgspec.structs.replace(found.function, driver="virtio-pci")


NEEDS = [
    (default_route, "the host's default route goes by its interface ens5"),
    (bridge, "br0, ens5.7 of the host stands on its interface ens5"),
    (virtio, "its driver is virtio-pci, so its network interface is another device's"),
]


@pytest.mark.parametrize(("need", "reason"), NEEDS)
@pytest.mark.parametrize("in_pool", [True, False])
def test_a_nic_that_the_host_needs_is_refused(
    world: World, need: Callable[[FakeKernel], None], reason: str, in_pool: bool
) -> None:
    """In a pool still, for the host may have come to need it since the last look."""
    need(world.kernel)
    if not in_pool:
        world.pooled.discard(LONE)
    pod = world.new_pod("a")
    before = world.state()
    code, message = error_of(world.call("ADD", "c1", pod, conf_of(LONE)))
    assert (code, world.state()) == (7, before)
    assert message.startswith("deviceID: ")
    assert LONE in message
    assert reason in message


@pytest.mark.parametrize(("need", "reason"), NEEDS)
def test_the_inventory_says_so(world: World, need: Callable[[FakeKernel], None], reason: str) -> None:
    (free,) = read_lone(world.kernel)
    assert (free.pci, free.pf_pci, free.attributes, free.unusable) == (LONE, None, None, None)
    assert free.netdev is not None
    assert (free.netdev.name, free.netdev.altnames) == ("ens5", ("enp5s0",))
    need(world.kernel)
    (needed,) = read_lone(world.kernel)
    assert needed.unusable == reason


def test_a_route_of_an_interface_that_is_down_or_away_is_none(world: World) -> None:
    default_route(world.kernel)
    world.kernel.set_up("ens5", up=False)
    assert [vf.unusable for vf in read_lone(world.kernel)] == [None]
    result_of(world.call("ADD", "c1", world.new_pod("a"), conf_of(LONE, ipam=IPAM)))
    (away,) = read_lone(world.kernel)
    assert (away.netdev, away.unusable) == (None, None)


def test_one_alone_is_read_like_all(world: World) -> None:
    with world.kernel.links() as host:
        assert (read_vf(world.kernel, host, LONE),) == read_lone(world.kernel)
    world.kernel.tells_parent = False
    with world.kernel.links() as host:
        assert (read_vf(world.kernel, host, LONE),) == read_lone(world.kernel)


def test_without_any_nic_nothing_more_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel()
    monkeypatch.setattr(kernel, "links", None)
    assert read_lone(kernel) == ()


def test_a_vf_of_a_pf_that_the_host_needs_is_refused_too(world: World) -> None:
    world.kernel.uppers_of[IfName("ens0v2")] = ("bond0",)
    pod = world.new_pod("a")
    vf = world.vfs(PciAddress("0000:01:00.0"))[2]
    before = world.state()
    code, message = error_of(world.call("ADD", "c1", pod, conf_of(vf)))
    assert (code, world.state()) == (7, before)
    expected = f"VF {vf} cannot be given to a pod: bond0 of the host stands on its interface ens0v2"
    assert message == f"deviceID: {expected}; free it, or keep the VF out of the pool"
