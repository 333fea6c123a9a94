"""Orchestrator: where the steps of an attachment act: the host's namespace, the pod's, and the IPAM."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from sriov_cni.attachment import Sandbox
from sriov_cni.in_pod.options import Ruled
from sriov_cni.ipam.config import IpamResult
from sriov_cni.ipam.engine import Ipam
from vf_manager.discovery import find_link, host_link
from vf_manager.errors import KernelError, NotFound
from vf_manager.kernel.api import Kernel, Links, NetnsHandle
from vf_manager.model import IfName, Netdev, PciAddress


class Rules(Protocol):
    """Services and policies inside of pods."""

    def put(self, netns: NetnsHandle, sandbox: Sandbox, ruled: Ruled) -> None:
        """In force on return. Raises SriovError."""

    def remove(self, netns: NetnsHandle | None, sandbox: Sandbox, ifname: IfName) -> None:
        """Nothing that is not there is an error."""


@dataclass
class Ground:
    """`pod` is None when the pod's namespace is gone or cannot be reached. One per call, for one thread."""

    kernel: Kernel
    host: Links
    host_netns: NetnsHandle
    pod_netns: NetnsHandle | None = None
    pod: Links | None = None
    ipam: Ipam | None = None
    addresses: IpamResult = field(default_factory=IpamResult)
    rules: Rules | None = None
    # Held while something is changed that the attachments of the node share, besides their PFs.
    host_lock: threading.Lock = field(default_factory=threading.Lock)
    # Where the VF was seen last: by its index one link is read, instead of all or of its way through sysfs.
    _index_in_host: int = 0
    _index_in_pod: int = 0

    def in_host(self, pci: PciAddress) -> Netdev | None:
        found = _still_there(self.host, self._index_in_host, pci) or host_link(self.kernel, self.host, pci)
        self._index_in_host = found.ifindex if found else 0
        return found

    def in_pod(self, pci: PciAddress) -> Netdev | None:
        if self.pod is None:
            return None
        found = _still_there(self.pod, self._index_in_pod, pci) or find_link(self.pod, pci)
        self._index_in_pod = found.ifindex if found else 0
        return found

    def pod_side(self, pci: PciAddress) -> tuple[NetnsHandle, Links, Netdev]:
        """For steps that act on the VF in the pod. Raises NotFound if it is not there."""
        netdev = self.in_pod(pci)
        if netdev is None or self.pod is None or self.pod_netns is None:
            raise NotFound(f"VF {pci} is not in the pod's network namespace any more")
        return self.pod_netns, self.pod, netdev


def _still_there(links: Links, ifindex: int, pci: PciAddress) -> Netdev | None:
    seen = links.read(ifindex=ifindex) if ifindex else None
    return seen.netdev if seen is not None and seen.parent == pci else None


@contextmanager
def open_ground(
    kernel: Kernel,
    sandbox: NetnsHandle | None,
    ipam: Ipam | None,
    rules: Rules | None = None,
    host_lock: "threading.Lock | None" = None,
) -> Iterator[Ground]:
    """Open netlink sockets on both sides. A namespace of the pod that cannot be entered counts as gone."""
    with ExitStack() as stack:
        host = stack.enter_context(kernel.links())
        host_netns = kernel.host_netns()
        stack.callback(host_netns.close)
        pod = None
        if sandbox is not None:
            try:
                pod = stack.enter_context(kernel.links(sandbox))
            except KernelError:
                sandbox = None
        shared = host_lock or threading.Lock()
        yield Ground(kernel, host, host_netns, sandbox, pod, ipam, rules=rules, host_lock=shared)


@contextmanager
def opened_sandbox(kernel: Kernel, fd: int | None, recorded: Sandbox) -> Iterator[NetnsHandle | None]:
    """The namespace an attachment was made in: by the descriptor of the call, else by its recorded path;
    None if neither is that very namespace (a path may name another one by now)."""
    handle = kernel.netns(fd) if fd is not None else None
    if handle is not None and handle.id != recorded.id:
        handle.close()
        handle = None
    if handle is None:
        handle = kernel.netns_at(recorded.path)
    try:
        yield handle if handle is not None and handle.id == recorded.id else None
    finally:
        if handle is not None:
            handle.close()


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = 0.01) -> bool:
    """Poll a condition until it holds or the time is up; whether it holds."""
    deadline = time.monotonic() + timeout_s
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(poll_s)
    return held
