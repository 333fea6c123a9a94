"""PCI functions as sysfs shows them, on trees modelled on an Intel 82576, and what can be odd about them."""

import errno
from pathlib import Path

import pytest

from tests.sysfs_tree import SysfsTree, link, write
from vf_manager.errors import KernelError
from vf_manager.kernel.api import PciFunction
from vf_manager.kernel.sysfs import Sysfs
from vf_manager.model import IfName, PciAddress

PF = PciAddress("0000:01:00.0")
VF0 = PciAddress("0000:01:10.0")
VF1 = PciAddress("0000:01:10.2")


@pytest.fixture
def tree(tmp_path: Path) -> SysfsTree:
    return SysfsTree(tmp_path)


class Answering(Sysfs):
    """Sysfs with a kernel behind it: what is written to `unbind` and `drivers_probe` has its effect.

    `default`: the driver that the kernel picks by itself; None: it picks none.
    """

    def __init__(self, tree: SysfsTree, default: str | None = "igbvf", modules: tuple[str, ...] = ()) -> None:
        super().__init__(tree.root)
        self._tree = tree
        self._default = default
        self._modules = modules

    def _write_path(self, path: Path, value: str, operation: str) -> None:
        path = path.resolve()
        super()._write_path(path, value, operation)
        if path.name == "driver_override":
            path.write_text(f"{value.strip() or '(null)'}\n")
        elif path.name == "unbind":
            assert self._link(value, "driver") == path.parent.name
            self._tree.bind(value, None)
        elif path.name == "drivers_probe" and self._link(value, "driver") is None:
            override = (self._text(value, "driver_override") or "").replace("(null)", "")
            driver = override if override in self._modules else None if override else self._default
            self._tree.bind(value, driver)


# -- reading


def test_a_pf_with_vfs(tree: SysfsTree) -> None:
    tree.add_pf(PF, name="enp1s0")
    tree.add_vf(PF, 0, VF0, net=("enp1s0v0",))
    tree.add_vf(PF, 1, VF1, driver=None)
    sysfs = Sysfs(tree.root)
    assert sysfs.read_function(PF) == PciFunction(
        pci=PF,
        vendor="8086",
        device="10c9",
        driver="igb",
        netdev_names=("enp1s0",),
        total_vfs=7,
        num_vfs=2,
        virtfns=((0, VF0), (1, VF1)),
        link_type="ether",
        pcie_root="pci0000:00",
    )
    assert sysfs.read_function(VF0) == PciFunction(
        pci=VF0,
        vendor="8086",
        device="10ca",
        driver="igbvf",
        iommu_group=20,
        netdev_names=("enp1s0v0",),
        physfn=PF,
        link_type="ether",
        pcie_root="pci0000:00",
    )
    vf1 = sysfs.read_function(VF1)
    assert vf1 is not None
    assert (vf1.iommu_group, vf1.physfn, vf1.driver, vf1.netdev_names) == (21, PF, None, ())
    assert sysfs.read_functions() == [sysfs.read_function(pci) for pci in (PF, VF0, VF1)]
    assert [sysfs.is_vf(pci) for pci in (PF, VF0, VF1)] == [False, True, True]


def test_pfs_are_those_that_can_have_vfs_in_address_order(tree: SysfsTree) -> None:
    tree.add_pf("0000:05:00.0")
    tree.add_pf(PF)
    tree.add_vf(PF, 0, VF0)
    tree.add_function("0000:00:1f.2", device="0x2922", driver="ahci")
    tree.add_pf("0000:07:00.0", total_vfs=0)
    tree.add_pf("0000:08:00.0", driver="nvme", pci_class="0x010802")
    functions = Sysfs(tree.root).read_functions()
    assert [function.pci for function in functions if function.total_vfs] == [PF, "0000:05:00.0"]


def test_lone_nics_have_neither_a_pf_nor_the_capability(tree: SysfsTree) -> None:
    tree.add_pf(PF)
    tree.add_vf(PF, 0, VF0)
    tree.add_pf("0000:07:00.0", total_vfs=0)  # a PF whose driver wants no VFs
    tree.add_function("0000:00:1f.2", device="0x2922", driver="ahci", pci_class="0x010601")
    tree.add_function("0000:08:00.0", device="0x10ca", driver="igbvf", net=("ens8",))
    tree.add_function("0000:05:00.0", device="0x1018", driver="mlx5_core", pci_class="0x020700")
    (tree.add_function("0000:09:00.0") / "class").unlink()
    sysfs = Sysfs(tree.root)
    lone = [function for function in sysfs.read_functions() if function.lone]
    assert [(f.pci, f.link_type) for f in lone] == [("0000:05:00.0", "infiniband"), ("0000:08:00.0", "ether")]
    read = {
        pci: sysfs.read_function(pci) for pci in (PF, VF0, "0000:07:00.0", "0000:00:1f.2", "0000:08:00.0")
    }
    assert [pci for pci, function in read.items() if function and function.lone] == ["0000:08:00.0"]


