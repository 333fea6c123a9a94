"""Orchestrator: when PFs are set up: at start, for another config, and when a PF comes.

What somebody else changes on a PF meanwhile is left alone; it is no reason to set the PF up again. What was
refused (a VF in use stands in its way) is tried again, quietly, until it goes through.
"""

import threading
import time
from collections.abc import Callable, Set

from structlog.typing import FilteringBoundLogger

from node_agent.config import AgentConfig, ConfigError, pf_policies
from vf_manager.apply import CreatedVfs, apply_plan, created_pfs
from vf_manager.errors import SriovError
from vf_manager.inventory import InventoryKeeper
from vf_manager.kernel.api import Kernel
from vf_manager.locks import DeviceLocks
from vf_manager.model import Inventory, PciAddress, Pf
from vf_manager.provision import Plan, plan
from vf_manager.records import RecordStore

_RETRY_S = 1.0


class Provisioning:
    """`provision` at start, then `catch_up` now and then, by one thread. `note` hears each new inventory."""

    def __init__(
        self,
        kernel: Kernel,
        keeper: InventoryKeeper,
        locks: DeviceLocks,
        created: RecordStore[CreatedVfs],
        attached: Callable[[], Set[PciAddress]],
        log: FilteringBoundLogger,
    ) -> None:
        self._kernel = kernel
        self._keeper = keeper
        self._locks = locks
        self._created = created
        self._attached = attached
        self._log = log
        self._guard = threading.Lock()  # of the next three
        self._known: dict[PciAddress, object] = {}
        self._came: set[PciAddress] = set()
        self.is_done = False
        self._all_due = False
        self._refused: set[PciAddress] = set()
        self._retry_at = 0.0
        self._told: set[str] = set()

    def provision(self, config: AgentConfig) -> None:
        """Set up every PF that the config speaks of. Raises ConfigError: two pools mean one PF."""
        self._provision(config, None)
        self.is_done = True

    def renew(self) -> None:
        """The config is another: `catch_up` is to set up every PF, and to say again what is refused."""
        self._all_due = True
        self._told = set()

    def catch_up(self, config: AgentConfig) -> None:
        """Set up the PFs that have come, and those that could not be set up before."""
        only = self._take_came()
        if self._refused and time.monotonic() >= self._retry_at:
            only |= self._refused
        if not only and not self._all_due:
            return
        try:
            self._provision(config, None if self._all_due else only)
            self._all_due = False
        except ConfigError as e:  # shows only now that both names are there
            self._tell("provisioning refused", str(e))
        except SriovError as e:
            self._tell("provisioning failed", str(e))
            with self._guard:
                self._came |= only

    def note(self, inventory: Inventory) -> bool:
        """Whether a PF came (or its interface, or that has another name by now)."""
        with self._guard:
            now = {pf.pci: _identity(pf) for pf in inventory.pfs}
            came = {pci for pci, identity in now.items() if self._known.get(pci) != identity}
            self._known = now
            self._came |= came
            return bool(came)

    def _take_came(self) -> set[PciAddress]:
        with self._guard:
            came, self._came = self._came, set()
            return came

    def _provision(self, config: AgentConfig, only: Set[PciAddress] | None) -> None:
        inventory = self._keeper.refresh()
        if only is None:
            self._take_came()
        policies, missing = pf_policies(config, inventory)
        for line in missing:
            self._tell("nothing to provision", line)
        wanted = tuple(policy for policy in policies if only is None or policy.pf in only)
        todo = plan(wanted, inventory, self._attached(), created_pfs(self._created))
        for refusal in todo.refusals:
            self._tell("provisioning refused", refusal.reason, pf=refusal.pf)
        if todo.steps:
            apply_plan(Plan(steps=todo.steps), self._kernel, self._locks, self._created, self._log)
            self._keeper.refresh()
        asked = {policy.pf for policy in policies}
        done = {policy.pf for policy in wanted}
        self._refused = ((self._refused & asked) - done) | {refusal.pf for refusal in todo.refusals}
        self._retry_at = time.monotonic() + _RETRY_S

    def _tell(self, what: str, reason: str, **about: str) -> None:
        """Once, until the config is another."""
        if reason not in self._told:
            self._told.add(reason)
            self._log.warning(what, reason=reason, **about)


def _identity(pf: Pf) -> object:
    """An interface that came anew has another index (net/core/dev.c dev_new_index)."""
    return (pf.netdev.ifindex, pf.netdev.name, pf.netdev.altnames) if pf.netdev else None
