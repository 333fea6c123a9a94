"""Pure: the steps of provisioning, and a line about each for people.

Steps name VFs by PF and index: at planning time they need not exist yet.
"""

from enum import StrEnum
from typing import TypeAlias, assert_never

import msgspec

from vf_manager.model import Mac, PciAddress


class DriverKind(StrEnum):
    """`kernel`: the driver that the kernel picks by itself, which makes a network interface."""

    KERNEL = "kernel"
    VFIO_PCI = "vfio-pci"


class EswitchMode(StrEnum):
    """How the NIC switches between its VFs and the wire (devlink-eswitch(8))."""

    LEGACY = "legacy"
    SWITCHDEV = "switchdev"


class SetPfUp(msgspec.Struct, frozen=True, tag=True):
    """Before VFs are made: some drivers answer their VFs only while the PF is up (igb: 2 s lost per VF)."""

    pf: PciAddress
    up: bool = True


class SetPfMtu(msgspec.Struct, frozen=True, tag=True):
    """Before that of any VF: drivers refuse a VF more than its PF has."""

    pf: PciAddress
    mtu: int


class SetEswitchMode(msgspec.Struct, frozen=True, tag=True):
    """Only while there are no VFs: with some, drivers refuse it or make them anew behind our back."""

    pf: PciAddress
    mode: EswitchMode


class SetAutoprobe(msgspec.Struct, frozen=True, tag=True):
    """Off while VFs are created: none is probed by a wrong driver, or before its PF is ready."""

    pf: PciAddress
    enabled: bool


class SetNumVfs(msgspec.Struct, frozen=True, tag=True):
    pf: PciAddress
    count: int


class SetVfMac(msgspec.Struct, frozen=True, tag=True):
    """The administrative MAC, and that of the VF's own interface if it has one by then."""

    pf: PciAddress
    index: int
    mac: Mac


class BindVf(msgspec.Struct, frozen=True, tag=True):
    pf: PciAddress
    index: int
    driver: DriverKind


class SetVfMtu(msgspec.Struct, frozen=True, tag=True):
    pf: PciAddress
    index: int
    mtu: int


PfStep: TypeAlias = SetPfUp | SetPfMtu | SetEswitchMode | SetAutoprobe | SetNumVfs
VfStep: TypeAlias = SetVfMac | BindVf | SetVfMtu
Step: TypeAlias = PfStep | VfStep


def describe(step: Step) -> str:
    """`bind VF 3 of 0000:3b:00.0 to vfio-pci`"""
    match step:
        case SetPfUp():
            return f"set PF {step.pf} {'up' if step.up else 'down'}"
        case SetPfMtu():
            return f"set mtu {step.mtu} on PF {step.pf}"
        case SetEswitchMode():
            return f"set eswitch mode {step.mode} on PF {step.pf}"
        case SetAutoprobe():
            return f"turn driver autoprobe of the VFs of {step.pf} {'on' if step.enabled else 'off'}"
        case SetNumVfs():
            return f"create {step.count} VFs on {step.pf}" if step.count else f"remove the VFs of {step.pf}"
        case SetVfMac():
            return f"set mac {step.mac} on VF {step.index} of {step.pf}"
        case BindVf():
            return f"bind VF {step.index} of {step.pf} to {driver_word(step.driver)}"
        case SetVfMtu():
            return f"set mtu {step.mtu} on VF {step.index} of {step.pf}"
        case _:
            assert_never(step)


def driver_word(kind: DriverKind) -> str:
    return "its kernel driver" if kind is DriverKind.KERNEL else kind.value
