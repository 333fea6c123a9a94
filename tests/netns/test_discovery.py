"""Discovery over real interfaces: rtnetlink is the kernel's own, sysfs is a tree of the test."""

from pathlib import Path

from tests.netns.namespaces import LinuxWorld, ip
from tests.sysfs_tree import SysfsTree
from vf_manager.discovery import find_link, host_link, read_pfs
from vf_manager.kernel.linux import LinuxKernel
from vf_manager.kernel.netns import Netns
from vf_manager.kernel.sysfs import Sysfs
from vf_manager.model import PciAddress

PF = PciAddress("0000:01:00.0")
VF = PciAddress("0000:01:10.0")


def test_interfaces_without_a_device_name_are_known_by_sysfs(world: LinuxWorld, tmp_path: Path) -> None:
    """A veth link has no IFLA_PARENT_DEV_NAME, as no link has before Linux 5.14."""
    tree = SysfsTree(tmp_path / "sys")
    tree.add_pf(PF, name="peer0")
    tree.add_vf(PF, 0, VF, net=("spare0",))
    kernel = LinuxKernel(Sysfs(tree.root))
    ip("link", "set", "spare0", "mtu", "1400", "up")
    ip("link", "property", "add", "dev", "spare0", "altname", "other0")

    (pf,) = read_pfs(kernel)
    assert pf.netdev is not None
    assert pf.netdev.name == "peer0"
    (vf,) = pf.vfs
    assert vf.netdev is not None
    assert (vf.netdev.name, vf.netdev.mtu, vf.netdev.up, vf.netdev.altnames) == (
        "spare0",
        1400,
        True,
        ("other0",),
    )
    assert vf.attributes is None
    assert pf.eswitch_mode is None


def test_an_interface_that_left_is_seen_to_be_gone(world: LinuxWorld, tmp_path: Path) -> None:
    tree = SysfsTree(tmp_path / "sys")
    tree.add_pf(PF, name="peer0")
    tree.add_vf(PF, 0, VF, net=("spare0",))
    kernel = LinuxKernel(Sysfs(tree.root))
    space = world.new_space()
    ip("link", "set", "spare0", "netns", space.path)
    (pf,) = read_pfs(kernel)
    assert pf.vfs[0].netdev is None
    with kernel.links() as host:
        assert host_link(kernel, host, VF) is None


def test_a_link_of_no_pci_device_is_nobodys(world: LinuxWorld) -> None:
    netns = Netns(world.new_space().fd)
    with world.kernel.links() as host, world.kernel.links(netns) as pod:
        assert find_link(host, VF) is None
        assert find_link(pod, VF) is None
    netns.close()
