"""Pure: what `sriovctl plan` and `sriovctl apply` say, for programs and for people."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import assert_never

import msgspec

from vf_manager.apply import Failure
from vf_manager.model import Inventory, PciAddress
from vf_manager.provision import Plan, Refusal, RefusalKind
from vf_manager.provision_steps import (
    BindVf,
    SetAutoprobe,
    SetEswitchMode,
    SetNumVfs,
    SetPfMtu,
    SetPfUp,
    SetVfMac,
    SetVfMtu,
    Step,
    VfStep,
    describe,
    driver_word,
)
from vf_manager.provisioner import Outcome

Row = tuple[str, str, str]  # the PF ("" if it is that of the row above), "change", what


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`steps`: what would be done, or was (`done`). `missing`: a line about each PF that is not there."""

    done: bool
    steps: tuple[Step, ...] = ()
    pending: tuple[Refusal, ...] = ()
    refused: tuple[Refusal, ...] = ()
    failed: tuple[Failure, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def is_held_back(self) -> bool:
        return bool(self.pending or self.refused)


def report_of_plan(made: Plan, missing: tuple[str, ...]) -> Report:
    return Report(
        done=False,
        steps=made.steps,
        pending=tuple(r for r in made.refusals if r.kind is RefusalKind.PENDING),
        refused=tuple(r for r in made.refusals if r.kind is RefusalKind.REFUSED),
        missing=missing,
    )


def report_of_outcome(outcome: Outcome, missing: tuple[str, ...]) -> Report:
    return Report(
        done=True,
        steps=outcome.applied,
        pending=outcome.pending,
        refused=outcome.refused,
        failed=outcome.failed,
        missing=missing,
    )


def render_json(report: Report) -> str:
    """`steps` with a `text` for people each; `pending`, `refused`, `failed` by PF; `missing`."""
    steps = [{"text": describe(step)} | msgspec.to_builtins(step) for step in report.steps]
    document = msgspec.to_builtins(report) | {"steps": steps}
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def table_rows(report: Report, inventory: Inventory) -> list[Row]:
    """In the order of PFs. Steps that are the same for several VFs are one row."""
    labels = {pf.pci: pf.label for pf in inventory.pfs}
    rows: list[Row] = []
    for pf in sorted(_pfs_of(report)):
        first = labels.get(pf, pf)
        for state, what in _lines_of(report, pf):
            rows.append((first, state, what))
            first = ""
    return rows + [("", "missing", line) for line in report.missing]


def _pfs_of(report: Report) -> set[PciAddress]:
    parts = (report.steps, report.pending, report.refused, report.failed)
    return {entry.pf for part in parts for entry in part}


def _lines_of(report: Report, pf: PciAddress) -> Iterator[tuple[str, str]]:
    steps = [step for step in report.steps if step.pf == pf]
    for what in (*_pf_words(steps), *_vf_words([s for s in steps if isinstance(s, VfStep)])):
        yield "done" if report.done else "change", what
    for state, refusals in (("pending", report.pending), ("refused", report.refused)):
        yield from ((state, refusal.reason) for refusal in refusals if refusal.pf == pf)
    yield from (("failed", failure.error) for failure in report.failed if failure.pf == pf)


def _pf_words(steps: Sequence[Step]) -> Iterator[str]:
    """That autoprobe is off while VFs are made is no news."""
    are_made = any(isinstance(step, SetNumVfs) for step in steps)
    for step in steps:
        if not isinstance(step, VfStep) and not (are_made and isinstance(step, SetAutoprobe)):
            yield _word(step)


def _vf_words(steps: Sequence[VfStep]) -> Iterator[str]:
    """`VF 0-3: stable mac, bind to its kernel driver`"""
    by_vf = [
        (index, ", ".join(_word(step) for step in group))
        for index, group in groupby(steps, key=lambda step: step.index)
    ]
    for what, same in groupby(by_vf, key=lambda pair: pair[1]):
        yield f"VF {_ranges([index for index, _ in same])}: {what}"


def _ranges(indexes: Sequence[int]) -> str:
    """`0-3,5`"""
    runs = groupby(enumerate(indexes), key=lambda pair: pair[1] - pair[0])
    bounds = [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in bounds)


def _word(step: Step) -> str:
    """Beside the name of the PF, or of the VF."""
    match step:
        case SetPfUp():
            return "set the PF up" if step.up else "set the PF down"
        case SetPfMtu():
            return f"mtu {step.mtu} on the PF"
        case SetEswitchMode():
            return f"eswitch mode {step.mode}"
        case SetAutoprobe():
            return f"driver autoprobe of its VFs {'on' if step.enabled else 'off'}"
        case SetNumVfs():
            return f"create {step.count} VFs" if step.count else "remove its VFs"
        case SetVfMac():
            return "stable mac"
        case BindVf():
            return f"bind to {driver_word(step.driver)}"
        case SetVfMtu():
            return f"mtu {step.mtu}"
        case _:
            assert_never(step)
