"""Orchestrator: the ways from a pod to one server, turn by turn: how much they carry, how long a question
takes."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence

import msgspec

from hw_tests.bench.in_pod_cluster import BY_VETH, CLUSTER_IP, PORT
from hw_tests.bench.in_pod_place import SERVER
from hw_tests.bench.in_pod_results import (
    BARE,
    BY_HOST,
    CONNECTION,
    IN_POD,
    KINDS,
    MANY_FLOWS,
    ONE_FLOW,
    QUESTION,
    RULED,
    WAYS,
    Path,
)
from hw_tests.bench.results import percentile
from hw_tests.runtime import PROJECT, Pod

_FLOWS = 8
_TIMEOUT_S = 60.0


class PathPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How much of each way in each of the rounds."""

    rounds: int
    seconds: float
    questions: int
    connections: int


def measure_path(bare: Pod, ruled: Pod, plan: PathPlan) -> Path:
    """`bare`: without rules, but with the way by the host. The order turns with each round."""
    where = {BARE: (bare, SERVER), RULED: (ruled, SERVER), IN_POD: (ruled, CLUSTER_IP)}
    where |= {BY_HOST: (bare, BY_VETH)}
    found: Path = {kind: {way: [] for way in WAYS} for kind in KINDS}
    for pod, address in where.values():
        _pump(pod, address, "connects", 100)  # neighbours are known, and Python is in the page cache
    for number in range(plan.rounds):
        for kind in KINDS:
            for way in _turned(WAYS, number):
                found[kind][way].append(_MEASURES[kind](*where[way], plan))
    return found


def _throughput(flows: int) -> Callable[[Pod, str, PathPlan], float]:
    def measure(pod: Pod, address: str, plan: PathPlan) -> float:
        (rate,) = _pump(pod, address, "flows", plan.seconds, flows)
        return rate * 8 / 1e9

    return measure


def _question(pod: Pod, address: str, plan: PathPlan) -> float:
    return percentile(_pump(pod, address, "asks", plan.questions), 50)


def _connection(pod: Pod, address: str, plan: PathPlan) -> float:
    return percentile(_pump(pod, address, "connects", plan.connections), 50)


_MEASURES: dict[str, Callable[[Pod, str, PathPlan], float]] = {
    ONE_FLOW: _throughput(1),
    MANY_FLOWS: _throughput(_FLOWS),
    QUESTION: _question,
    CONNECTION: _connection,
}


def _pump(pod: Pod, address: str, what: str, *numbers: float) -> list[float]:
    words = [what, address, str(PORT), *map(str, numbers)]
    command = pod.command(sys.executable, "-m", "hw_tests.bench.pump", *words)
    done = subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, timeout=_TIMEOUT_S)
    return [float(one) for one in json.loads(done.stdout)]


def _turned(ways: Sequence[str], by: int) -> list[str]:
    by %= len(ways)
    return [*ways[by:], *ways[:by]]
