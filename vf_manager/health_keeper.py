"""Orchestrator: the health of every VF over time: Unhealthy at once, Healthy again only after a while.

A VF that was Healthy and fell ill must be without a fault for `HOLD_S` before it counts as Healthy again. If
it falls ill once more within `CALM_S` of that, the time doubles, up to `MAX_HOLD_S`: no pod is sent to what
flaps. One that never was Healthy yet (it is just being made, its wire just comes up) need not wait.
"""

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence, Set

import msgspec

from vf_manager.health import Expected, Facts, Fault, HealthReason, find_faults, why_left
from vf_manager.model import PciAddress, Vf

HOLD_S = 2.0
MAX_HOLD_S = 64.0
CALM_S = 60.0
_EVENTS = 512  # a PF of 256 VFs that goes and comes

Key = tuple[str, PciAddress]  # a pool and one of its VFs


class HealthEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One transition. `when`: seconds since the epoch. `reason`, `text`: of the fault that is there, or that
    was."""

    when: float
    pool: str
    vf: PciAddress
    healthy: bool
    reason: HealthReason
    text: str


@dataclasses.dataclass
class _Standing:
    """Of one VF in one pool. `fault` is the last one, also while it is only waited whether it comes back."""

    vf: Vf
    fault: Fault | None = None
    was_healthy: bool = False
    good_since: float | None = None  # only while it is Unhealthy
    recovered_at: float | None = None
    hold_s: float = 0.0
    left_at: float | None = None  # its pool

    def wait_s(self) -> float:
        return self.hold_s if self.was_healthy else 0.0


class HealthKeeper:
    """One thread at a time. `clock` measures time, `wall` dates the events."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        *,
        hold_s: float = HOLD_S,
    ) -> None:
        self._hold_s = hold_s
        self._clock = clock
        self._wall = wall
        self._standings: dict[Key, _Standing] = {}
        self._transitions: Counter[tuple[str, HealthReason, bool]] = Counter()
        self._events: deque[HealthEvent] = deque(maxlen=_EVENTS)

    def look(
        self, members: Mapping[str, Sequence[Vf]], expected: Mapping[str, Expected], facts: Facts
    ) -> list[HealthEvent]:
        """Take in the facts of this moment; returns the transitions that they make. `members`: the VFs of
        each pool, `expected`: of each pool."""
        now = self._clock()
        faults = find_faults(members, expected, facts)
        left = self._find_left(faults.keys(), members.keys(), facts, now)
        self._standings = {k: s for k, s in self._standings.items() if k in faults or k in left}
        for pool, vfs in members.items():
            for vf in vfs:
                standing = self._standings.setdefault((pool, vf.pci), _Standing(vf))
                standing.vf, standing.left_at = vf, None
        taken = (self._take(key, fault, now) for key, fault in (faults | left).items())
        events = [event for event in taken if event is not None]
        self._events.extend(events)
        return events

    def unhealthy(self) -> dict[str, dict[PciAddress, str]]:
        """Those that are Unhealthy, by pool, with the reason."""
        found: dict[str, dict[PciAddress, str]] = {}
        for (pool, vf), standing in self._standings.items():
            if standing.fault is not None:
                found.setdefault(pool, {})[vf] = _reason(standing)
        return found

    def next_look_s(self) -> float | None:
        """In how many seconds a VF is due to be Healthy again, if its fault does not come back."""
        ill = [s for s in self._standings.values() if s.fault]
        due = [s.good_since + s.wait_s() for s in ill if s.good_since is not None]
        return max(0.0, min(due) - self._clock()) if due else None

    def events(self) -> tuple[HealthEvent, ...]:
        """The last transitions, oldest first."""
        return tuple(self._events)

    def transitions(self) -> dict[tuple[str, HealthReason, bool], int]:
        """How often since the start: by pool, reason, and whether it became Healthy."""
        return dict(self._transitions)

    def _find_left(
        self, there: Set[Key], pools: Set[str], facts: Facts, now: float
    ) -> dict[Key, Fault | None]:
        """Those that left a pool that is still there because something is wrong with them, not long ago."""
        left: dict[Key, Fault | None] = {}
        for key, standing in self._standings.items():
            if key in there or key[0] not in pools:
                continue
            standing.left_at = now if standing.left_at is None else standing.left_at
            fault = why_left(standing.vf, facts.inventory)
            if fault is not None and now - standing.left_at < CALM_S:
                left[key] = fault
        return left

    def _take(self, key: Key, fault: Fault | None, now: float) -> HealthEvent | None:
        standing = self._standings[key]
        if fault is not None:
            return self._fall_ill(key, standing, fault, now)
        if standing.fault is None:
            standing.was_healthy = True
            return None
        if standing.good_since is None:
            standing.good_since = now
        if now - standing.good_since < standing.wait_s():
            return None
        ended, standing.fault, standing.good_since = standing.fault, None, None
        standing.was_healthy, standing.recovered_at = True, now
        return self._event(key, ended, healthy=True)

    def _fall_ill(self, key: Key, standing: _Standing, fault: Fault, now: float) -> HealthEvent | None:
        """Another reason than before is told too: it is what one has to look after."""
        before, standing.fault, standing.good_since = standing.fault, fault, None
        if before is None:
            recently = standing.recovered_at is not None and now - standing.recovered_at < CALM_S
            standing.hold_s = min(2 * standing.hold_s, MAX_HOLD_S) if recently else self._hold_s
        if before is not None and before.reason is fault.reason:
            return None
        return self._event(key, fault, healthy=False)

    def _event(self, key: Key, fault: Fault, *, healthy: bool) -> HealthEvent:
        pool, vf = key
        self._transitions[pool, fault.reason, healthy] += 1
        return HealthEvent(
            when=self._wall(), pool=pool, vf=vf, healthy=healthy, reason=fault.reason, text=fault.text
        )


def _reason(standing: _Standing) -> str:
    assert standing.fault is not None
    if standing.good_since is None:
        return standing.fault.text
    return f"until a moment ago {standing.fault.text}"
