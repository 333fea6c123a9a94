"""Orchestrator: the addresses that the node itself may talk to its pods from."""

import ipaddress
import threading
import time
from collections.abc import Callable

from vf_manager.errors import KernelError
from vf_manager.kernel.api import Kernel

_FRESH_S = 5.0


class HostAddresses:
    """Thread-safe. However often it is asked, the kernel is asked every few seconds at most."""

    def __init__(self, kernel: Kernel, clock: Callable[[], float] = time.monotonic) -> None:
        self._kernel = kernel
        self._clock = clock
        self._guard = threading.Lock()
        self._known: frozenset[str] = frozenset()
        self._good_until = -1.0

    def read(self) -> frozenset[str]:
        """Without prefix. What was known before, if the kernel refuses."""
        with self._guard:
            if self._clock() >= self._good_until:
                try:
                    self._known = host_addresses(self._kernel)
                except KernelError:
                    return self._known
                self._good_until = self._clock() + _FRESH_S
            return self._known


def host_addresses(kernel: Kernel) -> frozenset[str]:
    """Global ones: link-local addresses and those of loopback mean something else in a pod."""
    with kernel.links() as host:
        found = [ipaddress.ip_interface(address).ip for _, address in host.all_addresses()]
    return frozenset(str(one) for one in found if not one.is_loopback and not one.is_link_local)
