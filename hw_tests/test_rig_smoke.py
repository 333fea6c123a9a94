"""What the rig promises: two PFs with room for seven VFs each, and the real drivers behind them.

Everything is read from sysfs with nothing of the project in between: if this fails, the rig is at fault.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hw_tests.faults import cable_pulled, unplugged
from hw_tests.nics import find_nics, wait_for_carrier, wait_until

VFS = 7
PCI_DEVICES = Path("/sys/bus/pci/devices")

pytestmark = pytest.mark.skipif(
    os.environ.get("RIG") != "emulated",
    reason="these are promises of the emulated rig; RIG=emulated is not set",
)


def _pfs() -> list[Path]:
    """By what they can do, never by name: PCI addresses move when the machine gets another device."""
    return sorted(
        device
        for device in PCI_DEVICES.iterdir()
        if (device / "sriov_totalvfs").exists()
        and (device / "sriov_totalvfs").read_text().strip() == str(VFS)
    )


def _netdev(device: Path) -> str | None:
    """None until the driver has registered it; udev renames it soon after."""
    folder = device / "net"
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return names[0] if names else None


def _driver(device: Path) -> str | None:
    link = device / "driver"
    return link.resolve().name if link.exists() else None


def _until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s"
        subprocess.run(["udevadm", "settle", "--timeout=1"], check=False)


@pytest.fixture
def pf() -> Iterator[Path]:
    """A PF that is up: while it is down, its VFs' driver waits 2 s for it, each."""
    device = _pfs()[0]
    name = _netdev(device)
    assert name is not None
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    yield device
    (device / "sriov_numvfs").write_text("0")
    subprocess.run(["ip", "link", "set", name, "down"], check=True)


def test_two_pfs_with_the_real_driver() -> None:
    pfs = _pfs()
    assert len(pfs) == 2
    assert [_driver(pf) for pf in pfs] == ["igb", "igb"]


def test_pfs_have_predictable_names() -> None:
    names = [_netdev(pf) for pf in _pfs()]
    assert all(name is not None and name.startswith("en") for name in names), names


def test_one_more_nic_that_has_no_vfs() -> None:
    with_netdev = [device for device in PCI_DEVICES.iterdir() if (device / "net").is_dir()]
    own = ("physfn", "sriov_totalvfs")
    (plain,) = [device for device in with_netdev if not any((device / name).exists() for name in own)]
    assert _driver(plain) == "e1000e"


def test_seven_vfs_come_and_go(pf: Path) -> None:
    (pf / "sriov_numvfs").write_text(str(VFS))
    vfs = [(pf / f"virtfn{index}").resolve() for index in range(VFS)]
    assert len({vf.name for vf in vfs}) == VFS
    _until(lambda: all(_netdev(vf) is not None for vf in vfs), "a netdev for every VF")
    assert {_driver(vf) for vf in vfs} == {"igbvf"}
    assert len({(vf / "iommu_group").resolve() for vf in vfs}) == VFS

    (pf / "sriov_numvfs").write_text("0")
    assert not list(pf.glob("virtfn*"))
    assert not any(vf.exists() for vf in vfs)


def test_pfs_are_on_one_wire(pf: Path) -> None:
    other = _netdev(_pfs()[1])
    assert other is not None
    subprocess.run(["ip", "link", "set", other, "up"], check=True)
    names = [name for device in _pfs() if (name := _netdev(device))]
    try:
        carriers = [Path(f"/sys/class/net/{name}/carrier") for name in names]
        _until(lambda: all(carrier.read_text().strip() == "1" for carrier in carriers), "carrier on both PFs")
    finally:
        subprocess.run(["ip", "link", "set", other, "down"], check=True)


@pytest.mark.usefixtures("faults")
def test_a_nic_is_unplugged_and_comes_back_in_its_place(pf: Path) -> None:
    """With VFs, one of them in a network namespace: all of it goes."""
    found = find_nics()
    (pf / "sriov_numvfs").write_text("2")
    vfs = [(pf / f"virtfn{index}").resolve() for index in range(2)]
    _until(lambda: all(_netdev(vf) is not None for vf in vfs), "a netdev for every VF")
    subprocess.run(["ip", "netns", "add", "smoke"], check=True)
    try:
        subprocess.run(["ip", "link", "set", str(_netdev(vfs[0])), "netns", "smoke"], check=True)
        with unplugged(found[0]):
            assert not any(device.exists() for device in (pf, *vfs))
            links = subprocess.run(
                ["ip", "-n", "smoke", "-o", "link"], capture_output=True, text=True, check=True
            )
            assert len(links.stdout.splitlines()) == 1, links.stdout
            assert find_nics() == found[1:]
        assert find_nics() == found
        assert (found[0].num_vfs, found[0].is_up) == (0, False)
        subprocess.run(["ip", "link", "set", found[0].name, "up"], check=True)
        (pf / "sriov_numvfs").write_text(str(VFS))
        assert [(pf / f"virtfn{index}").resolve() for index in range(2)] == vfs
        assert all(_driver(pf / f"virtfn{index}") == "igbvf" for index in range(VFS))
    finally:
        subprocess.run(["ip", "netns", "delete", "smoke"], check=True)


@pytest.mark.usefixtures("faults")
def test_a_cable_is_pulled_and_plugged(pf: Path) -> None:
    mine, other = find_nics()
    subprocess.run(["ip", "link", "set", other.name, "up"], check=True)
    try:
        wait_for_carrier((mine, other))
        with cable_pulled(mine):
            wait_until(lambda: not mine.has_carrier, "end of the carrier", 10)
            assert mine.is_up
        wait_for_carrier((mine, other))
    finally:
        subprocess.run(["ip", "link", "set", other.name, "down"], check=True)
