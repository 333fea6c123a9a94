"""Chains of CNI plugins: the agent dies, a namespace goes, calls come at once."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sriov_cni.spec import PluginError
from tests.chain_world import Node, all_of, chain_node
from tests.cni_world import Died
from tests.test_exec import wait_for


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with chain_node(tmp_path) as node:
        yield node


class Point:
    """Dies at the checkpoint of this number; counts them."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.passed = 0

    def __call__(self, name: str) -> None:
        self.passed += 1
        if self.passed == self.at:
            raise Died(name)


@pytest.mark.parametrize("recovery", ["recover", "del", "add again"])
@pytest.mark.parametrize("command", ["ADD", "DEL"])
@pytest.mark.parametrize("part", range(3))
def test_crash_sweep(tmp_path: Path, command: str, recovery: str, part: int) -> None:
    """The process dies at every point of ADD or DEL; another one ends what it had begun."""
    node = Node(tmp_path)
    work: dict[str, Callable[[], object]] = {"ADD": node.add, "DEL": node.delete}

    def until(at: int | None) -> int:
        node.restart()
        if command == "DEL":
            node.add()
        point = Point(at)
        node.restart(point)
        with contextlib.suppress(Died):
            work[command]()
        node.restart()
        return point.passed

    total = until(None)
    node.delete()
    assert total >= 11
    for at in range(1 + part, total + 1, 3):
        assert until(at) == at
        if node.held():
            assert node.records.list_keys() == ["c1@eth0"], f"at {at}: held, and nobody knows"
        if recovery == "recover":
            node.chain.recover()
            record = node.records.read("c1@eth0")
            assert (record is not None and record.attached) or node.nothing_is_left(), f"at {at}"
        if recovery == "add again":
            assert node.add()["interfaces"][0]["name"] == "three"
        node.delete()
        assert node.nothing_is_left(), f"at {at}"


def test_recovery_spares_what_stands_and_keeps_what_resists(node: Node) -> None:
    node.add("c1")
    node.on("three", "ADD", {"msg": "no"})
    node.on("three", "DEL", {"msg": "no"})
    with pytest.raises(PluginError):
        node.add("c2")
    node.restart()
    node.chain.recover()
    assert node.records.list_keys() == ["c1@eth0", "c2@eth0"]
    assert "chain one c1 eth0" in node.held()


def test_what_nobody_will_send_a_del_for_is_taken_back(node: Node) -> None:
    """A runtime whose configuration is another one by now sends the DEL by that."""
    node.add()
    node.calls()
    node.netns.unlink()
    node.restart()
    node.chain.recover()
    calls = node.calls()
    assert [(call.command, call.plugin) for call in calls] == all_of("DEL", "three two one")
    assert {call.netns for call in calls} == {""}
    assert node.nothing_is_left()


def test_a_namespace_that_cannot_be_seen_is_not_taken_for_gone(node: Node) -> None:
    elsewhere = node.root / "run"
    elsewhere.mkdir()
    node.netns = node.netns.rename(elsewhere / "netns")
    node.path = str(node.netns)
    node.add()
    node.netns.rename(node.root / "hidden")
    (elsewhere / "netns").touch()  # what another mount namespace may show in its place
    node.chain.recover()
    (elsewhere / "netns").unlink()
    elsewhere.rmdir()
    node.chain.recover()
    assert node.records.list_keys() == ["c1@eth0"]


def test_a_del_waits_for_the_add_it_follows(node: Node) -> None:
    """A runtime gives up on an ADD and sends the DEL while the agent is still at it."""
    gate = node.bin / "gate"
    node.on("two", "ADD", f"while [ ! -e '{gate}' ]; do sleep 0.01; done")
    adding = threading.Thread(target=node.add)
    deleting = threading.Thread(target=node.delete)
    adding.start()
    wait_for(lambda: len(node.held()) == 2, "the second plugin runs")
    deleting.start()
    gate.touch()
    adding.join()
    deleting.join()
    verbs = node.verbs()
    assert verbs == all_of("ADD") + all_of("DEL", "three two one")
    assert node.nothing_is_left()


def test_pods_do_not_wait_for_each_other(node: Node) -> None:
    threads = [threading.Thread(target=node.add, args=(f"c{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(node.held()) == 12
    assert node.records.list_keys() == [f"c{number}@eth0" for number in range(4)]
    for number in range(4):
        assert node.delete(f"c{number}")
    assert node.nothing_is_left()
