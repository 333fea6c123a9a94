"""What carrying out a plan leaves, whatever goes wrong, and what goes through later by itself."""

import errno
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import structlog

from tests.provision_world import PF0, PF1, VFIO, Node, all_of, replaced, wants
from vf_manager.apply import CreatedVfs, created_pfs
from vf_manager.errors import KernelError, SriovError
from vf_manager.kernel.api import LinkChange
from vf_manager.model import Mac, PciAddress
from vf_manager.provision import MacKind, PfPolicy, Plan, VfPolicy
from vf_manager.provision_steps import EswitchMode
from vf_manager.provisioner import Outcome, Pace
from vf_manager.stable_mac import stable_mac

STABLE = MacKind.STABLE


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "pfs")


def fail_at(*names: str) -> Callable[[str], None]:
    def refuse(what: str) -> None:
        if what in names:
            raise KernelError(what, errno.ENOMEM)

    return refuse


def quiet(what: str) -> None:
    """Nothing is in the way any more."""


# -- what is there when it returns


def test_vfs_with_their_driver_and_mtu(node: Node) -> None:
    node.provision(
        wants(3, VfPolicy(first=0, last=1, mtu=9000), VfPolicy(first=2, last=2, driver=VFIO)),
        wants(1, all_of(1), pf=PF1),
    )
    one, two = node.inventory().pfs
    assert [vf.driver for vf in one.vfs] == ["igbvf", "igbvf", "vfio-pci"]
    assert [vf.netdev.mtu for vf in one.vfs if vf.netdev] == [9000, 9000]
    assert one.netdev is not None
    assert (one.netdev.up, one.netdev.mtu, one.autoprobe) == (True, 9000, True)
    assert len(two.vfs) == 1
    assert created_pfs(node.records) == {PF0: 3, PF1: 1}


@pytest.mark.parametrize("driver", ["igb", "ice"])
def test_stable_macs_whatever_the_driver_does_with_them(tmp_path: Path, driver: str) -> None:
    """On igb the MAC of a VF shows at its PF, and a VF with an administrative one is refused any other."""
    node = Node(tmp_path / "pfs", driver=driver)
    permanent = node.inventory().pfs[0].permanent_mac
    assert permanent is not None
    macs = [stable_mac(permanent, index) for index in range(3)]
    vfs = (VfPolicy(first=0, last=1, mac=STABLE), VfPolicy(first=2, last=2, driver=VFIO, mac=STABLE))
    node.provision(wants(3, *vfs))
    assert node.macs_of(PF0) == macs
    node.set_pf("ens0v1", LinkChange(mac=Mac("02:00:00:00:00:99"))) if driver != "igb" else None
    node.provision(wants(3, *vfs))
    assert node.macs_of(PF0) == macs


def test_vfs_that_are_there_get_stable_macs_too(node: Node) -> None:
    node.provision(wants(2, all_of(2)))
    before = node.macs_of(PF0)
    node.provision(wants(2, all_of(2, mac=STABLE)))
    assert not set(before) & set(node.macs_of(PF0))
    assert node.plan(wants(2, all_of(2, mac=STABLE))) == Plan()


def test_removed_vfs_are_ours_no_more(node: Node) -> None:
    node.provision(wants(2, all_of(2)))
    node.provision(wants(0))
    assert created_pfs(node.records) == {}
    assert node.inventory().vfs() == []


def test_vfs_are_recorded_as_ours_before_they_are_made(node: Node) -> None:
    seen = []

    def look(what: str) -> None:
        if what == "set_num_vfs 2":
            seen.append(created_pfs(node.records))

    node.kernel.on_change = look
    node.provision(wants(2, all_of(2)))
    assert seen == [{PF0: 2}]


