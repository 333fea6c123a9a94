"""Pure: how long to wait after the n-th failure in a row."""

import random
from collections.abc import Callable


class Backoff:
    """Twice as long each time, up to `most_s`, less a random part of up to a half: the agents of many nodes
    that lost the API server at one moment do not come back at one."""

    def __init__(self, first_s: float, most_s: float, fraction: Callable[[], float] = random.random) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._fraction = fraction
        self._failures = 0

    def failed(self) -> float:
        """Seconds until the next attempt."""
        whole_s = min(self._first_s * 2.0**self._failures, self._most_s)
        self._failures = min(self._failures + 1, 32)
        return whole_s * (1 - self._fraction() / 2)

    def worked(self) -> None:
        self._failures = 0
