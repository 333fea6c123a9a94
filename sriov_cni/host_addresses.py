"""Orchestrator: the addresses that the node itself may talk to its pods from."""

import ipaddress
import threading
import time
from collections.abc import Callable

from vf_manager.errors import KernelError
from vf_manager.kernel.api import Kernel, Links

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


_CLUSTER_IPS = "kube-ipvs0"  # kube-proxy in IPVS mode gives it every ClusterIP: those are no node's


def node_addresses(host: Links) -> dict[str, int]:
    """Where the node can be reached by its pods: address to ifindex, in the order of links. Global ones, and
    link-local ones of IPv4 that are alone in their network, as a node-local DNS cache has."""
    other = host.read(name=_CLUSTER_IPS)
    found: dict[str, int] = {}
    for ifindex, text in sorted(host.all_addresses(), key=lambda pair: pair[0]):
        if other is not None and ifindex == other.netdev.ifindex:
            continue  # thousands, maybe
        address = ipaddress.ip_interface(text)
        if _is_reached(address):
            found.setdefault(str(address.ip), ifindex)
    return found


def _is_reached(address: ipaddress.IPv4Interface | ipaddress.IPv6Interface) -> bool:
    alone = address.version == 4 and address.network.prefixlen == 32
    return not address.ip.is_loopback and (alone or not address.ip.is_link_local)


def host_addresses(kernel: Kernel) -> frozenset[str]:
    """Global ones: link-local addresses and those of loopback mean something else in a pod."""
    with kernel.links() as host:
        found = [ipaddress.ip_interface(address).ip for _, address in host.all_addresses()]
    return frozenset(str(one) for one in found if not one.is_loopback and not one.is_link_local)
