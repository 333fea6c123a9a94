"""Pure: why a device is in a pool, or in none."""

from collections.abc import Sequence
from enum import StrEnum
from typing import assert_never

import msgspec

from device_plugin.pools import Pool, PoolRules, devices_of, owners, parse_pools, resource_of
from device_plugin.selectors import Refusal, place_of
from vf_manager.model import Inventory, PciAddress, Pf, Vf


class Verdict(StrEnum):
    """What a pool has to do with a device."""

    HAS = "has"
    REFUSED = "refused"  # no selector of it takes the device
    TAKEN = "taken"  # a pool before it has the device
    UNUSABLE = "unusable"  # it would have the device, which is not for pods


class PoolAnswer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What one pool says of a device. `refusals`: of each of its selectors, the keys that do not take the
    device. `taken_by`: the pool that has it, or would have it."""

    pool: str
    resource: str
    verdict: Verdict
    refusals: tuple[tuple[Refusal, ...], ...] = ()
    taken_by: str | None = None

    def reason(self) -> str:
        """`vendors ["15b3"], this device has 8086`; empty if the pool has it."""
        match self.verdict:
            case Verdict.HAS:
                return ""
            case Verdict.REFUSED:
                return _of_selectors(self.refusals)
            case Verdict.TAKEN:
                return f"pool {self.taken_by} comes first, and not both of them are shared"
            case Verdict.UNUSABLE:
                return "it would have the device"
            case _:
                assert_never(self.verdict)


class Explanation(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One device. `place`: `VF 3 of ens1f0 (0000:3b:00.0)`. `pools`: those that have it."""

    pci: PciAddress
    place: str
    vendor: str
    device: str
    driver: str | None
    numa_node: int | None
    pools: tuple[str, ...]
    unusable: str | None
    answers: tuple[PoolAnswer, ...]

    def reason(self) -> str:
        """Why no pool has it, in one line; empty if one has."""
        if self.pools:
            return ""
        if not self.answers:
            return "there are no pools"
        if self.unusable:
            return f"not for pods: {self.unusable}"
        return "; ".join(f"{answer.pool}: {answer.reason()}" for answer in self.answers)


class PfExplanation(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A PF is in no pool itself. `vfs`: how many of its VFs are in which pools; "" for none."""

    pci: PciAddress
    place: str
    total_vfs: int
    vfs: dict[str, int]

    def reason(self) -> str:
        if not self.vfs:
            return (
                f"a PF is never given to a pod, its VFs are: it has none now, and may have {self.total_vfs};"
                " a pool with `vfs: {count: ...}` makes some"
            )
        counts = (f"{n} in {f'pool {pools}' if pools else 'no pool'}" for pools, n in self.vfs.items())
        return f"a PF is never given to a pod, its VFs are: {', '.join(counts)}"


def explain(pools: Sequence[Pool], prefix: str, inventory: Inventory) -> tuple[Explanation, ...]:
    """Every device that may be in a pool. Raises InvalidInput: the pools are to be without mistakes."""
    rules = parse_pools(pools)
    return tuple(_explain(rules, prefix, pf, vf) for pf, vf in devices_of(inventory))


def explain_pf(pools: Sequence[Pool], pf: Pf) -> PfExplanation:
    rules = parse_pools(pools)
    counts: dict[str, int] = {}
    for vf in sorted(pf.vfs, key=lambda vf: vf.index):
        names = () if vf.unusable else (pool.name for pool in owners(rules, pf, vf))
        key = ", ".join(names)
        counts[key] = counts.get(key, 0) + 1
    return PfExplanation(pci=pf.pci, place=f"PF {pf.label}", total_vfs=pf.total_vfs, vfs=counts)


def _explain(pools: Sequence[PoolRules], prefix: str, pf: Pf | None, vf: Vf) -> Explanation:
    having = owners(pools, pf, vf)
    return Explanation(
        pci=vf.pci,
        place=place_of(pf, vf) or "NIC without PF",
        vendor=vf.vendor,
        device=vf.device,
        driver=vf.driver,
        numa_node=vf.numa_node,
        pools=() if vf.unusable else tuple(pool.name for pool in having),
        unusable=vf.unusable,
        answers=tuple(_answer(one, prefix, having, pf, vf) for one in pools),
    )


def _answer(one: PoolRules, prefix: str, having: tuple[Pool, ...], pf: Pf | None, vf: Vf) -> PoolAnswer:
    refusals: tuple[tuple[Refusal, ...], ...] = ()
    taken_by = None
    if one.pool in having:
        verdict = Verdict.UNUSABLE if vf.unusable else Verdict.HAS
    elif one.takes(pf, vf):
        verdict, taken_by = Verdict.TAKEN, having[0].name
    else:
        verdict, refusals = Verdict.REFUSED, one.refusals(pf, vf)
    return PoolAnswer(
        pool=one.pool.name,
        resource=resource_of(one.pool, prefix),
        verdict=verdict,
        refusals=refusals,
        taken_by=taken_by,
    )


def _of_selectors(refusals: tuple[tuple[Refusal, ...], ...]) -> str:
    texts = ["; ".join(map(str, of_one)) for of_one in refusals]
    if len(texts) == 1:
        return texts[0]
    return "; ".join(f"selector {i}: {text}" for i, text in enumerate(texts, 1))
