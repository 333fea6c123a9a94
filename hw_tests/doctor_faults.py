"""Orchestrator: what `sriovctl doctor` is to find: each function breaks one thing, and mends it again."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import yaml

from hw_tests.doctor import (
    CLUSTER_GATEWAY,
    MAC,
    VLAN,
    Ward,
    replace_file,
    write_conflist,
)
from hw_tests.faults import cable_pulled
from hw_tests.nics import NET, PCI_DEVICES, host_address, ip, wait_for_carrier
from hw_tests.runtime import EXECUTABLE, IFNAME
from node_agent.agent import ATTACHMENTS, SOCKET_NAME

_OTHER_MAC = "02:00:00:00:cd:72"
_OTHER_VLAN = 300
_ADJ_MAXERROR, _ADJ_STATUS, _STA_UNSYNC = 0x4, 0x10, 0x40  # include/uapi/linux/timex.h


class Fault:
    """`rules`: what is found, and nothing else. `probe`: by asking the wire. `emulated`: in the rig alone."""

    def __init__(
        self,
        name: str,
        make: Callable[[Ward], AbstractContextManager[None]],
        *rules: str,
        probe: bool = False,
        emulated: bool = False,
    ) -> None:
        self.name = name
        self.make = make
        self.rules = frozenset(rules)
        self.options = ("--probe",) if probe else ()
        self.emulated = emulated


# -- the agent, its files, the kubelet


@contextmanager
def agent_stopped(ward: Ward) -> Iterator[None]:
    os.kill(ward.node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(ward.node.pid, signal.SIGCONT)


def config_broken(ward: Ward) -> AbstractContextManager[None]:
    return config_changed(ward, lambda config: config["pools"][0].update(nmae="fast"))


def too_many_vfs(ward: Ward) -> AbstractContextManager[None]:
    vfs = {"count": ward.kept.total_vfs + 1}
    return config_changed(ward, lambda config: config["pools"][0].update(vfs=vfs))


@contextmanager
def config_changed(ward: Ward, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    usual = ward.rewrite_config(change)
    try:
        yield
    finally:
        replace_file(ward.node.config, usual)


@contextmanager
def moved_away(path: Path) -> Iterator[None]:
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


@contextmanager
def mode_of(path: Path, mode: int) -> Iterator[None]:
    usual = path.stat().st_mode & 0o777
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(usual)


@contextmanager
def leases_full(ward: Ward) -> Iterator[None]:
    with mounted(ward.lease_dir, "size=4k"):
        (ward.lease_dir / "last").write_bytes(bytes(4096))
        yield


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


# -- the clock


@contextmanager
def clock_set_back(ward: Ward) -> Iterator[None]:
    """As far as can be seen: a record is from the future."""
    record = next((ward.node.run_dir / ATTACHMENTS).glob("*.json"))
    written = record.stat().st_mtime
    os.utime(record, times=(written + 86400,) * 2)
    try:
        yield
    finally:
        os.utime(record, times=(written,) * 2)


@contextmanager
def clock_unsynchronised(ward: Ward) -> Iterator[None]:
    """It counts where the API server is asked. The machine has no NTP client: it is mended by a lie."""
    config = yaml.safe_load(ward.node.config.read_text()) | {"kubernetes": {}}
    ward.doctor.config = ward.doctor.write("kubernetes.yaml", yaml.safe_dump(config))
    set_clock_status(_STA_UNSYNC)
    try:
        yield
        set_clock_status(0)
        ward.doctor.wait_for(frozenset())
    finally:
        ward.doctor.config = None


def set_clock_status(status: int) -> None:
    """adjtimex(2). A clock with a large error does not stay synchronised (kernel/time/ntp.c)."""
    timex = (ctypes.c_long * 64)()  # modes, offset, freq, maxerror, esterror, status, ...
    timex[0], timex[5] = _ADJ_STATUS | _ADJ_MAXERROR, status
    assert ctypes.CDLL(None).adjtimex(timex) >= 0


# -- PFs and VFs


@contextmanager
def pf_down(ward: Ward) -> Iterator[None]:
    ip("link", "set", ward.adopted.name, "down")
    try:
        yield
    finally:
        ip("link", "set", ward.adopted.name, "up")
        wait_for_carrier(ward.node.nics)
        for state in ("down", "up"):  # igb hears a VF again after the VF's next reset
            ip("-n", ward.gateway.netns, "link", "set", IFNAME, state)


@contextmanager
def vf_without_driver(ward: Ward) -> Iterator[None]:
    vf = ward.adopted.vf_address(ward.adopted.vfs_used - 1)
    driver = (PCI_DEVICES / vf / "driver").resolve()
    (driver / "unbind").write_text(vf)
    try:
        yield
    finally:
        (driver / "bind").write_text(vf)


@contextmanager
def mtu_larger_than_pf(ward: Ward) -> Iterator[None]:
    vf, usual = free_vf(ward, 1), ward.adopted.mtu
    ip("link", "set", vf, "mtu", str(usual + 500))
    try:
        yield
    finally:
        ip("link", "set", vf, "mtu", str(usual))


@contextmanager
def mac_twice(ward: Ward) -> Iterator[None]:
    vf, mac = free_vf(ward, 1), mac_of(free_vf(ward, 2))
    usual = mac_of(vf)
    ip("link", "set", vf, "address", mac)
    try:
        yield
    finally:
        ip("link", "set", vf, "address", usual)


def free_vf(ward: Ward, number: int) -> str:
    """The interface of one that is in no pod, from the end."""
    return ward.adopted.vf_name(ward.adopted.vfs_used - 1 - number)


def mac_of(ifname: str) -> str:
    return (NET / ifname / "address").read_text().strip()


# -- services of the host


@contextmanager
def networkd_runs(ward: Ward) -> Iterator[None]:
    """With a file for one VF, by what udev's database says of it."""
    path = f"pci-{ward.adopted.vf_address(ward.adopted.vfs_used - 1)}"
    network_file = f"[Match]\nProperty=ID_PATH={path}\n[Network]\nDHCP=yes\n"
    unit = ward.doctor.root / "run/systemd/units/invocation:systemd-networkd.service"
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.symlink_to("0123456789abcdef")
    ward.doctor.write("run/systemd/network/20-dhcp.network", network_file)
    try:
        yield
    finally:
        ward.doctor.write("etc/systemd/network/10-vfs.network", "[Match]\nName=*\n[Link]\nUnmanaged=yes\n")


