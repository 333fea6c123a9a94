"""Orchestrator: runs the steps of an attachment forwards or backwards, and logs each before it acts."""

from collections.abc import Callable, Sequence

from structlog.typing import FilteringBoundLogger

from sriov_cni.ground import Ground
from sriov_cni.steps import Step
from vf_manager.errors import SriovError

Checkpoint = Callable[[str], None]  # called with the name of each point a crash may hit; tests die there


def no_checkpoint(_: str) -> None:
    """What production runs with."""


def apply_steps(
    steps: Sequence[Step], ground: Ground, log: FilteringBoundLogger, checkpoint: Checkpoint = no_checkpoint
) -> None:
    """In order; the first error ends it and comes out. Taking back what was done is the caller's."""
    for number, step in enumerate(steps):
        log.debug("step", do=step.describe(), kind=type(step).__name__)
        checkpoint(f"apply {number}")
        step.apply(ground)
        checkpoint(f"applied {number}")
    log.debug("steps done")


def undo_steps(
    steps: Sequence[Step], ground: Ground, log: FilteringBoundLogger, checkpoint: Checkpoint = no_checkpoint
) -> list[SriovError]:
    """In reverse order, past errors: each step gets its chance. Returns what could not be undone."""
    failures: list[SriovError] = []
    for number, step in reversed(list(enumerate(steps))):
        log.debug("step", undo=step.describe(), kind=type(step).__name__)
        checkpoint(f"undo {number}")
        try:
            step.undo(ground)
        except SriovError as e:
            log.warning("step could not be undone", undo=step.describe(), error=str(e))
            failures.append(e)
        checkpoint(f"undone {number}")
    log.debug("steps done")
    return failures
