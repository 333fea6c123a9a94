"""Crash sweep over the in-memory kernel: fail and die at every point of ADD and of DEL, then clean up.

A point is a checkpoint of the executor, a single change of the kernel, or the writing of a record. Whatever
happens there, a DEL (after a restart of the agent, if the process died) ends in the state before.
"""

import contextlib
import errno
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.cni_world import PF0, Died, World, conf_of, result_of
from vf_manager.errors import KernelError
from vf_manager.model import PciAddress

OPTIONS = {
    "vlan": 100,
    "vlanQoS": 3,
    "mac": "02:00:00:00:aa:01",
    "spoofchk": "off",
    "trust": "on",
    "max_tx_rate": 200,
    "mtu": 1400,
}


class Point:
    """Counts the points that are passed; at number `at` it does what it is told. `at` None: only counts."""

    def __init__(self, at: int | None, what: Callable[[str], None]) -> None:
        self.passed = 0
        self.at = at
        self.what = what

    def __call__(self, name: str) -> None:
        self.passed += 1
        if self.passed == self.at:
            self.what(name)


def fail(name: str) -> None:
    raise KernelError(f"injected at {name}", errno.EIO)


def die(name: str) -> None:
    raise Died(name)


class Sweep:
    """One node, one pod, one VF with altnames; `restart` hooks a point into every place that can fail.

    `lone`: the VF is one without a PF.
    """

    def __init__(self, root: Path, *, lone: bool = False) -> None:
        self.world = World(root)
        self.vf: PciAddress = self.world.vfs(PF0)[2]
        self.options = OPTIONS
        if lone:
            self.vf = self.world.kernel.add_lone("0000:05:00.0", "ens5")
            self.world.pooled.add(self.vf)
            self.options = {key: OPTIONS[key] for key in ("mac", "mtu")}
        link = self.world.kernel.find("ens5" if lone else "ens0v2")
        assert link is not None
        link.netdev = msgspec.structs.replace(link.netdev, altnames=("alt0", "alt1"))
        self.pod = self.world.new_pod("a")
        self.before = self.world.state()

    def restart(self, point: Point | None = None) -> None:
        self.world.kernel.on_change = point or (lambda name: None)
        self.world.start_agent(point or (lambda name: None))

    def call(self, command: str) -> int:
        return self.world.call(command, "c1", self.pod, conf_of(self.vf, **self.options)).exit_code


def count_points(root: Path, command: str, *, lone: bool = False) -> int:
    sweep = Sweep(root, lone=lone)
    if command == "DEL":
        assert sweep.call("ADD") == 0
    point = Point(None, fail)
    sweep.restart(point)
    assert sweep.call(command) == 0
    return point.passed


@pytest.mark.parametrize("command", ["ADD", "DEL"])
@pytest.mark.parametrize("accident", [fail, die])
@pytest.mark.parametrize("recovery", ["del", "recover", "add again"])
@pytest.mark.parametrize("lone", [False, True], ids=["", "lone"])
def test_every_point(
    tmp_path: Path, command: str, accident: Callable[[str], None], recovery: str, lone: bool
) -> None:
    total = count_points(tmp_path / "count", command, lone=lone)
    assert total > 15
    for at in range(1, total + 1):
        sweep = Sweep(tmp_path / str(at), lone=lone)
        if command == "DEL":
            assert sweep.call("ADD") == 0
        point = Point(at, accident)
        sweep.restart(point)
        with contextlib.suppress(Died):
            sweep.call(command)
        assert point.passed >= at, f"point {at} was not reached"
        # What an accident leaves is either taken back already or on record.
        if sweep.world.state() != sweep.before:
            assert sweep.world.records.list_keys() == ["c1@net1"], f"at {at}: changed, and nobody knows"
        sweep.restart()
        if recovery != "del":
            sweep.world.attacher.recover()
        if recovery == "add again":
            result_of(sweep.world.call("ADD", "c1", sweep.pod, conf_of(sweep.vf, **sweep.options)))
        assert sweep.call("DEL") == 0, f"at {at}"
        assert sweep.world.state() == sweep.before, f"at {at}"


@pytest.mark.parametrize("accident", [fail, die])
def test_every_pair_of_points_of_an_add_and_its_cleaning(
    tmp_path: Path, accident: Callable[[str], None]
) -> None:
    """The clean-up is hit as well: at every third point of it, for every third point of the ADD."""
    total = count_points(tmp_path / "count", "ADD")
    for first in range(1, total + 1, 3):
        for second in range(1, total, 3):
            sweep = Sweep(tmp_path / f"{first}-{second}")
            sweep.restart(Point(first, accident))
            with contextlib.suppress(Died):
                sweep.call("ADD")
            sweep.restart(Point(second, accident))
            with contextlib.suppress(Died):
                sweep.world.attacher.recover()
            sweep.restart()
            assert sweep.call("DEL") == 0, f"at {first}, {second}"
            assert sweep.world.state() == sweep.before, f"at {first}, {second}"


@pytest.mark.parametrize("accident", [fail, die])
@pytest.mark.parametrize("lone", [False, True], ids=["", "lone"])
def test_pod_vanishes_after_the_accident(tmp_path: Path, accident: Callable[[str], None], lone: bool) -> None:
    """The namespace goes while half of an ADD is done: the kernel hands the VF back under its pod name."""
    total = count_points(tmp_path / "count", "ADD", lone=lone)
    for at in range(1, total + 1):
        sweep = Sweep(tmp_path / str(at), lone=lone)
        sweep.restart(Point(at, accident))
        with contextlib.suppress(Died):
            sweep.call("ADD")
        sweep.world.kernel.destroy_netns(sweep.pod)
        sweep.restart()
        assert sweep.world.call("DEL", "c1", None, conf_of(sweep.vf)).exit_code == 0, f"at {at}"
        assert sweep.world.state() == sweep.before.without(sweep.pod), f"at {at}"
