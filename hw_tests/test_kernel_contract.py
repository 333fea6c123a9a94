"""What the project relies on of a kernel, on a real VF. The in-memory kernel of the tests passes the same."""

from collections.abc import Iterator

import pytest

from hw_tests.nics import PCI_DEVICES, Nic, ip, ip_json, settle, wait_for_carrier, wait_until
from tests.netns.namespaces import LinuxWorld
from tests.nft_contract import NftContract
from tests.vf_contract import VfContract
from vf_manager.model import PciAddress

_NETDEV_TIMEOUT_S = 20.0


class LinuxVfWorld(LinuxWorld):
    """One VF, as new for each test."""

    def __init__(self, nic: Nic) -> None:
        super().__init__(nic.vf_name(0))
        self.pf = PciAddress(nic.pci)
        self.vf = PciAddress(nic.vf_address(0))


@pytest.fixture(scope="module")
def nic(nics: tuple[Nic, ...]) -> Iterator[Nic]:
    """A PF that is up."""
    nic = next((nic for nic in nics if nic.driver == "igb"), None)
    if nic is None:
        pytest.skip(f"no PF here is driven by igb: {', '.join(f'{n.name} by {n.driver}' for n in nics)}")
    was_up = {one: one.is_up for one in nics}
    for one in nics:  # a PF of the emulated machine has a carrier only while the other end of its wire is up
        ip("link", "set", one.name, "up")
    wait_for_carrier((nic,))
    yield nic
    nic.set_num_vfs(0)
    for one, up in was_up.items():
        ip("link", "set", one.name, "up" if up else "down")


@pytest.fixture
def world(nic: Nic) -> Iterator[LinuxVfWorld]:
    if nic.num_vfs != 1:
        _make_vf(nic)
    wait_for_carrier(
        (nic,)
    )  # a change of their number takes it away for a moment, and igb takes no rate then
    _reset_vf(nic)
    (PCI_DEVICES.parent / "drivers_probe").write_text(nic.vf_address(0))
    wait_until(lambda: _has_netdev(nic), "interface of the VF", _NETDEV_TIMEOUT_S)
    settle()
    name = nic.vf_name(0)
    for altname in ip_json("link", "show", "dev", name)[0].get("altnames", []):
        ip("link", "property", "del", "dev", name, "altname", altname)
    with LinuxVfWorld(nic) as world:
        yield world


def _make_vf(nic: Nic) -> None:
    """Without a driver at first. The kernel would probe it before the PF has come back from making it: the
    VF would find nobody at the other end of the mailbox, and the PF never hear of a MAC that the VF takes."""
    autoprobe = PCI_DEVICES / nic.pci / "sriov_drivers_autoprobe"
    nic.set_num_vfs(0)
    autoprobe.write_text("0")
    nic.set_num_vfs(1)
    autoprobe.write_text("1")


def _reset_vf(nic: Nic) -> None:
    """What the test before left: the interface goes with its driver, wherever it is."""
    unbind = PCI_DEVICES / nic.vf_address(0) / "driver/unbind"
    if unbind.exists():
        unbind.write_text(nic.vf_address(0))
    (PCI_DEVICES / nic.vf_address(0) / "driver_override").write_text("\n")
    vf = ("link", "set", nic.name, "vf", "0")
    ip(*vf, "mac", "00:00:00:00:00:00", "vlan", "0", "spoofchk", "on", "trust", "off")
    ip(*vf, "max_tx_rate", "0")


def _has_netdev(nic: Nic) -> bool:
    return any((PCI_DEVICES / nic.vf_address(0)).glob("net/*"))


class TestVf(VfContract):
    """The spare link is the interface of the VF."""


class TestNft(NftContract):
    """The nftables of the kernel that has the VFs; they need none."""

    @pytest.fixture
    def world(self) -> Iterator[LinuxWorld]:
        with LinuxWorld() as world:
            yield world
