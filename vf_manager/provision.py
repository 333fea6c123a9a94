"""Pure: from what the administrator wants of PFs and what is there, to steps and refusals.

Steps name VFs by PF and index: at planning time they need not exist yet. A plan never destroys or rebinds a
VF that is in use, and never removes VFs that this project did not create: it says why not instead.
"""

from collections.abc import Set
from enum import StrEnum
from typing import TypeAlias, assert_never

import msgspec

from vf_manager.model import Inventory, PciAddress, Pf, Vf

DEFAULT_MTU = 1500


class DriverKind(StrEnum):
    """`kernel`: the driver that the kernel picks by itself, which makes a network interface."""

    KERNEL = "kernel"
    VFIO_PCI = "vfio-pci"


class VfPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What some VFs of a PF shall be. `first`-`last`: VF indexes, inclusive."""

    first: int
    last: int
    mtu: int | None = None
    driver: DriverKind = DriverKind.KERNEL


class PfPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What one PF shall have."""

    pf: PciAddress
    count: int
    vfs: tuple[VfPolicy, ...] = ()


class SetPfUp(msgspec.Struct, frozen=True, tag=True):
    """First of all: some drivers answer their VFs only while the PF is up (igb: 2 s lost per VF)."""

    pf: PciAddress


class SetPfMtu(msgspec.Struct, frozen=True, tag=True):
    pf: PciAddress
    mtu: int


class SetAutoprobe(msgspec.Struct, frozen=True, tag=True):
    """Off while VFs are created: none is probed by a wrong driver, or before its PF is ready."""

    pf: PciAddress
    enabled: bool


class SetNumVfs(msgspec.Struct, frozen=True, tag=True):
    pf: PciAddress
    count: int


class BindVf(msgspec.Struct, frozen=True, tag=True):
    pf: PciAddress
    index: int
    driver: DriverKind


class SetVfMtu(msgspec.Struct, frozen=True, tag=True):
    pf: PciAddress
    index: int
    mtu: int


Step: TypeAlias = SetPfUp | SetPfMtu | SetAutoprobe | SetNumVfs | BindVf | SetVfMtu


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    pf: PciAddress
    reason: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    steps: tuple[Step, ...] = ()
    refusals: tuple[Refusal, ...] = ()


def plan(
    policies: tuple[PfPolicy, ...], inventory: Inventory, in_use: Set[PciAddress], created: Set[PciAddress]
) -> Plan:
    """`in_use`: VFs that are attached. `created`: PFs whose VFs this project made. Both are only facts:
    a VF whose interface left the host's namespace counts as in use by itself."""
    steps: list[Step] = []
    refusals: list[Refusal] = []
    for policy in policies:
        pf = inventory.find_pf(policy.pf)
        if pf is None:
            refusals.append(Refusal(pf=policy.pf, reason=f"there is no PF {policy.pf} on this node"))
            continue
        reason = _why_not(policy, pf, in_use, created)
        if reason is not None:
            refusals.append(Refusal(pf=pf.pci, reason=reason))
        else:
            steps += _pf_steps(policy, pf, in_use, ours=pf.pci in created)
    return Plan(steps=tuple(steps), refusals=tuple(refusals))


def is_in_use(vf: Vf, attached: Set[PciAddress]) -> bool:
    """Attached, or with a network driver but no interface on the host: then another namespace has it."""
    return vf.pci in attached or (
        vf.netdev is None and vf.driver is not None and vf.driver != DriverKind.VFIO_PCI.value
    )


def describe(step: Step) -> str:
    """One line for people."""
    match step:
        case SetPfUp():
            return f"set PF {step.pf} up"
        case SetPfMtu():
            return f"set mtu {step.mtu} on PF {step.pf}"
        case SetAutoprobe():
            return f"turn driver autoprobe of the VFs of {step.pf} {'on' if step.enabled else 'off'}"
        case SetNumVfs():
            return f"create {step.count} VFs on {step.pf}" if step.count else f"remove the VFs of {step.pf}"
        case BindVf():
            return f"bind VF {step.index} of {step.pf} to {_driver_word(step.driver)}"
        case SetVfMtu():
            return f"set mtu {step.mtu} on VF {step.index} of {step.pf}"
        case _:
            assert_never(step)


