"""Adapter: the agent's dealings with the API server, as metrics. None of them where the config has no
`kubernetes`."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from node_agent.api_contact import ApiContact
from node_agent.events_poster import Dropped, EventPoster
from node_agent.kube.store import WatchState
from node_agent.metric_families import counter, gauge


class Api(Protocol):
    @property
    def contact(self) -> ApiContact: ...


@dataclasses.dataclass(frozen=True)
class ApiState(Collector):
    """`api` None: it is not asked for anything. `watches`: of each kind that is watched now."""

    api: Callable[[], Api | None]
    events: EventPoster
    watches: Callable[[], Iterable[WatchState]] = lambda: ()

    def collect(self) -> Iterator[Metric]:
        api = self.api()
        if api is None:
            return
        yield from _contact(api.contact)
        yield from self._events()
        if watches := tuple(self.watches()):
            yield from _watched(watches)

    def _events(self) -> Iterator[Metric]:
        yield gauge("events_queued", "Events that wait to be posted.", (), [((), self.events.queued)])
        yield counter("events_posted", "Events that were posted.", (), [((), self.events.posted)])
        yield counter(
            "events_dropped",
            "Events that came to nothing.",
            ("reason",),
            [((reason,), self.events.dropped[reason]) for reason in Dropped],
        )


def _contact(contact: ApiContact) -> Iterator[Metric]:
    state = contact.state()
    if state.reachable is not None:
        yield gauge("api_server_reachable", "Whether it answers.", (), [((), state.reachable)])
        yield gauge(
            "api_server_reachable_since_timestamp_seconds",
            "Since when it does, or does not.",
            (),
            [((), state.since)],
        )
    yield counter(
        "api_server_requests",
        "Questions to the API server, by what came of them.",
        ("result",),
        [((answer,), count) for answer, count in state.answers.items()],
    )


def _watched(watches: Iterable[WatchState]) -> Iterator[Metric]:
    labels = ("resource",)
    yield gauge(
        "watch_synced",
        "Whether all objects of a kind are known.",
        labels,
        [((watch.kind,), watch.synced) for watch in watches],
    )
    yield gauge(
        "watch_last_event_timestamp_seconds",
        "When the API server last told something of a kind.",
        labels,
        [((watch.kind,), watch.last_event_unix) for watch in watches if watch.last_event_unix],
    )
    yield counter(
        "watch_relists",
        "How often the objects of a kind were listed anew.",
        labels,
        [((watch.kind,), watch.relists) for watch in watches],
    )
    yield counter(
        "watch_failures",
        "Lists and watches of a kind that failed.",
        labels,
        [((watch.kind,), watch.failures) for watch in watches],
    )
    yield gauge(
        "watch_skipped_objects",
        "Objects of a kind that are not understood.",
        labels,
        [((watch.kind,), watch.skipped) for watch in watches],
    )
    yield gauge(
        "watch_objects",
        "Objects of a kind that are known.",
        labels,
        [((watch.kind,), watch.objects) for watch in watches],
    )
