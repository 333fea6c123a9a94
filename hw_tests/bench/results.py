"""Pure: what a run measured, and percentiles. Times are in milliseconds."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

OURS, OTHERS, FLOOR = "sriov-underlay", "host-device + host-local", "kernel floor"
CONTENDERS = (OURS, OTHERS, FLOOR)
ADD, DEL = "ADD", "DEL"
VERBS = (ADD, DEL)

Samples = dict[str, dict[str, list[float]]]  # contender -> verb -> one number per call


class Spread(msgspec.Struct, frozen=True):
    """Percentiles of `n` calls."""

    n: int
    p50: float
    p95: float
    p99: float


class Step(msgspec.Struct, frozen=True):
    """One part of a call, its median."""

    name: str
    p50: float


class Memory(msgspec.Struct, frozen=True):
    """Resident set of the agent in MiB, at its start and after so many cycles of ADD and DEL."""

    cycles: int
    at_start: float
    warm: float
    in_the_end: float

    @property
    def growth(self) -> float:
        """Since it was warm: what a leak would show in."""
        return self.in_the_end - self.warm


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One place. `burst` has the calls of all VFs at once; `burst_wall` how long until the last had its
    answer. `steps`: contender -> verb -> its parts."""

    place: str
    kernel: str
    cpus: int
    load: float
    vfs: int
    sequential: Samples
    burst: Samples
    burst_wall: Samples
    steps: dict[str, dict[str, list[Step]]]
    memory: Memory | None = None


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """Looks of the inventory at one node: how long each took, and what each asked of the kernel."""

    pfs: int
    vfs: int
    ms: list[float]
    netlink_requests: int
    sysfs_reads: int


class Looks(msgspec.Struct, frozen=True, kw_only=True):
    """One place, with more and more VFs."""

    place: str
    kernel: str
    cpus: int
    load: float
    looks: list[Look]


class Restarts(msgspec.Struct, kw_only=True):
    """Of the agent, as the kubelet sees them; a time for each. `until_gone`: from SIGTERM until no device can
    be had; `until_ended`: until the process is gone; `until_back`: from exec until all can be had again;
    `window`: in which pods that ask for one are rejected."""

    way: str
    rounds: int
    until_gone: list[float] = []
    until_ended: list[float] = []
    until_back: list[float] = []
    window: list[float] = []


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two closest ranks. Of nothing: 0."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values: Sequence[float]) -> Spread:
    return Spread(len(values), *(percentile(values, percent) for percent in (50, 95, 99)))


def ratio(samples: Samples, verb: str, one: str, other: str) -> float | None:
    """Median over median; None if either was not measured."""
    above, below = (percentile(samples.get(who, {}).get(verb, []), 50) for who in (one, other))
    return above / below if above and below else None


def median_steps(calls: Iterable[Sequence[tuple[str, float]]]) -> list[Step]:
    """Calls as lists of (part, duration) to the median of each part, in the order of their appearance."""
    found: dict[str, list[float]] = {}
    for call in calls:
        for name, duration in call:
            found.setdefault(name, []).append(duration)
    return [Step(name, percentile(durations, 50)) for name, durations in found.items()]


def to_json(
    measured: Sequence[Measured],
    looks: Sequence[Looks] = (),
    restarts: Sequence[Restarts] = (),
    in_pod: msgspec.Struct | None = None,
) -> bytes:
    """Everything measured, with the percentiles that the table shows. `in_pod`: see in_pod_results.py."""
    places = [msgspec.to_builtins(one) | {"summary": _summary(one)} for one in measured]
    inventory = [
        msgspec.to_builtins(one) | {"summary": [spread(look.ms) for look in one.looks]} for one in looks
    ]
    document = {
        "unit": "ms",
        "places": places,
        "inventory": inventory,
        "restarts": restarts,
        "in_pod": in_pod,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _summary(one: Measured) -> dict[str, Any]:
    kinds = {"sequential": one.sequential, "burst": one.burst, "burst_wall": one.burst_wall}
    return {
        kind: {
            who: {verb: msgspec.to_builtins(spread(values)) for verb, values in verbs.items()}
            for who, verbs in samples.items()
        }
        for kind, samples in kinds.items()
    } | {
        "ratios": {
            verb: {
                "to_floor": ratio(one.sequential, verb, OURS, FLOOR),
                "to_others": ratio(one.sequential, verb, OURS, OTHERS),
            }
            for verb in VERBS
        }
    }
