"""Which VFs a container is given: the policies by example and, for anything there may be, by property."""

from collections import Counter
from collections.abc import Iterable
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_plugin.allocation import Policy
from device_plugin.preference import Choice, choose
from vf_manager.errors import InvalidInput
from vf_manager.model import PciAddress, Vf


def make_vf(bus: int, index: int, root: str | None = None, numa: int | None = None) -> Vf:
    """`bus` tells the PF."""
    return Vf(
        pci=PciAddress(f"0000:{bus:02x}:02.{index}"),
        pf_pci=PciAddress(f"0000:{bus:02x}:00.0"),
        index=index,
        vendor="8086",
        device="1889",
        pcie_root=root,
        numa_node=numa,
    )


def vfs_of(*counts: int) -> list[Vf]:
    """So many of the PF 1, of the PF 2, ..."""
    return [make_vf(bus, i) for bus, count in enumerate(counts, 1) for i in range(count)]


def chosen(
    policy: Policy, vfs: list[Vf], free: Iterable[str], size: int, must: Iterable[str] = ()
) -> list[str]:
    """`bus.index` of each."""
    return [short(id_) for id_ in choose(policy, vfs, map(long, free), map(long, must), size).devices]


def short(pci: str) -> str:
    return f"{int(pci[5:7], 16)}.{pci[-1]}"


def long(text: str) -> str:
    bus, index = text.split(".")
    return f"0000:{int(bus):02x}:02.{index}"


# -- by example


def test_packed_fills_the_fullest_pf_first() -> None:
    vfs = vfs_of(3, 3)
    assert chosen(Policy.PACKED, vfs, ["1.0", "1.1", "1.2", "2.1", "2.2"], 1) == ["2.1"]
    assert chosen(Policy.PACKED, vfs, ["1.0", "1.1", "1.2", "2.1", "2.2"], 2) == ["2.1", "2.2"]
    assert chosen(Policy.PACKED, vfs, ["1.0", "1.1", "1.2", "2.1", "2.2"], 3) == ["1.0", "1.1", "1.2"]
    assert chosen(Policy.PACKED, vfs, ["1.0", "1.1", "1.2", "2.1", "2.2"], 4) == ["2.1", "2.2", "1.0", "1.1"]


def test_packed_stays_with_what_must_be_in() -> None:
    assert chosen(Policy.PACKED, vfs_of(3, 3), ["1.0", "1.1", "2.1", "2.2"], 2, ["1.1"]) == ["1.1", "1.0"]


def test_spread_takes_turns_and_begins_with_the_emptiest() -> None:
    vfs = vfs_of(3, 3)
    assert chosen(Policy.SPREAD, vfs, ["1.0", "1.1", "1.2", "2.1", "2.2"], 3) == ["1.0", "2.1", "1.1"]
    assert chosen(Policy.SPREAD, vfs, ["1.1", "1.2", "2.0", "2.1", "2.2"], 1) == ["2.0"]
    assert chosen(Policy.SPREAD, vfs, ["1.1", "1.2", "2.0", "2.1", "2.2"], 2, ["2.0"]) == ["2.0", "1.1"]


def test_aligned_takes_one_root_wherever_it_is() -> None:
    """The NUMA node 0 is fuller, but there no root has two."""
    vfs = [make_vf(1, 0, "a", 0), make_vf(1, 1, "a", 0), make_vf(2, 0, "b", 0)]
    vfs += [make_vf(3, 0, "c", 1), make_vf(3, 1, "c", 1)]
    assert chosen(Policy.ALIGNED, vfs, ["1.1", "2.0", "3.0", "3.1"], 2) == ["3.0", "3.1"]


def test_aligned_takes_one_node_if_no_root_has_enough() -> None:
    vfs = [make_vf(1, 0, "a", 0), make_vf(2, 0, "b", 1), make_vf(3, 0, "c", 1)]
    assert chosen(Policy.ALIGNED, vfs, ["1.0", "2.0", "3.0"], 2) == ["2.0", "3.0"]


def test_aligned_goes_where_what_must_be_in_is() -> None:
    vfs = [make_vf(1, i, "a", 0) for i in range(3)] + [make_vf(2, i, "b", 1) for i in range(2)]
    assert chosen(Policy.ALIGNED, vfs, ["1.0", "1.1", "1.2", "2.0", "2.1"], 2, ["2.1"]) == ["2.1", "2.0"]


def test_an_unknown_root_of_another_node_is_another_root() -> None:
    vfs = [make_vf(1, 0, None, 0), make_vf(2, 0, None, 1), make_vf(3, 0, None, 1)]
    assert chosen(Policy.ALIGNED, vfs, ["1.0", "2.0", "3.0"], 2) == ["2.0", "3.0"]


def test_vfs_without_a_pf_are_taken_too() -> None:
    vfs = [Vf(pci=PciAddress(f"0000:00:0{i}.0"), vendor="8086", device="1889") for i in range(4)]
    for policy in Policy:
        assert choose(policy, vfs, [vf.pci for vf in vfs], [], 2).devices == ("0000:00:00.0", "0000:00:01.0")


def test_what_the_pool_does_not_have_any_more_comes_last() -> None:
    for policy in Policy:
        assert chosen(policy, vfs_of(2), ["9.9", "1.1"], 1) == ["1.1"]
        assert chosen(policy, vfs_of(2), ["9.9", "1.1"], 2) == ["1.1", "9.9"]
        assert chosen(policy, [], ["9.9", "9.8"], 1) == ["9.8"]
        assert chosen(policy, [], ["9.9"], 1, ["9.9"]) == ["9.9"]


