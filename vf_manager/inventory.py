"""Orchestrator: the one inventory of the node, read again whenever something may have changed."""

import threading
from collections.abc import Callable

import msgspec
from structlog.typing import FilteringBoundLogger

from vf_manager.discovery import read_lone, read_pfs
from vf_manager.errors import SriovError
from vf_manager.kernel.api import Kernel
from vf_manager.model import Inventory


class InventoryKeeper:
    """Level-triggered: `mark_dirty` only says that a look is due; each look reads everything and compares.

    Subscribers are called with each new snapshot, one at a time and in order, from the thread that looked.
    """

    def __init__(self, kernel: Kernel, log: FilteringBoundLogger, *, resync_s: float = 5.0) -> None:
        self._kernel = kernel
        self._log = log
        self._resync_s = resync_s
        self._dirty = threading.Event()
        self._looking = threading.Lock()
        self._subscribers: list[Callable[[Inventory], None]] = []
        self._current = Inventory()

    @property
    def current(self) -> Inventory:
        return self._current

    def subscribe(self, subscriber: Callable[[Inventory], None]) -> None:
        self._subscribers.append(subscriber)

    def mark_dirty(self) -> None:
        self._dirty.set()

    def refresh(self) -> Inventory:
        """Look now. Raises SriovError; the snapshot before it then stays."""
        with self._looking:
            old = self._current
            new = Inventory(
                generation=old.generation, pfs=read_pfs(self._kernel), lone=read_lone(self._kernel)
            )
            if new != old or old.generation == 0:
                self._current = msgspec.structs.replace(new, generation=old.generation + 1)
                for subscriber in self._subscribers:
                    subscriber(self._current)
            return self._current

    def watch(self, stop: threading.Event) -> None:
        """Look when marked dirty, and every `resync_s` anyway. For a thread of its own."""
        while not stop.is_set():
            self._dirty.wait(self._resync_s)
            self._dirty.clear()
            if stop.is_set():
                return
            try:
                self.refresh()
            except SriovError as e:
                self._log.warning("the inventory could not be read", error=str(e))
