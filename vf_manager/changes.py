"""Pure: what is different between two inventories, for people.

One line per change, and one for all VFs of a PF that changed alike: 256 of them may appear at once.
"""

from collections.abc import Iterable, Iterator

import msgspec

from vf_manager.model import Inventory, Netdev, Pf, Vf


class Change(msgspec.Struct, frozen=True):
    """`device`: `VFs 0-6 of ens1f0 (0000:3b:00.0)`; `what`: `driver igbvf -> vfio-pci`."""

    device: str
    what: str


class _Difference(msgspec.Struct, frozen=True, order=True):
    """`kind` is the same for devices that changed alike; `detail` is of one alone."""

    kind: str
    detail: str = ""


def describe_changes(old: Inventory, new: Inventory) -> list[Change]:
    """In the order of addresses. Of a device that came, only that it came."""
    before, after = ({pf.pci: pf for pf in inventory.pfs} for inventory in (old, new))
    found: list[Change] = []
    for pci in sorted(before.keys() | after.keys()):
        found += _pf_changes(before.get(pci), after.get(pci))
    return found + list(_lone_changes(old.lone, new.lone))


def _pf_changes(old: Pf | None, new: Pf | None) -> Iterator[Change]:
    if new is None:
        if old is not None:
            yield Change(f"PF {old.label}", f"is gone, with its {len(old.vfs)} VFs" if old.vfs else "is gone")
        return
    if old is None:
        yield Change(f"PF {new.label}", f"appeared, driver {new.driver or 'none'}, {len(new.vfs)} VFs")
        return
    for difference in _pf_differences(old, new):
        yield Change(f"PF {new.label}", _text([difference]))
    yield from _vf_changes(old, new)


def _pf_differences(old: Pf, new: Pf) -> Iterator[_Difference]:
    yield from _function_differences(old, new)
    if old.num_vfs != new.num_vfs:
        yield _Difference(f"number of VFs {old.num_vfs} -> {new.num_vfs}")
    if old.eswitch_mode != new.eswitch_mode:
        yield _Difference(f"eswitch mode {old.eswitch_mode or 'none'} -> {new.eswitch_mode or 'none'}")
    if old.sick_reporters != new.sick_reporters:
        yield _Difference(f"devlink reports errors of {', '.join(new.sick_reporters) or 'nothing any more'}")


def _vf_changes(old: Pf, new: Pf) -> Iterator[Change]:
    before, after = {vf.pci: vf for vf in old.vfs}, {vf.pci: vf for vf in new.vfs}
    # That VFs came or went is said with their number, if that has changed.
    both, either = before.keys() & after.keys(), before.keys() | after.keys()
    alike: dict[str, list[tuple[int, _Difference]]] = {}
    for pci in both if old.num_vfs != new.num_vfs else either:
        for difference in _vf_differences(before.get(pci), after.get(pci)):
            index = (after.get(pci) or before[pci]).index
            alike.setdefault(difference.kind, []).append((index, difference))
    for some in sorted(sorted(some) for some in alike.values()):
        indexes = render_indexes([index for index, _ in some])
        yield Change(
            f"VF{'s' if len(some) > 1 else ''} {indexes} of {new.label}", _text([one for _, one in some])
        )


def _lone_changes(old: Iterable[Vf], new: Iterable[Vf]) -> Iterator[Change]:
    before, after = {vf.pci: vf for vf in old}, {vf.pci: vf for vf in new}
    for pci in sorted(before.keys() | after.keys()):
        for difference in _vf_differences(before.get(pci), after.get(pci)):
            yield Change(f"NIC {pci}", _text([difference]))


def _vf_differences(old: Vf | None, new: Vf | None) -> Iterator[_Difference]:
    if old is None or new is None:
        yield _Difference("appeared" if new else "gone")
        return
    yield from _function_differences(old, new)
    if old.unusable != new.unusable:
        yield _Difference("not for pods any more" if new.unusable else "for pods again", new.unusable or "")
    if old.representor != new.representor:
        yield _Difference("representor", f"{old.representor or 'none'} -> {new.representor or 'none'}")


def _function_differences(old: Pf | Vf, new: Pf | Vf) -> Iterator[_Difference]:
    if old.driver != new.driver:
        yield _Difference(f"driver {old.driver or 'none'} -> {new.driver or 'none'}")
    yield from _netdev_differences(old.netdev, new.netdev)


def _netdev_differences(old: Netdev | None, new: Netdev | None) -> Iterator[_Difference]:
    if old is None and new is None:
        return
    if old is None or new is None:
        present = new or old
        yield _Difference(f"interface {'appeared' if new else 'left'}", present.name if present else "")
        return
    if old.name != new.name:
        yield _Difference("interface renamed", f"{old.name} -> {new.name}")
    if old.up != new.up:
        yield _Difference(f"link {'up' if new.up else 'down'}")
    if old.carrier != new.carrier:
        yield _Difference(f"carrier {'on' if new.carrier else 'off'}")
    if old.mtu != new.mtu:
        yield _Difference(f"mtu {old.mtu} -> {new.mtu}")


def _text(alike: list[_Difference]) -> str:
    """`interface renamed: eth0 -> ens1f0v0, and 6 more`"""
    kind, detail = alike[0].kind, alike[0].detail
    more = f", and {len(alike) - 1} more" if len(alike) > 1 else ""
    return f"{kind}: {detail}{more}" if detail else kind


def render_indexes(indexes: Iterable[int]) -> str:
    """Ascending ones, `0-3,5`."""
    ranges: list[tuple[int, int]] = []
    for index in indexes:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], index)
        else:
            ranges.append((index, index))
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)
