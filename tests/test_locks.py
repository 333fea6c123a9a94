"""Who works on which device: a VF alone, a PF alone, and nobody for ever."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from random import Random

import pytest

from vf_manager.errors import Busy
from vf_manager.locks import DeviceLocks
from vf_manager.model import PciAddress

PF, OTHER_PF = PciAddress("0000:01:00.0"), PciAddress("0000:02:00.0")
VF, SIBLING = PciAddress("0000:01:10.0"), PciAddress("0000:01:10.1")
NEPHEW = PciAddress("0000:02:10.0")
_DEADLINE_S = 5.0

Take = Callable[[DeviceLocks, float], AbstractContextManager[None]]


def vf(locks: DeviceLocks, timeout_s: float) -> AbstractContextManager[None]:
    return locks.vf(PF, VF, timeout_s)


def sibling(locks: DeviceLocks, timeout_s: float) -> AbstractContextManager[None]:
    return locks.vf(PF, SIBLING, timeout_s)


def nephew(locks: DeviceLocks, timeout_s: float) -> AbstractContextManager[None]:
    return locks.vf(OTHER_PF, NEPHEW, timeout_s)


def pf(locks: DeviceLocks, timeout_s: float) -> AbstractContextManager[None]:
    return locks.pf(PF, timeout_s)


def other_pf(locks: DeviceLocks, timeout_s: float) -> AbstractContextManager[None]:
    return locks.pf(OTHER_PF, timeout_s)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("held", "wanted"), [(vf, vf), (vf, pf), (sibling, pf), (pf, vf), (pf, sibling), (pf, pf)]
)
def test_these_exclude_each_other(held: Take, wanted: Take) -> None:
    locks = DeviceLocks()
    with held(locks, 0), pytest.raises(Busy, match="0000:01:"), wanted(locks, 0):
        pytest.fail("both are held")
    with wanted(locks, 0):
        pass


@pytest.mark.parametrize(
    ("held", "wanted"),
    [(vf, sibling), (vf, nephew), (vf, other_pf), (pf, nephew), (pf, other_pf), (nephew, pf)],
)
def test_these_do_not(held: Take, wanted: Take) -> None:
    locks = DeviceLocks()
    with held(locks, 0), wanted(locks, 0):
        pass


def test_a_refused_wait_takes_nothing() -> None:
    """A PF that waited in vain for its VFs does not keep new ones out."""
    locks = DeviceLocks()
    with vf(locks, 0):
        with pytest.raises(Busy), pf(locks, 0):
            pass
        with sibling(locks, 0), pytest.raises(Busy), vf(locks, 0):
            pass
    with pf(locks, 0):
        pass


def test_the_wait_ends_at_its_deadline() -> None:
    locks = DeviceLocks()
    with pf(locks, 0):
        began = time.monotonic()
        with pytest.raises(Busy) as caught, vf(locks, 0.05):
            pass
        assert 0.05 <= time.monotonic() - began < _DEADLINE_S
    assert caught.value.transient
    assert "after 0.05 s" in str(caught.value)


@pytest.mark.parametrize(("held", "wanted"), [(vf, vf), (vf, pf), (pf, vf), (pf, pf)])
def test_who_waits_gets_it_when_it_is_free(held: Take, wanted: Take) -> None:
    locks = DeviceLocks()
    got = threading.Event()

    def wait() -> None:
        with wanted(locks, _DEADLINE_S):
            got.set()

    waiter = threading.Thread(target=wait)
    with held(locks, 0):
        waiter.start()
        assert not got.wait(0.02)
    assert got.wait(_DEADLINE_S)
    waiter.join()


@pytest.mark.parametrize("take", [vf, pf])
def test_an_exception_gives_it_back(take: Take) -> None:
    locks = DeviceLocks()
    with pytest.raises(KeyError), take(locks, 0):
        raise KeyError
    with vf(locks, 0):
        pass
    with pf(locks, 0):
        pass


class Witness:
    """Knows who is inside, and whether they may be there together."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._vfs: list[tuple[int, int]] = []
        self._pfs: list[int] = []
        self.violations: list[str] = []
        self.most_vfs_at_once = 0

    def enter(self, pf: int, vf: int | None) -> None:
        with self._guard:
            if pf in self._pfs or (pf, vf) in self._vfs or (vf is None and pf in [p for p, _ in self._vfs]):
                self.violations.append(f"PF {pf}, VF {vf} beside PFs {self._pfs}, VFs {self._vfs}")
            if vf is None:
                self._pfs.append(pf)
            else:
                self._vfs.append((pf, vf))
            self.most_vfs_at_once = max(self.most_vfs_at_once, len(self._vfs))

    def leave(self, pf: int, vf: int | None) -> None:
        with self._guard:
            if vf is None:
                self._pfs.remove(pf)
            else:
                self._vfs.remove((pf, vf))


def test_many_threads_neither_meet_nor_starve() -> None:
    """Two PFs of three VFs, 16 threads, PFs and VFs mixed: everybody comes through."""
    locks, witness = DeviceLocks(), Witness()
    failures: list[BaseException] = []
    start = threading.Barrier(16)

    def work(seed: int) -> None:
        random = Random(seed)
        try:
            start.wait(_DEADLINE_S)
            for _ in range(60):
                pf = random.randrange(2)
                vf = random.choice([0, 1, 2, None] if seed % 4 == 0 else [0, 1, 2])
                lock = (
                    locks.pf(PciAddress(f"pf{pf}"), _DEADLINE_S)
                    if vf is None
                    else locks.vf(PciAddress(f"pf{pf}"), PciAddress(f"pf{pf}vf{vf}"), _DEADLINE_S)
                )
                with lock:
                    witness.enter(pf, vf)
                    time.sleep(0)  # let somebody else run
                    witness.leave(pf, vf)
        except BaseException as e:  # noqa: BLE001 - shown below
            failures.append(e)

    threads = [threading.Thread(target=work, args=[seed]) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * _DEADLINE_S)
    assert failures == []
    assert witness.violations == []
    assert witness.most_vfs_at_once > 1
    with locks.pf(PciAddress("pf0"), 0), locks.pf(PciAddress("pf1"), 0):
        pass
