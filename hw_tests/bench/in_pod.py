"""Orchestrator: what services and policies inside of pods cost: python -m hw_tests.bench.in_pod --out DIR

A cluster of some size, and a node with many pods that have rules. Each ADD with rules is followed by one
without, each way to a server by the others, so that whatever else the machine does hits all of them alike.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import yaml

from hw_tests.bench import in_pod_place as place
from hw_tests.bench.agent_process import AgentProcess, running_agent
from hw_tests.bench.breakdown import durations_of
from hw_tests.bench.commits import listening, say_something
from hw_tests.bench.contenders import Slot
from hw_tests.bench.in_pod_api import Api, running_api
from hw_tests.bench.in_pod_cluster import NODE_NAME, Put, Scale, dns_slice, everyones_policy, slice_of
from hw_tests.bench.in_pod_floor import time_of_rules
from hw_tests.bench.in_pod_path import PathPlan, measure_path
from hw_tests.bench.in_pod_results import (
    POLICY,
    TCP_ENDPOINT,
    UDP_ENDPOINT,
    WITH,
    WITHOUT,
    AgentMemory,
    InPodRules,
)

_PAUSE_S = (0.02, 0.04)  # see measure.py
_CHANGE_TIMEOUT_S = 60.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A round is one ADD and DEL of either kind."""

    rounds: int = 40
    changes: int = 20
    path: PathPlan = PathPlan(rounds=7, seconds=1.0, questions=5000, connections=500)


class Node:
    """Its agent, the API server, and the pods: those that have rules all the time, one that comes and goes,
    one without."""

    def __init__(self, agent: AgentProcess, api: Api, slots: list[Slot], leases: Path) -> None:
        self.agent, self.api = agent, api
        *self.attached, self.coming, self.bare = slots
        rules = {"services": "in-pod", "policy": "in-pod", "syncTimeout": 30}
        self._confs = {WITHOUT: place.conf(leases), WITH: place.conf(leases, **rules)}

    def add(self, slot: Slot, what: str) -> float:
        """How long it took, in ms."""
        answer = self.agent.runtime.add(slot.pod, self._confs[what], slot.pci, place.IFNAME)
        return answer.seconds * 1000

    def delete(self, slot: Slot, what: str) -> float:
        answer = self.agent.runtime.delete(slot.pod, self._confs[what], slot.pci, place.IFNAME)
        return answer.seconds * 1000


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """What it took that all pods have rules; see InPodRules."""

    first_ms: float
    at_start: float
    knowing: float
    attached: float
    kernel_kib_per_pod: float


@contextmanager
def running_node(scale: Scale, folder: Path) -> Iterator[Node]:
    with ExitStack() as stack:
        slots = stack.enter_context(place.segment(folder, scale.attached + 2))
        stack.enter_context(place.server())
        _say(f"a cluster of {scale.services} services, {scale.policies} policies and {scale.pods} pods")
        api = stack.enter_context(running_api(folder, scale, place.SERVER))
        env, name = {"SRIOV_BENCH_VETHS": str(place.veths_file(folder))}, f"--node-name={NODE_NAME}"
        agent = running_agent(folder / "agent", _config(api), name, log_level="debug", env=env)
        yield Node(stack.enter_context(agent), api, slots, folder / "leases")


def measure(scale: Scale, plan: Plan, folder: Path) -> InPodRules:
    load = os.getloadavg()[0]
    with running_node(scale, folder) as node:
        _say(f"{scale.attached} pods with rules")
        attached = _attach(node)
        _say(f"{plan.rounds} rounds of ADD and DEL")
        add, delete, step_ms = _rounds(node, plan.rounds)
        _say(f"{plan.changes} changes of each kind")
        changes = _all_changes(node, plan.changes, scale)
        in_the_end = node.agent.rss_mib()
        bare_step_ms = time_of_rules(scale, node.coming.pod, plan.rounds)
        _say(f"{plan.path.rounds} rounds of the ways to a server")
        node.add(node.bare, WITHOUT)
        place.add_way_by_host(node.bare.pod)
        path = measure_path(node.bare.pod, node.attached[0].pod, plan.path)
    return InPodRules(
        scale=scale,
        kernel=os.uname().release,
        cpus=os.cpu_count() or 1,
        load=load,
        first_ms=attached.first_ms,
        add=add,
        delete=delete,
        step_ms=step_ms,
        bare_step_ms=bare_step_ms,
        changes=changes,
        memory=AgentMemory(
            at_start=attached.at_start,
            knowing=attached.knowing,
            attached=attached.attached,
            in_the_end=in_the_end,
        ),
        kernel_kib_per_pod=attached.kernel_kib_per_pod,
        path=path,
    )


