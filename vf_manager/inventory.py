"""Orchestrator: the one inventory of the node, read again whenever something may have changed."""

import threading
import time
from collections.abc import Callable

from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

from vf_manager.changes import describe_changes
from vf_manager.discovery import read_inventory
from vf_manager.errors import SriovError
from vf_manager.kernel.api import Kernel, KernelEvents
from vf_manager.model import Inventory

_REST_PER_LOOK = 4.0  # a pause is so many times what the look before took of a CPU: a fifth of one at most
_MAX_REST_S = 0.5  # what comes in the pause is to be seen within a second


class InventoryKeeper:
    """Level-triggered: an event only says that a look is due; each look reads everything and compares.

    Subscribers are called with each new snapshot, one at a time and in order, from the thread that looked.
    """

    def __init__(
        self, kernel: Kernel, log: FilteringBoundLogger, *, resync_s: float = 30.0, spacing_s: float = 0.1
    ) -> None:
        self._kernel = kernel
        self._log = log
        self._resync_s = resync_s
        self._spacing_s = spacing_s
        self._looking = threading.Lock()
        self._subscribers: list[Callable[[Inventory], None]] = []
        self._current = Inventory()
        self._looks = 0, 0.0
        self._events: KernelEvents | None = None

    @property
    def current(self) -> Inventory:
        return self._current

    def looks(self) -> tuple[int, float]:
        """How many there were since the start, and how many seconds they took. Does not wait for one that is
        under way: while VFs are made, that may take long."""
        return self._looks

    def subscribe(self, subscriber: Callable[[Inventory], None]) -> None:
        self._subscribers.append(subscriber)

    def mark_dirty(self) -> None:
        """Makes `watch` look again, or see that it shall stop. It looks when it begins, too."""
        if (events := self._events) is not None:
            events.wake()

    def refresh(self) -> Inventory:
        """Look now. Raises SriovError; the snapshot before it then stays."""
        with self._looking:
            old = self._current
            began = time.perf_counter()
            new = replace(read_inventory(self._kernel), generation=old.generation)
            looks, seconds = self._looks
            self._looks = looks + 1, seconds + time.perf_counter() - began
            if new != old or old.generation == 0:
                self._current = replace(new, generation=old.generation + 1)
                for change in describe_changes(old, new):
                    self._log.info("inventory changed", device=change.device, what=change.what)
                for subscriber in self._subscribers:
                    subscriber(self._current)
            return self._current

    def watch(self, stop: threading.Event) -> None:
        """Look at once when the kernel tells of something, and every `resync_s` anyway. What comes during a
        look or the pause behind it makes one more, however much it is. For a thread of its own."""
        with self._kernel.events() as events:
            self._events = events
            for reason in events.unheard:
                self._log.warning("not all events are heard", reason=reason, resync_s=self._resync_s)
            while not stop.is_set():
                rest_s = min(self._look() * _REST_PER_LOOK, _MAX_REST_S)
                if not stop.wait(max(self._spacing_s, rest_s)):
                    events.wait(self._resync_s)

    def _look(self) -> float:
        """The seconds of a CPU that it took. Those that it waited for the kernel do not count: while VFs are
        made it may be many, and the agent would be blind for a multiple of them."""
        began = time.thread_time()
        try:
            self.refresh()
        except SriovError as e:
            self._log.warning("the inventory could not be read", error=str(e))
        return time.thread_time() - began