# -- what the runtime finds


@contextmanager
def executable_old(ward: Ward) -> Iterator[None]:
    answer = '{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}'
    ward.doctor.executable.write_text(f"#!/bin/sh\necho '{answer}'\n")
    try:
        yield
    finally:
        ward.doctor.install(EXECUTABLE)


def no_fallback_plugin(ward: Ward) -> AbstractContextManager[None]:
    return moved_away(ward.doctor.bin_dir / "bridge")


@contextmanager
def other_sorts_first(ward: Ward) -> Iterator[None]:
    other = write_conflist(ward.doctor.conf_dir / "05-flannel.conflist", "flannel")
    try:
        yield
    finally:
        other.unlink()


# -- pods and the wire


@contextmanager
def default_route_by_the_vf(ward: Ward) -> Iterator[None]:
    route = ("-n", ward.plain.netns, "route", "replace", "default")
    ip(*route, "via", "198.18.70.254", "dev", IFNAME)
    try:
        yield
    finally:
        ip(*route, "via", CLUSTER_GATEWAY, "dev", "eth0")


@contextmanager
def no_way_out(ward: Ward) -> Iterator[None]:
    ip("-n", ward.plain.netns, "link", "set", "eth0", "down")  # which takes its routes
    try:
        yield
    finally:
        ip("-n", ward.plain.netns, "link", "set", "eth0", "up")
        ip("-n", ward.plain.netns, "route", "add", "default", "via", CLUSTER_GATEWAY, "dev", "eth0")


