"""The inventory over the running kernel's events: changes are seen at once, whoever made them."""

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from structlog.typing import FilteringBoundLogger

from tests.netns.namespaces import LinuxWorld, add_veth, ip
from tests.sysfs_tree import SysfsTree
from vf_manager.inventory import InventoryKeeper
from vf_manager.kernel.linux import LinuxKernel
from vf_manager.kernel.meter import Meter
from vf_manager.kernel.sysfs import Sysfs
from vf_manager.model import Inventory, Netdev

PF, VF = "0000:01:00.0", "0000:01:10.0"
_REQUESTS_PER_LOOK = 5  # at least: links, routes of two families, devlink twice
_SOON_S = 5.0  # long before the timer; how soon it is says the rig


class Watch:
    """A keeper on a thread of its own, and what it told."""

    def __init__(self, root: Path) -> None:
        self.meter = Meter()
        log: FilteringBoundLogger = structlog.wrap_logger(
            None,
            [structlog.testing.LogCapture()],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )
        self._keeper = InventoryKeeper(LinuxKernel(Sysfs(root, self.meter), self.meter), log, resync_s=60.0)
        self._keeper.subscribe(self._hear)
        self._heard = threading.Condition()
        self._current = Inventory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keeper.watch, args=[self._stop])
        self._thread.start()

    def stop(self) -> float:
        """The seconds that it took."""
        began = time.monotonic()
        self._stop.set()
        self._keeper.mark_dirty()
        self._thread.join(5.0)
        assert not self._thread.is_alive()
        return time.monotonic() - began

    def see(self, **fields: object) -> None:
        """Until the VF's interface is like that; it has to be soon."""

        def is_so() -> bool:
            netdev = self.netdev
            return netdev is not None and all(getattr(netdev, key) == value for key, value in fields.items())

        with self._heard:
            assert self._heard.wait_for(is_so, _SOON_S), f"{fields} was not seen: {self.netdev}"

    @property
    def netdev(self) -> Netdev | None:
        return next((vf.netdev for vf in self._current.vfs()), None)

    def _hear(self, inventory: Inventory) -> None:
        with self._heard:
            self._current = inventory
            self._heard.notify_all()


@pytest.fixture
def watch(world: LinuxWorld, tmp_path: Path) -> Iterator[Watch]:
    tree = SysfsTree(tmp_path / "sys")
    add_veth("pf0", "pf0wire")
    tree.add_pf(PF, name="pf0")
    tree.add_vf(PF, 0, VF, net=("spare0",))
    watch = Watch(tree.root)
    watch.see(name="spare0", up=False)
    yield watch
    watch.stop()


def test_a_link_that_changes_is_seen_at_once(watch: Watch) -> None:
    ip("link", "set", "spare0", "up")
    watch.see(up=True, carrier=False)
    ip("link", "set", "peer0", "up")
    watch.see(up=True, carrier=True)
    ip("link", "set", "spare0", "mtu", "1400")
    watch.see(mtu=1400)
    ip("link", "set", "peer0", "down")
    watch.see(up=True, carrier=False)


def test_a_burst_is_few_looks_and_the_last_of_it_is_seen(watch: Watch) -> None:
    before, began = watch.meter.netlink_requests, time.monotonic()
    lines = "".join(f"link set spare0 mtu {1000 + number}\n" for number in range(256))
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)
    watch.see(mtu=1255)
    looks = (watch.meter.netlink_requests - before) / _REQUESTS_PER_LOOK
    assert looks <= 3 + (time.monotonic() - began) / 0.1


def test_it_stops_at_once(world: LinuxWorld, tmp_path: Path) -> None:
    watch = Watch(SysfsTree(tmp_path / "sys").root)
    assert watch.stop() < _SOON_S
