"""Orchestrator: the kubelet is told which VFs each pool has and which of them are Unhealthy.

Level-triggered: a mark only says that a look is due. Each look takes the inventory as it was seen last,
judges every VF of every pool, and hands both on. It is a thread of its own: neither a CNI call that looks for
a new VF nor the thread that reads the kernel waits for the kubelet's streams.
"""

import threading
from collections.abc import Callable, Mapping, Sequence, Set

from structlog.typing import FilteringBoundLogger

from device_plugin.plugin import DevicePlugin
from node_agent.settings import Settings
from vf_manager.health import Facts
from vf_manager.health_keeper import HealthEvent, HealthKeeper
from vf_manager.kernel.device_nodes import DeviceNodes
from vf_manager.model import PciAddress

_LOOK_S = 5.0  # device nodes and attachments send no events


class Advertiser:
    """`adopt` and `publish`, then `watch` on a thread of its own. `attached`: VFs that an attachment owns.
    `on_health`: is told the transitions of each look, if any."""

    def __init__(
        self,
        settings: Settings,
        plugin: DevicePlugin,
        attached: Callable[[], Set[PciAddress]],
        log: FilteringBoundLogger,
        health: HealthKeeper,
        nodes: DeviceNodes,
        on_health: Callable[[Sequence[HealthEvent]], None],
    ) -> None:
        self._settings = settings
        self._plugin = plugin
        self._attached = attached
        self._log = log
        self._nodes = nodes
        self._health = health
        self._on_health = on_health
        self._marked = threading.Event()
        self._publishing = threading.Lock()  # pools and verdicts of one config go together
        self._unhealthy: Mapping[str, Mapping[PciAddress, str]] = {}
        self._held_back: tuple[str, ...] = ()

    def unhealthy(self) -> Mapping[str, Mapping[PciAddress, str]]:
        """By pool, with the reason, as the kubelet was told last. A new object each time it changes."""
        return self._unhealthy

    def adopt(self, settings: Settings) -> None:
        """Advertise the pools of another config from now on. Raises InvalidInput; nothing has changed then.

        A new pool whose VFs are to be made is not registered before provisioning has looked at it.
        """
        known = self._settings.expected.keys()
        new = [pool.name for pool in settings.config.pools if pool.vfs and pool.name not in known]
        with self._publishing:
            self._plugin.hold(new)
            self._plugin.reconfigure(settings.config.resources(), settings.config.resource_prefix)
            self._settings = settings
            self._publish()
        self.mark()

    def publish(self) -> float | None:
        """Look now. Returns in how many seconds a VF is due to be Healthy again."""
        with self._publishing:
            self._publish()
            return self._health.next_look_s()

    def mark(self) -> None:
        """Something may have changed."""
        self._marked.set()

    def watch(self, stop: threading.Event) -> None:
        """Look when marked, when a VF is due to be Healthy again, and now and then anyway."""
        while not stop.is_set():
            due_s = self.publish()
            self._marked.wait(_LOOK_S if due_s is None else min(due_s, _LOOK_S))
            self._marked.clear()

    def _publish(self) -> None:
        view = self._settings.pools.look()
        facts = Facts(inventory=view.inventory, attached=self._attached(), vfio_nodes=self._nodes.of_vfio())
        events = self._health.look(view.members, self._settings.expected, facts)
        self._unhealthy = self._health.unhealthy()
        self._plugin.update(view.inventory, self._unhealthy)
        for event in events:
            self._say(event)
        self._on_health(events)
        self._say_held_back(view.held_back)

    def _say(self, event: HealthEvent) -> None:
        log = self._log.bind(pool=event.pool, vf=event.vf)
        if event.healthy:
            log.info("vf is healthy again", was=event.text)
        else:
            log.warning("vf is unhealthy", reason=event.text)

    def _say_held_back(self, lines: tuple[str, ...]) -> None:
        before, self._held_back = self._held_back, lines
        for line in lines:
            if line not in before:
                self._log.warning("a device stays out of its pool", reason=line)
