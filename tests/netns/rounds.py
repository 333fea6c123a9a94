"""Pure: rounds of calls that are made while states change, and which of them went astray.

Every state has a number. Which one was in force when a call was judged is not known, only that it was none
before `first` and none after `last` of its round.
"""

from collections.abc import Callable, Iterable, Set
from functools import cache
from typing import NamedTuple

from tests.netns.segment import Call


class Arrival(NamedTuple):
    """`address`, `port`: where the call came to. Those that were called, if no service is between."""

    call: Call
    address: str
    port: int


class Round(NamedTuple):
    """Calls that were made, and had come to their end, while the states from `first` to `last` were in force
    or were being put in force."""

    first: int
    last: int
    made: frozenset[Call]
    arrived: frozenset[Arrival]


class Expected(NamedTuple):
    """`may`: what some state lets through. `must`: what all of them let through."""

    may: Set[Arrival]
    must: Set[Call]


class Astray(NamedTuple):
    leaked: list[tuple[Round, Arrival]]
    lost: list[tuple[Round, Call]]


def find_astray(rounds: Iterable[Round], expect: Callable[[int, int], Expected]) -> Astray:
    """`expect`: by the first and the last state."""
    found, known = Astray([], []), cache(expect)
    for one in rounds:
        expected = known(one.first, one.last)
        found.leaked.extend((one, arrival) for arrival in one.arrived - expected.may)
        found.lost.extend((one, call) for call in (expected.must & one.made) - {a.call for a in one.arrived})
    return found


def straight(call: Call) -> Arrival:
    return Arrival(call, call.destination, call.port)
