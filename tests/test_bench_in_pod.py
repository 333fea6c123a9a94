"""The benchmark of rules inside of pods as far as it needs no pod: its cluster, its tables, what it pumps."""

import json
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise

from hw_tests.bench import markdown, pump
from hw_tests.bench.breakdown import durations_of
from hw_tests.bench.grids import Grid, as_markdown, as_text
from hw_tests.bench.in_pod_cluster import (
    HOME,
    Scale,
    attached_pod,
    dns_slice,
    every_object,
    everyones_policy,
    slice_of,
)
from hw_tests.bench.in_pod_floor import cluster_of
from hw_tests.bench.in_pod_results import (
    BARE,
    IN_POD,
    KINDS,
    ONE_FLOW,
    POLICY,
    TCP_ENDPOINT,
    UDP_ENDPOINT,
    WAYS,
    WITH,
    WITHOUT,
    AgentMemory,
    InPodRules,
    Range,
    ratios,
)
from hw_tests.bench.in_pod_table import grids_of, where_of
from hw_tests.bench.results import Look, Looks, Measured, Restarts, Step, to_json
from hw_tests.runtime import PROJECT
from sriov_cni.in_pod.policies import PolicyCompiler

SCALE = Scale(services=20, endpoints=3, policies=40, pods=400, attached=2)
FOUND = InPodRules(
    scale=SCALE,
    kernel="6.1.0",
    cpus=2,
    load=0.5,
    first_ms=900.0,
    add={WITHOUT: [20.0, 22.0], WITH: [30.0, 34.0]},
    delete={WITHOUT: [20.0], WITH: [21.0]},
    step_ms=[10.0],
    bare_step_ms=[8.0],
    changes={TCP_ENDPOINT: [200.0, 210.0], UDP_ENDPOINT: [400.0], POLICY: [300.0]},
    memory=AgentMemory(at_start=90.0, knowing=100.0, attached=101.0, in_the_end=102.0),
    kernel_kib_per_pod=2048.0,
    path={kind: {way: [10.0, 20.0] for way in WAYS} for kind in KINDS}
    | {ONE_FLOW: {way: [5.0] for way in WAYS}},
)
GRID = Grid("a title", ("ms", "p50"), (("one", "1.0"), ("another", "20.0")))


def test_the_cluster_is_as_large_as_it_was_asked_to_be() -> None:
    objects = list(every_object(SCALE, "198.18.20.250"))
    count = Counter(resource for resource, _ in objects)
    assert count["services"] == count["endpointslices"] == SCALE.services + 2
    assert count["networkpolicies"] == SCALE.policies
    assert count["pods"] == SCALE.pods + SCALE.attached + 2
    assert len({(resource, str(one["metadata"])) for resource, one in objects}) == len(objects)


def test_the_agent_understands_the_cluster() -> None:
    cluster = cluster_of(every_object(SCALE, "198.18.20.250"))
    assert len(cluster.policies) == SCALE.policies
    assert cluster.node is not None
    endpoints = [one for part in cluster.slices.values() for one in part.endpoints or ()]
    assert len(endpoints) == SCALE.services * SCALE.endpoints + 3
    compiled = PolicyCompiler(cluster).compile(cluster.pods[f"{HOME}/vf-0"])
    assert compiled.ingress
    assert compiled.egress
    assert len(compiled.ingress) > 1, "more than the policy of all"


def test_a_change_changes_one_endpoint_or_one_block() -> None:
    for slices in (
        [slice_of(SCALE, 0, changes) for changes in range(4)],
        [dns_slice(SCALE, changes) for changes in range(4)],
    ):
        pods = [{address for one in found["endpoints"] for address in one["addresses"]} for found in slices]
        assert [len(before - after) for before, after in pairwise(pods)] == [1, 1, 1]
    blocks = [json.dumps(everyones_policy(changes)["spec"]["ingress"]) for changes in range(3)]
    assert len(set(blocks)) == 3
    assert attached_pod(0)["metadata"]["namespace"] == everyones_policy(0)["metadata"]["namespace"]


