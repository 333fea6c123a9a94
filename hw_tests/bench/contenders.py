"""Adapter: those who attach and detach one interface; each call tells how long it took, in milliseconds."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hw_tests.bench.floor import FloorSocket, Parts, floor_add, floor_delete
from hw_tests.runtime import Conf, Pod, Runtime, network

PLUGINS = Path("/usr/lib/cni")  # of the distribution's package containernetworking-plugins
IFNAME = "eth1"
SUBNET = "198.18.20.0/24"
GATEWAY = "198.18.20.1"
_CNI_VERSION = "1.0.0"  # the newest that the distribution's plugins speak


@dataclass(frozen=True)
class Slot:
    """One VF, by its PCI address and the name of its interface on the host, and the pod it goes to."""

    number: int
    pci: str
    name: str
    pod: Pod


class Contender(Protocol):
    def add(self, slot: Slot) -> float: ...
    def delete(self, slot: Slot) -> float: ...


def _ipam(leases: Path) -> Conf:
    ranges = [[{"subnet": SUBNET, "gateway": GATEWAY}]]
    routes = [{"dst": "0.0.0.0/0"}]
    return {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": str(leases)}


@dataclass(frozen=True)
class Ours:
    """The executable that a runtime calls, and the agent behind it."""

    runtime: Runtime
    leases: Path

    def add(self, slot: Slot) -> float:
        return self.runtime.add(slot.pod, self._conf(), slot.pci, IFNAME).seconds * 1000

    def delete(self, slot: Slot) -> float:
        return self.runtime.delete(slot.pod, self._conf(), slot.pci, IFNAME).seconds * 1000

    def _conf(self) -> Conf:
        return network("bench", cniVersion=_CNI_VERSION, ipam=_ipam(self.leases))


@dataclass(frozen=True)
class HostDevice:
    """The reference plugins: host-device moves the interface and runs host-local for the address."""

    leases: Path
    runtime: Runtime = field(default_factory=lambda: Runtime(Path("/"), executable=PLUGINS / "host-device"))

    def add(self, slot: Slot) -> float:
        return self.runtime.call("ADD", slot.pod, self._conf(slot), IFNAME).seconds * 1000

    def delete(self, slot: Slot) -> float:
        return self.runtime.call("DEL", slot.pod, self._conf(slot), IFNAME).seconds * 1000

    def _conf(self, slot: Slot) -> Conf:
        conf = {"type": "host-device", "device": slot.name, "ipam": _ipam(self.leases)}
        return network("bench", cniVersion=_CNI_VERSION, **conf)


class Floor:
    """See `floor`. Sockets and descriptors of every pod are open before anything is measured; where an
    interface is on the host is looked up before the clock starts. Keeps the parts of each call."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._host = [FloorSocket() for _ in slots]  # one per slot: a burst uses all at once
        self._pods = [FloorSocket(slot.pod.path) for slot in slots]
        self._pod_fds = [os.open(slot.pod.path, os.O_RDONLY | os.O_CLOEXEC) for slot in slots]
        self._host_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.calls: dict[str, list[Parts]] = {"ADD": [], "DEL": []}

    def close(self) -> None:
        for one in (*self._host, *self._pods):
            one.close()
        for fd in (*self._pod_fds, self._host_fd):
            os.close(fd)

    def add(self, slot: Slot) -> float:
        n = slot.number
        ifindex, address = self._host[n].ifindex(slot.name), f"198.18.20.{10 + n}"
        parts = floor_add(self._host[n], self._pods[n], ifindex, self._pod_fds[n], IFNAME, address, GATEWAY)
        self.calls["ADD"].append(parts)
        return sum(duration for _, duration in parts)

    def delete(self, slot: Slot) -> float:
        parts = floor_delete(self._pods[slot.number], self._host_fd, IFNAME, slot.name)
        self.calls["DEL"].append(parts)
        return sum(duration for _, duration in parts)
