"""Orchestrator: who works on which device. In memory: a process that dies holds nothing.

Attaching and detaching take the PF shared and the VF alone, so that the VFs of a PF do not wait for each
other; provisioning takes the PF alone. Both are had at once, or not at all: nothing can deadlock.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vf_manager.errors import Busy
from vf_manager.model import PciAddress


class DeviceLocks:
    """Every wait has a deadline; raises Busy when it passes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._vfs: set[PciAddress] = set()
        self._users: Counter[PciAddress | None] = Counter()  # of each PF, by way of its VFs
        self._pfs: set[PciAddress] = set()

    @contextmanager
    def vf(self, pf: PciAddress | None, vf: PciAddress, timeout_s: float) -> Iterator[None]:
        """For one attachment's work on a VF. `pf` None: it has none here."""
        with self._changed:
            self._wait(lambda: vf not in self._vfs and pf not in self._pfs, vf, timeout_s)
            self._vfs.add(vf)
            self._users[pf] += 1
        try:
            yield
        finally:
            with self._changed:
                self._vfs.discard(vf)
                self._users[pf] -= 1
                self._changed.notify_all()

    @contextmanager
    def pf(self, pf: PciAddress, timeout_s: float) -> Iterator[None]:
        """For work on a PF that touches all its VFs."""
        with self._changed:
            self._wait(lambda: pf not in self._pfs and not self._users[pf], pf, timeout_s)
            self._pfs.add(pf)
        try:
            yield
        finally:
            with self._changed:
                self._pfs.discard(pf)
                self._changed.notify_all()

    def _wait(self, free: Callable[[], bool], device: PciAddress, timeout_s: float) -> None:
        if not self._changed.wait_for(free, timeout_s):
            raise Busy(
                f"{device} is still being worked on by another call after {timeout_s:g} s; try again later"
            )
