"""Orchestrator: what happens on the node, put in the queue of Events. Nothing here waits for anybody."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from node_agent.events import (
    Event,
    HealthChange,
    event_of_config,
    event_of_health,
    event_of_unknown,
    events_of_attachments,
    events_of_outcome,
)
from node_agent.events_poster import EventPoster
from sriov_cni.attachment import Attachment
from sriov_cni.in_pod.options import Ruled
from vf_manager.health_keeper import HealthEvent
from vf_manager.model import Inventory, PciAddress
from vf_manager.provisioner import Outcome


class EventRecorder:
    """`attachments_of`: the records of a container and the interface name of its call. Thread-safe."""

    def __init__(
        self,
        poster: EventPoster,
        attachments_of: Callable[[str, str], Sequence[Attachment]],
        inventory: Callable[[], Inventory],
    ) -> None:
        self._poster = poster
        self._attachments_of = attachments_of
        self._inventory = inventory
        self._guard = threading.Lock()
        self._troubles: frozenset[Event] = frozenset()
        self._changes: dict[HealthChange, dict[PciAddress, str]] = {}

    def on_attached(self, env: Mapping[str, str], seconds: float) -> None:
        """An ADD succeeded that took so long. Not one of the fallback chain: that left no records."""
        container, ifname = env["CNI_CONTAINERID"], env["CNI_IFNAME"]

        def tell() -> Iterable[Event]:
            return events_of_attachments(self._attachments_of(container, ifname), self._inventory(), seconds)

        self._poster.put(tell)

    def on_provisioned(self, outcome: Outcome) -> None:
        """What is in the way is told once, not each time it is found to be there still."""
        if not self._poster.is_wanted:
            return
        now = tuple(events_of_outcome(outcome, self._inventory()))
        news = [event for event in now if event not in self._troubles]
        self._troubles = frozenset(now)
        if news:
            self._poster.put(lambda: news)

    def on_unknown(self, ruled: Ruled, why: str, *, failed: bool) -> None:
        """An ADD with rules for the pod, while the cluster is not known."""
        self._poster.put(lambda: event_of_unknown(ruled, why, failed=failed))

    def on_config_refused(self, reason: str) -> None:
        self._poster.put(lambda: [event_of_config(reason)])

    def on_health(self, events: Sequence[HealthEvent]) -> None:
        """VFs of a pool that changed for the same reason are told together; also with what comes before the
        thread gets there."""
        if not events or not self._poster.is_wanted:
            return
        with self._guard:
            for event in events:
                change = HealthChange(event.pool, event.healthy, event.reason)
                self._changes.setdefault(change, {})[event.vf] = event.text
        self._poster.put(self._tell_health)

    def _tell_health(self) -> Iterator[Event]:
        with self._guard:
            changes, self._changes = self._changes, {}
        for change, texts in changes.items():
            yield event_of_health(change, texts.keys(), frozenset(texts.values()))
