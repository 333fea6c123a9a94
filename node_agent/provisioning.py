"""Orchestrator: keeps the PFs and VFs of the node as the config wants them, while the agent runs."""

import threading
from collections.abc import Callable, Set

from structlog.typing import FilteringBoundLogger

from vf_manager.apply import CreatedVfs, apply_plan, created_pfs
from vf_manager.errors import SriovError
from vf_manager.inventory import InventoryKeeper
from vf_manager.kernel.api import Kernel
from vf_manager.locks import DeviceLocks
from vf_manager.model import Inventory, PciAddress
from vf_manager.provision import PfPolicy, Plan, plan
from vf_manager.records import RecordStore

Wanted = Callable[[Inventory], tuple[tuple[PfPolicy, ...], tuple[str, ...]]]

_AGAIN_S = 5.0


class Provisioning:
    """`wanted`: what the config asks of the PFs that are there, and a line about each that is not.
    `attached`: VFs that an attachment owns."""

    def __init__(
        self,
        wanted: Wanted,
        keeper: InventoryKeeper,
        kernel: Kernel,
        locks: DeviceLocks,
        created: RecordStore[CreatedVfs],
        attached: Callable[[], Set[PciAddress]],
        log: FilteringBoundLogger,
    ) -> None:
        self._wanted = wanted
        self._keeper = keeper
        self._kernel = kernel
        self._locks = locks
        self._created = created
        self._attached = attached
        self._log = log
        self._dirty = threading.Event()
        self._told: frozenset[tuple[str, str]] = frozenset()

    def reconcile(self) -> bool:
        """By the inventory as it was seen last. Returns whether there is nothing left to do. Raises
        SriovError."""
        policies, missing = self._wanted(self._keeper.current)
        todo = plan(policies, self._keeper.current, self._attached(), created_pfs(self._created))
        refused = {("provisioning refused", refusal.reason) for refusal in todo.refusals}
        self._tell(refused | {("nothing to provision", line) for line in missing})
        if not todo.steps:
            return not todo.refusals
        failures = apply_plan(Plan(steps=todo.steps), self._kernel, self._locks, self._created, self._log)
        self._keeper.refresh()
        if failures:
            self._dirty.clear()  # that change was our own; the next attempt has time
        return not todo.refusals and not failures

    def mark_dirty(self) -> None:
        """Something may have changed: the inventory, the config, or who has which VF."""
        self._dirty.set()

    def watch(self, stop: threading.Event) -> None:
        """Reconcile when marked dirty, and every few seconds while something is left to do. For a thread of
        its own; `mark_dirty` ends the wait after `stop` is set."""
        settled = False
        while not stop.is_set():
            self._dirty.wait(None if settled else _AGAIN_S)
            self._dirty.clear()
            if stop.is_set():
                return
            try:
                settled = self.reconcile()
            except SriovError as e:
                settled = False
                self._tell({("provisioning is not possible now", str(e))})

    def _tell(self, found: set[tuple[str, str]]) -> None:
        for what, reason in sorted(found - self._told):
            self._log.warning(what, reason=reason)
        self._told = frozenset(found)
