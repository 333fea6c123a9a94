"""The annotation of the node that sums up its pools."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.api_server import ApiServer
from node_agent.backoff import Backoff
from node_agent.node_summary import ANNOTATION, LOOK_S, NodesApi, NodeSummary, render_summary
from tests.api_double import ApiDouble, Right, api_double
from tests.cni_world import quiet_log
from tests.fake_clock import FakeClock
from vf_manager.errors import Busy
from vf_manager.model import PciAddress, Vf

A, B, C = (PciAddress(f"0000:01:10.{i}") for i in range(3))


class Summed:
    def __init__(self, double: ApiDouble, api: NodesApi) -> None:
        self.double = double
        self.clock = FakeClock()
        self.now = "fast=7/7"
        self.error: Exception | None = None
        self.is_there = True
        self.summary = NodeSummary(
            lambda: api if self.is_there else None,
            "node-1",
            self._look,
            quiet_log(),
            clock=self.clock,
            backoff=Backoff(15.0, 600.0, lambda: 0.0),
        )

    def _look(self) -> str:
        if self.error is not None:
            raise self.error
        return self.now

    def written(self) -> str | None:
        """What a further look leaves."""
        assert self.summary.step() == LOOK_S
        return self.double.nodes.get("node-1", {}).get(ANNOTATION)


@pytest.fixture
def summed(tmp_path: Path) -> Iterator[Summed]:
    with api_double() as double:
        api = ApiServer(double.kubeconfig(tmp_path))
        yield Summed(double, api)
        api.close()


def test_what_it_says() -> None:
    vf = {pci: Vf(pci=pci, vendor="8086", device="10ca") for pci in (A, B, C)}
    members = {"fast": (vf[A], vf[B], vf[C]), "none": ()}
    assert render_summary(members, set(), {}) == "fast=3/3,none=0/0"
    assert render_summary(members, {A}, {"fast": {A: "x", B: "x"}, "other": {C: "x"}}) == "fast=1/3,none=0/0"


def test_only_a_change_is_written(summed: Summed) -> None:
    assert [summed.written(), summed.written()] == ["fast=7/7", "fast=7/7"]
    summed.now = "fast=6/7"
    assert summed.written() == "fast=6/7"
    assert len(summed.double.requests) == 2


def test_other_annotations_stay_and_a_lost_one_comes_again(summed: Summed) -> None:
    summed.double.nodes["node-1"] = {"a": "b"}
    assert summed.written() == "fast=7/7"
    assert summed.double.nodes["node-1"].pop("a") == "b"
    summed.double.nodes.clear()
    assert summed.written() is None
    summed.clock.pass_by(600)
    assert summed.written() == "fast=7/7"


@pytest.mark.parametrize("error", [Busy("the kubelet does not answer"), OSError("too many open files")])
def test_what_cannot_be_told_is_not_written(summed: Summed, error: Exception) -> None:
    summed.error = error
    assert summed.written() is None
    summed.error, summed.is_there = None, False
    assert summed.written() is None


def test_away_or_not_allowed(summed: Summed) -> None:
    summed.double.status = 503
    assert [summed.summary.step() for _ in range(3)] == [15, 30, 60]
    summed.double.status = None
    summed.double.rights = frozenset()
    assert summed.summary.step() == 120
    summed.double.rights = frozenset({Right("", "nodes", "patch")})
    assert summed.written() == "fast=7/7"