@pytest.mark.parametrize("size", [-1, 0, 4])
def test_a_size_that_cannot_be(size: int) -> None:
    with pytest.raises(InvalidInput, match=r"size: .* 1 \(must be in\) to 3 \(are available\)"):
        chosen(Policy.PACKED, vfs_of(3), ["1.0", "1.1", "1.2"], size, ["1.0"])


def test_the_reason_says_what_came_of_the_policy() -> None:
    vfs = [make_vf(1, 0, "pci0000:3a", 0), make_vf(1, 1, "pci0000:3a", 0), make_vf(2, 0, "pci0000:5d", 0)]
    choice = choose(Policy.PACKED, vfs, [vf.pci for vf in vfs], [], 3)
    assert choice.reason == (
        "packed: 2 of PF 0000:01:00.0, 1 of PF 0000:02:00.0; PCIe root pci0000:3a, pci0000:5d; NUMA node 0"
    )
    assert choose(Policy.SPREAD, [], [], [], 0) == Choice((), "spread: none that the pool has")


# -- by property


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[Vf], list[str], list[str], int]:
    """PFs on roots on NUMA nodes; some VFs are others', some must be in."""
    vfs: list[Vf] = []
    for bus in range(1, draw(st.integers(1, 6)) + 1):
        numa = draw(st.sampled_from([0, 1, None]))
        root = draw(st.sampled_from(["a", "b", None]))
        root = f"{root}{numa}" if root else None
        vfs += [make_vf(bus, i, root, numa) for i in range(draw(st.integers(0, 4)))]
    vfs = draw(st.permutations(vfs))
    available = [vf.pci for vf in vfs if draw(st.booleans())]
    must = [pci for pci in available if draw(st.integers(0, 3)) == 0]
    size = draw(st.integers(len(must), len(available)))
    return vfs, list(available), list(must), size


QUESTIONS = questions()


@given(QUESTIONS, st.sampled_from(Policy))
def test_any_answer(question: tuple[list[Vf], list[str], list[str], int], policy: Policy) -> None:
    vfs, available, must, size = question
    devices = choose(policy, vfs, available, must, size).devices
    assert len(devices) == len(set(devices)) == size
    assert set(must) <= set(devices) <= set(available)
    again = choose(policy, vfs[::-1], available[::-1], must[::-1], size)
    assert again.devices == devices


@given(QUESTIONS)
def test_packed_takes_the_fewest_pfs(question: tuple[list[Vf], list[str], list[str], int]) -> None:
    vfs, available, must, size = question
    pf_of = {vf.pci: vf.pf_pci for vf in vfs}
    devices = choose(Policy.PACKED, vfs, available, must, size).devices
    free = Counter(pf_of[PciAddress(pci)] for pci in set(available) - set(must))
    own = {pf_of[PciAddress(pci)] for pci in must}
    fewest = next(
        count
        for count in range(len(free) + 1)
        for more in combinations(sorted(free, key=str), count)
        if sum(free[pf] for pf in own | {*more}) >= size - len(must)
    )
    assert len({pf_of[PciAddress(pci)] for pci in devices}) <= len(own) + fewest


@given(QUESTIONS)
def test_packed_takes_the_fullest_that_has_enough(
    question: tuple[list[Vf], list[str], list[str], int],
) -> None:
    vfs, available, _, size = question
    pf_of = {vf.pci: vf.pf_pci for vf in vfs}
    free = Counter(pf_of[PciAddress(pci)] for pci in available)
    used = Counter(vf.pf_pci for vf in vfs if vf.pci not in available)
    enough = [pf for pf in free if free[pf] >= size > 0]
    if enough:
        [pf] = {pf_of[PciAddress(pci)] for pci in choose(Policy.PACKED, vfs, available, [], size).devices}
        assert used[pf] == max(used[one] for one in enough)


@given(QUESTIONS)
def test_spread_is_as_even_as_it_can_be(question: tuple[list[Vf], list[str], list[str], int]) -> None:
    """A PF gave at most one more than another, unless that one has no more to give or had to give."""
    vfs, available, must, size = question
    pf_of = {vf.pci: vf.pf_pci for vf in vfs}
    devices = choose(Policy.SPREAD, vfs, available, must, size).devices
    given_by = Counter(pf_of[PciAddress(pci)] for pci in devices)
    forced = Counter(pf_of[PciAddress(pci)] for pci in must)
    left = Counter(pf_of[PciAddress(pci)] for pci in set(available) - set(devices))
    for pf in given_by:
        if given_by[pf] > forced[pf]:
            assert all(given_by[pf] <= given_by[other] + 1 for other in left)


@given(QUESTIONS)
def test_aligned_is_of_one_root_or_one_node_if_any_can(
    question: tuple[list[Vf], list[str], list[str], int],
) -> None:
    vfs, available, must, size = question
    place_of = {vf.pci: (vf.numa_node, vf.pcie_root) for vf in vfs}
    devices = choose(Policy.ALIGNED, vfs, available, must, size).devices
    for depth in (2, 1):  # a root of a node, a node

        def place(pci: str, depth: int = depth) -> tuple[object, ...]:
            return place_of[PciAddress(pci)][:depth]

        have = Counter(map(place, available))
        if any(have[one] >= size and all(place(pci) == one for pci in must) for one in have):
            assert len({place(pci) for pci in devices}) <= 1