def _attach(node: Node) -> Attached:
    at_start = node.agent.rss_mib()
    first, *others = node.attached
    first_ms = node.add(first, WITH)
    knowing, before = node.agent.rss_mib(), _kernel_kib()
    for slot in others:
        node.add(slot, WITH)
    return Attached(
        first_ms=first_ms,
        at_start=at_start,
        knowing=knowing,
        attached=node.agent.rss_mib(),
        kernel_kib_per_pod=(_kernel_kib() - before) / max(1, len(others)),
    )


def _config(api: Api) -> str:
    pools = [{"name": place.POOL, "select": {"pfNames": [place.PF]}}]
    return yaml.safe_dump({"pools": pools, "kubernetes": {"kubeconfig": api.kubeconfig}})


def _rounds(node: Node, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]], list[float]]:
    """What ADD and DEL took, and the rules' part of those with rules."""
    add: dict[str, list[float]] = {WITHOUT: [], WITH: []}
    delete: dict[str, list[float]] = {WITHOUT: [], WITH: []}
    before = len(node.agent.events())
    for number in range(rounds):
        for what in (WITHOUT, WITH) if number % 2 else (WITH, WITHOUT):
            for verb, call in ((add, node.add), (delete, node.delete)):
                time.sleep(random.uniform(*_PAUSE_S))
                verb[what].append(call(node.coming, what))
    return add, delete, durations_of(node.agent.events()[before:], "WriteRules")


def _all_changes(node: Node, count: int, scale: Scale) -> dict[str, list[float]]:
    kinds: dict[str, Callable[[int], Put]] = {
        TCP_ENDPOINT: lambda number: ("endpointslices", slice_of(scale, 0, number)),
        UDP_ENDPOINT: lambda number: ("endpointslices", dns_slice(scale, number)),
        POLICY: lambda number: ("networkpolicies", everyones_policy(number)),
    }
    return {kind: _changes(node, count, change) for kind, change in kinds.items()}


def _changes(node: Node, count: int, change: Callable[[int], Put]) -> list[float]:
    """From a change at the API server until the rules of the last pod are in force, in ms. Every pod has a
    connection that is tracked, as pods have."""
    found = []
    pods = [slot.pod.path for slot in node.attached]
    with listening(pods) as commits:
        for number in range(1, count + 1):
            for pod in pods:
                say_something(pod, place.SERVER)
            began = node.api.put(change(number))
            found.append((commits.last(_CHANGE_TIMEOUT_S) - began) * 1000)
    return found


def _kernel_kib() -> int:
    """What is neither free nor of a process nor of a file: slabs, and what is too large for them."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    size = {words[0].rstrip(":"): int(words[1]) for words in lines}
    return size["MemTotal"] - sum(size[name] for name in ("MemFree", "Buffers", "Cached", "AnonPages"))


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m hw_tests.bench.in_pod")
    parser.add_argument("--rounds", type=int, default=0, help="0: as many as usual")
    for name, default in msgspec.to_builtins(Scale()).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for in-pod.json")
    options = parser.parse_args(arguments)
    scale = Scale(**{name: getattr(options, name) for name in Scale.__struct_fields__})
    plan = _plan(options.rounds)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir="/run"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        found = measure(scale, plan, folder)
    (options.out / "in-pod.json").write_bytes(msgspec.json.encode(found))
    return 0


def _plan(rounds: int) -> Plan:
    """With other rounds than usual, as many of everything."""
    if not rounds:
        return Plan()
    path = PathPlan(rounds=min(rounds, 7), seconds=0.1, questions=500, connections=100)
    return Plan(rounds=rounds, changes=min(rounds, 20), path=path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
