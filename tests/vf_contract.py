"""What the product relies on of a VF and its PF: kernel_contract.py for drivers like igb and igbvf."""

import errno
from typing import Protocol

import pytest

from tests.kernel_contract import (
    RETURN_TIMEOUT_S,
    KernelContract,
    Pod,
    World,
    become_quiet,
    eventually,
    indexed,
    moved_in,
    named,
    refused,
)
from vf_manager.discovery import find_link
from vf_manager.kernel.api import Kernel, LinkChange, Links
from vf_manager.model import (
    ZERO_MAC,
    IfName,
    LinkState,
    Mac,
    PciAddress,
    VfAttributes,
    VfChange,
    VlanProto,
)


class VfWorld(World, Protocol):
    """`spare` is the interface of the VF 0 of a PF that is up. Its driver is igbvf, that of the PF igb."""

    @property
    def pf(self) -> PciAddress: ...
    @property
    def vf(self) -> PciAddress: ...


class VfContract(KernelContract):
    """What a VF and its PF do beyond that, by the drivers igb and igbvf."""

    @pytest.fixture
    def pf(self, world: VfWorld, host: Links, kernel: Kernel) -> int:
        function = kernel.read_function(world.pf)
        assert function is not None
        return named(host, function.netdev_names[0]).netdev.ifindex

    # -- functions

    def test_functions_name_each_other(self, world: VfWorld, kernel: Kernel) -> None:
        pf, vf = kernel.read_function(world.pf), kernel.read_function(world.vf)
        assert pf is not None
        assert vf is not None
        known = kernel.read_functions()
        assert [function.pci for function in known] == sorted(function.pci for function in known)
        assert [function for function in known if function.pci in (world.pf, world.vf)] == [pf, vf]
        assert (pf.driver, vf.driver) == ("igb", "igbvf")
        assert (pf.physfn, vf.physfn) == (None, world.pf)
        assert pf.virtfns[0] == (0, world.vf)
        assert (pf.num_vfs, vf.num_vfs, vf.total_vfs) == (len(pf.virtfns), 0, 0)
        assert vf.netdev_names == (world.spare,)

    def test_neither_a_pf_nor_its_vf_is_lone(self, world: VfWorld, kernel: Kernel) -> None:
        lone = [function for function in kernel.read_functions() if function.lone]
        assert not {world.pf, world.vf} & {function.pci for function in lone}
        assert [kernel.read_function(function.pci) for function in lone] == lone
        assert not any(function.physfn or function.total_vfs for function in lone)

    def test_an_ethernet_nic_says_so(self, world: VfWorld, kernel: Kernel, host: Links) -> None:
        for pci in (world.pf, world.vf):
            function = kernel.read_function(pci)
            assert function is not None
            assert function.link_type == "ether"
            assert named(host, function.netdev_names[0]).link_type == "ether"
            assert (function.rdma_devices, function.pkey) == ((), None)
            assert (function.vfio_device, function.uio_device) == (None, None)

    def test_a_pf_and_its_vf_are_below_one_root(self, world: VfWorld, kernel: Kernel) -> None:
        pf, vf = kernel.read_function(world.pf), kernel.read_function(world.vf)
        assert pf is not None
        assert vf is not None
        assert pf.pcie_root is not None
        assert pf.pcie_root.startswith(f"pci{world.pf[:4]}:")
        assert vf.pcie_root == pf.pcie_root

    def test_nothing_stands_on_a_vf_by_itself(self, world: VfWorld, kernel: Kernel) -> None:
        assert kernel.uppers(world.spare) == ()
        assert kernel.uppers(IfName("nope0")) == ()

    def test_a_function_that_is_not_there_is_none(self, kernel: Kernel) -> None:
        assert kernel.read_function("0000:ff:1f.7") is None

    def test_a_vf_that_left_has_no_name_in_sysfs(
        self, world: VfWorld, kernel: Kernel, host: Links, spare: int, pod: Pod
    ) -> None:
        moved_in(host, spare, pod)
        vf = kernel.read_function(world.vf)
        assert vf is not None
        assert vf.netdev_names == ()
        assert vf.driver == "igbvf"

    def test_the_number_of_vfs_changes_by_way_of_0(self, world: VfWorld, kernel: Kernel) -> None:
        pf = kernel.read_function(world.pf)
        assert pf is not None
        kernel.set_num_vfs(world.pf, pf.num_vfs)
        with refused(errno.EBUSY):
            kernel.set_num_vfs(world.pf, pf.num_vfs + 1)
        assert kernel.read_function(world.pf) == pf
        kernel.set_num_vfs(world.pf, 0)
        assert kernel.read_function(world.vf) is None
        with refused(errno.ERANGE):
            kernel.set_num_vfs(world.pf, pf.total_vfs + 1)
        with refused(errno.ENOENT):
            kernel.set_num_vfs(PciAddress("0000:ff:1f.7"), 1)

    def test_without_autoprobe_a_vf_gets_no_driver(self, world: VfWorld, kernel: Kernel) -> None:
        kernel.set_num_vfs(world.pf, 0)
        kernel.set_autoprobe(world.pf, False)
        try:
            kernel.set_num_vfs(world.pf, 1)
            vf, pf = kernel.read_function(world.vf), kernel.read_function(world.pf)
            assert vf is not None
            assert pf is not None
            assert (vf.driver, pf.autoprobe) == (None, False)
            with refused(errno.ENODEV):
                kernel.bind_driver(world.vf, None)
        finally:
            kernel.set_autoprobe(world.pf, True)
        kernel.bind_driver(world.vf, None)
        vf = kernel.read_function(world.vf)
        assert vf is not None
        assert vf.driver == "igbvf"

    def test_a_driver_that_is_not_there_is_refused(self, world: VfWorld, kernel: Kernel) -> None:
        with refused(errno.ENODEV):
            kernel.bind_driver(world.vf, "nobodys-driver")
        kernel.bind_driver(world.vf, None)
        vf = kernel.read_function(world.vf)
        assert vf is not None
        assert vf.driver == "igbvf"

    def test_a_reset_leaves_a_function_and_its_driver_in_place(self, world: VfWorld, kernel: Kernel) -> None:
        kernel.reset_function(world.vf)
        function = kernel.read_function(world.vf)
        assert function is not None
        assert (function.driver, function.physfn) == ("igbvf", world.pf)

    def test_a_function_that_is_not_there_cannot_be_reset(self, kernel: Kernel) -> None:
        with refused(errno.ENOENT):
            kernel.reset_function(PciAddress("0000:ff:1f.7"))

    def test_igb_has_no_eswitch(self, world: VfWorld, kernel: Kernel) -> None:
        modes = kernel.eswitch_modes()
        assert world.pf not in modes
        assert world.vf not in modes
        assert world.pf not in kernel.sick_reporters()

    def test_functions_that_come_and_go_and_change_drivers_are_heard(
        self, world: VfWorld, kernel: Kernel
    ) -> None:
        with kernel.events() as events:
            become_quiet(events)
            kernel.bind_driver(world.vf, None)
            assert events.wait(RETURN_TIMEOUT_S)
            become_quiet(events)
            kernel.set_num_vfs(world.pf, 0)
            assert events.wait(RETURN_TIMEOUT_S)

    def test_a_pf_tells_the_mac_that_is_burnt_in(self, host: Links, pf: int) -> None:
        burnt_in = indexed(host, pf).permanent_mac
        assert burnt_in is not None
        other = Mac("02:00:00:5e:00:0a")
        before = indexed(host, pf).netdev.mac
        host.set_link(pf, LinkChange(mac=other))
        try:
            assert (indexed(host, pf).netdev.mac, indexed(host, pf).permanent_mac) == (other, burnt_in)
        finally:
            host.set_link(pf, LinkChange(mac=before))

    # -- the interface of a VF

    def test_a_vf_tells_its_device_wherever_it_is(
        self, world: VfWorld, host: Links, spare: int, pod: Pod
    ) -> None:
        assert indexed(host, spare).parent == world.vf
        net1 = moved_in(host, spare, pod)
        assert indexed(pod.links, net1).parent == world.vf
        found = find_link(pod.links, world.vf)
        assert found is not None
        assert found.name == "net1"

    def test_a_vf_comes_back_when_its_namespace_ends(self, world: VfWorld, host: Links, spare: int) -> None:
        space = world.new_space()
        netns = world.kernel.netns(space.fd)
        host.move(spare, netns, IfName("net1"))
        netns.close()
        world.delete_space(space)
        back = eventually(lambda: find_link(host, world.vf), "the VF back on the host")
        assert back.name == "net1"
        assert not back.up

    # -- attributes

    def test_vf_attributes_come_only_when_asked_for(self, host: Links, pf: int) -> None:
        assert indexed(host, pf).vfs == {}
        assert all(link.vfs == {} for link in host.dump())
        with_vfs = host.read(ifindex=pf, with_vfs=True)
        assert with_vfs is not None
        assert list(with_vfs.vfs) == [0]
        assert with_vfs.netdev == indexed(host, pf).netdev

    def test_a_new_vf(self, host: Links, pf: int) -> None:
        now = attributes(host, pf)
        assert (now.vlan, now.qos, now.proto) == (0, 0, VlanProto.DOT1Q)
        assert (now.spoofchk, now.trust, now.min_tx_rate, now.max_tx_rate) == (True, False, 0, 0)

    @pytest.mark.parametrize(
        "change",
        [
            VfChange(mac=Mac("02:00:00:5e:00:02")),
            VfChange(vlan=100, qos=0, proto=VlanProto.DOT1Q),
            VfChange(vlan=4094, qos=7, proto=VlanProto.DOT1Q),
            VfChange(spoofchk=False),
            VfChange(trust=True),
        ],
        ids=lambda change: "-".join(key for key, _ in change.items()),
    )
    def test_an_attribute_is_set_and_read_back(self, host: Links, pf: int, change: VfChange) -> None:
        before = attributes(host, pf)
        host.set_vf(pf, 0, change)
        after = attributes(host, pf)
        asked = dict(change.items())
        for key in VfAttributes.__struct_fields__:
            assert getattr(after, key) == asked.get(key, getattr(before, key)), key

    def test_a_rate_is_set_and_read_back(self, host: Links, pf: int) -> None:
        host.set_vf(pf, 0, VfChange(min_tx_rate=0, max_tx_rate=50))
        assert attributes(host, pf).max_tx_rate == 50
        host.set_vf(pf, 0, VfChange(min_tx_rate=0, max_tx_rate=0))
        assert attributes(host, pf).max_tx_rate == 0

    def test_several_attributes_go_in_one_message(self, host: Links, pf: int) -> None:
        mac = Mac("02:00:00:5e:00:03")
        change = VfChange(mac=mac, vlan=7, qos=3, proto=VlanProto.DOT1Q, spoofchk=False, trust=True)
        host.set_vf(pf, 0, change)
        now = attributes(host, pf)
        assert (now.mac, now.vlan, now.qos, now.spoofchk, now.trust) == (mac, 7, 3, False, True)

    def test_what_comes_before_a_refused_attribute_stands(self, host: Links, pf: int) -> None:
        """rtnetlink.c do_setvfinfo has no transaction: link_state stands between spoofchk and trust."""
        change = VfChange(vlan=7, qos=0, proto=VlanProto.DOT1Q, trust=True, link_state=LinkState.ENABLE)
        with refused(errno.EOPNOTSUPP):
            host.set_vf(pf, 0, change)
        now = attributes(host, pf)
        assert (now.vlan, now.trust) == (7, False)

    def test_igb_knows_no_link_state_no_802_1ad_and_no_min_rate(self, host: Links, pf: int) -> None:
        """EPROTONOSUPPORT, and not EINVAL, shows that the long VLAN attribute was well-formed."""
        before = attributes(host, pf)
        with refused(errno.EOPNOTSUPP):
            host.set_vf(pf, 0, VfChange(link_state=LinkState.DISABLE))
        with refused(errno.EPROTONOSUPPORT):
            host.set_vf(pf, 0, VfChange(vlan=100, qos=0, proto=VlanProto.DOT1AD))
        with refused(errno.EINVAL):
            host.set_vf(pf, 0, VfChange(min_tx_rate=10, max_tx_rate=50))
        assert attributes(host, pf) == before

    def test_a_vf_index_that_is_not_there_is_refused(self, host: Links, pf: int) -> None:
        with refused(errno.EINVAL):
            host.set_vf(pf, 5, VfChange(trust=True))

    # -- the MACs: the administrative one, at the PF, and the VF's own

    def test_the_pf_shows_the_mac_that_a_vf_gave_itself(self, host: Links, pf: int, spare: int) -> None:
        mac = Mac("02:00:00:5e:00:04")
        host.set_link(spare, LinkChange(mac=mac))
        assert indexed(host, spare).netdev.mac == mac
        assert attributes(host, pf).mac == mac

    def test_an_administrative_mac_forbids_any_new_one(self, host: Links, pf: int, spare: int) -> None:
        """The very same too: igb_main.c igb_set_vf_mac_addr does not compare."""
        mac, other = Mac("02:00:00:5e:00:05"), Mac("02:00:00:5e:00:06")
        before = indexed(host, spare).netdev.mac
        host.set_vf(pf, 0, VfChange(mac=mac))
        for wanted in (other, mac):
            with refused(errno.EADDRNOTAVAIL):
                host.set_link(spare, LinkChange(mac=wanted))
        assert attributes(host, pf).mac == mac
        assert indexed(host, spare).netdev.mac == before

    def test_zeros_allow_it_again(self, host: Links, pf: int, spare: int) -> None:
        mac = Mac("02:00:00:5e:00:07")
        host.set_vf(pf, 0, VfChange(mac=Mac("02:00:00:5e:00:05")))
        host.set_vf(pf, 0, VfChange(mac=ZERO_MAC))
        assert attributes(host, pf).mac == ZERO_MAC
        host.set_link(spare, LinkChange(mac=mac))
        assert (indexed(host, spare).netdev.mac, attributes(host, pf).mac) == (mac, mac)

    def test_a_trusted_vf_may_take_another(self, host: Links, pf: int, spare: int) -> None:
        mac, other = Mac("02:00:00:5e:00:05"), Mac("02:00:00:5e:00:06")
        host.set_vf(pf, 0, VfChange(mac=mac, trust=True))
        host.set_link(spare, LinkChange(mac=other))
        assert (indexed(host, spare).netdev.mac, attributes(host, pf).mac) == (other, other)


def attributes(host: Links, pf: int) -> VfAttributes:
    found = host.read(ifindex=pf, with_vfs=True)
    assert found is not None
    return found.vfs[0]
