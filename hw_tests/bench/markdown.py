"""Pure: what was measured as pages for docs/benchmarks.md, one for each part."""

from collections.abc import Iterable, Iterator, Sequence

from hw_tests.bench.grids import Grid, as_markdown
from hw_tests.bench.in_pod_results import InPodRules
from hw_tests.bench.in_pod_table import grids_of, where_of
from hw_tests.bench.results import (
    CONTENDERS,
    VERBS,
    Look,
    Looks,
    Measured,
    Restarts,
    Samples,
    Step,
    percentile,
    spread,
)

_PERCENTILES = ("p50", "p95", "p99")


def render_calls(places: Iterable[Measured]) -> str:
    return _page(line for one in places for line in _place(one))


def render_inventory(places: Iterable[Looks]) -> str:
    return _page(line for one in places for line in as_markdown(_looks(one)))


def render_restarts(ways: Iterable[Restarts]) -> str:
    return _page(line for one in ways for line in as_markdown(_restarts(one)))


def render_in_pod(one: InPodRules) -> str:
    return _page([where_of(one) + ".", "", *(line for grid in grids_of(one) for line in as_markdown(grid))])


def _page(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def _place(one: Measured) -> Iterator[str]:
    where = f"{one.place}, Linux {one.kernel}, {one.cpus} CPUs, load {one.load:.1f} at its start"
    kinds = {
        "one after the other": one.sequential,
        f"{one.vfs} at once, each": one.burst,
        f"{one.vfs} at once, until the last": one.burst_wall,
    }
    for kind, samples in kinds.items():
        yield from as_markdown(_calls(f"{where}: {kind}", samples))
    for who, verbs in one.steps.items():
        for verb, steps in verbs.items():
            if steps:
                yield from as_markdown(_steps(f"{one.place}: where the time of {verb} goes: {who}", steps))
    if (memory := one.memory) is not None:
        rows = {
            "at its start": memory.at_start,
            "warm": memory.warm,
            f"after {memory.cycles} cycles of ADD and DEL": memory.in_the_end,
        }
        cells = tuple((name, f"{value:.1f}") for name, value in rows.items())
        yield from as_markdown(Grid(f"{one.place}: memory of the agent", ("", "MiB"), cells))


def _calls(title: str, samples: Samples) -> Grid:
    rows = tuple(
        (f"{verb}, {who}", *_spread(values, 1))
        for verb in VERBS
        for who in CONTENDERS
        if (values := samples.get(who, {}).get(verb))
    )
    return Grid(title, ("ms", *_PERCENTILES), rows)


def _steps(title: str, steps: Sequence[Step]) -> Grid:
    return Grid(title, ("ms", "p50"), tuple((step.name, f"{step.p50:.2f}") for step in steps))


def _looks(one: Looks) -> Grid:
    title = f"{one.place}, Linux {one.kernel}, {one.cpus} CPUs, load {one.load:.1f} at its start"
    head = ("VFs (PFs)", "p50, ms", "p95, ms", "netlink requests", "looks into sysfs")
    return Grid(title, head, tuple(map(_look, one.looks)))


def _look(look: Look) -> tuple[str, ...]:
    times = (f"{percentile(look.ms, percent):.1f}" for percent in (50, 95))
    return (f"{look.vfs} ({look.pfs})", *times, str(look.netlink_requests), str(look.sysfs_reads))


def _restarts(one: Restarts) -> Grid:
    rows = {
        "SIGTERM until the kubelet has no device": one.until_gone,
        "SIGTERM until the process has ended": one.until_ended,
        "exec until the kubelet has every device": one.until_back,
        "in between, when pods are rejected": one.window,
    }
    cells = tuple((name, *_spread(values, 0)) for name, values in rows.items())
    return Grid(
        f"{one.rounds} restarts of the agent, registered by way of {one.way}", ("ms", *_PERCENTILES), cells
    )


def _spread(values: Sequence[float], digits: int) -> tuple[str, ...]:
    found = spread(values)
    return tuple(f"{value:.{digits}f}" for value in (found.p50, found.p95, found.p99))
