"""The inventory: looked at again when something may have changed, and told to others when it has."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import structlog
from structlog.typing import FilteringBoundLogger

from tests.fake_kernel import FakeKernel
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
        self.keeper = InventoryKeeper(self.kernel, log, resync_s=resync_s)
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


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.002)


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
    assert {e["event"] for e in watched.logged.entries} == {"the inventory could not be read"}
    assert "EAGAIN" in watched.logged.entries[0]["error"]


def _refuse() -> list[PciFunction]:
    raise KernelError("list the network interfaces", errno.EAGAIN)
