"""The pure parts of the benchmark: percentiles, the agent's log as parts of a call, table, plot."""

import json
from xml.etree import ElementTree

import pytest

from hw_tests.bench.breakdown import read_steps
from hw_tests.bench.plot import render_svg
from hw_tests.bench.results import (
    ADD,
    DEL,
    FLOOR,
    OTHERS,
    OURS,
    Look,
    Looks,
    Measured,
    Memory,
    Restarts,
    Samples,
    Step,
    median_steps,
    percentile,
    ratio,
    spread,
    to_json,
)
from hw_tests.bench.table import render_looks, render_restarts, render_table

SAMPLES: Samples = {
    OURS: {ADD: [30.0, 32.0, 31.0], DEL: [20.0, 20.0, 20.0]},
    OTHERS: {ADD: [62.0, 62.0, 62.0], DEL: [40.0, 40.0, 40.0]},
    FLOOR: {ADD: [25.0, 25.0, 25.0], DEL: [16.0, 16.0, 16.0]},
}
MEASURED = Measured(
    place="native",
    kernel="6.1.0",
    cpus=2,
    load=0.5,
    vfs=14,
    sequential=SAMPLES,
    burst=SAMPLES,
    burst_wall=SAMPLES,
    steps={OURS: {ADD: [Step("step MoveToPod", 25.0), Step("small", 0.01)], DEL: []}},
    memory=Memory(1000, 50.0, 55.0, 55.5),
)


LOOKS = Looks(
    place="native",
    kernel="6.1.0",
    cpus=2,
    load=0.5,
    looks=[
        Look(pfs=1, vfs=1, ms=[1.0], netlink_requests=6, sysfs_reads=40),
        Look(pfs=1, vfs=256, ms=[20.0, 18.0, 22.0], netlink_requests=6, sysfs_reads=3100),
    ],
)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([], 50, 0.0),
        ([7.0], 99, 7.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([1.0, 2.0], 50, 1.5),
        ([float(n) for n in range(101)], 95, 95.0),
        ([0.0, 10.0], 99, 9.9),
    ],
)
def test_percentiles_lie_between_the_closest_ranks(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == pytest.approx(expected)


def test_a_spread_knows_how_many() -> None:
    found = spread([5.0, 1.0, 3.0])
    assert (found.n, found.p50) == (3, 3.0)


def test_a_ratio_is_of_medians_or_is_none() -> None:
    assert ratio(SAMPLES, ADD, OURS, OTHERS) == 0.5
    assert ratio(SAMPLES, ADD, OURS, "nobody") is None


def test_steps_are_medians_in_the_order_of_their_coming() -> None:
    calls = [[("b", 1.0), ("a", 2.0)], [("b", 3.0)], [("b", 2.0), ("a", 4.0)]]
    assert median_steps(calls) == [Step("b", 2.0), Step("a", 3.0)]


def test_the_log_of_the_agent_becomes_the_parts_of_each_call() -> None:
    events = [
        {"event": "ready", "timestamp": "2026-01-01T00:00:00.000000Z"},
        {"event": "call", "command": "STATUS", "timestamp": "2026-01-01T00:00:01.000000Z"},
        {"event": "answer", "timestamp": "2026-01-01T00:00:01.001000Z"},
        {"event": "call", "command": "ADD", "timestamp": "2026-01-01T00:00:02.000000Z"},
        {"event": "step", "kind": "MoveToPod", "timestamp": "2026-01-01T00:00:02.002000Z"},
        {"event": "inventory changed", "timestamp": "2026-01-01T00:00:02.012000Z"},
        {"event": "attached", "timestamp": "2026-01-01T00:00:02.022000Z"},
        {"event": "answer", "timestamp": "2026-01-01T00:00:02.022500Z"},
        {"event": "a line of somebody else", "timestamp": "2026-01-01T00:00:03.000000Z"},
    ]
    found = read_steps(events, {ADD: [25.0], DEL: []})
    assert [round(step.p50, 3) for step in found[ADD]] == [2.0, 20.0, 0.5, 2.5]
    assert [step.name for step in found[ADD]][1] == "step MoveToPod"
    assert found[DEL] == []


def test_a_log_that_lacks_a_call_is_an_error() -> None:
    with pytest.raises(ValueError, match="longer"):
        read_steps([], {ADD: [25.0], DEL: []})


def test_the_table_shows_medians_ratios_steps_and_memory() -> None:
    lines = render_table(MEASURED)
    row = next(line for line in lines if line.startswith(f"  ADD  {OURS}"))
    assert row.split()[-4:] == ["1.24", "x", "0.50", "x"]
    assert "31.0" in row
    assert any("step MoveToPod" in line and "25.00" in line for line in lines)
    assert any("1 parts of less than" in line for line in lines)
    assert any("55.5 after 1000 cycles" in line and "(+0.5)" in line for line in lines)
    assert all(len(line) <= 110 for line in lines)


def test_restarts_have_a_line_for_each_part() -> None:
    one = Restarts(
        way="legacy", rounds=1, until_gone=[4.0], until_ended=[9.0], until_back=[400.0], window=[405.0]
    )
    title, *lines = render_restarts([one])
    assert "1 restarts of the agent, registered by way of legacy" in title
    assert [line.split()[-3] for line in lines if line] == ["4", "9", "400", "405"]
    assert json.loads(to_json([], (), [one]))["restarts"][0]["window"] == [405.0]


def test_the_plot_is_an_image_with_a_bar_for_each_number() -> None:
    image = ElementTree.fromstring(render_svg([MEASURED]))
    bars = [
        bar
        for panel in image.iter("{http://www.w3.org/2000/svg}g")
        for bar in panel.iter("{http://www.w3.org/2000/svg}rect")
    ]
    assert len(bars) == 2 * 2 * 3
    assert all(float(bar.attrib["height"]) > 0 for bar in bars)


def test_the_plot_of_nothing_is_an_image_too() -> None:
    ElementTree.fromstring(render_svg([]))


def test_looks_of_the_inventory_are_lines_of_a_table() -> None:
    title, _, head, one, many, _ = render_looks(LOOKS)
    assert title.startswith("native: looks of the inventory")
    assert one.split() == ["1", "1", "1.0", "1.0", "1.0", "6", "40"]
    assert many.split() == ["1", "256", "20.0", "21.8", "22.0", "6", "3100"]
    assert head.index("requests") + len("requests") == many.index(" 6 ") + len(" 6")
    assert head.index("reads") + len("reads") == len(many)


def test_the_json_has_looks() -> None:
    (place,) = json.loads(to_json([], [LOOKS]))["inventory"]
    assert [look["vfs"] for look in place["looks"]] == [1, 256]
    assert [summary["p50"] for summary in place["summary"]] == [1.0, 20.0]


def test_the_json_has_samples_and_summary() -> None:
    (place,) = json.loads(to_json([MEASURED]))["places"]
    assert place["sequential"][OURS][ADD] == [30.0, 32.0, 31.0]
    assert place["summary"]["sequential"][OURS][ADD]["p50"] == 31.0
    assert place["summary"]["ratios"][ADD] == {"to_floor": 1.24, "to_others": 0.5}
