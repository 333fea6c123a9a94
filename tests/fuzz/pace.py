"""How long a property is tried, and how long one example may take.

FUZZ_SECONDS (default 90) is the time for all of tests/fuzz; each test takes its share of it. With FUZZ_SEED
the inputs are the same each time, otherwise each run has its own. What fails is printed with the line that
repeats it (`@reproduce_failure`).
"""

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import hypothesis
from hypothesis import HealthCheck, Phase

TOTAL_S = float(os.environ.get("FUZZ_SECONDS", "90"))
SEED = os.environ.get("FUZZ_SEED")
EXAMPLE_S = 10.0  # far above what any takes on a busy machine

# Rounds of new examples: a derandomized profile (hypothesis has one for CI) would repeat the same ones.
round_of_examples = hypothesis.settings(
    max_examples=150,
    derandomize=False,
    deadline=None,
    print_blob=True,
    phases=[phase for phase in Phase if phase is not Phase.explain],  # that one traces every line
    suppress_health_check=list(HealthCheck),
)
if SEED is not None:  # nor the failures of earlier runs
    round_of_examples = hypothesis.settings(round_of_examples, database=None)


class Hang(Exception):
    """One example took far too long."""


def keep_trying(share: float, prop: Callable[[], None]) -> None:
    """Rounds of examples of `prop`, a function under `@given`, for this share of the time; one at least."""
    end = time.monotonic() + share * TOTAL_S
    for number in itertools.count():
        if SEED is not None:
            hypothesis.seed(f"{SEED}.{number}")(prop)
        prop()
        if time.monotonic() >= end:
            return


@contextmanager
def no_hang(seconds: float = EXAMPLE_S) -> Iterator[None]:
    """Raises Hang in the middle of what does not end. For the main thread."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
