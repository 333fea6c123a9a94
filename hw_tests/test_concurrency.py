"""Calls at the same moment: one VF has one owner, and the VFs of a PF do not stand in each other's way."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import TypeVar

from hw_tests.nics import wait_for_carrier
from hw_tests.node import Node
from hw_tests.runtime import IFNAME, Answer, CniError, host_local, network, wait_for_ping
from hw_tests.snapshot import Snapshot, differences, read_snapshot, wait_for_same
from hw_tests.stage import Stage

CONF = network("crowd", vlan=100, trust="on", ipam=host_local({"subnet": "198.18.6.0/24"}))
T = TypeVar("T")


def at_once(calls: Sequence[Callable[[], T]]) -> list[T | CniError]:
    """All of them start together; an error of the plugin is an answer too."""
    barrier = Barrier(len(calls))

    def run(call: Callable[[], T]) -> T | CniError:
        barrier.wait()
        try:
            return call()
        except CniError as e:
            return e

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


def test_two_adds_for_one_vf(node: Node, stage: Stage) -> None:
    vf = node.nics[0].vf_address(0)
    for number in range(3):
        pods = [stage.pod(f"{number}-{name}") for name in ("left", "right")]
        answers = at_once([partial(stage.attach, pod, CONF, vf) for pod in pods])
        (won,) = [a for a in answers if isinstance(a, Answer)]
        (lost,) = [a for a in answers if isinstance(a, CniError)]
        winner, loser = pods if isinstance(answers[0], Answer) else pods[::-1]
        assert lost.code == 11
        assert f"VF {vf} is attached to another pod" in lost.msg
        assert set(winner.links()) == {"lo", IFNAME}
        assert set(loser.links()) == {"lo"}
        assert node.leases() == [f"crowd/{won.address}"]
        assert len(node.records()) == 1

        attached = read_snapshot(node.nics)
        node.runtime.delete(loser, CONF)  # what a runtime does after a failed ADD
        assert differences(attached, read_snapshot(node.nics)) == []
        stage.detach(winner)


def test_seven_adds_and_dels_on_one_pf(node: Node, stage: Stage, before: Snapshot) -> None:
    nic = node.nics[0]
    wait_for_carrier(node.nics)
    pods = [stage.pod(f"pod{index}") for index in range(nic.vfs_used)]
    vfs = {pod.name: stage.allocate(pod, nic) for pod in pods}
    assert len(set(vfs.values())) == len(pods)

    answers = at_once([partial(stage.attach, pod, CONF, vfs[pod.name]) for pod in pods])
    addresses = [answer.address if isinstance(answer, Answer) else str(answer) for answer in answers]
    assert len(set(addresses)) == len(pods), addresses
    for pod, address in zip(pods, addresses, strict=True):
        assert pod.addresses() == [f"{address}/24"]
        assert pod.links()[IFNAME]["parentdev"] == vfs[pod.name]
    for pod, address in zip(pods, [*addresses[1:], addresses[0]], strict=True):
        wait_for_ping(pod, address)

    for answer in at_once([partial(stage.detach, pod) for pod in pods]):
        assert isinstance(answer, Answer), answer
    assert wait_for_same(before, node.nics) == []
    assert (node.records(), node.leases()) == ([], [])


def test_adds_and_dels_of_different_pods_mixed(node: Node, stage: Stage) -> None:
    """While one pod goes another one comes, on every PF."""
    old = [stage.attach_new(f"old-{nic.name}", nic, CONF)[0] for nic in node.nics]
    new = [stage.pod(f"new-{nic.name}") for nic in node.nics]
    vfs = [stage.allocate(pod, nic) for pod, nic in zip(new, node.nics, strict=True)]

    comes = [partial(stage.attach, pod, CONF, vf) for pod, vf in zip(new, vfs, strict=True)]
    for answer in at_once([*(partial(stage.detach, pod) for pod in old), *comes]):
        assert isinstance(answer, Answer), answer
    for pod, vf in zip(new, vfs, strict=True):
        assert pod.links()[IFNAME]["parentdev"] == vf
    assert all(set(pod.links()) == {"lo"} for pod in old)