def test_vfs_of_a_nic_that_went_are_ours_no_more(node: Node) -> None:
    """Plugged back it has none; others may make some."""
    node.provision(wants(2, all_of(2)))
    node.kernel.set_num_vfs(PF0, 0)
    node.reconcile()
    assert created_pfs(node.records) == {}
    node.kernel.set_num_vfs(PF0, 2)
    assert node.reconcile(wants(3, all_of(3))).refused


def test_nothing_to_do_touches_nothing_and_asks_nobody(node: Node) -> None:
    node.provision(wants(2, all_of(2)))

    def asked() -> Mapping[PciAddress, str]:
        raise AssertionError("asked")

    def touched(what: str) -> None:
        raise AssertionError(what)

    node.holders = asked  # type: ignore[method-assign]
    node.start_agent()
    node.kernel.on_change = touched
    assert node.reconcile(wants(2, all_of(2))) == Outcome()


# -- pending: what goes through by itself


def test_a_vf_in_use_that_would_be_refused_does_not_hold_up_its_pf(node: Node) -> None:
    """It is left alone, and with it what is refused of it."""
    node.kernel.set_num_vfs(PF0, 2)
    node.kernel.bind_driver(node.vf(PF0, 1), "vfio-pci")
    node.held[node.vf(PF0, 1)] = "default/trainer"
    node.set_pf("ens0", LinkChange(up=False))
    wanted = wants(2, VfPolicy(first=1, last=1, driver=VFIO, mac=STABLE), adopt=False)
    assert node.provision(wanted).steps
    assert node.plan(wanted) == Plan()


def test_a_change_goes_through_when_the_last_vf_is_free(node: Node) -> None:
    """The acceptance of this feature: 7 -> 5 with a VF in a pod."""
    node.provision(wants(7, all_of(7)))
    vf = node.vf(PF0, 3)
    node.move_to_pod(vf)
    node.held[vf] = "default/trainer"
    before = node.state_of_pf(PF0)
    wanted = wants(5, all_of(5, mtu=9000))
    outcome = node.reconcile(wanted)
    assert (outcome.applied, outcome.refused, outcome.failed) == ((), (), ())
    assert [str(holder) for holder in outcome.pending[0].holders] == [f"{vf} (default/trainer)"]
    assert not outcome.is_settled
    assert node.state_of_pf(PF0) == before

    node.end_pod(vf)
    assert node.reconcile(wanted).pending  # on record until its DEL is done
    del node.held[vf]
    outcome = node.reconcile(wanted)
    assert outcome.is_settled
    assert outcome.applied
    assert len(node.vfs(PF0)) == 5
    assert node.reconcile(wanted) == Outcome()


def test_a_vf_that_was_taken_since_the_inventory_was_read_is_safe(node: Node) -> None:
    node.provision(wants(3, all_of(3)))
    inventory = node.inventory()
    node.held[node.vf(PF0, 0)] = "default/trainer"
    node.move_to_pod(node.vf(PF0, 0))
    before = node.state_of_pf(PF0)
    assert node.provisioner.reconcile([wants(2, all_of(2))], inventory).pending
    assert node.state_of_pf(PF0) == before


def test_a_pf_that_somebody_works_on_waits(node: Node) -> None:
    both = (wants(1, all_of(1)), wants(1, all_of(1), pf=PF1))
    with node.locks.vf(PF0, PciAddress("0000:01:10.0"), 0):
        outcome = node.reconcile(*both)
    assert [refusal.pf for refusal in outcome.pending] == [PF0]
    assert "still being worked on by another call" in outcome.pending[0].reason
    assert [len(pf.vfs) for pf in node.inventory().pfs] == [0, 1]
    assert node.reconcile(*both).is_settled
    assert [len(pf.vfs) for pf in node.inventory().pfs] == [1, 1]