def test_what_stands_on_an_interface(tree: SysfsTree) -> None:
    folder = tree.root / "class/net/ens8"
    folder.mkdir(parents=True)
    for name in ("upper_ens8.7", "upper_br0", "lower_ens9", "master", "mtu"):
        (folder / name).touch()
    sysfs = Sysfs(tree.root)
    assert sysfs.uppers(IfName("ens8")) == ("br0", "ens8.7")
    assert sysfs.uppers(IfName("ens9")) == ()


def test_a_machine_without_pci(tmp_path: Path) -> None:
    assert Sysfs(tmp_path).read_functions() == []
    assert Sysfs(tmp_path).read_function(PF) is None


def test_a_pf_without_driver_has_neither_name_nor_vfs(tree: SysfsTree) -> None:
    tree.add_pf(PF, driver=None)
    function = Sysfs(tree.root).read_function(PF)
    assert function is not None
    assert (function.driver, function.netdev_names, function.virtfns) == (None, (), ())
    assert function.total_vfs == 7


@pytest.mark.parametrize(("text", "node"), [("0", 0), ("1", 1), ("-1", None), ("what", None), ("", None)])
def test_numa_node(tree: SysfsTree, text: str, node: int | None) -> None:
    write(tree.add_pf(PF) / "numa_node", text)
    function = Sysfs(tree.root).read_function(PF)
    assert function is not None
    assert function.numa_node == node


@pytest.mark.parametrize(("text", "on"), [("1", True), ("0", False), (None, True)])
def test_autoprobe_is_on_where_a_kernel_has_no_such_file(tree: SysfsTree, text: str | None, on: bool) -> None:
    file = tree.add_pf(PF) / "sriov_drivers_autoprobe"
    file.unlink()
    if text is not None:
        write(file, text)
    function = Sysfs(tree.root).read_function(PF)
    assert function is not None
    assert function.autoprobe is on


def test_all_interfaces_of_a_function_are_named(tree: SysfsTree) -> None:
    """In switchdev mode the representors of the VFs are there beside the PF's own."""
    folder = tree.add_pf(PF, name="ens1f0np0")
    for name in ("ens1f0npf0vf1", "ens1f0npf0vf0"):
        (folder / "net" / name).mkdir()
    function = Sysfs(tree.root).read_function(PF)
    assert function is not None
    assert function.netdev_names == ("ens1f0np0", "ens1f0npf0vf0", "ens1f0npf0vf1")


def test_vfs_on_their_way_out_are_left_out(tree: SysfsTree) -> None:
    folder = tree.add_pf(PF)
    tree.add_vf(PF, 0, VF0)
    tree.add_vf(PF, 1, VF1)
    (folder / "virtfn0").unlink()
    function = Sysfs(tree.root).read_function(PF)
    assert function is not None
    assert (function.num_vfs, function.virtfns) == (2, ((1, VF1),))


def test_odd_files_count_as_absent(tree: SysfsTree) -> None:
    folder = tree.add_pf(PF)
    for name, content in (("sriov_numvfs", b"\xff\xfe"), ("device", b"")):
        (folder / name).write_bytes(content)
    (folder / "numa_node").unlink()
    (folder / "numa_node").mkdir()  # cannot be read, whoever asks
    link(folder / "iommu_group", tree.root / "kernel/iommu_groups/none")
    function = Sysfs(tree.root).read_function(PF)
    assert function is not None
    assert (function.num_vfs, function.device, function.numa_node) == (0, "", None)
    assert function.iommu_group is None


@pytest.mark.parametrize("text", ["", "many", "-"])
def test_a_function_with_an_odd_total_is_no_pf(tree: SysfsTree, text: str) -> None:
    write(tree.add_pf(PF) / "sriov_totalvfs", text)
    function = Sysfs(tree.root).read_function(PF)
    assert function is not None
    assert (function.total_vfs, function.lone) == (0, False)


