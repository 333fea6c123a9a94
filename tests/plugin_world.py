"""Adapter: a device plugin with its watching thread and its log, and what stands around it in tests."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import structlog

from device_plugin.announcement import Timing
from device_plugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from device_plugin.endpoint import CHANNEL_OPTIONS, unix_target
from device_plugin.plugin import DevicePlugin, PoolStatus
from device_plugin.pools import Pool
from device_plugin.registration import Way
from device_plugin.selectors import Selector
from tests.allocation_world import AllocationWorld
from vf_manager.model import IfName, Inventory, Mac, Netdev, PciAddress, Pf, Vf

PREFIX = "sriov-underlay.io"
FAST, SLOW, NONE = (f"{PREFIX}/{name}" for name in ("fast", "slow", "none"))
FAST_ENV = "PCIDEVICE_SRIOV_UNDERLAY_IO_FAST"
POOLS = (
    Pool(name="fast", select=(Selector(pf_names=("ens1f0",)),)),
    Pool(name="slow", select=(Selector(pf_names=("ens1f1",)),)),
    Pool(name="none", select=(Selector(drivers=("nobody",)),)),
)


def vf_id(bus: int, index: int) -> str:
    return f"0000:{bus:02x}:10.{index}"


def make_pf(bus: int, name: str, count: int, **of_vf: Any) -> Pf:
    address = PciAddress(f"0000:{bus:02x}:00.0")
    vfs = tuple(
        Vf(pci=PciAddress(vf_id(bus, i)), pf_pci=address, index=i, vendor="8086", device="10ca", **of_vf)
        for i in range(count)
    )
    port = Netdev(ifindex=bus, name=IfName(name), mac=Mac("02:00:00:00:00:01"), mtu=1500)
    return Pf(pci=address, vendor="8086", device="10c9", netdev=port, vfs=vfs)


def make_inventory(fast: int = 3, slow: int = 2, **of_slow: Any) -> Inventory:
    return Inventory(
        pfs=(
            make_pf(1, "ens1f0", fast, driver="igbvf", numa_node=1),
            make_pf(2, "ens1f1", slow, **{"driver": "igbvf", **of_slow}),
        )
    )


def eventually(what: str, condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not {what} after {timeout_s} s"
        time.sleep(0.002)


FAST_TIMING = Timing(interval_s=0.01, regain_s=0.1, farewell_s=0.05)


class Agent:
    """A device plugin with its watching thread and its log, as the agent runs it."""

    def __init__(self, kubelet_dir: Path, way: Way | None = None, timing: Timing = FAST_TIMING) -> None:
        self.logged = structlog.testing.LogCapture()
        log = structlog.wrap_logger(
            None, [self.logged], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        self.node = AllocationWorld(kubelet_dir / "node")
        self.plugin = DevicePlugin(
            POOLS, PREFIX, kubelet_dir, log, self.node.allocator, way=way, timing=timing
        )
        self.stopping = threading.Event()
        self._watch = threading.Thread(target=self.plugin.watch, args=[self.stopping], name="watch")

    def start(self) -> None:
        self.plugin.start()
        self._watch.start()

    def stop(self) -> None:
        self.stopping.set()
        if self._watch.is_alive():
            self._watch.join()
        self.plugin.stop()

    def events(self, name: str) -> list[dict[str, Any]]:
        return [dict(entry) for entry in self.logged.entries if entry["event"] == name]

    def is_registered(self) -> bool:
        return all(status.registered for status in self.plugin.registered())

    def status(self, resource: str) -> PoolStatus:
        return next(one for one in self.plugin.registered() if one.resource == resource)

    def sockets(self) -> list[Path]:
        return [Path(one.socket) for one in self.plugin.registered() if one.socket]


@contextmanager
def client(socket: Path) -> Iterator[rpc.DevicePluginStub]:
    with grpc.insecure_channel(unix_target(socket), options=CHANNEL_OPTIONS) as channel:
        yield rpc.DevicePluginStub(channel)