def test_where_nobody_can_tell_who_uses_vfs_they_stay(node: Node) -> None:
    """New ones are made all the same: at boot the kubelet is not there yet."""
    node.provision(wants(3, all_of(3)))

    def unknown() -> Mapping[PciAddress, str]:
        raise SriovError("the kubelet does not answer")

    node.holders = unknown  # type: ignore[method-assign]
    node.start_agent()
    before = node.state_of_pf(PF0)
    outcome = node.reconcile(wants(2, all_of(2)), wants(2, all_of(2), pf=PF1))
    (held_back,) = outcome.pending
    assert held_back.reason == "who uses its VFs cannot be told now: the kubelet does not answer"
    assert node.state_of_pf(PF0) == before
    assert len(node.vfs(PF1)) == 2


def test_what_is_held_back_is_logged_once(node: Node) -> None:
    logged = structlog.testing.LogCapture()
    node.start_agent(log=structlog.wrap_logger(None, [logged]))
    node.kernel.set_num_vfs(PF1, 1)
    node.provision(wants(2, all_of(2)))
    node.held[node.vf(PF0, 0)] = "default/trainer"
    for _ in range(3):
        node.reconcile(wants(3, all_of(3)), wants(2, all_of(2), pf=PF1))
    warned = [(e["event"], e["pf"]) for e in logged.entries if e["log_level"] == "warning"]
    assert warned == [("provisioning pending", PF0), ("provisioning refused", PF1)]


# -- failures


@pytest.mark.parametrize(
    "at", ["set up True", "set mtu 9000", "set_autoprobe", "set_num_vfs 2", "set eswitch mode switchdev on"]
)
def test_a_pf_on_which_making_vfs_fails_is_as_it_was(node: Node, at: str) -> None:
    node.kernel.eswitch[PF0] = "legacy"
    before = node.outline_of_pf(PF0)
    node.kernel.on_change = once(at)
    wanted = replaced(wants(2, all_of(2, mtu=9000)), eswitch_mode=EswitchMode.SWITCHDEV)
    outcome = node.reconcile(wanted, wants(1, all_of(1), pf=PF1))
    (failure,) = outcome.failed
    assert failure.error.endswith(f"ENOMEM (Cannot allocate memory); ens0 ({PF0}) is as it was before")
    assert node.outline_of_pf(PF0) == before
    assert created_pfs(node.records) == {PF1: 1}
    assert all(step.pf == PF1 for step in outcome.applied)


def once(start: str) -> Callable[[str], None]:
    """The first change whose name starts so fails."""
    left = [start]

    def refuse(what: str) -> None:
        if left and what.startswith(left[0]):
            left.clear()
            raise KernelError(what, errno.ENOMEM)

    return refuse


def test_vfs_that_had_to_go_come_back(node: Node) -> None:
    node.provision(wants(3, VfPolicy(first=0, last=1, mtu=1400), VfPolicy(first=2, last=2, driver=VFIO)))
    before = node.outline_of_pf(PF0)
    node.kernel.on_change = once("set_num_vfs 5")
    (failure,) = node.reconcile(wants(5, all_of(5, mtu=9000))).failed
    assert failure.error.endswith(f"; ens0 ({PF0}) is as it was before, with its VFs made anew")
    assert node.outline_of_pf(PF0) == before
    assert created_pfs(node.records) == {PF0: 3}


def test_a_pf_that_cannot_be_put_back_is_told_as_it_is(node: Node) -> None:
    node.provision(wants(3, all_of(3)))
    node.kernel.on_change = fail_at("set_num_vfs 5", "set_num_vfs 3", "set mtu 1500")
    (failure,) = node.reconcile(wants(5, all_of(5, mtu=9000))).failed
    assert failure.error.endswith(
        f"; ens0 ({PF0}) could not be put back as it was: number of VFs 0, not 3, mtu 9000, not 1500"
    )
    assert created_pfs(node.records) == {}
    node.kernel.on_change = quiet
    node.now_s += 60
    assert node.reconcile(wants(5, all_of(5))).is_settled
    assert len(node.vfs(PF0)) == 5


