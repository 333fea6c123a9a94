"""A small run of the benchmark of rules inside of pods, from the API server to the last packet."""

import subprocess
from pathlib import Path

import msgspec

from hw_tests.bench.__main__ import alone
from hw_tests.bench.in_pod_results import KINDS, WAYS, WITH, InPodRules
from hw_tests.runtime import PROJECT

SIZES = {"services": 5, "policies": 20, "pods": 50, "attached": 2, "rounds": 1}


def test_a_small_one(tmp_path: Path) -> None:
    words = [f"--{name}={size}" for name, size in SIZES.items()]
    command = alone("-m", "hw_tests.bench.in_pod", *words, "--out", str(tmp_path))
    subprocess.run(command, cwd=PROJECT, check=True)
    found = msgspec.json.decode((tmp_path / "in-pod.json").read_bytes(), type=InPodRules)
    assert len(found.add[WITH]) == len(found.step_ms) == 1
    assert all(len(ms) == 1 for ms in found.changes.values())
    assert all(rate > 0 for kind in KINDS for way in WAYS for rate in found.path[kind][way])
