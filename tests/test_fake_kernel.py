"""The in-memory kernel of the tests does what the running kernel does."""

import itertools

import pytest

from tests.fake_kernel import FakeKernel
from tests.host_link_contract import VlanContract
from tests.kernel_contract import KernelContract, Space
from tests.nft_contract import NftContract
from tests.vf_contract import VfContract
from vf_manager.kernel.api import LinkChange, RouteSpec
from vf_manager.model import IfName, PciAddress


class FakeWorld:
    def __init__(self, kernel: FakeKernel, spare: str) -> None:
        self.kernel = kernel
        self.spare = IfName(spare)
        self._numbers = itertools.count()

    def new_space(self) -> Space:
        path = f"/run/netns/pod{next(self._numbers)}"
        return Space(self.kernel.new_netns(path), path)

    def delete_space(self, space: Space, *, close: bool = True) -> None:
        self.kernel.destroy_netns(space.fd)


class FakeVfWorld(FakeWorld):
    def __init__(self) -> None:
        kernel = FakeKernel()
        self.pf = kernel.add_pf("0000:01:00.0", "ens1f0")
        kernel.set_num_vfs(self.pf, 1)
        self.vf = PciAddress(kernel.functions[self.pf].function.virtfns[0][1])
        super().__init__(kernel, "ens1f0v0")


class TestPlainLink(KernelContract):
    @pytest.fixture
    def world(self) -> FakeWorld:
        kernel = FakeKernel()
        kernel.add_link("spare0")
        return FakeWorld(kernel, "spare0")


class TestVf(VfContract):
    @pytest.fixture
    def world(self) -> FakeVfWorld:
        return FakeVfWorld()


class TestNft(NftContract):
    @pytest.fixture
    def world(self) -> FakeWorld:
        return FakeWorld(FakeKernel(), "spare0")


class TestHostLinks(VlanContract):
    @pytest.fixture
    def world(self) -> FakeWorld:
        kernel = FakeKernel()
        kernel.add_link("spare0")
        return FakeWorld(kernel, "spare0")


def test_a_snapshot_sees_every_change() -> None:
    world = FakeVfWorld()
    kernel = world.kernel
    seen = [kernel.snapshot()]

    def changed() -> bool:
        seen.append(kernel.snapshot())
        return seen[-1] not in seen[:-1]

    with kernel.links() as host:
        link = kernel.find("ens1f0v0")
        assert link is not None
        host.set_link(link.netdev.ifindex, LinkChange(mtu=1400, up=True))
        assert changed()
        host.add_altnames(link.netdev.ifindex, ["other0"])
        assert changed()
        host.add_address(link.netdev.ifindex, "192.0.2.1/24")
        assert changed()
        host.add_route(link.netdev.ifindex, RouteSpec(dst="0.0.0.0/0"))
        assert changed()
    kernel.bind_driver(world.vf, "vfio-pci")
    assert changed()


def test_a_link_that_went_and_came_back_leaves_no_trace() -> None:
    world = FakeVfWorld()
    kernel = world.kernel
    kernel.new_netns("/run/netns/pod")
    before = kernel.snapshot()
    pod = kernel.netns_at("/run/netns/pod")
    assert pod is not None
    with kernel.links() as host, kernel.links(pod) as links:
        link = host.read(name="ens1f0v0")
        assert link is not None
        host.move(link.netdev.ifindex, pod, IfName("net1"))
        moved = links.read(name="net1")
        assert moved is not None
        assert kernel.snapshot() != before
        links.move(moved.netdev.ifindex, kernel.host_netns(), IfName("ens1f0v0"))
    assert kernel.snapshot() == before


def test_each_change_is_told_before_it_is_made() -> None:
    world = FakeVfWorld()
    link = world.kernel.find("ens1f0v0")
    assert link is not None
    told = []
    world.kernel.on_change = lambda what: told.append((what, link.netdev.mtu))
    with world.kernel.links() as host:
        host.set_link(link.netdev.ifindex, LinkChange(mtu=1400))
    assert told == [("set mtu 1400", 1500)]
    assert link.netdev.mtu == 1400
