"""Pure: from what the administrator wants of PFs and what is there, to steps and refusals.

A plan never destroys a VF that is in use, nor gives it another driver or MAC, and never touches VFs that this
project did not create unless it is told to adopt them: it says why not instead, and leaves that PF alone.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from vf_manager.model import Inventory, Mac, PciAddress, Pf, Vf
from vf_manager.provision_steps import (
    BindVf,
    DriverKind,
    EswitchMode,
    SetAutoprobe,
    SetEswitchMode,
    SetNumVfs,
    SetPfMtu,
    SetPfUp,
    SetVfMac,
    SetVfMtu,
    Step,
    VfStep,
    driver_word,
)
from vf_manager.stable_mac import stable_mac

# Drivers under which a VF has no interface of its own, whoever uses it.
_USERSPACE_DRIVERS = (DriverKind.VFIO_PCI.value, "uio_pci_generic", "igb_uio")
_ELSEWHERE = "another network namespace"


class MacKind(StrEnum):
    """`stable`: an administrative MAC that is derived, see stable_mac.py."""

    STABLE = "stable"


class VfPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What some VFs of a PF shall be. `first`-`last`: VF indexes, inclusive. None: not asked for."""

    first: int
    last: int
    mtu: int | None = None
    driver: DriverKind = DriverKind.KERNEL
    mac: MacKind | None = None


class PfPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What one PF shall have. `adopt`: VFs that somebody else created are treated as our own."""

    pf: PciAddress
    count: int
    vfs: tuple[VfPolicy, ...] = ()
    adopt: bool = False
    eswitch_mode: EswitchMode | None = None


class RefusalKind(StrEnum):
    PENDING = "pending"  # goes through by itself, once what is in the way is gone
    REFUSED = "refused"  # somebody has to change the config or the node


class Holder(msgspec.Struct, frozen=True):
    """Who has a VF, in words: `default/trainer`."""

    vf: PciAddress
    by: str

    def __str__(self) -> str:
        return f"{self.vf} ({self.by})"


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a PF is left alone. `holders`: those in the way."""

    pf: PciAddress
    kind: RefusalKind
    reason: str
    holders: tuple[Holder, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Steps in order; those of a PF come before those of its VFs. No PF has both steps and a refusal."""

    steps: tuple[Step, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    def of(self, pf: PciAddress) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.pf == pf)


def plan(
    policies: tuple[PfPolicy, ...],
    inventory: Inventory,
    holders: Mapping[PciAddress, str],
    created: Mapping[PciAddress, int],
) -> Plan:
    """`holders`: VFs that somebody has, and who. `created`: PFs on which this project made VFs, and how many.
    Both are only facts: a VF whose interface left the host's namespace counts as held by itself."""
    steps: list[Step] = []
    refusals: list[Refusal] = []
    for policy in policies:
        pf = inventory.find_pf(policy.pf)
        if pf is None:
            refusals.append(_refused(policy.pf, f"there is no PF {policy.pf} on this node"))
            continue
        case = _Case(policy, pf, _holders_of(pf, holders), created.get(pf.pci))
        refusal = _why_impossible(policy, pf, inventory) or _why_not_now(case)
        if refusal is not None:
            refusals.append(refusal)
        else:
            steps += _steps(case)
    return Plan(steps=tuple(steps), refusals=tuple(refusals))


class _Case(msgspec.Struct, frozen=True):
    """One PF. `created`: how many VFs we made on it, if we did."""

    policy: PfPolicy
    pf: Pf
    holders: tuple[Holder, ...]
    created: int | None

    @property
    def made_here(self) -> bool:
        """Whether we made the VFs that it has, or had before all were removed. Another number than we made:
        somebody removed ours and made these."""
        return self.created is not None and self.pf.num_vfs in (0, self.created)

    @property
    def ours(self) -> bool:
        """Whether its VFs are ours to change."""
        return self.made_here or self.policy.adopt

    @property
    def new_mode(self) -> EswitchMode | None:
        wanted = self.policy.eswitch_mode
        return wanted if wanted != self.pf.eswitch_mode else None

    @property
    def anew(self) -> bool:
        """Whether the VFs it has, if any, have to go."""
        return self.pf.num_vfs != self.policy.count or self.new_mode is not None

    def is_held(self, vf: Vf) -> bool:
        return any(holder.vf == vf.pci for holder in self.holders)


def _holders_of(pf: Pf, known: Mapping[PciAddress, str]) -> tuple[Holder, ...]:
    """A VF with a network driver but no interface on the host is in another namespace."""
    held = []
    for vf in pf.vfs:
        away = vf.netdev is None and vf.driver is not None and vf.driver not in _USERSPACE_DRIVERS
        by = known.get(vf.pci, _ELSEWHERE if away else None)
        if by is not None:
            held.append(Holder(vf.pci, by))
    return tuple(held)


# -- refusals


def _refused(pf: PciAddress, reason: str) -> Refusal:
    return Refusal(pf=pf, kind=RefusalKind.REFUSED, reason=reason)


def _pending(pf: PciAddress, reason: str, holders: tuple[Holder, ...]) -> Refusal:
    return Refusal(pf=pf, kind=RefusalKind.PENDING, reason=reason, holders=holders)


def _why_impossible(policy: PfPolicy, pf: Pf, inventory: Inventory) -> Refusal | None:
    """Whatever the VFs are used for."""
    if policy.count > pf.total_vfs:
        return _refused(
            pf.pci,
            f"{policy.count} VFs are asked of {pf.label}, which can have {pf.total_vfs} (sriov_totalvfs)",
        )
    if pf.netdev is None:
        return _refused(
            pf.pci, f"PF {pf.label} has no network interface on the host (driver: {pf.driver or 'none'})"
        )
    if policy.eswitch_mode is not None and pf.eswitch_mode is None:
        return _refused(
            pf.pci, f"the driver of {pf.label}, {pf.driver or 'none'}, has no eswitch; leave eswitchMode out"
        )
    if policy.count and any(p.mac is MacKind.STABLE for p in policy.vfs):
        return _why_no_macs(pf, inventory)
    return None


def _why_no_macs(pf: Pf, inventory: Inventory) -> Refusal | None:
    if pf.permanent_mac is None:
        return _refused(
            pf.pci, f"mac: stable is derived from a PF's burnt-in MAC, and {pf.label} does not tell its own"
        )
    twin = next((p for p in inventory.pfs if p != pf and p.permanent_mac == pf.permanent_mac), None)
    if twin is not None:
        return _refused(
            pf.pci,
            f"mac: stable would give VFs of {pf.label} and {twin.label} the same MACs:"
            f" both have {pf.permanent_mac} burnt in",
        )
    if any(vf.attributes is None for vf in pf.vfs):
        return _refused(pf.pci, f"mac: stable: the driver of {pf.label} does not tell the MACs of its VFs")
    return None


def _why_not_now(case: _Case) -> Refusal | None:
    pf = case.pf
    if pf.num_vfs and not case.ours:
        if case.anew:
            return _refused(
                pf.pci,
                f"{pf.label} has {pf.num_vfs} VFs that somebody else created, and they would have to go:"
                f" {_change(case)}; say adopt: true, or write 0 to its sriov_numvfs",
            )
        if any(isinstance(step, VfStep) for step in _steps(case)):
            return _refused(
                pf.pci,
                f"somebody else created the {pf.num_vfs} VFs of {pf.label}, and they are not as wanted;"
                " say adopt: true to have them changed",
            )
    if pf.num_vfs and case.anew and case.holders:
        return _pending(
            pf.pci,
            f"{_change(case)} would destroy all {pf.num_vfs} VFs of {pf.label}, of which are in use:"
            f" {', '.join(map(str, case.holders))}",
            case.holders,
        )
    return _why_not_rebound(case)


def _why_not_rebound(case: _Case) -> Refusal | None:
    for vf in case.pf.vfs:
        wanted = _policy_of(case.policy, vf.index)
        if wanted is not None and case.is_held(vf) and not _has_driver(vf, wanted.driver):
            holders = tuple(holder for holder in case.holders if holder.vf == vf.pci)
            return _pending(
                case.pf.pci,
                f"VF {holders[0]} of {case.pf.label} is in use and cannot be bound to"
                f" {driver_word(wanted.driver)} now",
                holders,
            )
    return None


def _change(case: _Case) -> str:
    """`7 VFs -> 5`"""
    parts = []
    if case.pf.num_vfs != case.policy.count:
        parts.append(f"{case.pf.num_vfs} VFs -> {case.policy.count}")
    if case.new_mode is not None:
        parts.append(f"eswitch mode {case.pf.eswitch_mode} -> {case.new_mode}")
    return ", ".join(parts)


# -- steps


def _steps(case: _Case) -> list[Step]:
    policy, pf = case.policy, case.pf
    steps: list[Step] = []
    if case.anew and pf.num_vfs:
        steps.append(SetNumVfs(pf.pci, 0))
    if case.new_mode is not None:
        steps.append(SetEswitchMode(pf.pci, case.new_mode))
    if policy.count:
        steps += _interface_steps(case)
    vf_steps = [step for index in range(policy.count) for step in _steps_of(case, index)]
    if case.anew and policy.count:
        # Autoprobe comes on again before the VFs are bound: with it off the kernel refuses to probe a VF.
        steps += [SetAutoprobe(pf.pci, False), SetNumVfs(pf.pci, policy.count), SetAutoprobe(pf.pci, True)]
    elif not pf.autoprobe and (case.made_here or any(_needs_autoprobe(step) for step in vf_steps)):
        steps.append(SetAutoprobe(pf.pci, True))  # somebody, maybe we, died in the middle of making them
    return steps + vf_steps


def _interface_steps(case: _Case) -> list[Step]:
    """A new eswitch mode may make the PF's interface anew: what it is now does not count then."""
    pf = case.pf
    assert pf.netdev is not None
    mtu = max((p.mtu for p in case.policy.vfs if p.mtu is not None), default=0)
    steps: list[Step] = []
    if not pf.netdev.up or case.new_mode is not None:
        steps.append(SetPfUp(pf.pci))
    if mtu > pf.netdev.mtu or (mtu and case.new_mode is not None):
        steps.append(SetPfMtu(pf.pci, max(mtu, pf.netdev.mtu)))
    return steps


def _steps_of(case: _Case, index: int) -> list[VfStep]:
    """Of one VF; none for one that is in use. It gets what it lacks when it is free again."""
    if case.anew:
        return _vf_steps(case.pf, index, _wanted(case, index, None), None)
    vf = next((v for v in case.pf.vfs if v.index == index), None)
    if vf is None or case.is_held(vf):
        return []
    return _vf_steps(case.pf, index, _wanted(case, index, vf), vf)


def _wanted(case: _Case, index: int, vf: Vf | None) -> VfPolicy | None:
    """A VF that no pool speaks of gets the kernel's driver when made (`vf` None), or when its making was cut
    short: then it is ours and without one."""
    wanted = _policy_of(case.policy, index)
    if wanted is None and (vf is None or (case.made_here and vf.driver is None)):
        return VfPolicy(first=index, last=index)
    return wanted


def _vf_steps(pf: Pf, index: int, policy: VfPolicy | None, vf: Vf | None) -> list[VfStep]:
    """`vf` None: it will be made anew. The MAC before the driver, so that the interface comes up with it."""
    if policy is None:
        return []
    steps: list[VfStep] = []
    if policy.mac is MacKind.STABLE:
        assert pf.permanent_mac is not None
        mac = stable_mac(pf.permanent_mac, index)
        if vf is None or not _has_mac(vf, mac):
            steps.append(SetVfMac(pf.pci, index, mac))
    if vf is None or not _has_driver(vf, policy.driver):
        steps.append(BindVf(pf.pci, index, policy.driver))
    if policy.mtu is not None and policy.driver is DriverKind.KERNEL and _needs_mtu(policy.mtu, vf, steps):
        steps.append(SetVfMtu(pf.pci, index, policy.mtu))
    return steps


def _needs_mtu(mtu: int, vf: Vf | None, before: list[VfStep]) -> bool:
    """A driver makes the interface with an MTU of its own choice."""
    if any(isinstance(step, BindVf) for step in before):
        return True
    return vf is not None and vf.netdev is not None and vf.netdev.mtu != mtu


def _needs_autoprobe(step: Step) -> bool:
    return isinstance(step, BindVf) and step.driver is DriverKind.KERNEL


def _policy_of(policy: PfPolicy, index: int) -> VfPolicy | None:
    return next((p for p in policy.vfs if p.first <= index <= p.last), None)


def _has_mac(vf: Vf, mac: Mac) -> bool:
    own = vf.netdev.mac if vf.netdev else mac
    return vf.attributes is not None and (vf.attributes.mac, own) == (mac, mac)


def _has_driver(vf: Vf, kind: DriverKind) -> bool:
    if kind is DriverKind.VFIO_PCI:
        return vf.driver == kind.value
    return vf.driver is not None and vf.driver not in _USERSPACE_DRIVERS
