"""Orchestrator: all measurements at one place: python -m hw_tests.bench.measure --place native --out DIR

The contenders take turns within each round, so that whatever else the machine does hits all of them alike.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from hw_tests.bench.agent_process import AgentProcess, running_agent
from hw_tests.bench.breakdown import read_steps
from hw_tests.bench.contenders import Contender, Floor, HostDevice, Ours, Slot
from hw_tests.bench.places import PLACES, Place, slots_of
from hw_tests.bench.results import (
    ADD,
    CONTENDERS,
    DEL,
    FLOOR,
    OTHERS,
    OURS,
    VERBS,
    Measured,
    Memory,
    Samples,
    Step,
    median_steps,
)

_WARM_ROUNDS = 2
# Before each call: long enough for what the call before left to the kernel, and out of step with its
# clock. Moves wait for grace periods, and those that followed each other at once took up to 2 ms less.
_PAUSE_S = (0.02, 0.04)
_WARM_CYCLES = 100


class Plan(msgspec.Struct, frozen=True):
    """How much of everything. A round is one ADD and DEL by each contender."""

    rounds: int
    bursts: int
    breakdowns: int
    memory_cycles: int


PLANS = {"native": Plan(120, 8, 30, 1000), "rig": Plan(28, 3, 10, 0)}


def measure(place: Place, plan: Plan, folder: Path) -> Measured:
    load = os.getloadavg()[0]
    with running_agent(folder / "agent", place.config, env=place.env) as agent, slots_of(place) as slots:
        rss = agent.rss_mib()
        with _contenders(agent, slots, folder) as (contenders, floor):
            _say(f"{place.name}: {plan.rounds} rounds, one call after the other")
            _rounds(contenders, slots, _WARM_ROUNDS, place.settle)
            for parts in floor.calls.values():
                parts.clear()
            sequential = _rounds(contenders, slots, plan.rounds, place.settle)
            floor_steps = {verb: median_steps(floor.calls[verb]) for verb in VERBS}
            _say(f"{place.name}: {plan.bursts} bursts of {len(slots)} calls")
            burst, wall = _bursts(contenders, slots, plan.bursts, place.settle)
            memory = _memory(agent, contenders[OURS], slots, rss, plan.memory_cycles)
    return Measured(
        place=place.name,
        kernel=os.uname().release,
        cpus=os.cpu_count() or 1,
        load=load,
        vfs=len(slots),
        sequential=sequential,
        burst=burst,
        burst_wall=wall,
        steps={OURS: _breakdown(place, plan.breakdowns, folder), FLOOR: floor_steps},
        memory=memory,
    )


@contextmanager
def _contenders(
    agent: AgentProcess, slots: Sequence[Slot], folder: Path
) -> Iterator[tuple[dict[str, Contender], Floor]]:
    floor = Floor(slots)
    try:
        ours, others = Ours(agent.runtime, folder / "leases-ours"), HostDevice(folder / "leases-others")
        yield {OURS: ours, OTHERS: others, FLOOR: floor}, floor
    finally:
        floor.close()


def _rounds(
    contenders: dict[str, Contender], slots: Sequence[Slot], rounds: int, settle: Callable[[], None]
) -> Samples:
    samples = _no_samples()
    for number in range(rounds):
        slot = slots[number % len(slots)]
        for who, contender in contenders.items():
            for verb, call in ((ADD, contender.add), (DEL, contender.delete)):
                time.sleep(random.uniform(*_PAUSE_S))
                samples[who][verb].append(call(slot))
            settle()
    return samples


def _bursts(
    contenders: dict[str, Contender], slots: Sequence[Slot], bursts: int, settle: Callable[[], None]
) -> tuple[Samples, Samples]:
    each, wall = _no_samples(), _no_samples()
    with ThreadPoolExecutor(len(slots)) as pool:
        for _ in range(bursts):
            for who, contender in contenders.items():
                for verb, call in ((ADD, contender.add), (DEL, contender.delete)):
                    began = time.monotonic()
                    each[who][verb] += pool.map(call, slots)
                    wall[who][verb].append((time.monotonic() - began) * 1000)
                settle()
    return each, wall


def _memory(
    agent: AgentProcess, ours: Contender, slots: Sequence[Slot], at_start: float, cycles: int
) -> Memory | None:
    """Cycles by all VFs at once, as many as there are."""
    if not cycles:
        return None
    _say(f"memory of the agent over {cycles} cycles")

    def cycle(slot: Slot) -> None:
        ours.add(slot)
        ours.delete(slot)

    def run(count: int) -> None:
        list(pool.map(cycle, [slots[n % len(slots)] for n in range(count)]))

    with ThreadPoolExecutor(len(slots)) as pool:
        run(_WARM_CYCLES)
        warm = agent.rss_mib()
        run(cycles)
    return Memory(cycles, at_start, warm, agent.rss_mib())


def _breakdown(place: Place, calls: int, folder: Path) -> dict[str, list[Step]]:
    """With an agent that logs each step, which costs it a little: not the one whose times are compared."""
    folder = folder / "logging"
    with (
        running_agent(folder, place.config, log_level="debug", env=place.env) as agent,
        slots_of(place) as slots,
    ):
        ours = Ours(agent.runtime, folder / "leases-ours")
        seen = _rounds({OURS: ours}, slots, calls, place.settle)[OURS]
        return read_steps(agent.events(), seen)


def _no_samples() -> Samples:
    return {who: {verb: [] for verb in VERBS} for who in CONTENDERS}


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m hw_tests.bench.measure")
    parser.add_argument("--place", choices=PLACES, required=True)
    parser.add_argument("--rounds", type=int, default=0, help="0: as many as usual")
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("RIG_OUT", ".")), help="folder for <place>.json"
    )
    options = parser.parse_args(arguments)
    plan = PLANS[options.place]
    if options.rounds:
        plan = msgspec.structs.replace(plan, rounds=options.rounds)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir="/run"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        found = measure(stack.enter_context(PLACES[options.place](folder)), plan, folder)
    (options.out / f"{options.place}.json").write_bytes(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
