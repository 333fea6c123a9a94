"""The inventory: looked at again when something may have changed, and told to others when it has."""

import errno
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest
import structlog
from structlog.typing import FilteringBoundLogger

from tests.fake_kernel import FakeEvents, FakeKernel
from vf_manager.errors import KernelError
from vf_manager.inventory import InventoryKeeper
from vf_manager.kernel.api import PciFunction
from vf_manager.model import Inventory, PciAddress

PF = PciAddress("0000:01:00.0")
_DEADLINE_S = 5.0


class Watched:
    """A keeper, its log and what a subscriber heard."""

    def __init__(self, resync_s: float = 60.0) -> None:
        self.kernel = FakeKernel()
        self.kernel.add_pf(PF, "ens1")
        self.logged = structlog.testing.LogCapture()
        log: FilteringBoundLogger = structlog.wrap_logger(
            None, [self.logged], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        self.keeper = InventoryKeeper(self.kernel, log, resync_s=resync_s, spacing_s=0.01)
        self.heard: list[Inventory] = []
        self.keeper.subscribe(self.heard.append)

    @contextmanager
    def watching(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self.keeper.watch, args=[stop])
        thread.start()
        try:
            yield
        finally:
            stop.set()
            self.keeper.mark_dirty()
            thread.join(_DEADLINE_S)
            assert not thread.is_alive()


@pytest.fixture
def watched() -> Watched:
    return Watched()


def eventually(condition: Callable[[], bool], what: str, within_s: float = _DEADLINE_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.002)


def mtu_of(inventory: Inventory) -> int | None:
    return inventory.pfs[0].netdev.mtu if inventory.pfs[0].netdev else None


def num_vfs(inventory: Inventory) -> int:
    return inventory.pfs[0].num_vfs


def test_before_the_first_look_there_is_nothing(watched: Watched) -> None:
    assert watched.keeper.current == Inventory()
    assert watched.heard == []


def test_the_first_look_is_told_even_if_it_finds_nothing() -> None:
    watched = Watched()
    watched.kernel.functions.clear()
    assert watched.keeper.refresh() == Inventory(generation=1)
    assert watched.heard == [Inventory(generation=1)]


def test_only_a_change_is_told_and_counted(watched: Watched) -> None:
    first = watched.keeper.refresh()
    assert watched.keeper.refresh() is first
    watched.kernel.set_num_vfs(PF, 2)
    second = watched.keeper.refresh()
    assert watched.keeper.refresh() is second is watched.keeper.current
    assert [(i.generation, num_vfs(i)) for i in watched.heard] == [(1, 0), (2, 2)]


def test_every_subscriber_hears_it_in_order(watched: Watched) -> None:
    heard: list[str] = []
    watched.keeper.subscribe(lambda inventory: heard.append(f"a{inventory.generation}"))
    watched.keeper.subscribe(lambda inventory: heard.append(f"b{inventory.generation}"))
    watched.keeper.refresh()
    watched.kernel.set_num_vfs(PF, 1)
    watched.keeper.refresh()
    assert heard == ["a1", "b1", "a2", "b2"]


def test_a_look_that_waited_for_the_kernel_is_not_rested_from(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes VFs holds sysfs up for seconds; what comes after that is seen as soon as ever."""
    read, free = watched.kernel.read_functions, threading.Event()

    def read_when_free() -> list[PciFunction]:
        free.wait(0.6)
        return read()

    monkeypatch.setattr(watched.kernel, "read_functions", read_when_free)
    with watched.watching():
        eventually(lambda: watched.heard != [], "the first look")
        free.set()
        watched.kernel.set_num_vfs(PF, 2)
        eventually(lambda: num_vfs(watched.keeper.current) == 2, "it is seen", within_s=1.5)


def test_a_look_that_fails_leaves_what_was_seen_before(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched.keeper.refresh()
    with monkeypatch.context() as patch:
        patch.setattr(watched.kernel, "read_functions", _refuse)
        with pytest.raises(KernelError):
            watched.keeper.refresh()
    assert watched.keeper.current is seen
    assert watched.heard == [seen]
    watched.kernel.set_num_vfs(PF, 1)
    assert watched.keeper.refresh().generation == 2


def test_a_look_waits_until_the_one_before_is_told(watched: Watched) -> None:
    """Else an old inventory could be told after a newer one."""
    told = threading.Event()
    heard: list[int] = []
    looks: list[threading.Thread] = []

    def look() -> None:
        watched.keeper.refresh()
        told.set()

    def slow(inventory: Inventory) -> None:
        if inventory.generation == 1:
            watched.kernel.set_num_vfs(PF, 2)
            looks.append(threading.Thread(target=look))
            looks[0].start()
            assert not told.wait(0.02)
        heard.append(inventory.generation)

    watched.keeper.subscribe(slow)
    watched.keeper.refresh()
    looks[0].join(_DEADLINE_S)
    assert heard == [1, 2]


def test_a_mark_makes_it_look(watched: Watched) -> None:
    with watched.watching():
        watched.keeper.mark_dirty()
        eventually(lambda: len(watched.heard) == 1, "the first look")
        watched.kernel.set_num_vfs(PF, 3)
        watched.keeper.mark_dirty()
        eventually(lambda: num_vfs(watched.heard[-1]) == 3, "the change is told")


def test_an_event_of_the_kernel_makes_it_look(watched: Watched) -> None:
    with watched.watching():
        eventually(lambda: len(watched.heard) == 1, "the first look")
        watched.kernel.set_num_vfs(PF, 3)
        eventually(lambda: num_vfs(watched.heard[-1]) == 3, "the change is told")


def test_a_burst_of_events_is_few_looks(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    read = watched.kernel.read_functions

    def count() -> list[PciFunction]:
        nonlocal looks
        looks += 1
        return read()

    monkeypatch.setattr(watched.kernel, "read_functions", count)
    began = time.monotonic()
    with watched.watching():
        for mtu in range(1000, 1256):
            watched.kernel.tell()
            link = watched.kernel.find("ens1")
            assert link is not None
            link.netdev = msgspec.structs.replace(link.netdev, mtu=mtu)
        watched.kernel.tell()
        eventually(lambda: bool(watched.heard) and mtu_of(watched.heard[-1]) == 1255, "the last of them")
        assert looks <= 2 + (time.monotonic() - began) / 0.01


def test_it_rests_four_times_as_long_as_it_works(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes on at the node, and however many VFs it has."""
    began: list[float] = []

    def slow() -> list[PciFunction]:
        began.append(time.monotonic())
        busy_until = time.thread_time() + 0.02
        while time.thread_time() < busy_until:
            pass
        watched.kernel.tell()
        return []

    monkeypatch.setattr(watched.kernel, "read_functions", slow)
    with watched.watching():
        eventually(lambda: len(began) == 3, "the third look")
    assert all(later - earlier >= 0.1 for earlier, later in itertools.pairwise(began[:3]))


def test_what_it_cannot_hear_is_said_once(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEvents, "unheard", ("uevents: not permitted",))
    with watched.watching():
        eventually(lambda: len(watched.heard) == 1, "the first look")
        watched.kernel.set_num_vfs(PF, 3)
        eventually(lambda: len(watched.heard) == 2, "the second look")
    (warning,) = (e for e in watched.logged.entries if e["log_level"] == "warning")
    assert (warning["reason"], warning["resync_s"]) == ("uevents: not permitted", 60.0)


def test_what_changed_is_logged(watched: Watched) -> None:
    watched.keeper.refresh()
    watched.kernel.set_num_vfs(PF, 3)
    watched.keeper.refresh()
    said = [f"{e['device']} {e['what']}" for e in watched.logged.entries]
    assert said == [
        f"PF ens1 ({PF}) appeared, driver igb, 0 VFs",
        f"PF ens1 ({PF}) number of VFs 0 -> 3",
    ]


def test_it_looks_now_and_then_without_a_mark() -> None:
    watched = Watched(resync_s=0.01)
    with watched.watching():
        eventually(lambda: len(watched.heard) == 1, "the first look")
        watched.kernel.set_num_vfs(PF, 3)
        eventually(lambda: num_vfs(watched.heard[-1]) == 3, "the change is told")


def test_it_goes_on_looking_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(resync_s=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(watched.kernel, "read_functions", _refuse)
        with watched.watching():
            eventually(lambda: len(watched.logged.entries) > 1, "failures are logged")
            patch.undo()
            eventually(lambda: len(watched.heard) == 1, "the look that succeeds")
    first, *_, last = watched.logged.entries
    assert (first["event"], last["event"]) == ("the inventory could not be read", "inventory changed")
    assert "EAGAIN" in first["error"]


def _refuse() -> list[PciFunction]:
    raise KernelError("list the network interfaces", errno.EAGAIN)
