"""Adapter: faults of the emulated NICs, on demand: asked for on a channel to the machine's launcher, which
makes them. A real machine has none; tests that need it take the fixture `faults`, which skips them there."""

import contextlib
import os
import select
from collections.abc import Iterator
from pathlib import Path

import msgspec

from hw_tests.nics import NET, PCI_DEVICES, Nic, settle, wait_until
from hw_tests.rig.emulated import NICS, EmulatedNic
from hw_tests.rig.faults import Fault, Reply, Request

UNAVAILABLE = "a real NIC is not unplugged, nor its cable pulled, by a program: only the emulated rig can"
_PORTS = Path("/sys/class/virtio-ports")
_REPLY_TIMEOUT_S = 90.0  # longer than the launcher waits for QEMU
_NETDEV_TIMEOUT_S = 30.0


class FaultError(Exception):
    """The launcher could not do it; in its words."""


@contextlib.contextmanager
def unplugged(nic: Nic) -> Iterator[None]:
    """Without this NIC; in the end it is in its slot again, as new: without VFs, and down."""
    emulated = _emulated(nic)
    _ask(Fault.UNPLUG, emulated)
    try:
        yield
    finally:
        _ask(Fault.PLUG, emulated)
        wait_until(lambda: _has_its_name(nic), f"{nic.name} at {nic.pci}", _NETDEV_TIMEOUT_S)
        settle()


@contextlib.contextmanager
def cable_pulled(nic: Nic) -> Iterator[None]:
    """The PF has no carrier, whatever its administrative state is."""
    emulated = _emulated(nic)
    _ask(Fault.LINK_DOWN, emulated)
    try:
        yield
    finally:
        _ask(Fault.LINK_UP, emulated)


def _emulated(nic: Nic) -> EmulatedNic:
    mac = (NET / nic.name / "address").read_text().strip()
    return next(emulated for emulated in NICS if emulated.mac == mac)


def _has_its_name(nic: Nic) -> bool:
    return (PCI_DEVICES / nic.pci / "net" / nic.name).exists()


def _ask(fault: Fault, nic: EmulatedNic) -> None:
    """Until it is done. Raises FaultError."""
    request = msgspec.json.encode(Request(fault, nic.id)) + b"\n"
    with contextlib.ExitStack() as stack:
        port = os.open(_port("rig.faults"), os.O_RDWR)
        stack.callback(os.close, port)
        os.write(port, request)
        reply = msgspec.json.decode(_read_line(port), type=Reply)
    if reply.error is not None:
        raise FaultError(f"{fault} {nic.id}: {reply.error}")


def _port(name: str) -> Path:
    (entry,) = [entry for entry in _PORTS.iterdir() if (entry / "name").read_text().strip() == name]
    return Path("/dev") / entry.name


def _read_line(port: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([port], [], [], _REPLY_TIMEOUT_S)
        data = os.read(port, 4096) if readable else b""
        if not data:
            raise FaultError(f"the launcher does not answer; it said {line!r}")
        line += data
    return line