def test_a_function_without_vendor_is_going_away(tree: SysfsTree) -> None:
    (tree.add_pf(PF) / "vendor").unlink()
    assert Sysfs(tree.root).read_function(PF) is None


# -- writing


def test_a_reset_is_written_to_its_file(tree: SysfsTree) -> None:
    (tree.add_pf(PF) / "reset").write_text("")
    tree.add_vf(PF, 0, VF0)
    sysfs = Sysfs(tree.root)
    sysfs.reset_function(PF)
    assert tree.text(PF, "reset") == "1"
    with pytest.raises(KernelError, match=f"write '1' to reset of {VF0}: ENOENT"):
        sysfs.reset_function(VF0)


def test_numbers_land_in_their_files(tree: SysfsTree) -> None:
    tree.add_pf(PF)
    tree.add_pf("0000:02:00.0")
    sysfs = Sysfs(tree.root)
    (tree.bus / "devices" / PF / "sriov_numvfs").write_text("")
    sysfs.set_num_vfs(PF, 4)
    (tree.bus / "devices" / PF / "sriov_drivers_autoprobe").write_text("")
    sysfs.set_autoprobe(PF, False)
    assert tree.text(PF, "sriov_numvfs") == "4"
    assert tree.text(PF, "sriov_drivers_autoprobe") == "0"
    sysfs.set_autoprobe(PF, True)
    assert tree.text(PF, "sriov_drivers_autoprobe") == "1"
    assert tree.text(PciAddress("0000:02:00.0"), "sriov_numvfs") == "0\n"


def test_a_refused_write_says_what_and_why(tree: SysfsTree) -> None:
    (tree.add_pf(PF) / "sriov_numvfs").unlink()
    with pytest.raises(KernelError) as caught:
        Sysfs(tree.root).set_num_vfs(PF, 4)
    assert caught.value.code == errno.ENOENT
    assert str(caught.value).startswith(f"write '4' to sriov_numvfs of {PF}: ENOENT")


# -- drivers


def bound(tree: SysfsTree) -> str | None:
    function = Sysfs(tree.root).read_function(VF0)
    assert function is not None
    return function.driver


@pytest.mark.parametrize("before", [None, "igbvf"])
def test_a_function_is_given_to_a_driver_alone(tree: SysfsTree, before: str | None) -> None:
    tree.add_pf(PF)
    tree.add_vf(PF, 0, VF0, driver=before)
    Answering(tree, modules=("vfio-pci",)).bind_driver(VF0, "vfio-pci")
    assert bound(tree) == "vfio-pci"
    assert tree.text(VF0, "driver_override") == "vfio-pci\n"


@pytest.mark.parametrize("before", [None, "vfio-pci", "igbvf"])
def test_a_function_is_given_back_to_its_default_driver(tree: SysfsTree, before: str | None) -> None:
    tree.add_pf(PF)
    write(tree.add_vf(PF, 0, VF0, driver=before) / "driver_override", "vfio-pci")
    Answering(tree, modules=("vfio-pci",)).bind_driver(VF0, None)
    assert bound(tree) == "igbvf"
    assert tree.text(VF0, "driver_override") == "(null)\n"


def test_a_function_that_has_the_driver_is_left_alone(tree: SysfsTree) -> None:
    tree.add_pf(PF)
    tree.add_vf(PF, 0, VF0, driver="vfio-pci")
    Sysfs(tree.root).bind_driver(VF0, "vfio-pci")
    assert tree.text(VF0, "driver_override") == "(null)\n"
    assert (tree.bus / "drivers/vfio-pci/unbind").read_text() == ""
    assert (tree.bus / "drivers_probe").read_text() == ""


@pytest.mark.parametrize("driver", ["vfio-pci", None])
def test_a_driver_that_does_not_come_is_named(tree: SysfsTree, driver: str | None) -> None:
    tree.add_pf(PF)
    tree.add_vf(PF, 0, VF0)
    with pytest.raises(
        KernelError, match=f"bind {VF0} to {driver or 'its default driver'}: ENODEV"
    ) as caught:
        Answering(tree, default=None).bind_driver(VF0, driver)
    assert "is the module loaded?" in str(caught.value)


def test_a_function_that_is_gone_cannot_be_bound(tree: SysfsTree) -> None:
    with pytest.raises(KernelError) as caught:
        Sysfs(tree.root).bind_driver(VF0, "vfio-pci")
    assert caught.value.code == errno.ENOENT
    assert VF0 in str(caught.value)
