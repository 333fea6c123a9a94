"""Pure: what services and policies inside of pods cost, as tables."""

from hw_tests.bench.grids import Grid
from hw_tests.bench.in_pod_results import (
    KINDS,
    WAYS,
    WITH,
    WITHOUT,
    InPodRules,
    Path,
    Range,
    ratios,
)
from hw_tests.bench.results import percentile, spread


def where_of(one: InPodRules) -> str:
    s = one.scale
    cluster = f"{s.services} services of {s.endpoints} endpoints, {s.policies} policies, {s.pods} pods"
    machine = f"Linux {one.kernel}, {one.cpus} CPUs, load {one.load:.1f} at its start"
    return f"in-pod: {cluster}, and {s.attached} with rules on this node; {machine}"


def grids_of(one: InPodRules) -> list[Grid]:
    return [_calls(one), _changes(one), _memory(one), *(_path(one.path, kind) for kind in KINDS)]


def _calls(one: InPodRules) -> Grid:
    added = percentile(one.add[WITH], 50) - percentile(one.add[WITHOUT], 50)
    rows = {
        f"ADD {WITHOUT}": one.add[WITHOUT],
        f"ADD {WITH}": one.add[WITH],
        "of it the rules": one.step_ms,
        "the same messages, by a process that has them ready": one.bare_step_ms,
        f"DEL {WITHOUT}": one.delete[WITHOUT],
        f"DEL {WITH}": one.delete[WITH],
        "the very first ADD: the cluster is listed": [one.first_ms],
    }
    return Grid(
        f"ADD and DEL; {added:.1f} ms are added to an ADD",
        ("ms", "n", "p50", "p95"),
        tuple((name, *_spread(values, 1)) for name, values in rows.items()),
    )


def _changes(one: InPodRules) -> Grid:
    return Grid(
        f"from a change at the API server until the last of {one.scale.attached} pods has it",
        ("ms", "n", "p50", "p95"),
        tuple((name, *_spread(values, 0)) for name, values in one.changes.items()),
    )


def _memory(one: InPodRules) -> Grid:
    memory = one.memory
    rows = {
        "agent at its start": memory.at_start,
        "that knows the cluster": memory.knowing,
        f"and has {one.scale.attached} pods with rules": memory.attached,
        "in the end": memory.in_the_end,
        "kernel, for each pod": one.kernel_kib_per_pod / 1024,
    }
    return Grid("memory", ("", "MiB"), tuple((name, f"{value:.1f}") for name, value in rows.items()))


def _path(path: Path, kind: str) -> Grid:
    rows = ((way, f"{percentile(path[kind][way], 50):.1f}", *_range(ratios(path, kind, way))) for way in WAYS)
    head = ("", "median", "lowest ratio", "median", "highest")
    return Grid(
        f"from a pod to a server: {kind}; ratios to the first line, round by round", head, tuple(rows)
    )


def _spread(values: list[float], digits: int) -> tuple[str, ...]:
    found = spread(values)
    return (str(found.n), f"{found.p50:.{digits}f}", f"{found.p95:.{digits}f}")


def _range(found: Range) -> tuple[str, ...]:
    return tuple(f"{value:.2f}" for value in (found.low, found.median, found.high))
