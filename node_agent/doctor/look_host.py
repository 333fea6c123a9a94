"""Adapter: what configures interfaces of the host: udev's database, files of NetworkManager and networkd."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from node_agent.doctor.facts import HostNetwork
from node_agent.doctor.host_network import NETWORK_MANAGER, NETWORKD
from node_agent.doctor.networkd import HostInterface, NetworkFile, parse_network_file
from sriov_cni.attachment import Attachment
from vf_manager.kernel.api import Kernel
from vf_manager.model import Inventory, Mac, Netdev, PciAddress, Vf

# The first that has a file of a name has it (src/basic/constants.h NETWORK_DIRS).
_NETWORKD_DIRS = tuple(
    f"{where}/systemd/network" for where in ("etc", "run", "usr/local/lib", "usr/lib", "lib")
)
_NM_DIRS = tuple(f"{where}/NetworkManager/conf.d" for where in ("etc", "run", "usr/lib"))
_OUR_RULES = "etc/udev/rules.d/80-sriov-vfs.rules"
_OUR_PROPERTIES = {"NM_UNMANAGED": "1", "SRIOV_VF": "1"}


def look_at_host(
    root: Path, kernel: Kernel, inventory: Inventory, attachments: Sequence[Attachment]
) -> HostNetwork:
    services = frozenset(name for name in (NETWORK_MANAGER, NETWORKD) if _is_active(root, name))
    if not services:
        return HostNetwork()
    return HostNetwork(
        services=services,
        has_unmanaged_devices=any(_unmanaged_devices(root)),
        network_files=tuple(_network_files(root)),
        interfaces=tuple(_interfaces(root, kernel, inventory, attachments)),
    )


def _is_active(root: Path, service: str) -> bool:
    """systemd keeps a link for each unit that is active (src/core/unit.c unit_export_invocation_id)."""
    return (root / f"run/systemd/units/invocation:{service}.service").is_symlink()


def _unmanaged_devices(root: Path) -> Iterator[bool]:
    files = [file for folder in _NM_DIRS for file in (root / folder).glob("*.conf")]
    for file in (root / "etc/NetworkManager/NetworkManager.conf", *files):
        yield file.is_file() and "unmanaged-devices" in file.read_text(errors="replace")


def _network_files(root: Path) -> Iterator[NetworkFile]:
    """In the order of their names, each with its drop-ins. An empty one, or a link to /dev/null, hides those
    of its name in other folders."""
    found: dict[str, Path] = {}
    for folder in _NETWORKD_DIRS:
        for path in (root / folder).glob("*.network"):
            found.setdefault(path.name, path)
    for name, path in sorted(found.items()):
        text = _text(path)
        if text:
            yield parse_network_file(name, [text, *map(_text, _drop_ins(root, name))])


def _drop_ins(root: Path, name: str) -> list[Path]:
    found: dict[str, Path] = {}
    for folder in _NETWORKD_DIRS:
        for path in (root / folder / f"{name}.d").glob("*.conf"):
            found.setdefault(path.name, path)
    return [path for _, path in sorted(found.items())]


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _interfaces(
    root: Path, kernel: Kernel, inventory: Inventory, attachments: Sequence[Attachment]
) -> Iterator[HostInterface]:
    """Of VFs on the host as they are, of those in pods as they will be once they are back."""
    with kernel.links() as host:
        permanent = {link.netdev.ifindex: link.permanent_mac for link in host.dump()}
    away = {one.port.pci: one.original.netdev for one in attachments}
    for vf in inventory.vfs():
        if vf.netdev is not None:
            known = _udev_properties(root, vf.netdev.ifindex)
            yield _interface(vf, vf.netdev, permanent.get(vf.netdev.ifindex), known or _by_our_rules(root))
        elif (netdev := away.get(vf.pci)) is not None:
            yield _interface(vf, netdev, None, _by_our_rules(root))


def _interface(vf: Vf, netdev: Netdev, permanent: Mac | None, properties: dict[str, str]) -> HostInterface:
    return HostInterface(
        names=(netdev.name, *netdev.altnames),
        mac=netdev.mac,
        permanent_mac=permanent,
        driver=vf.driver,
        path=properties.get("ID_PATH", _path_id(vf.pci)),
        type=vf.link_type or "ether",
        properties={"INTERFACE": netdev.name, "SUBSYSTEM": "net", **properties},
    )


def _path_id(pci: PciAddress) -> str:
    """src/udev/udev-builtin-path_id.c"""
    return f"pci-{pci}"


def _udev_properties(root: Path, ifindex: int) -> dict[str, str]:
    """Empty where udev's database cannot be seen (src/libsystemd/sd-device/device-private.c)."""
    lines = _text(root / f"run/udev/data/n{ifindex}").splitlines()
    pairs = (line.removeprefix("E:").partition("=") for line in lines if line.startswith("E:"))
    return {name: value for name, _, value in pairs}


def _by_our_rules(root: Path) -> dict[str, str]:
    return dict(_OUR_PROPERTIES) if (root / _OUR_RULES).exists() else {}
