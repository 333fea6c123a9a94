"""Orchestrator: makes PFs and VFs what the policies want, as far as nobody uses them; PFs side by side.

Level-triggered: `reconcile` may be called at any time and as often as one likes. What is held back now goes
through at a later call, when it can.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import msgspec
from structlog.typing import FilteringBoundLogger

from vf_manager.apply import CreatedVfs, Failure, PfWork, created_pfs
from vf_manager.discovery import read_pfs, why_unusable
from vf_manager.errors import Busy, SriovError
from vf_manager.kernel.api import Kernel
from vf_manager.locks import DeviceLocks
from vf_manager.model import Inventory, PciAddress, Pf
from vf_manager.provision import PfPolicy, Plan, Refusal, RefusalKind, plan
from vf_manager.provision_steps import Step
from vf_manager.records import RecordStore

Holders = Callable[[], Mapping[PciAddress, str]]


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """`workers`: so many PFs at once, and so many VFs. What failed is not tried again for `retry_s`, unless
    something else is wanted of that PF by then, or it was gone meanwhile."""

    workers: int = 8
    lock_timeout_s: float = 5.0
    netdev_timeout_s: float = 15.0
    retry_s: float = 30.0


_USUAL_PACE = Pace()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """`applied`: steps of PFs at which nothing failed."""

    applied: tuple[Step, ...] = ()
    pending: tuple[Refusal, ...] = ()
    refused: tuple[Refusal, ...] = ()
    failed: tuple[Failure, ...] = ()

    @property
    def is_settled(self) -> bool:
        """Nothing is left that a later call could do by itself."""
        return not self.pending and not self.failed


class Provisioner:
    """`holders`: VFs that somebody has, and who, in words; may raise SriovError when that cannot be told."""

    def __init__(
        self,
        kernel: Kernel,
        locks: DeviceLocks,
        records: RecordStore[CreatedVfs],
        log: FilteringBoundLogger,
        *,
        holders: Holders,
        pace: Pace = _USUAL_PACE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kernel = kernel
        self._locks = locks
        self._records = records
        self._log = log
        self._holders = holders
        self._pace = pace
        self._clock = clock
        self._alone = threading.Lock()
        self._failed: dict[PciAddress, tuple[PfPolicy, float, tuple[Failure, ...]]] = {}
        self._told: frozenset[Refusal] = frozenset()

    def reconcile(self, policies: Sequence[PfPolicy], inventory: Inventory) -> Outcome:
        """Do what can be done now. Raises SriovError if the kernel or the records cannot be read."""
        with self._alone:
            outcome = self._reconcile(tuple(policies), inventory)
            self._tell(outcome)
            return outcome

    def _reconcile(self, policies: tuple[PfPolicy, ...], inventory: Inventory) -> Outcome:
        created = self._created()
        wanted = self._wanted(policies, inventory, created)
        again = self._failed_just_now(policies, wanted)
        with self._locked(wanted - again.keys()) as (locked, busy):
            # What was seen so far may have changed before the locks were had.
            now = Inventory(pfs=read_pfs(self._kernel)) if locked else inventory
            made = plan_now(policies, now, self._kernel, self._holders, created)
            failures = self._apply(policies, made, now, locked)
        failed = {failure.pf for failure in failures}
        return Outcome(
            applied=tuple(s for s in made.steps if s.pf in locked and s.pf not in failed),
            pending=_of_kind(made, RefusalKind.PENDING) + busy,
            refused=_of_kind(made, RefusalKind.REFUSED),
            failed=(*failures, *(failure for found in again.values() for failure in found)),
        )

    def _wanted(
        self, policies: tuple[PfPolicy, ...], inventory: Inventory, created: Mapping[PciAddress, int]
    ) -> set[PciAddress]:
        """PFs that may have steps. What is refused of a VF is not while that is in use and left alone: only
        then it is asked who has which."""
        at_best = plan(policies, inventory, {}, created)
        wanted = {step.pf for step in at_best.steps}
        if at_best.refusals:
            wanted |= {
                s.pf for s in plan_now(policies, inventory, self._kernel, self._holders, created).steps
            }
        return wanted

    def _created(self) -> dict[PciAddress, int]:
        """Records of VFs that are gone are dropped: others may take their place."""
        created = created_pfs(self._records)
        for pf in list(created):
            function = self._kernel.read_function(pf)
            if function is None or function.num_vfs == 0:
                self._records.remove(pf)
                del created[pf]
        return created

    def _apply(
        self,
        policies: tuple[PfPolicy, ...],
        made: Plan,
        now: Inventory,
        locked: Mapping[PciAddress, ExitStack],
    ) -> tuple[Failure, ...]:
        """Each PF is unlocked as soon as it is done."""
        due = [pf for pf in now.pfs if pf.pci in locked and made.of(pf.pci)]
        if not due:
            return ()
        with self._pool("pf") as pf_workers, self._pool("vf") as vf_workers:
            work = PfWork(
                self._kernel,
                self._records,
                vf_workers,
                self._log,
                netdev_timeout_s=self._pace.netdev_timeout_s,
            )

            def apply(pf: Pf) -> list[Failure]:
                with locked[pf.pci]:
                    return work.apply(pf, made.of(pf.pci))

            results = list(pf_workers.map(apply, due))
        wanted_of = {policy.pf: policy for policy in policies}
        for pf, failures in zip(due, results, strict=True):
            self._failed.pop(pf.pci, None)
            if failures:
                self._failed[pf.pci] = (
                    wanted_of[pf.pci],
                    self._clock() + self._pace.retry_s,
                    tuple(failures),
                )
        return tuple(failure for failures in results for failure in failures)

    def _pool(self, name: str) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._pace.workers, thread_name_prefix=f"provision-{name}")

    def _failed_just_now(
        self, policies: tuple[PfPolicy, ...], wanted: set[PciAddress]
    ) -> dict[PciAddress, tuple[Failure, ...]]:
        """Each attempt changes the inventory, and each change calls for an attempt: without a pause it would
        go on without end."""
        there = {policy.pf for policy in policies}  # a PF that was unplugged comes back without its past
        self._failed = {pf: failed for pf, failed in self._failed.items() if pf in there}
        known = ((policy, self._failed.get(policy.pf)) for policy in policies if policy.pf in wanted)
        return {
            policy.pf: failed[2]
            for policy, failed in known
            if failed is not None and failed[0] == policy and self._clock() < failed[1]
        }

    @contextmanager
    def _locked(
        self, pfs: set[PciAddress]
    ) -> Iterator[tuple[dict[PciAddress, ExitStack], tuple[Refusal, ...]]]:
        """What unlocks each that could be locked, and a refusal for each that could not."""
        locked = {}
        busy = []
        with ExitStack() as all_of_them:
            for pf in sorted(pfs):
                lock = all_of_them.enter_context(ExitStack())
                try:
                    lock.enter_context(self._locks.pf(pf, self._pace.lock_timeout_s))
                    locked[pf] = lock
                except Busy as e:
                    busy.append(Refusal(pf=pf, kind=RefusalKind.PENDING, reason=str(e)))
            yield locked, tuple(busy)

    def _tell(self, outcome: Outcome) -> None:
        """Once, not at each look."""
        refusals = outcome.pending + outcome.refused
        for refusal in refusals:
            if refusal not in self._told:
                self._log.warning(f"provisioning {refusal.kind}", pf=refusal.pf, reason=refusal.reason)
        self._told = frozenset(refusals)


def plan_now(
    policies: tuple[PfPolicy, ...],
    inventory: Inventory,
    kernel: Kernel,
    holders: Holders,
    created: Mapping[PciAddress, int],
) -> Plan:
    """The plan, with all that is known of who uses VFs. That is only asked for where VFs are in the way: at
    boot there are none, and nobody who could be asked. Where it cannot be told, the PF is left alone."""
    sketch = plan(policies, inventory, {}, created)
    concerned = {step.pf for step in sketch.steps} | {refusal.pf for refusal in sketch.refusals}
    pfs = [pf for pf in inventory.pfs if pf.pci in concerned and pf.vfs]
    if not pfs:
        return sketch
    try:
        known = _used_by_host(pfs, kernel) | dict(holders())
    except SriovError as e:
        return _hold_back(sketch, {pf.pci for pf in pfs}, f"who uses its VFs cannot be told now: {e}")
    return plan(policies, inventory, known, created)


def _used_by_host(pfs: Sequence[Pf], kernel: Kernel) -> dict[PciAddress, str]:
    with kernel.links() as host:
        found = [(vf.pci, why_unusable(kernel, host, vf)) for pf in pfs for vf in pf.vfs]
    return {pci: f"the host: {reason}" for pci, reason in found if reason is not None}


def _hold_back(sketch: Plan, pfs: set[PciAddress], reason: str) -> Plan:
    held = {step.pf for step in sketch.steps if step.pf in pfs}
    return Plan(
        steps=tuple(step for step in sketch.steps if step.pf not in held),
        refusals=(
            *sketch.refusals,
            *(Refusal(pf=pf, kind=RefusalKind.PENDING, reason=reason) for pf in sorted(held)),
        ),
    )


def _of_kind(made: Plan, kind: RefusalKind) -> tuple[Refusal, ...]:
    return tuple(refusal for refusal in made.refusals if refusal.kind is kind)
