"""Pure: how a PF was, the steps back to it, and what is not as it was.

For a PF on which making VFs failed. The steps come from a comparison, whatever was done before.
"""

from typing import TypeAlias

from vf_manager.model import Pf, Vf
from vf_manager.provision_steps import (
    BindVf,
    DriverKind,
    EswitchMode,
    SetAutoprobe,
    SetEswitchMode,
    SetNumVfs,
    SetPfMtu,
    SetPfUp,
    SetVfMtu,
    Step,
)

_Fact: TypeAlias = tuple[str, object, object]  # what it is about, how it is now, how it was


def steps_back(before: Pf, now: Pf) -> tuple[Step, ...]:
    """In order. VFs that are gone are made again, with the driver and the MTU they had."""
    pci = before.pci
    steps: list[Step] = []
    anew = _are_vfs_other(before, now)
    if anew and now.num_vfs:
        steps.append(SetNumVfs(pci, 0))
    if now.eswitch_mode != before.eswitch_mode and before.eswitch_mode is not None:
        steps.append(SetEswitchMode(pci, EswitchMode(before.eswitch_mode)))
    autoprobe = now.autoprobe
    if anew and before.num_vfs:
        steps += [SetAutoprobe(pci, False), SetNumVfs(pci, before.num_vfs), SetAutoprobe(pci, True)]
        steps += [step for vf in before.vfs for step in _vf_steps(before, vf)]
        autoprobe = True
    if autoprobe != before.autoprobe:
        steps.append(SetAutoprobe(pci, before.autoprobe))
    if before.netdev and now.netdev:
        if now.netdev.mtu != before.netdev.mtu:
            steps.append(SetPfMtu(pci, before.netdev.mtu))
        if now.netdev.up != before.netdev.up:
            steps.append(SetPfUp(pci, before.netdev.up))
    return tuple(steps)


def differences(before: Pf, now: Pf | None) -> tuple[str, ...]:
    """A few words about each thing that is not as before: `number of VFs 3, not 7`."""
    if now is None:
        return ("the device is gone",)
    facts: list[_Fact] = [
        ("number of VFs", now.num_vfs, before.num_vfs),
        ("eswitch mode", now.eswitch_mode, before.eswitch_mode),
        ("autoprobe of its VFs", _on(now.autoprobe), _on(before.autoprobe)),
        ("network interface", now.netdev and now.netdev.name, before.netdev and before.netdev.name),
    ]
    if now.netdev and before.netdev:
        facts.append(("mtu", now.netdev.mtu, before.netdev.mtu))
        facts.append(("state", _up(now.netdev.up), _up(before.netdev.up)))
    were = {vf.index: vf for vf in before.vfs}
    for vf in (vf for vf in now.vfs if vf.index in were):
        facts += _vf_facts(vf, were[vf.index])
    return tuple(
        f"{what} {_or_none(is_now)}, not {_or_none(was)}" for what, is_now, was in facts if is_now != was
    )


def _vf_facts(now: Vf, before: Vf) -> list[_Fact]:
    facts: list[_Fact] = [(f"driver of VF {now.index}", now.driver, before.driver)]
    if now.netdev and before.netdev:
        facts.append((f"mtu of VF {now.index}", now.netdev.mtu, before.netdev.mtu))
    return facts


def _are_vfs_other(before: Pf, now: Pf) -> bool:
    return now.num_vfs != before.num_vfs or now.eswitch_mode != before.eswitch_mode


def _vf_steps(pf: Pf, vf: Vf) -> list[Step]:
    if vf.driver is None:
        return []
    userspace = vf.driver == DriverKind.VFIO_PCI
    steps: list[Step] = [BindVf(pf.pci, vf.index, DriverKind.VFIO_PCI if userspace else DriverKind.KERNEL)]
    if vf.netdev is not None:
        steps.append(SetVfMtu(pf.pci, vf.index, vf.netdev.mtu))
    return steps


def _or_none(value: object) -> str:
    return "none" if value is None else str(value)


def _on(value: bool) -> str:
    return "on" if value else "off"


def _up(value: bool) -> str:
    return "up" if value else "down"
