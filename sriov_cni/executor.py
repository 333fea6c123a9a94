"""Orchestrator: runs the steps of an attachment forwards or backwards, and logs each before it acts."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from sriov_cni.ground import Ground
from sriov_cni.steps import Step
from vf_manager.errors import SriovError

Checkpoint = Callable[[str], None]  # called with the name of each point a crash may hit; tests die there


class Way(StrEnum):
    APPLY = "apply"
    UNDO = "undo"


class StepObserver(Protocol):
    """Told of each step that ended: its kind, how long it took, and whether an error ended it."""

    def __call__(self, step: str, way: Way, seconds: float, *, failed: bool) -> None: ...


def no_checkpoint(_: str) -> None:
    """What production runs with."""


def unobserved(step: str, way: Way, seconds: float, *, failed: bool) -> None:
    """Nobody wants to know."""


def apply_steps(
    steps: Sequence[Step],
    ground: Ground,
    log: FilteringBoundLogger,
    checkpoint: Checkpoint = no_checkpoint,
    observe: StepObserver = unobserved,
) -> None:
    """In order; the first error ends it and comes out. Taking back what was done is the caller's."""
    for number, step in enumerate(steps):
        log.debug("step", do=step.describe(), kind=type(step).__name__)
        checkpoint(f"apply {number}")
        with _timed(step, Way.APPLY, observe):
            step.apply(ground)
        checkpoint(f"applied {number}")
    log.debug("steps done")


def undo_steps(
    steps: Sequence[Step],
    ground: Ground,
    log: FilteringBoundLogger,
    checkpoint: Checkpoint = no_checkpoint,
    observe: StepObserver = unobserved,
) -> list[SriovError]:
    """In reverse order, past errors: each step gets its chance. Returns what could not be undone."""
    failures: list[SriovError] = []
    for number, step in reversed(list(enumerate(steps))):
        log.debug("step", undo=step.describe(), kind=type(step).__name__)
        checkpoint(f"undo {number}")
        try:
            with _timed(step, Way.UNDO, observe):
                step.undo(ground)
        except SriovError as e:
            log.warning("step could not be undone", undo=step.describe(), error=str(e))
            failures.append(e)
        checkpoint(f"undone {number}")
    log.debug("steps done")
    return failures


@contextmanager
def _timed(step: Step, way: Way, observe: StepObserver) -> Iterator[None]:
    began, failed = time.perf_counter(), True
    try:
        yield
        failed = False
    finally:
        observe(type(step).__name__, way, time.perf_counter() - began, failed=failed)