def test_ratios_are_taken_round_by_round() -> None:
    path = {ONE_FLOW: {BARE: [10.0, 20.0, 40.0], IN_POD: [9.0, 20.0, 48.0]}}
    assert ratios(path, ONE_FLOW, IN_POD) == Range(0.9, 1.0, 1.2)


def test_the_step_of_the_rules_is_found_in_the_log() -> None:
    lines = [
        ("ADD", "call", "", 0),
        ("", "step", "WriteRules", 2),
        ("", "step", "SetUpInPod", 12),
        ("", "answer", "", 15),
        ("DEL", "call", "", 20),
        ("", "step", "WriteRules", 21),
        ("", "answer", "", 30),
    ]
    events = [
        {"event": event, "command": command, "kind": kind, "timestamp": f"2026-01-01T00:00:00.{ms:03}000Z"}
        for command, event, kind, ms in lines
    ]
    assert [round(ms, 3) for ms in durations_of(events, "WriteRules")] == [10.0]


def test_a_grid_for_a_terminal_and_for_a_page() -> None:
    assert list(as_text(GRID)) == ["a title", "  ms        p50", "  one       1.0", "  another  20.0", ""]
    assert list(as_markdown(GRID)) == [
        "**a title**",
        "",
        "| ms | p50 |",
        "| --- | ---: |",
        "| one | 1.0 |",
        "| another | 20.0 |",
        "",
    ]


def test_the_tables_say_what_is_added() -> None:
    assert "20 services of 3 endpoints, 40 policies, 400 pods, and 2 with rules" in where_of(FOUND)
    calls, changes, memory, *path = grids_of(FOUND)
    assert calls.title == "ADD and DEL; 11.0 ms are added to an ADD"
    assert ("of it the rules", "1", "10.0", "10.0") in calls.rows
    assert (TCP_ENDPOINT, "2", "205", "210") in changes.rows
    assert ("kernel, for each pod", "2.0") in memory.rows
    assert [len(grid.rows) for grid in path] == [len(WAYS)] * len(KINDS)
    assert path[0].rows[2] == (IN_POD, "5.0", "1.00", "1.00", "1.00")
    assert all(len(line) <= 110 for grid in grids_of(FOUND) for line in as_text(grid))


def test_every_part_becomes_tables_of_a_page() -> None:
    samples = {"sriov-underlay": {"ADD": [1.0], "DEL": [2.0]}}
    measured = Measured(
        place="native",
        kernel="6.1.0",
        cpus=2,
        load=0.5,
        vfs=14,
        sequential=samples,
        burst=samples,
        burst_wall=samples,
        steps={"sriov-underlay": {"ADD": [Step("step MoveToPod", 25.0)], "DEL": []}},
    )
    looks = Looks(
        place="rig",
        kernel="6.1.0",
        cpus=2,
        load=0.5,
        looks=[Look(pfs=1, vfs=7, ms=[3.0], netlink_requests=6, sysfs_reads=40)],
    )
    restarts = Restarts(way="legacy", rounds=1, window=[405.0])
    pages = [
        markdown.render_calls([measured]),
        markdown.render_inventory([looks]),
        markdown.render_restarts([restarts]),
        markdown.render_in_pod(FOUND),
    ]
    assert "| step MoveToPod | 25.00 |" in pages[0]
    assert "| 7 (1) | 3.0 | 3.0 | 6 | 40 |" in pages[1]
    assert "| in between, when pods are rejected | 405 | 405 | 405 |" in pages[2]
    for page in pages:
        tables = re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE)
        assert tables
        assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)


def test_the_json_has_it() -> None:
    assert json.loads(to_json([], (), (), FOUND))["in_pod"]["first_ms"] == 900.0


def test_the_pump_counts_what_arrived() -> None:
    command = [sys.executable, "-m", "hw_tests.bench.pump", "serve", "127.0.0.1", "0"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            where = "127.0.0.1", int(server.stdout.readline())
            assert pump.flows(where, 0.05, 2) > 0
            assert len(pump.asks(where, 20)) == 20
            assert all(us > 0 for us in pump.connects(where, 5))
        finally:
            server.kill()
