"""Pure: the parts of each call, from the lines that the agent logs about it (level debug)."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from hw_tests.bench.results import ADD, DEL, Step, median_steps

_OUTSIDE = "outside of the agent: start of the executable, socket"
_PARTS = {
    "call": "parse, look at VF and record, open namespaces, intent",
    "steps done": "result, record",
    "attached": "render",
    "detached": "render",
}

_OF_OTHERS = ("inventory changed",)  # another thread's lines, at any moment

Part = tuple[str, float]


def read_steps(
    events: Sequence[dict[str, Any]], seen: Mapping[str, Sequence[float]]
) -> dict[str, list[Step]]:
    """`events` of calls made one after the other; `seen`: how long the caller waited for each, in ms."""
    calls: dict[str, list[list[Part]]] = {ADD: [], DEL: []}
    for command, lines in _split(events):
        if command in calls:
            calls[command].append(_parts(lines))
    for verb, found in calls.items():
        for parts, waited in zip(found, seen[verb], strict=True):
            parts.append((_OUTSIDE, max(0.0, waited - sum(duration for _, duration in parts))))
    return {verb: median_steps(found) for verb, found in calls.items()}


def durations_of(events: Sequence[dict[str, Any]], kind: str) -> list[float]:
    """Of the step of this kind in each ADD that has it, in ms."""
    calls = (_parts(lines) for command, lines in _split(events) if command == ADD)
    return [duration for parts in calls for name, duration in parts if name == f"step {kind}"]


def _split(events: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """From each `call` to its `answer`."""
    found: list[tuple[str, list[dict[str, Any]]]] = []
    for event in events:
        if event["event"] == "call":
            found.append((event["command"], [event]))
        elif event["event"] not in _OF_OTHERS and found and found[-1][1][-1]["event"] != "answer":
            found[-1][1].append(event)
    return found


def _parts(lines: Sequence[dict[str, Any]]) -> list[Part]:
    """Each line says what comes now: from one to the next is its own time."""
    times = [datetime.fromisoformat(line["timestamp"]).timestamp() * 1000 for line in lines]
    return [(_name(line), then - now) for line, now, then in zip(lines, times, times[1:], strict=False)]


def _name(line: dict[str, Any]) -> str:
    if line["event"] == "step":
        return f"step {line['kind']}"
    return _PARTS.get(line["event"], str(line["event"]))
