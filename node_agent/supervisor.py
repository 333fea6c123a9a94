"""Orchestrator: long-lived threads. One that ends before it was told to ends the process, with the reason."""

import threading
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger


class Supervisor:
    """`stop` is set when the process shall end: by its owner, or because a thread ended by itself."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self.stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.failure: str | None = None

    def start(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._guard, args=(name, target), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def why_unwell(self) -> str | None:
        """Before `stop` is set: which threads ended all the same."""
        ended = [thread.name for thread in self._threads if not thread.is_alive()]
        if self.stop.is_set():
            return self.failure or "the agent is about to end"
        return f"threads ended: {', '.join(ended)}" if ended else None

    def join(self, timeout_s: float) -> None:
        """Wait for the threads after `stop`; one that does not end is named in the log."""
        for thread in self._threads:
            thread.join(timeout_s)
            if thread.is_alive():
                self._log.warning("thread does not end", thread=thread.name)

    def _guard(self, name: str, target: Callable[[], None]) -> None:
        try:
            target()
            reason = f"thread {name} ended by itself"
        except Exception as e:  # noqa: BLE001 - the thread guard: whatever it is, it ends the process
            self._log.exception("thread failed", thread=name)
            reason = f"thread {name} failed: {e}"
        if not self.stop.is_set():
            self.failure = reason
            self.stop.set()
