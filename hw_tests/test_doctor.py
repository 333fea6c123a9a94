"""`sriovctl doctor` on a real node: nothing is found while all is well. Things are broken one by one, in the
kernel and on disk: each is found and nothing else is, until it is mended."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from hw_tests.doctor import Doctor, Ward, replace_file
from hw_tests.doctor_faults import FAULTS, Fault
from hw_tests.nics import Nic, wait_for_carrier
from hw_tests.node import Node
from hw_tests.runtime import PROJECT
from hw_tests.stage import Stage


@pytest.fixture(scope="module")
def ward(
    session_node: Node, two_nics: tuple[Nic, Nic], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ward]:
    node, (kept, adopted) = session_node, two_nics
    root = tmp_path_factory.mktemp("root")
    wait_for_carrier(node.nics)
    with ExitStack() as stack:
        doctor = stack.enter_context(Doctor(node, root))
        stage = Stage(node)
        ward = Ward(node, doctor, stage, kept, adopted, root / "leases")
        stack.callback(node.wait_registered)
        stack.callback(replace_file, node.config, ward.prepare_config())
        stack.enter_context(stage)
        ward.admit()
        yield ward


def test_a_node_that_is_well(ward: Ward, node: Node) -> None:
    """By a command like anybody's, and with the wire asked."""
    ward.doctor.wait_for(frozenset(), "--probe")
    words = [sys.executable, "-m", "node_agent.cli", *ward.doctor.words("--probe")]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"findings": []})


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_what_is_broken_is_found_until_it_is_mended(
    request: pytest.FixtureRequest, ward: Ward, node: Node, fault: Fault
) -> None:
    if fault.emulated:
        request.getfixturevalue("faults")
    with fault.make(ward):
        ward.doctor.wait_for(fault.rules, *fault.options)
    ward.doctor.wait_for(frozenset(), *fault.options)
