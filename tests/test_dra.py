"""The attributes by which DRA would know a VF."""

from pathlib import Path

from device_plugin.dra import device_attributes
from tests.real_nics import CONNECTX6_DX, NicWorld, vf_pci
from vf_manager.model import PciAddress, Vf


def test_a_vf_of_a_pf(tmp_path: Path) -> None:
    world = NicWorld(tmp_path)
    pci = world.add_pf(CONNECTX6_DX, "0000:86:00.0", "ens3f0np0", root="pci0000:85")
    for index in range(2):
        world.add_vf(CONNECTX6_DX, pci, index, vf_pci(pci, index, 2), f"ens3f0v{index}")
    world.tree.add_rdma(vf_pci(pci, 1, 2), "mlx5_3")
    world.tree.set(vf_pci(pci, 1, 2), numa_node="1")
    (pf,) = world.inventory().pfs
    assert device_attributes(pf.vfs[1], pf) == {
        "resource.kubernetes.io/pcieRoot": "pci0000:85",
        "resource.kubernetes.io/pciBusID": "0000:86:00.3",
        "numaNode": 1,
        "pfName": "ens3f0np0",
        "vfID": 1,
        "vendor": "15b3",
        "deviceID": "101e",
        "linkType": "ether",
        "rdmaCapable": True,
    }
    bare = device_attributes(pf.vfs[0], pf)
    assert "numaNode" not in bare
    assert (bare["vfID"], bare["rdmaCapable"]) == (0, False)


def test_what_is_not_known_is_left_out() -> None:
    lone = Vf(pci=PciAddress("0000:05:00.0"), vendor="8086", device="10ed")
    assert device_attributes(lone, None) == {
        "resource.kubernetes.io/pciBusID": "0000:05:00.0",
        "vendor": "8086",
        "deviceID": "10ed",
        "rdmaCapable": False,
    }
