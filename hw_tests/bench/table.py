"""Pure: what was measured as a table for a terminal."""

from collections.abc import Iterator, Sequence

from hw_tests.bench.results import (
    CONTENDERS,
    FLOOR,
    OTHERS,
    VERBS,
    Look,
    Looks,
    Measured,
    Restarts,
    Samples,
    Step,
    ratio,
    spread,
)

_STEPS_SHOWN_FROM = 0.05  # ms


def render_table(one: Measured) -> list[str]:
    where = (
        f"{one.place}: {one.vfs} VFs, Linux {one.kernel}, {one.cpus} CPUs, load {one.load:.1f} at its start"
    )
    return [
        where,
        "=" * len(where),
        *_block("one after the other", one.sequential),
        *_block(f"burst of {one.vfs}, each call", one.burst),
        *_block(f"burst of {one.vfs}, until the last answer", one.burst_wall),
        *_steps(one),
        *_memory(one),
        "",
    ]


def render_looks(one: Looks) -> list[str]:
    where = f"{one.place}: looks of the inventory, Linux {one.kernel}, {one.cpus} CPUs, load {one.load:.1f}"
    head = "".join(f"{name:>9}" for name in ("p50", "p95", "p99"))
    rows = [_look_row(look) for look in one.looks]
    return [where, "=" * len(where), f"  PFs  VFs{head} (ms)  netlink requests   sysfs reads", *rows, ""]


def _look_row(look: Look) -> str:
    found = spread(look.ms)
    numbers = "".join(f"{value:9.1f}" for value in (found.p50, found.p95, found.p99))
    return f"{look.pfs:5}{look.vfs:5}{numbers}     {look.netlink_requests:18}{look.sysfs_reads:14}"


def render_restarts(restarts: Sequence[Restarts]) -> list[str]:
    lines = []
    for one in restarts:
        title = f"{one.rounds} restarts of the agent, registered by way of {one.way} (ms)"
        lines.append(f"{title:<64}" + "".join(f"{name:>9}" for name in ("p50", "p95", "p99")))
        for name, values in (
            ("SIGTERM until the kubelet has no device", one.until_gone),
            ("SIGTERM until the process has ended", one.until_ended),
            ("exec until the kubelet has every device", one.until_back),
            ("in between, when pods are rejected", one.window),
        ):
            found = spread(values)
            lines.append(f"  {name:<62}{found.p50:9.0f}{found.p95:9.0f}{found.p99:9.0f}")
        lines.append("")
    return lines


def _block(title: str, samples: Samples) -> Iterator[str]:
    if not samples:
        return
    head = f"{title} (ms)"
    columns = "".join(f"{name:>9}" for name in ("p50", "p95", "p99"))
    yield f"\n{head:<46}{'n':>6}{columns}{'/ floor':>10}{'/ others':>10}"
    for verb in VERBS:
        for who in CONTENDERS:
            if values := samples.get(who, {}).get(verb):
                yield _row(verb, who, values, samples)


def _row(verb: str, who: str, values: list[float], samples: Samples) -> str:
    found = spread(values)
    numbers = "".join(f"{value:9.1f}" for value in (found.p50, found.p95, found.p99))
    ratios = [_times(ratio(samples, verb, who, other)) for other in (FLOOR, OTHERS)]
    return f"  {verb}  {who:<39}{found.n:>6}{numbers}{ratios[0]:>10}{ratios[1]:>10}"


def _times(value: float | None) -> str:
    return f"{value:.2f} x" if value is not None else "-"


def _steps(one: Measured) -> Iterator[str]:
    for who, verbs in one.steps.items():
        for verb, steps in verbs.items():
            if steps:
                yield f"\nwhere the time of {verb} goes: {who} (median ms)"
                yield from _bars(steps)


def _bars(steps: list[Step]) -> Iterator[str]:
    most = max(step.p50 for step in steps) or 1.0
    small = [step.p50 for step in steps if step.p50 < _STEPS_SHOWN_FROM]
    for step in steps:
        if step.p50 >= _STEPS_SHOWN_FROM:
            yield f"  {step.name:<58}{step.p50:9.2f}  {'#' * round(step.p50 / most * 30)}".rstrip()
    if small:
        yield f"  {f'{len(small)} parts of less than {_STEPS_SHOWN_FROM} each':<58}{sum(small):9.2f}"


def _memory(one: Measured) -> Iterator[str]:
    if (found := one.memory) is not None:
        yield (
            f"\nmemory of the agent (MiB): {found.at_start:.1f} at its start, {found.warm:.1f} warm,"
            f" {found.in_the_end:.1f} after {found.cycles} cycles of ADD and DEL ({found.growth:+.1f})"
        )
