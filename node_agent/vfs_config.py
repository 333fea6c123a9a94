"""Pure: `vfs` of the pools of the config, and what they ask of each PF of a node together."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec

from device_plugin.selectors import PfRule
from vf_manager.errors import InvalidInput, SriovError
from vf_manager.meaning import meaning
from vf_manager.model import Inventory, PciAddress, Pf
from vf_manager.provision import MacKind, PfPolicy, VfPolicy
from vf_manager.provision_steps import DriverKind, EswitchMode

_MOST_VFS = 65535  # NumVFs of the SR-IOV capability has 16 bits


class PoolsDisagree(SriovError):
    """Two pools ask different things of one PF or of one VF. That only shows where the PFs are."""


class VfsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """VFs to create on each PF of a pool. `count`, `adopt` and `eswitchMode` are about the PF, the others
    about the pool's VFs. What is left out is not touched."""

    count: Annotated[
        int, meaning("number of VFs on each PF that the pool's selector names", low=0, high=_MOST_VFS)
    ]
    mtu: Annotated[
        int | None,
        meaning("of the VFs, in bytes; the PF's is raised first if it is lower", low=68, high=65535),
    ] = None
    driver: Annotated[
        DriverKind,
        meaning(
            "`kernel`: the one that makes a network interface; `vfio-pci`: for userspace drivers and virtual"
            " machines"
        ),
    ] = DriverKind.KERNEL
    mac: Annotated[
        MacKind | None, meaning("`stable`: an administrative MAC that is the same after every boot")
    ] = None
    adopt: Annotated[bool, meaning("whether VFs that somebody else created are treated as our own")] = False
    eswitch_mode: Annotated[
        EswitchMode | None,
        meaning("how the NIC switches between VFs and wire, if its driver lets one choose"),
    ] = None


class PoolVfs(msgspec.Struct, frozen=True, kw_only=True):
    """A pool that has `vfs`. `key`: its place in the config, `pools[0]`."""

    key: str
    name: str
    pf_rules: tuple[PfRule, ...]
    vfs: VfsConfig


def check_vfs(pool: PoolVfs) -> None:
    """Everything that can be wrong before any PF is seen. Raises InvalidInput."""
    vfs, key = pool.vfs, f"{pool.key}.vfs"
    if not pool.pf_rules:
        raise InvalidInput(key, vfs.count, f"{pool.key}.select.pfNames beside it: on which PFs to create VFs")
    if not 0 <= vfs.count <= _MOST_VFS:
        raise InvalidInput(f"{key}.count", vfs.count, f"a number of VFs, 0-{_MOST_VFS}")
    if vfs.mtu is not None and not 68 <= vfs.mtu <= 65535:
        raise InvalidInput(f"{key}.mtu", vfs.mtu, "an MTU of 68-65535 bytes")
    for rule in pool.pf_rules:
        beyond = [last for _, last in rule.ranges or () if last >= vfs.count]
        if beyond:
            raise InvalidInput(
                f"{key}.count", vfs.count, f"more than {max(beyond)}, the last VF that {str(rule)!r} selects"
            )


def pf_policies(
    pools: Sequence[PoolVfs], inventory: Inventory
) -> tuple[tuple[PfPolicy, ...], tuple[str, ...]]:
    """What the pools ask of the PFs that exist, and a line about each name that no PF has. Raises
    PoolsDisagree."""
    wanted: dict[PciAddress, PfPolicy] = {}
    missing = []
    for pool in pools:
        for rule in pool.pf_rules:
            pfs = [pf for pf in inventory.pfs if rule.names(pf)]
            if not pfs:
                missing.append(
                    f"{pool.key} {pool.name}: no SR-IOV PF is called {rule.name!r} on this node; there is"
                    f" {_names(inventory)}"
                )
            for pf in pfs:
                wanted[pf.pci] = _merge(wanted.get(pf.pci), pf, rule, pool)
    return tuple(wanted[pci] for pci in sorted(wanted)), tuple(missing)


def _names(inventory: Inventory) -> str:
    """PFs that there are. One without a driver has no name of its own."""
    return ", ".join(pf.netdev.name if pf.netdev else pf.pci for pf in inventory.pfs) or "none"


def _merge(known: PfPolicy | None, pf: Pf, rule: PfRule, pool: PoolVfs) -> PfPolicy:
    vfs = pool.vfs
    ranges = rule.ranges or ((0, vfs.count - 1),)
    new = tuple(VfPolicy(first=a, last=b, mtu=vfs.mtu, driver=vfs.driver, mac=vfs.mac) for a, b in ranges)
    if known is None:
        known = PfPolicy(pf=pf.pci, count=vfs.count, adopt=vfs.adopt, eswitch_mode=vfs.eswitch_mode)
    _refuse_other_pf(known, pf, pool)
    _refuse_other_vfs(known.vfs, new, pf, f"{pool.key}.vfs")
    return msgspec.structs.replace(known, vfs=known.vfs + new)


def _refuse_other_pf(known: PfPolicy, pf: Pf, pool: PoolVfs) -> None:
    vfs, key = pool.vfs, f"{pool.key}.vfs"
    if known.count != vfs.count:
        raise PoolsDisagree(
            f"{key}.count: {vfs.count} VFs are asked of {pf.label}, and {known.count} by another pool;"
            " give both the same count and divide the VFs by ranges like ens1f0#0-3"
        )
    pairs: Iterable[tuple[str, Any, Any]] = (
        ("adopt", vfs.adopt, known.adopt),
        ("eswitchMode", vfs.eswitch_mode, known.eswitch_mode),
    )
    for name, new, old in pairs:
        if new != old:
            raise PoolsDisagree(
                f"{key}.{name}: {_word(new)} is asked of {pf.label}, and {_word(old)} by another pool;"
                " it is about the whole PF, so say the same in both"
            )


def _refuse_other_vfs(old: tuple[VfPolicy, ...], new: tuple[VfPolicy, ...], pf: Pf, key: str) -> None:
    for policy in new:
        other = next((o for o in old if o.first <= policy.last and policy.first <= o.last), None)
        if other is not None and (other.mtu, other.driver, other.mac) != (
            policy.mtu,
            policy.driver,
            policy.mac,
        ):
            first = max(other.first, policy.first)
            raise PoolsDisagree(
                f"{key}: VF {first} of {pf.label} is given another mtu, driver or mac by another pool"
            )


def _word(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case _:
            return str(value)