def _why_not(policy: PfPolicy, pf: Pf, in_use: Set[PciAddress], created: Set[PciAddress]) -> str | None:
    if policy.count > pf.total_vfs:
        return f"{policy.count} VFs are asked of {pf.label}, which can have {pf.total_vfs} (sriov_totalvfs)"
    if pf.netdev is None:
        return f"PF {pf.label} has no network interface on the host (driver: {pf.driver or 'none'})"
    busy = [vf for vf in pf.vfs if is_in_use(vf, in_use)]
    if pf.num_vfs not in (0, policy.count):
        if busy:
            return (
                f"changing {pf.label} from {pf.num_vfs} to {policy.count} VFs would destroy all of them, and"
                f" {len(busy)} of them are in use ({', '.join(vf.pci for vf in busy)})"
            )
        if pf.pci not in created:
            return (
                f"{pf.label} has {pf.num_vfs} VFs that somebody else created, not {policy.count};"
                f" set the count to {pf.num_vfs}, or write 0 to its sriov_numvfs"
            )
    for vf in busy:
        vf_policy = _policy_of(policy, vf.index)
        if vf_policy is not None and not _has_driver(vf, vf_policy.driver):
            return f"VF {vf.pci} is in use and cannot be bound to {_driver_word(vf_policy.driver)} now"
    return None


def _pf_steps(policy: PfPolicy, pf: Pf, in_use: Set[PciAddress], *, ours: bool) -> list[Step]:
    steps: list[Step] = []
    assert pf.netdev is not None
    mtu = max((p.mtu for p in policy.vfs if p.mtu is not None), default=0)
    if policy.count and not pf.netdev.up:
        steps.append(SetPfUp(pf.pci))
    if policy.count and mtu > pf.netdev.mtu:
        steps.append(SetPfMtu(pf.pci, mtu))
    anew = pf.num_vfs != policy.count
    if anew:
        steps += _create_steps(policy, pf)
    vf_steps: list[Step] = []
    for index in range(policy.count):
        vf = None if anew else next((v for v in pf.vfs if v.index == index), None)
        if vf is None or vf.pci not in in_use:
            vf_steps += _vf_steps(pf, index, _wanted(policy, index, vf, ours), vf)
    if not anew and not pf.autoprobe and any(_needs_autoprobe(step) for step in vf_steps):
        steps.append(SetAutoprobe(pf.pci, True))  # somebody, maybe we, died in the middle of making them
    return steps + vf_steps


def _create_steps(policy: PfPolicy, pf: Pf) -> list[Step]:
    """Autoprobe comes on again before the VFs are bound: with it off the kernel refuses to probe a VF."""
    steps: list[Step] = [SetNumVfs(pf.pci, 0)] if pf.num_vfs else []
    if policy.count:
        steps += [SetAutoprobe(pf.pci, False), SetNumVfs(pf.pci, policy.count), SetAutoprobe(pf.pci, True)]
    return steps


def _wanted(policy: PfPolicy, index: int, vf: Vf | None, ours: bool) -> VfPolicy | None:
    """A VF that no pool speaks of gets the kernel's driver when made (`vf` None), or when its making was cut
    short: then it is ours and without one."""
    wanted = _policy_of(policy, index)
    if wanted is None and (vf is None or (ours and vf.driver is None)):
        return VfPolicy(first=index, last=index)
    return wanted


def _vf_steps(pf: Pf, index: int, policy: VfPolicy | None, vf: Vf | None) -> list[Step]:
    """`vf` None: it will be made anew."""
    if policy is None:
        return []
    steps: list[Step] = []
    if vf is None or not _has_driver(vf, policy.driver):
        steps.append(BindVf(pf.pci, index, policy.driver))
    if policy.mtu is None or policy.driver is not DriverKind.KERNEL:
        return steps
    # A VF in a pod has the MTU that its network asks for; it gets this one when it is back.
    if steps or (vf is not None and vf.netdev is not None and vf.netdev.mtu != policy.mtu):
        steps.append(SetVfMtu(pf.pci, index, policy.mtu))
    return steps


def _needs_autoprobe(step: Step) -> bool:
    return isinstance(step, BindVf) and step.driver is DriverKind.KERNEL


def _policy_of(policy: PfPolicy, index: int) -> VfPolicy | None:
    return next((p for p in policy.vfs if p.first <= index <= p.last), None)


def _has_driver(vf: Vf, kind: DriverKind) -> bool:
    if kind is DriverKind.VFIO_PCI:
        return vf.driver == kind.value
    return vf.driver is not None and vf.driver != DriverKind.VFIO_PCI.value


def _driver_word(kind: DriverKind) -> str:
    return "its kernel driver" if kind is DriverKind.KERNEL else kind.value
