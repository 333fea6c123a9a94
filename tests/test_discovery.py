"""PFs and VFs of the in-memory kernel, read into the model."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from tests.fake_kernel import FakeFunction, FakeKernel, FakeLinks
from vf_manager.discovery import find_link, host_link, pf_link, read_pfs, read_vf
from vf_manager.errors import KernelError, NotFound, Refused
from vf_manager.kernel.api import LinkInfo, Links, NetnsHandle, PciFunction
from vf_manager.model import IfName, PciAddress, VfChange

PF0, PF1 = PciAddress("0000:01:00.0"), PciAddress("0000:02:00.0")
POD = "/run/netns/pod"


@pytest.fixture
def kernel() -> FakeKernel:
    kernel = FakeKernel()
    kernel.add_pf(PF1, "ens2", numa_node=1)
    kernel.add_pf(PF0, "ens1")
    kernel.set_num_vfs(PF0, 3)
    kernel.set_num_vfs(PF1, 2)
    return kernel


def vf_of(kernel: FakeKernel, pf: PciAddress, index: int) -> PciAddress:
    return kernel.functions[pf].function.virtfns[index][1]


def move_to_pod(kernel: FakeKernel, name: str, ifname: str = "net1") -> NetnsHandle:
    kernel.new_netns(POD)
    pod = kernel.netns_at(POD)
    assert pod is not None
    with kernel.links() as host:
        link = host.read(name=name)
        assert link is not None
        host.move(link.netdev.ifindex, pod, IfName(ifname))
    return pod


def remove_link(kernel: FakeKernel, name: str) -> None:
    link = kernel.find(name)
    assert link is not None
    kernel.namespaces[1].remove(link)


# -- all PFs


def test_pfs_come_in_address_order_with_their_vfs(kernel: FakeKernel) -> None:
    pfs = read_pfs(kernel)
    assert [(pf.pci, pf.num_vfs, pf.total_vfs, pf.numa_node) for pf in pfs] == [
        (PF0, 3, 7, 0),
        (PF1, 2, 7, 1),
    ]
    assert [[vf.index for vf in pf.vfs] for pf in pfs] == [[0, 1, 2], [0, 1]]
    assert [pf.netdev.name for pf in pfs if pf.netdev] == ["ens1", "ens2"]
    assert [vf.netdev.name for vf in pfs[0].vfs if vf.netdev] == ["ens1v0", "ens1v1", "ens1v2"]
    assert {vf.pf_pci for vf in pfs[1].vfs} == {PF1}
    vf = pfs[0].vfs[1]
    assert (vf.pci, vf.vendor, vf.device, vf.driver) == (vf_of(kernel, PF0, 1), "8086", "10ca", "igbvf")
    assert vf.attributes is not None
    assert vf.attributes.spoofchk is True


def test_a_node_without_nics() -> None:
    assert read_pfs(FakeKernel()) == ()


def test_attributes_belong_to_their_vf(kernel: FakeKernel) -> None:
    with kernel.links() as host:
        host.set_vf(pf_link(kernel, host, PF0).netdev.ifindex, 1, VfChange(trust=True))
    trusted = [vf.pci for pf in read_pfs(kernel) for vf in pf.vfs if vf.attributes and vf.attributes.trust]
    assert trusted == [vf_of(kernel, PF0, 1)]


def test_a_vf_in_a_pod_has_no_interface_and_keeps_its_attributes(kernel: FakeKernel) -> None:
    move_to_pod(kernel, "ens1v1")
    vf = read_pfs(kernel)[0].vfs[1]
    assert (vf.index, vf.driver, vf.netdev) == (1, "igbvf", None)
    assert vf.attributes is not None


def test_a_vf_of_a_userspace_driver_has_no_interface(kernel: FakeKernel) -> None:
    kernel.bind_driver(vf_of(kernel, PF0, 0), "vfio-pci")
    vf = read_pfs(kernel)[0].vfs[0]
    assert (vf.driver, vf.netdev) == ("vfio-pci", None)


def test_a_pf_without_interface_has_vfs_without_attributes(kernel: FakeKernel) -> None:
    """Its driver is gone, or its interface was moved into a namespace."""
    remove_link(kernel, "ens1")
    pf = read_pfs(kernel)[0]
    assert pf.netdev is None
    assert [vf.attributes for vf in pf.vfs] == [None, None, None]
    assert [vf.netdev is not None for vf in pf.vfs] == [True, True, True]


def test_a_pf_in_a_pod_counts_as_one_without_interface(kernel: FakeKernel) -> None:
    move_to_pod(kernel, "ens1")
    assert read_pfs(kernel)[0].netdev is None
    with kernel.links() as host, pytest.raises(NotFound, match=r"PF 0000:01:00\.0 has no network interface"):
        pf_link(kernel, host, PF0)


def test_a_kernel_that_does_not_tell_the_device_of_a_link(kernel: FakeKernel) -> None:
    with_parents = read_pfs(kernel)
    kernel.tells_parent = False
    assert read_pfs(kernel) == with_parents


def test_a_vf_that_goes_away_meanwhile_is_left_out(kernel: FakeKernel) -> None:
    del kernel.functions[vf_of(kernel, PF0, 1)]
    assert [vf.index for vf in read_pfs(kernel)[0].vfs] == [0, 2]


def test_a_driver_that_does_not_answer_for_its_vfs_costs_only_their_attributes(kernel: FakeKernel) -> None:
    class Deaf(FakeLinks):
        def read(self, *, ifindex: int = 0, name: str = "", with_vfs: bool = False) -> LinkInfo | None:
            if with_vfs:
                raise KernelError("read link", errno.EIO)
            return super().read(ifindex=ifindex, name=name)

    class DeafKernel(FakeKernel):
        @contextmanager
        def links(self, netns: NetnsHandle | None = None) -> Iterator[Links]:
            yield Deaf(self, 1)

    deaf = DeafKernel()
    deaf.add_pf(PF0, "ens1")
    deaf.set_num_vfs(PF0, 1)
    (pf,) = read_pfs(deaf)
    assert pf.netdev is not None
    assert [(vf.netdev is not None, vf.attributes) for vf in pf.vfs] == [(True, None)]


# -- switchdev


@pytest.fixture
def with_representors(kernel: FakeKernel) -> FakeKernel:
    """As mlx5 has them: links of the PF's own PCI device, listed before and after its uplink."""
    for name, port in (("a_rep", "pf0vf0"), ("ens1_1", "pf0vf1"), ("z_rep", "c1pf0sf88")):
        kernel.add_link(name, parent=PF0).phys_port_name = port
    uplink = kernel.find("ens1")
    assert uplink is not None
    uplink.phys_port_name = "p0"
    kernel.namespaces[1].sort(key=lambda link: link.netdev.name)
    return kernel


