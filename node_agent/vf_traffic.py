"""Orchestrator: what each VF has counted, wherever its interface is: on the host or in a pod.

One question to the host and one to each namespace of a pod, none to a PF: its answers for VFs
(IFLA_VF_STATS) cost some drivers a command to the firmware for each VF, and others have none. A VF that a
userspace driver has is without an interface, and so without counters.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from sriov_cni.attachment import Attachment, Sandbox, State
from vf_manager.errors import KernelError
from vf_manager.kernel.api import Kernel, LinkTraffic
from vf_manager.model import Inventory, PciAddress

FRESH_S = 5.0

Traffic = dict[PciAddress, LinkTraffic]


class VfTraffic:
    """Thread-safe. However often it is asked, the kernel is asked every `FRESH_S` at most."""

    def __init__(self, kernel: Kernel, clock: Callable[[], float] = time.monotonic) -> None:
        self._kernel = kernel
        self._clock = clock
        self._reading = threading.Lock()
        self._known: Traffic = {}
        self._good_until = 0.0

    def read(self, inventory: Inventory, records: Iterable[Attachment]) -> Traffic:
        """Those that cannot be read now are left out."""
        with self._reading:
            if self._clock() >= self._good_until:
                self._known = read_traffic(self._kernel, inventory, records)
                self._good_until = self._clock() + FRESH_S
            return self._known


def read_traffic(kernel: Kernel, inventory: Inventory, records: Iterable[Attachment]) -> Traffic:
    """By VF."""
    return dict(_on_host(kernel, inventory)) | dict(_in_pods(kernel, records))


def _on_host(kernel: Kernel, inventory: Inventory) -> Iterator[tuple[PciAddress, LinkTraffic]]:
    with kernel.links() as host:
        counted = {link.ifindex: link for link in host.traffic()}
    for vf in inventory.vfs():
        if vf.netdev is not None and (link := counted.get(vf.netdev.ifindex)) is not None:
            yield vf.pci, link


def _in_pods(kernel: Kernel, records: Iterable[Attachment]) -> Iterator[tuple[PciAddress, LinkTraffic]]:
    by_sandbox: dict[Sandbox, list[Attachment]] = {}
    for record in records:
        if record.state is State.ATTACHED and record.original.netdev is not None:
            by_sandbox.setdefault(record.sandbox, []).append(record)
    for sandbox, of_pod in by_sandbox.items():
        counted = {link.name: link for link in _read_pod(kernel, sandbox)}
        yield from (
            (record.port.pci, counted[record.ifname]) for record in of_pod if record.ifname in counted
        )


def _read_pod(kernel: Kernel, sandbox: Sandbox) -> list[LinkTraffic]:
    """Nothing of one that is gone, or whose path names another one by now."""
    netns = kernel.netns_at(sandbox.path)
    if netns is None:
        return []
    try:
        if netns.id != sandbox.id:
            return []
        with kernel.links(netns) as links:
            return links.traffic()
    except (KernelError, OSError):
        return []
    finally:
        netns.close()
