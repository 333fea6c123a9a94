"""Orchestrator: how long ADD and DEL take on this machine, and how much of it is the move of the VF."""

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from hw_tests.nics import Nic
from hw_tests.node import Node
from hw_tests.runtime import IFNAME, Pod, host_local, network
from hw_tests.stage import Stage
from vf_manager.discovery import find_link, host_link
from vf_manager.kernel.linux import LinuxKernel
from vf_manager.model import IfName, PciAddress

RUNS = 21
CONF = network("timing", vlan=100, trust="on", ipam=host_local({"subnet": "198.18.11.0/24"}))


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Medians in milliseconds. `add` and `del_` are what a runtime waits for; `executable` is the part of
    both that it takes to start it (VERSION, which it answers by itself). A move is one netlink message."""

    runs: int
    config: dict[str, Any]
    add: float
    del_: float = msgspec.field(name="del")
    executable: float
    move_in: float
    move_back: float
    steps: dict[str, float]

    @property
    def move_share_of_add(self) -> float:
        return self.move_in / self.add

    @property
    def move_share_of_del(self) -> float:
        return self.move_back / self.del_


def measure(stage: Stage, nic: Nic) -> Timing:
    node, pod = stage.node, stage.pod("timing")
    vf = stage.allocate(pod, nic)
    log_start = node.log.stat().st_size
    adds, dels, executables = [], [], []
    for _ in range(RUNS):
        adds.append(stage.attach(pod, CONF, vf).seconds)
        dels.append(stage.detach(pod).seconds)
        executables.append(node.runtime.version().seconds)
    into, back = _measure_moves(pod, PciAddress(vf))
    return Timing(
        runs=RUNS,
        config=CONF,
        add=_median_ms(adds),
        del_=_median_ms(dels),
        executable=_median_ms(executables),
        move_in=_median_ms(into),
        move_back=_median_ms(back),
        steps=steps(node, log_start),
    )


def write(timing: Timing, target: Path) -> None:
    shares = {"move_share_of_add": timing.move_share_of_add, "move_share_of_del": timing.move_share_of_del}
    target.write_text(json.dumps(msgspec.to_builtins(timing) | shares, indent=2) + "\n")


def render(timing: Timing) -> list[str]:
    """Lines of a small table."""
    rows = [
        ("ADD", timing.add, ""),
        ("  the move into the pod", timing.move_in, f"{timing.move_share_of_add:.0%} of ADD"),
        ("DEL", timing.del_, ""),
        ("  the move back", timing.move_back, f"{timing.move_share_of_del:.0%} of DEL"),
        ("starting the executable", timing.executable, "part of both"),
        *((f"agent: {step}", duration, "") for step, duration in timing.steps.items()),
    ]
    head = f"medians of {timing.runs}, vlan + trust + host-local"
    return [head, *(f"{what:<64}{ms:8.1f} ms  {note}".rstrip() for what, ms, note in rows)]


def _measure_moves(pod: Pod, vf: PciAddress) -> tuple[list[float], list[float]]:
    """The message alone, in both directions; the VF ends on the host under the name it had."""
    kernel = LinuxKernel()
    there = kernel.netns_at(str(pod.path))
    assert there is not None
    into, back, here = [], [], kernel.host_netns()
    with kernel.links() as host, kernel.links(there) as inside:
        for _ in range(RUNS):
            netdev = host_link(kernel, host, vf)
            assert netdev is not None
            into.append(_timed(partial(host.move, netdev.ifindex, there, IfName(IFNAME))))
            moved = find_link(inside, vf)
            assert moved is not None
            back.append(_timed(partial(inside.move, moved.ifindex, here, netdev.name)))
    there.close()
    here.close()
    return into, back


def _timed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def steps(node: Node, log_start: int) -> dict[str, float]:
    """Medians in milliseconds. The agent logs each step before it acts: from one line to the next is the
    step's own time."""
    found: dict[str, list[float]] = defaultdict(list)
    last: tuple[str, datetime] | None = None
    for event in node.log_events(log_start):
        now = datetime.fromisoformat(event["timestamp"])
        if last is not None:
            found[last[0]].append((now - last[1]).total_seconds())
        do, undo = event.get("do"), event.get("undo")
        last = (f"do: {do}" if do else f"undo: {undo}", now) if do or undo else None
    return {step: _median_ms(times) for step, times in found.items()}


def _median_ms(seconds: list[float]) -> float:
    return round(statistics.median(seconds) * 1000, 1)
