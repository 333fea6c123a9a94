"""Pure: whether the API server answers, by what those find who ask it. Nobody asks it for this alone."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum
from http import HTTPStatus

import msgspec

from node_agent.api_errors import ApiServerError


class Answer(StrEnum):
    """What came of a question."""

    SUCCESS = "success"
    FORBIDDEN = "forbidden"  # a right or the credentials are missing: every such question ends so
    REFUSED = "refused"  # this one: no such object, or it is there already
    BUSY = "busy"
    UNREACHABLE = "unreachable"


class ContactState(msgspec.Struct, frozen=True):
    """`reachable`: None before the first answer or failure. `since`: seconds since the epoch. `answers`: how
    many since the start, each kind with its number."""

    reachable: bool | None
    since: float
    answers: Mapping[Answer, int]


class ApiContact:
    """Thread-safe."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._guard = threading.Lock()
        self._reachable: bool | None = None
        self._since = wall()
        self._answers = Counter(dict.fromkeys(Answer, 0))

    def note(self, failure: ApiServerError | None) -> None:
        """A question has ended; None: well."""
        answer, reachable = answer_of(failure), failure is None or not failure.is_away
        with self._guard:
            self._answers[answer] += 1
            if reachable != self._reachable:
                self._reachable, self._since = reachable, self._wall()

    def state(self) -> ContactState:
        with self._guard:
            return ContactState(self._reachable, self._since, dict(self._answers))


def answer_of(failure: ApiServerError | None) -> Answer:
    if failure is None:
        return Answer.SUCCESS
    if failure.status is None:
        return Answer.UNREACHABLE
    if failure.is_away:
        return Answer.BUSY
    forbidden = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
    return Answer.FORBIDDEN if failure.status in forbidden else Answer.REFUSED