def test_a_vf_that_fails_does_not_hold_up_the_others(node: Node) -> None:
    node.kernel.on_change = once("bind_driver None")
    (failure,) = node.reconcile(wants(3, all_of(3))).failed
    assert failure.error == (
        f"ens0 ({PF0}): VF 0: bind_driver None: ENOMEM (Cannot allocate memory); the other 2 VFs are set up"
    )
    assert [vf.driver for vf in node.inventory().pfs[0].vfs] == [None, "igbvf", "igbvf"]
    node.now_s += 60
    assert node.reconcile(wants(3, all_of(3))).is_settled
    assert [vf.driver for vf in node.inventory().pfs[0].vfs] == ["igbvf"] * 3


def test_a_driver_that_makes_no_interface_in_time_is_told(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.kernel, "bind_driver", lambda pci, driver: None)
    (failure,) = node.reconcile(wants(1, all_of(1))).failed
    assert "got no network interface within 0.01 s" in failure.error


def test_what_failed_is_tried_again_after_a_while_or_if_something_else_is_wanted(node: Node) -> None:
    tries: list[str] = []

    def refuse(what: str) -> None:
        tries.append(what)
        fail_at("set_num_vfs 2")(what)

    node.kernel.on_change = refuse
    first = node.reconcile(wants(2, all_of(2)))
    made = len(tries)
    assert node.reconcile(wants(2, all_of(2))) == Outcome(failed=first.failed)
    assert len(tries) == made
    assert node.reconcile(wants(1, all_of(1))).is_settled
    node.provision(wants(0))
    assert node.reconcile(wants(2, all_of(2))).failed
    node.now_s += 30
    node.kernel.on_change = quiet
    assert node.reconcile(wants(2, all_of(2))).is_settled


