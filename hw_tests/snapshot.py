"""Adapter: the state of PFs and VFs at one moment, for "everything is as it was before".

Read twice over: by the project's own discovery, and by iproute2, since a field that our reading gets wrong
would be wrong in the same way before and after.
"""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from hw_tests.nics import Nic, ip_json, settle
from vf_manager.discovery import read_pfs
from vf_manager.kernel.linux import LinuxKernel

Snapshot = dict[str, object]  # "0000:01:00.0 vf 3 mac" -> value

_TIMEOUT_S = 5.0
# Left out: permaddr, which igbvf overwrites at each reset with whatever MAC the PF tells it then.
# An index is handed out anew by each namespace, and a carrier comes when the wire pleases.
_OURS_VOLATILE = ("ifindex", "carrier")
_IP_FIELDS = ("ifname", "altnames", "address", "mtu", "txqlen", "promiscuity", "allmulti")


def read_snapshot(nics: tuple[Nic, ...]) -> Snapshot:
    found: Snapshot = {}
    ours = {nic.pci for nic in nics}
    for pf in read_pfs(LinuxKernel()):
        if pf.pci in ours:
            _flatten(f"{pf.pci}", msgspec.to_builtins(pf), found)
    for link in ip_json("link", "show"):
        _take_ip_link(link, {nic.name for nic in nics}, found)
    return found


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """One line for each value that is not the same."""
    keys = sorted(before.keys() | after.keys())
    return [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in keys
        if before.get(key, None) != after.get(key, None)
    ]


def wait_for_same(before: Snapshot, nics: tuple[Nic, ...], timeout_s: float = _TIMEOUT_S) -> list[str]:
    """The differences that are left at the deadline: udev works on interfaces that came back, behind
    everybody's back, so that the first look may see it half-way."""
    return _wait_for_none(lambda: differences(before, read_snapshot(nics)), timeout_s)


def stable_snapshot(nics: tuple[Nic, ...]) -> Snapshot:
    """One that is not in the middle of a change: two readings in a row are equal."""
    settle()
    before = read_snapshot(nics)
    left = _wait_for_none(lambda: _moved_on(before, nics), _TIMEOUT_S)
    if left:
        raise TimeoutError(f"the interfaces do not come to rest: {left}")
    return before


def _moved_on(before: Snapshot, nics: tuple[Nic, ...]) -> list[str]:
    now = read_snapshot(nics)
    changed = differences(before, now)
    before.clear()
    before.update(now)
    return changed


def _wait_for_none(look: Callable[[], list[str]], timeout_s: float) -> list[str]:
    deadline = time.monotonic() + timeout_s
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _flatten(path: str, value: Any, into: Snapshot) -> None:
    match value:
        case dict():
            for key, inner in value.items():
                if key not in _OURS_VOLATILE:
                    _flatten(f"{path} {key}", inner, into)
        case [dict(), *_]:
            for inner in value:
                _flatten(f"{path} vf {inner['index']}", inner, into)
        case _:
            into[path] = value


def _take_ip_link(link: dict[str, Any], pf_names: set[str], into: Snapshot) -> None:
    """VFs by their PCI address: the name is one of the things that must come back."""
    name, device = link["ifname"], link.get("parentdev")
    if name in pf_names:
        for vf in link.get("vfinfo_list", []):
            for key, value in vf.items():
                if key not in ("vf", "stats"):
                    into[f"ip: {name} vf {vf['vf']} {key}"] = value
    elif device is not None:
        for key in _IP_FIELDS:
            into[f"ip: {device} {key}"] = link.get(key)
        into[f"ip: {device} up"] = "UP" in link.get("flags", [])
