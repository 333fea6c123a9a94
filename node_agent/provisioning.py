"""Orchestrator: keeps the PFs and VFs of the node as the config wants them, while the agent runs."""

import threading
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from vf_manager.errors import SriovError
from vf_manager.inventory import InventoryKeeper
from vf_manager.model import Inventory
from vf_manager.provision import PfPolicy
from vf_manager.provisioner import Outcome, Provisioner

Wanted = Callable[[Inventory], tuple[tuple[PfPolicy, ...], tuple[str, ...]]]

_AGAIN_S = 5.0


class Provisioning:
    """`wanted`: what the config asks of the PFs that are there, and a line about each that is not.
    `on_outcome`: is told what came of each look."""

    def __init__(
        self,
        wanted: Wanted,
        keeper: InventoryKeeper,
        provisioner: Provisioner,
        log: FilteringBoundLogger,
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        self._wanted = wanted
        self._keeper = keeper
        self._provisioner = provisioner
        self._log = log
        self._on_outcome = on_outcome
        self._dirty = threading.Event()
        self.last = Outcome()
        self.missing: tuple[str, ...] = ()  # a line about each PF of the config that is not there
        self.trouble: str | None = None  # why nothing can be done now

    def reconcile(self) -> Outcome:
        """By the inventory as it was seen last. Raises SriovError."""
        policies, missing = self._wanted(self._keeper.current)
        for line in missing:
            if line not in self.missing:
                self._log.warning("nothing to provision", reason=line)
        self.missing = missing
        outcome = self.last = self._provisioner.reconcile(policies, self._keeper.current)
        if outcome.applied or outcome.failed:
            self._keeper.refresh()
        self._on_outcome(outcome)
        return outcome

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
                settled, self.trouble = self.reconcile().is_settled, None
            except SriovError as e:
                settled = False
                if str(e) != self.trouble:
                    self._log.warning("provisioning is not possible now", error=str(e))
                self.trouble = str(e)