def test_a_full_disk_is_an_error_like_any_other(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(key: str, record: CreatedVfs) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(node.records, "write", full)
    (failure,) = node.reconcile(wants(2, all_of(2))).failed
    assert "No space left on device" in failure.error
    assert failure.error.endswith("is as it was before")


# -- side by side


def test_pfs_and_vfs_are_set_up_side_by_side(node: Node) -> None:
    """Two binds of each PF are under way at once: none goes on before the fourth has come."""
    meeting = threading.Barrier(4)

    def meet(what: str) -> None:
        if what == "bind_driver vfio-pci":
            meeting.wait(5)

    node.kernel.on_change = meet
    node.start_agent(Pace())
    vfio = all_of(2, driver=VFIO)
    assert node.reconcile(wants(2, vfio), wants(2, vfio, pf=PF1)).is_settled
    assert not meeting.broken


def test_a_pf_that_is_done_is_free_while_another_is_worked_on(node: Node) -> None:
    """A pod of the one does not wait for VFs of the other."""
    attached = threading.Event()

    def wait(what: str) -> None:
        if what == "set_num_vfs 2":
            assert attached.wait(5)

    node.kernel.on_change = wait
    node.start_agent(Pace())
    both = (wants(3, all_of(3)), wants(2, all_of(2), pf=PF1))
    outcomes: list[Outcome] = []
    work = threading.Thread(target=lambda: outcomes.append(node.reconcile(*both)))
    work.start()
    try:
        while not node.kernel.functions[PF0].function.num_vfs:
            assert work.is_alive()
        with node.locks.vf(PF0, node.vf(PF0, 0), 5):
            assert not node.kernel.functions[PF1].function.num_vfs
    finally:
        attached.set()
        work.join()
    assert outcomes[0].is_settled


def test_no_more_threads_than_said(node: Node) -> None:
    before = threading.active_count()
    most = [0]

    def count(what: str) -> None:
        most[0] = max(most[0], threading.active_count() - before)

    node.kernel.on_change = count
    node.start_agent(Pace(workers=3))
    assert node.reconcile(wants(7, all_of(7)), wants(7, all_of(7), pf=PF1)).is_settled
    assert 0 < most[0] <= 2 * 3
    assert threading.active_count() == before


# -- a crash or a failure at any point


class Died(BaseException):
    pass


class Point:
    """Counts the changes of the kernel; at number `at` it raises, and, once dead, at all that follow."""

    def __init__(self, at: int, error: Callable[[str], BaseException]) -> None:
        self.at = at
        self.error = error
        self.passed = 0
        self._guard = threading.Lock()

    def __call__(self, what: str) -> None:
        with self._guard:
            self.passed += 1
            dead = self.passed > self.at and self.error is Died
        if self.passed == self.at or dead:
            raise self.error(what)


def injected(what: str) -> KernelError:
    return KernelError(f"injected at {what}", errno.EIO)


def old_and_new(name: str) -> tuple[PfPolicy | None, PfPolicy]:
    """What was provisioned before, and what is wanted now."""
    mixed = (VfPolicy(first=0, last=1, mtu=9000, mac=STABLE), VfPolicy(first=2, last=2, driver=VFIO))
    switchdev = replaced(wants(3, *mixed), eswitch_mode=EswitchMode.SWITCHDEV)
    match name:
        case "new":
            return None, wants(3, *mixed)
        case "more":
            return wants(2, all_of(2, mtu=1400)), wants(3, *mixed)
        case "mode":
            return wants(3, *mixed), switchdev
        case "none":
            return wants(3, *mixed), wants(0)
        case _:
            return wants(3, all_of(3)), wants(3, *mixed)


SCENES = ("new", "more", "mode", "none", "same number")


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("error", [injected, Died])
def test_every_point(tmp_path: Path, scene: str, workers: int, error: Callable[[str], BaseException]) -> None:
    """Failed: the PF is as it was, or the error says how it is. Died or failed: the next time all is done."""
    old, new = old_and_new(scene)
    at, reached = 0, True
    while reached:
        at += 1
        node = Node(tmp_path / str(at))
        node.kernel.eswitch[PF0] = "legacy"
        if old is not None:
            node.provision(old)
        before = node.outline_of_pf(PF0)
        point = Point(at, error)
        node.start_agent(Pace(workers=workers, netdev_timeout_s=0.01))
        node.kernel.on_change = point
        try:
            outcome = node.reconcile(new)
            reached = point.passed >= at
            assert bool(outcome.failed) == reached
            for failure in outcome.failed:
                as_before = "is as it was before" in failure.error
                assert as_before or ": VF " in failure.error, failure.error
                assert not as_before or node.outline_of_pf(PF0) == before, f"at {at}"
        except Died:
            pass
        node.kernel.on_change = quiet
        node.start_agent()
        assert node.reconcile(new).is_settled, f"at {at}"
        assert node.plan(new) == Plan(), f"at {at}"
        assert node.inventory().pfs[0].autoprobe, f"at {at}"
        assert created_pfs(node.records) == ({PF0: new.count} if new.count else {}), f"at {at}"
    assert at >= 2


def test_every_pair_of_failures(tmp_path: Path) -> None:
    """The way back is hit as well. Then the error says how it is, and the next time all is done."""
    old, new = old_and_new("more")
    assert old is not None
    for first in range(1, 9):
        for second in range(first + 1, first + 8):
            node = Node(tmp_path / f"{first}-{second}")
            node.provision(old)
            passed = [0]

            def fail(what: str, passed: list[int] = passed, at: tuple[int, int] = (first, second)) -> None:
                passed[0] += 1
                if passed[0] in at:
                    raise injected(what)

            before = node.outline_of_pf(PF0)
            node.kernel.on_change = fail
            (failure,) = node.reconcile(new).failed
            if "is as it was before" in failure.error:
                assert node.outline_of_pf(PF0) == before, (first, second)
            node.kernel.on_change = quiet
            node.start_agent()
            assert node.reconcile(new).is_settled, (first, second)
            assert node.plan(new) == Plan(), (first, second)
