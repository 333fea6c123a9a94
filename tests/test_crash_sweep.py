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

from sriov_cni.messages import CniReply
from tests.cluster_objects import pod as cluster_pod
from tests.cni_world import PF0, PF1, Died, World, conf_of, result_of
from vf_manager.errors import KernelError
from vf_manager.model import PciAddress

OPTIONS = {
    "vlan": 100,
    "vlanQoS": 3,
    "mac": "02:00:00:00:aa:01",
    "spoofchk": "off",
    "trust": "on",
    "min_tx_rate": 0,
    "max_tx_rate": 200,
    "mtu": 1400,
}


KINDS = ("one", "lone", "several", "ruled", "pf link", "veth link")
RULES = {"services": "in-pod", "policy": "in-pod", "syncTimeout": 0}


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

    `kind`: "lone": the VF is one without a PF; "several": the pod has two more, of both PFs, and the call
    names none: the kubelet does; "ruled": it has services and policy; "... link": the node has a host link to
    the pod.
    """

    def __init__(self, root: Path, kind: str = "one") -> None:
        self.world = World(root)
        self.vf: PciAddress = self.world.vfs(PF0)[2]
        self.options = OPTIONS
        self.records = {"c1@net1"}
        name = "ens0v2"
        if kind == "lone":
            name = "ens5"
            self.vf = self.world.kernel.add_lone("0000:05:00.0", name)
            self.world.pooled.add(self.vf)
            self.options = {key: OPTIONS[key] for key in ("mac", "mtu")}
        self.conf = conf_of(self.vf, **self.options)
        self.args = ""
        if kind == "ruled":
            self.conf = conf_of(self.vf, vlan=100, **RULES)
            self.args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p"
            self.world.cluster.put(cluster_pod("p"))
        if "link" in kind:
            self._link_to_host(kind.split()[0])
        if kind == "several":
            others = [self.world.vfs(PF0)[4], self.world.vfs(PF1)[0]]
            self.world.kubelet.there = True
            self.world.kubelet.given["ml", "p"] = [self.vf, *others]
            self.args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ml;K8S_POD_NAME=p"
            self.records |= {"c1@net2", "c1@net3"}
            del self.conf["deviceID"]
        link = self.world.kernel.find(name)
        assert link is not None
        link.netdev = msgspec.structs.replace(link.netdev, altnames=("alt0", "alt1"))
        self.pod = self.world.new_pod("a")
        self.before = self.world.state()

    def _link_to_host(self, how: str) -> None:
        uplink = self.world.kernel.add_link("eno1")
        uplink.addresses += ["192.0.2.1/24", "2001:db8::1/64"]
        self.world.kernel.set_up("ens0", up=True)
        self.conf = conf_of(self.vf, vlan=100, hostLink=how)

    def restart(self, point: Point | None = None) -> None:
        self.world.kernel.on_change = point or (lambda name: None)
        self.world.start_agent(point or (lambda name: None))

    def call(self, command: str) -> int:
        return self.reply(command).exit_code

    def reply(self, command: str) -> CniReply:
        return self.world.call(command, "c1", self.pod, self.conf, CNI_ARGS=self.args)


def count_points(root: Path, command: str, kind: str = "one") -> int:
    sweep = Sweep(root, kind)
    if command == "DEL":
        assert sweep.call("ADD") == 0
    point = Point(None, fail)
    sweep.restart(point)
    assert sweep.call(command) == 0
    return point.passed


@pytest.mark.parametrize("command", ["ADD", "DEL"])
@pytest.mark.parametrize("accident", [fail, die])
@pytest.mark.parametrize("recovery", ["del", "recover", "add again"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_point(
    tmp_path: Path, command: str, accident: Callable[[str], None], recovery: str, kind: str
) -> None:
    total = count_points(tmp_path / "count", command, kind)
    assert total > 15
    for at in range(1, total + 1):
        sweep = Sweep(tmp_path / str(at), kind)
        if command == "DEL":
            assert sweep.call("ADD") == 0
        point = Point(at, accident)
        sweep.restart(point)
        with contextlib.suppress(Died):
            sweep.call(command)
        assert point.passed >= at, f"point {at} was not reached"
        # What an accident leaves is either taken back already or on record.
        if sweep.world.state() != sweep.before:
            known = set(sweep.world.records.list_keys())
            assert known, f"at {at}: changed, and nobody knows"
            assert known <= sweep.records
        sweep.restart()
        if recovery != "del":
            sweep.world.attacher.recover()
        if recovery == "add again":
            result_of(sweep.reply("ADD"))
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
@pytest.mark.parametrize("kind", KINDS)
def test_pod_vanishes_after_the_accident(tmp_path: Path, accident: Callable[[str], None], kind: str) -> None:
    """The namespace goes while half of an ADD is done: the kernel hands the VF back under its pod name."""
    total = count_points(tmp_path / "count", "ADD", kind)
    for at in range(1, total + 1):
        sweep = Sweep(tmp_path / str(at), kind)
        sweep.restart(Point(at, accident))
        with contextlib.suppress(Died):
            sweep.call("ADD")
        sweep.world.kernel.destroy_netns(sweep.pod)
        sweep.restart()
        assert sweep.world.call("DEL", "c1", None, sweep.conf).exit_code == 0, f"at {at}"
        assert sweep.world.state() == sweep.before.without(sweep.pod), f"at {at}"
