"""Adapter: the SR-IOV NICs that the tests may use, read from sysfs and iproute2 alone: nothing of the project
is in between, so that its mistakes cannot hide here."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PCI_DEVICES = Path("/sys/bus/pci/devices")
NET = Path("/sys/class/net")
MOST_VFS = 7  # per PF: what an 82576 has; a bigger NIC is tested with as many
_LINK_TIMEOUT_S = 30.0


class Unusable(Exception):
    """A PF that the tests cannot or must not touch."""


@dataclass(frozen=True)
class Nic:
    """One PF. `name` is its interface's, found by the PCI address: addresses move between machines."""

    pci: str
    name: str
    total_vfs: int
    driver: str

    @property
    def vfs_used(self) -> int:
        return min(self.total_vfs, MOST_VFS)

    @property
    def num_vfs(self) -> int:
        return int(_read(PCI_DEVICES / self.pci / "sriov_numvfs"))

    def set_num_vfs(self, count: int) -> None:
        (PCI_DEVICES / self.pci / "sriov_numvfs").write_text(str(count))

    def vf_address(self, index: int) -> str:
        return (PCI_DEVICES / self.pci / f"virtfn{index}").resolve().name

    def vf_addresses(self) -> list[str]:
        return [self.vf_address(index) for index in range(self.num_vfs)]

    def vf_name(self, index: int) -> str:
        """The name of the VF's interface on the host."""
        (entry,) = (PCI_DEVICES / self.pci / f"virtfn{index}" / "net").iterdir()
        return entry.name

    @property
    def is_up(self) -> bool:
        return bool(int(_read(NET / self.name / "flags"), 16) & 0x1)

    @property
    def has_carrier(self) -> bool:
        return self.is_up and _read(NET / self.name / "carrier") == "1"

    @property
    def mtu(self) -> int:
        return int(_read(NET / self.name / "mtu"))


def find_nics() -> tuple[Nic, ...]:
    """Every PF that has an interface on the host, in address order."""
    with_sriov = sorted(d.name for d in PCI_DEVICES.iterdir() if (d / "sriov_totalvfs").exists())
    return tuple(nic for pci in with_sriov if (nic := _read_nic(pci)) is not None)


def find_plain_nic() -> Nic:
    """The one NIC here that has no VFs and is none, as far as one can tell."""
    plain = [
        d.name
        for d in PCI_DEVICES.iterdir()
        if (d / "net").is_dir() and not any((d / name).exists() for name in ("physfn", "sriov_totalvfs"))
    ]
    (pci,) = plain
    (entry,) = (PCI_DEVICES / pci / "net").iterdir()
    return Nic(pci, entry.name, 0, (PCI_DEVICES / pci / "driver").resolve().name)


def named_nics(names: list[str]) -> tuple[Nic, ...]:
    """The PFs that were asked for by name. Raises Unusable: no such PF, or one that the host lives on."""
    by_name = {nic.name: nic for nic in find_nics()}
    for name in names:
        if name not in by_name:
            raise Unusable(
                f"--pf={name}: no SR-IOV PF is called that; there are: {', '.join(by_name) or 'none'}"
            )
        if name in _interfaces_of_default_routes():
            raise Unusable(f"--pf={name}: the default route goes through it; the tests would cut it off")
    return tuple(by_name[name] for name in names)


@contextmanager
def as_found(nic: Nic) -> Iterator[Nic]:
    """Lend a PF: without VFs at first, and in the end with the VFs, the MTU and the state it had."""
    vfs, mtu, up = nic.num_vfs, nic.mtu, nic.is_up
    if vfs:
        nic.set_num_vfs(0)
    try:
        yield nic
    finally:
        if nic.num_vfs != vfs:
            nic.set_num_vfs(0)
            ip("link", "set", nic.name, "up")  # before the VFs: some drivers answer them only then
            nic.set_num_vfs(vfs)
        ip("link", "set", nic.name, "mtu", str(mtu), "up" if up else "down")


@contextmanager
def host_address(nic: Nic, cidr: str) -> Iterator[None]:
    """Give the PF's own interface an address for a while."""
    ip("address", "add", cidr, "dev", nic.name)
    try:
        yield
    finally:
        ip("address", "del", cidr, "dev", nic.name)


def wait_for_carrier(nics: tuple[Nic, ...]) -> None:
    wait_until(lambda: all(nic.has_carrier for nic in nics), "carrier on every PF", _LINK_TIMEOUT_S)


def settle() -> None:
    """Let udev finish what it has to do: it renames interfaces after they appear."""
    subprocess.run(["udevadm", "settle", "--timeout=20"], check=False)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float, poll_s: float = 0.05) -> None:
    """Raises TimeoutError that says what did not happen."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {timeout_s:g} s")
        time.sleep(poll_s)


def ip(*arguments: str) -> str:
    """Run ip(8). Raises RuntimeError with its own words."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def ip_json(*arguments: str) -> list[dict[str, Any]]:
    """The same, for commands that answer with a list of objects."""
    answer: list[dict[str, Any]] = json.loads(ip("-details", "-json", *arguments) or "[]")
    return [entry for entry in answer if entry]


def _read_nic(pci: str) -> Nic | None:
    device = PCI_DEVICES / pci
    total = int(_read(device / "sriov_totalvfs"))
    names = sorted(entry.name for entry in (device / "net").iterdir()) if (device / "net").is_dir() else []
    if not total or not names:
        return None
    return Nic(pci, names[0], total, (device / "driver").resolve().name)


def _interfaces_of_default_routes() -> set[str]:
    routes = [*ip_json("-4", "route", "show", "default"), *ip_json("-6", "route", "show", "default")]
    hops = [hop for route in routes for hop in (route, *route.get("nexthops", []))]
    direct = {hop["dev"] for hop in hops if "dev" in hop}
    return direct | {lower for name in direct for lower in _lower_interfaces(name)}


def _lower_interfaces(name: str) -> set[str]:
    """What a bridge, bond or VLAN stands on, all the way down."""
    below = {entry.name.removeprefix("lower_") for entry in (NET / name).glob("lower_*")}
    return below | {deeper for lower in below for deeper in _lower_interfaces(lower)}


def _read(path: Path) -> str:
    return path.read_text().strip()
