"""Adapter: traffic that runs while a test does something to the node below it."""

import re
import signal
import subprocess
from pathlib import Path

from hw_tests.nics import wait_until
from hw_tests.runtime import Pod


class Traffic:
    """Echo requests from one pod to an address until they are counted."""

    def __init__(self, pod: Pod, address: str, log: Path, *, interval_s: float = 0.2) -> None:
        self._log = log
        words = pod.command("ping", "-n", "-i", str(interval_s), address)
        with log.open("wb") as out:
            self._process = subprocess.Popen(words, stdout=out)

    def wait_for_more(self, count: int = 5) -> None:
        """Until so many replies have come since now."""
        goal = self._replies() + count
        wait_until(lambda: self._replies() >= goal, f"{count} more replies", 10)

    def stop(self) -> tuple[int, int]:
        """Sent and answered."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(10)
        summary = re.search(r"(\d+) packets transmitted, (\d+) received", self._log.read_text())
        assert summary is not None, self._log.read_text()
        return int(summary[1]), int(summary[2])

    def _replies(self) -> int:
        return self._log.read_text().count("bytes from")
