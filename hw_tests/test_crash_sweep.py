"""For every point of ADD and of DEL on real drivers: fail there and die there; then clean up and compare.

The in-memory kernel takes the same sweep with every combination (tests/test_crash_sweep.py); here it is
the kernel's own behaviour at each stop that is tried.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hw_tests.crash import Bench, Points, fail
from hw_tests.nics import ip, wait_for_carrier
from hw_tests.node import Node, read_leases
from hw_tests.runtime import IFNAME, Pod, host_local, network, with_device
from hw_tests.snapshot import Snapshot, stable_snapshot, wait_for_same

Clean = Callable[[str], None]


@pytest.fixture
def bench(node: Node, before: Snapshot, tmp_path: Path) -> Iterator[Bench]:
    """A VF with an altname, and a network that asks for everything that the driver can do."""
    wait_for_carrier(node.nics)
    nic = node.nics[0]
    name = nic.vf_name(0)
    ip("link", "property", "add", "dev", name, "altname", "an-altname")
    conf = network(
        "sweep",
        vlan=100,
        vlanQoS=3,
        mac="02:00:00:00:cd:66",
        spoofchk="off",
        trust="on",
        min_tx_rate=0,
        max_tx_rate=200,
        mtu=1400,
        ipam=host_local(
            {"subnet": "198.18.5.0/24"}, {"subnet": "fd00:5::/64"}, routes=[{"dst": "0.0.0.0/0"}]
        ),
    )
    pod = Pod("sweep").create()
    try:
        yield Bench(tmp_path, pod, with_device(conf, nic.vf_address(0)))
    finally:
        pod.destroy()
        ip("link", "property", "del", "dev", name, "altname", "an-altname")


@pytest.fixture
def clean(bench: Bench, node: Node) -> Clean:
    """Asserts that everything is as it was before the sweep; takes where the sweep is, for the message."""
    snapshot = stable_snapshot(node.nics)

    def check(where: str) -> None:
        assert wait_for_same(snapshot, node.nics) == [], where
        assert (bench.records, read_leases(bench.lease_dir)) == ([], []), where
        assert set(bench.pod.links()) == {"lo"}, where

    return check


def test_add_fails_at_every_point(bench: Bench, clean: Clean) -> None:
    for at, name in points_of(bench, "ADD"):
        where = f"ADD, failed at {at}: {name}"
        assert bench.call("ADD", Points(at, fail)).exit_code == 1, where
        if name in ("intent", "attached"):  # outside of the steps, where nothing fails but by this test
            succeed(bench, "DEL", where)
        clean(where)


def test_add_dies_at_every_point_and_the_agent_comes_back(bench: Bench, clean: Clean) -> None:
    for at, name in points_of(bench, "ADD"):
        where = f"ADD, died at {at}: {name}"
        assert bench.call_and_die("ADD", at), where
        bench.recover()
        if name == "attached":
            succeed(bench, "DEL", where)
        clean(where)


def test_add_dies_at_every_point_and_is_called_again(bench: Bench, clean: Clean) -> None:
    """Without a recovery in between: the runtime may be faster."""
    for at, name in points_of(bench, "ADD"):
        where = f"ADD, died at {at}: {name}"
        assert bench.call_and_die("ADD", at), where
        succeed(bench, "ADD", where)
        assert set(bench.pod.links()) == {"lo", IFNAME}
        succeed(bench, "DEL", where)
        clean(where)


def test_del_fails_at_every_point(bench: Bench, clean: Clean) -> None:
    for at, name in points_of(bench, "DEL"):
        where = f"DEL, failed at {at}: {name}"
        succeed(bench, "ADD", where)
        bench.call("DEL", Points(at, fail))
        succeed(bench, "DEL", where)
        clean(where)


def test_del_dies_at_every_point(bench: Bench, clean: Clean) -> None:
    for at, name in points_of(bench, "DEL"):
        where = f"DEL, died at {at}: {name}"
        succeed(bench, "ADD", where)
        assert bench.call_and_die("DEL", at), where
        bench.recover()
        succeed(bench, "DEL", where)
        clean(where)


def points_of(bench: Bench, command: str) -> list[tuple[int, str]]:
    """The points that ADD or DEL passes, with their numbers, without those where nothing is done since the
    one before. Recorded from a run, so that new steps are swept by themselves."""
    passed = {}
    for each in ("ADD", "DEL"):
        points = Points(None, fail)
        succeed(bench, each, "recording", points)
        passed[each] = points.names
    names = passed[command]
    found = [(n, name) for n, name in enumerate(names) if n == 0 or not is_same_moment(names[n - 1], name)]
    assert len(found) > 8, f"the sweep is hollow: {found}"
    return found


def is_same_moment(before: str, now: str) -> bool:
    """Checkpoints are `intent`, `apply 0`, `applied 0`, `undo 0`, `undone 0`, ...; other points are changes
    of the kernel, passed right before they are made."""
    begins = now.startswith(("apply ", "undo "))
    if before.startswith(("apply ", "undo ")):
        return " " not in now
    return begins and (before == "intent" or before.startswith(("applied ", "undone ")))


def succeed(bench: Bench, command: str, where: str, points: Points | None = None) -> None:
    reply = bench.call(command, points) if points else bench.call(command)
    assert reply.exit_code == 0, f"{where}; then {command}: {reply.stdout.decode()}"