def test_a_representor_is_not_the_pf(with_representors: FakeKernel) -> None:
    pf = read_pfs(with_representors)[0]
    assert pf.netdev is not None
    assert pf.netdev.name == "ens1"
    assert all(vf.attributes is not None for vf in pf.vfs)
    with with_representors.links() as host:
        assert pf_link(with_representors, host, PF0).netdev.name == "ens1"
        found = find_link(host, PF0)
        assert found is not None
        assert found.name == "ens1"


def test_a_pf_of_which_only_representors_are_here_has_no_interface(with_representors: FakeKernel) -> None:
    remove_link(with_representors, "ens1")
    assert read_pfs(with_representors)[0].netdev is None
    with with_representors.links() as host, pytest.raises(NotFound):
        pf_link(with_representors, host, PF0)


def test_eswitch_modes_are_of_their_pf(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "eswitch_modes", lambda: {PF1: "switchdev"})
    assert [pf.eswitch_mode for pf in read_pfs(kernel)] == [None, "switchdev"]


# -- one VF


def test_one_vf_is_read_as_in_the_whole(kernel: FakeKernel) -> None:
    whole = read_pfs(kernel)[0].vfs[2]
    with kernel.links() as host:
        assert read_vf(kernel, host, whole.pci) == whole
        bare = read_vf(kernel, host, whole.pci, with_attributes=False)
    assert bare == msgspec.structs.replace(whole, attributes=None)


def test_what_is_no_vf_is_told_apart(kernel: FakeKernel) -> None:
    disk = PciAddress("0000:00:1f.2")
    with kernel.links() as host:
        with pytest.raises(NotFound, match=r"there is no PCI device 0000:00:1f\.2"):
            read_vf(kernel, host, disk)
        kernel.functions[disk] = FakeFunction(PciFunction(pci=disk, vendor="8086", device="2922"))
        with pytest.raises(Refused, match=r"0000:00:1f\.2 is not an SR-IOV virtual function"):
            read_vf(kernel, host, disk)
        with pytest.raises(Refused, match=r"0000:01:00\.0 is a physical function"):
            read_vf(kernel, host, PF0)


def test_a_vf_that_its_pf_does_not_list_is_going_away(kernel: FakeKernel) -> None:
    vf = vf_of(kernel, PF0, 0)
    owner = kernel.functions[PF0]
    owner.function = msgspec.structs.replace(owner.function, virtfns=())
    with kernel.links() as host, pytest.raises(NotFound, match="going away"):
        read_vf(kernel, host, vf)
    del kernel.functions[PF0]
    with kernel.links() as host, pytest.raises(NotFound, match="going away"):
        read_vf(kernel, host, vf)


def test_reading_attributes_needs_the_pfs_interface(kernel: FakeKernel) -> None:
    vf = vf_of(kernel, PF0, 0)
    remove_link(kernel, "ens1")
    with kernel.links() as host:
        with pytest.raises(NotFound, match="attributes of its VFs are out of reach"):
            read_vf(kernel, host, vf)
        assert read_vf(kernel, host, vf, with_attributes=False).index == 0


def test_a_link_is_found_where_it_is(kernel: FakeKernel) -> None:
    vf = vf_of(kernel, PF0, 0)
    pod = move_to_pod(kernel, "ens1v0")
    with kernel.links() as host, kernel.links(pod) as inside:
        assert host_link(kernel, host, vf) is None
        assert find_link(host, vf) is None
        found = find_link(inside, vf)
        assert found is not None
        assert found.name == "net1"
        assert host_link(kernel, host, PciAddress("0000:ff:1f.7")) is None


def test_a_renamed_link_is_found_by_its_device(kernel: FakeKernel) -> None:
    vf = vf_of(kernel, PF0, 0)
    link = kernel.find("ens1v0")
    assert link is not None
    link.netdev = msgspec.structs.replace(link.netdev, name=IfName("somebody0"))
    with kernel.links() as host:
        found = host_link(kernel, host, vf)
    assert found is not None
    assert found.name == "somebody0"