@contextmanager
def other_mac_at_the_pf(ward: Ward) -> Iterator[None]:
    """What the PF filters by is not what the pod sends from."""
    at_pf = ("link", "set", ward.kept.name, "vf", str(ward.tagged_index), "mac")
    ip(*at_pf, _OTHER_MAC)
    try:
        yield
    finally:
        ip(*at_pf, MAC)


@contextmanager
def other_vlan_at_the_pf(ward: Ward) -> Iterator[None]:
    at_pf = ("link", "set", ward.kept.name, "vf", str(ward.tagged_index), "vlan")
    ip(*at_pf, str(_OTHER_VLAN))
    try:
        yield
    finally:
        ip(*at_pf, str(VLAN))


def address_in_use(ward: Ward) -> AbstractContextManager[None]:
    return host_address(ward.adopted, f"{ward.plain_address}/24")


@contextmanager
def gateway_gone(ward: Ward) -> Iterator[None]:
    ip("-n", ward.gateway.netns, "link", "set", IFNAME, "down")
    try:
        yield
    finally:
        ip("-n", ward.gateway.netns, "link", "set", IFNAME, "up")


FAULTS = (
    Fault("agent-stopped", agent_stopped, "agent-silent"),
    Fault("config-broken", config_broken, "config-invalid", "config-refused"),
    Fault("too-many-vfs-asked", too_many_vfs, "totalvfs-low", "provisioning-stuck"),
    Fault("kubelet-away", lambda ward: moved_away(ward.kubelet_socket), "kubelet-socket-missing"),
    Fault("folder-open", lambda ward: mode_of(ward.node.run_dir, 0o777), "run-dir-open"),
    Fault("socket-open", lambda ward: mode_of(ward.node.run_dir / SOCKET_NAME, 0o666), "socket-open"),
    Fault("leases-read-only", lambda ward: mounted(ward.lease_dir, "ro"), "folder-not-writable"),
    Fault("leases-full", leases_full, "folder-not-writable"),
    Fault("clock-set-back", clock_set_back, "clock-set-back"),
    Fault("clock-unsynchronised", clock_unsynchronised, "clock-unsynchronised", emulated=True),
    Fault("vf-unbound", vf_without_driver, "vf-no-driver"),
    Fault("mtu-larger-than-pf", mtu_larger_than_pf, "mtu-mismatch"),
    Fault("mac-twice", mac_twice, "duplicate-mac"),
    Fault("networkd-runs", networkd_runs, "networkd-holds-vfs"),
    Fault("no-executable", lambda ward: moved_away(ward.doctor.executable), "executable-missing"),
    Fault("not-executable", lambda ward: mode_of(ward.doctor.executable, 0o644), "executable-broken"),
    Fault("executable-old", executable_old, "executable-old"),
    Fault("other-conflist-first", other_sorts_first, "cni-other-first"),
    Fault("no-fallback-plugin", no_fallback_plugin, "fallback-plugin-missing", "agent-not-ready"),
    Fault("no-fallback", lambda ward: moved_away(ward.fallback), "fallback-unreadable", "agent-not-ready"),
    Fault("default-route-by-vf", default_route_by_the_vf, "bypasses-kube-proxy"),
    Fault("no-way-out", no_way_out, "no-route-to-services"),
    Fault("other-mac-at-pf", other_mac_at_the_pf, "spoofchk-mac", "vf-attributes-changed"),
    Fault("other-vlan-at-pf", other_vlan_at_the_pf, "vf-attributes-changed"),
    Fault("address-in-use", address_in_use, "address-in-use", probe=True),
    Fault("gateway-gone", gateway_gone, "gateway-silent", probe=True),
    Fault("cable-pulled", lambda ward: cable_pulled(ward.adopted), "pf-no-carrier", emulated=True),
    Fault("pf-down", pf_down, "pf-down"),
)
