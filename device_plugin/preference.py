"""Pure: which of the VFs that are free a container is given, by the policy of the pool.

The kubelet asks before it allocates, and may decide otherwise: within a NUMA node of its choice, say.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, assert_never

import msgspec

from device_plugin.allocation import Policy
from vf_manager.errors import InvalidInput
from vf_manager.model import Vf

Place = tuple[str, ...]  # what VFs are near to each other by: the same PF, PCIe root or NUMA node
Where = Callable[[Vf], Place]


class Choice(NamedTuple):
    """`reason`: by which rule, and what came of it."""

    devices: tuple[str, ...]
    reason: str


class _Choosing(msgspec.Struct, frozen=True, kw_only=True):
    """`need` of the `free` ones beside the `must`; the `used` ones are others'."""

    must: tuple[Vf, ...]
    free: tuple[Vf, ...]
    used: tuple[Vf, ...]
    need: int


def choose(
    policy: Policy, vfs: Sequence[Vf], available: Iterable[str], must_include: Iterable[str], size: int
) -> Choice:
    """`size` of the available ids, with all that must be in. `vfs`: of the pool, those in use too; what is
    not among them is taken last. The same question has the same answer. Raises InvalidInput."""
    must = sorted(set(must_include))
    others = sorted(set(available) - set(must))
    if not len(must) <= size <= len(must) + len(others):
        raise InvalidInput(
            "size", size, f"{len(must)} (must be in) to {len(must) + len(others)} (are available)"
        )
    asked = {*must, *others}
    known: dict[str, Vf] = {vf.pci: vf for vf in vfs}
    free = tuple(known[id_] for id_ in others if id_ in known)
    choosing = _Choosing(
        must=tuple(known[id_] for id_ in must if id_ in known),
        free=free,
        used=tuple(vf for vf in vfs if vf.pci not in asked),
        need=min(size - len(must), len(free)),
    )
    chosen = _choose(policy, choosing)
    strangers = [id_ for id_ in others if id_ not in known]
    devices = [*must, *(vf.pci for vf in chosen), *strangers][:size]
    return Choice(tuple(devices), _explain(policy, (*choosing.must, *chosen)))


def _choose(policy: Policy, choosing: _Choosing) -> tuple[Vf, ...]:
    match policy:
        case Policy.PACKED:
            return _narrow(choosing, _pf).free[: choosing.need]
        case Policy.SPREAD:
            return _spread(choosing)
        case Policy.ALIGNED:
            return _narrow(_align(choosing), _pf).free[: choosing.need]
        case _:
            assert_never(policy)


def _align(choosing: _Choosing) -> _Choosing:
    """One PCIe root, wherever it is; else as few NUMA nodes as possible, and there as few roots."""
    by_root = _narrow(choosing, _root)
    if len({_root(vf) for vf in (*choosing.must, *by_root.free[: choosing.need])}) <= 1:
        return by_root
    return _narrow(_narrow(choosing, _numa), _root)


def _narrow(choosing: _Choosing, where: Where) -> _Choosing:
    """Only the free VFs at the fewest places that have enough, first those at the places of what must be in
    and at the fullest: whoever comes next finds whole places free."""
    by_place = _group(choosing.free, where)
    used = Counter(map(where, choosing.used))

    def rank(place: Place) -> tuple[int, int, Place]:
        return -used[place], len(by_place[place]), place

    kept: list[Vf] = []
    for place in sorted({where(vf) for vf in choosing.must} & by_place.keys(), key=rank):
        kept += by_place.pop(place)
    while len(kept) < choosing.need:
        kept += by_place.pop(min(_next_places(by_place, choosing.need - len(kept)), key=rank))
    return msgspec.structs.replace(choosing, free=tuple(kept))


def _next_places(by_place: dict[Place, list[Vf]], need: int) -> list[Place]:
    """The places any of which can be one of the fewest that have `need` VFs together."""
    sizes = sorted(map(len, by_place.values()), reverse=True)
    fewest = next(count for count in range(1, len(sizes) + 1) if sum(sizes[:count]) >= need)
    return [
        place
        for place, vfs in by_place.items()
        if len(vfs) + _largest_others(sizes, len(vfs), fewest - 1) >= need
    ]


def _largest_others(sizes: list[int], own: int, count: int) -> int:
    others = sizes.copy()
    others.remove(own)
    return sum(others[:count])


def _spread(choosing: _Choosing) -> tuple[Vf, ...]:
    """One after the other from the PF that gave the fewest so far; of these, the one that is least in use."""
    left = _group(choosing.free, _pf)
    used = Counter(map(_pf, choosing.used))
    given = Counter(map(_pf, choosing.must))
    chosen = []
    for _ in range(choosing.need):
        pf = min((pf for pf in left if left[pf]), key=lambda pf: (given[pf], used[pf], pf))
        chosen.append(left[pf].pop(0))
        given[pf] += 1
    return tuple(chosen)


def _group(vfs: Iterable[Vf], where: Where) -> dict[Place, list[Vf]]:
    groups: dict[Place, list[Vf]] = {}
    for vf in vfs:
        groups.setdefault(where(vf), []).append(vf)
    return groups


def _pf(vf: Vf) -> Place:
    return (vf.pf_pci or "none on this node",)


def _numa(vf: Vf) -> Place:
    return ("unknown" if vf.numa_node is None else str(vf.numa_node),)


def _root(vf: Vf) -> Place:
    """Unknown roots of two NUMA nodes are not the same."""
    return vf.pcie_root or "unknown", *_numa(vf)


def _explain(policy: Policy, vfs: Sequence[Vf]) -> str:
    """`packed: 2 of PF 0000:3b:00.0; PCIe root pci0000:3a; NUMA node 0`"""
    if not vfs:
        return f"{policy}: none that the pool has"
    pfs = Counter(_pf(vf)[0] for vf in vfs)
    parts = [
        ", ".join(f"{count} of PF {pf}" for pf, count in sorted(pfs.items())),
        "PCIe root " + ", ".join(sorted({_root(vf)[0] for vf in vfs})),
        "NUMA node " + ", ".join(sorted({_numa(vf)[0] for vf in vfs})),
    ]
    return f"{policy}: " + "; ".join(parts)
