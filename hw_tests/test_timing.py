"""Not asserted, since it is the machine's: the times of ADD and DEL, for the report at the end of the run."""

import pytest

from hw_tests import timing
from hw_tests.conftest import REPORT, rig_out
from hw_tests.nics import wait_for_carrier
from hw_tests.node import Node
from hw_tests.stage import Stage


def test_timing(request: pytest.FixtureRequest, node: Node, stage: Stage) -> None:
    wait_for_carrier(node.nics)
    measured = timing.measure(stage, node.nics[0])
    request.config.stash.setdefault(REPORT, []).extend(timing.render(measured))
    if out := rig_out():
        timing.write(measured, out / "timing.json")
