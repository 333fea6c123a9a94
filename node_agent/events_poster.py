"""Orchestrator: Events to the API server: a bounded queue, and one thread that empties it.

Whoever tells something only appends to the queue; what it takes to find the words (records on disk, the pod's
uid) is done on the thread. While the API server is away nothing is asked of it but one Event now and then,
with back-off; what does not fit in the queue meanwhile, or gets too old in it, is dropped and counted.
"""

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Protocol

import msgspec
from structlog.typing import FilteringBoundLogger

from node_agent.api_errors import ApiServerError
from node_agent.backoff import Backoff
from node_agent.events import Event, render_event, render_series
from sriov_cni.environment import Pod
from vf_manager.errors import SriovError

MOST_QUEUED = 512  # calls: every VF of a large node, twice
MAX_AGE_S = 300.0
PAUSE_S = 0.1
_SERIES_S = 60.0
_MOST_STANDING = 512

Tell = Callable[[], Iterable[Event]]


class EventsApi(Protocol):
    """Each raises ApiServerError."""

    def pod_uid(self, namespace: str, name: str) -> str: ...
    def create_event(self, namespace: str, body: Mapping[str, Any]) -> None: ...
    def patch_event(self, namespace: str, name: str, body: Mapping[str, Any]) -> None: ...


class Dropped(StrEnum):
    """Why an Event, or the call that would have told some, came to nothing."""

    FULL = "full"  # the queue
    LATE = "late"
    REFUSED = "refused"  # by the API server, or there is nothing to be told any more


class _Standing(msgspec.Struct, frozen=True):
    """An Event that was posted. `count`: how often it was told, of which the API server may not know all."""

    namespace: str
    name: str
    count: int
    written_at: float


class EventPoster:
    """`put` from any thread, `watch` on one of its own. `api` None: Events are not asked for.

    An Event that was told before is counted on that one. Its count is written the second, fourth, eighth, ...
    time, and else once a minute at most. `posted` and `dropped` count since the start.
    """

    def __init__(
        self,
        api: Callable[[], EventsApi | None],
        node: str,
        log: FilteringBoundLogger,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        backoff: Backoff | None = None,
    ) -> None:
        self._api = api
        self._node = node
        self._log = log
        self._clock = clock
        self._wall = wall
        self._backoff = backoff or Backoff(1.0, 60.0)
        self._guard = threading.Lock()
        self._marked = threading.Event()
        self._queue: deque[tuple[float, float, Tell]] = deque()  # until when it is news, when it was, what
        self._told: deque[tuple[float, float, Event]] = deque()  # what came of the last of them
        self._standing: OrderedDict[tuple[Any, ...], _Standing] = OrderedDict()
        self._is_away = False
        self._refusals: set[int | None] = set()
        self.posted = 0
        self.dropped: Counter[Dropped] = Counter()

    @property
    def is_wanted(self) -> bool:
        return self._api() is not None

    @property
    def queued(self) -> int:
        """What waits: Events, and calls that may tell some."""
        return len(self._queue) + len(self._told)

    def put(self, tell: Tell) -> None:
        """Post what `tell` returns, on the thread; nothing if that raises SriovError or OSError."""
        if not self.is_wanted:
            return
        with self._guard:
            if len(self._queue) >= MOST_QUEUED:
                self.dropped[Dropped.FULL] += 1
                return
            self._queue.append((self._clock() + MAX_AGE_S, self._wall(), tell))
        self._marked.set()

    def wake(self) -> None:
        """End the wait of `watch`, after its `stop` is set."""
        self._marked.set()

    def watch(self, stop: threading.Event) -> None:
        while not stop.is_set():
            pause_s = self.step()
            if pause_s is None:
                self._marked.wait()
                self._marked.clear()
            else:
                stop.wait(pause_s)

    def step(self) -> float | None:
        """Post the next Event, if there is one. Returns the seconds to wait before the next; None: until
        something is put."""
        api = self._api()
        if not self._fill():
            return None
        until, when, event = self._told[0]
        if api is None or self._clock() > until:
            self._drop(Dropped.LATE)
            return 0.0
        try:
            self._post(api, event, when)
        except ApiServerError as e:
            if e.is_away:
                return self._stay_away(e)
            self._say_refused(e)
            self._drop(Dropped.REFUSED)
        else:
            self._told.popleft()
            self.posted += 1
        self._come_back()
        return PAUSE_S

    def _fill(self) -> bool:
        """Whether there is something to post."""
        while not self._told:
            with self._guard:
                if not self._queue:
                    return False
                until, when, tell = self._queue.popleft()
            try:
                self._told.extend((until, when, event) for event in tell())
            except (SriovError, OSError) as e:  # a record that does not parse; no descriptor is left
                self._log.debug("nothing to tell any more", error=str(e))
                self.dropped[Dropped.REFUSED] += 1
        return True

    def _drop(self, why: Dropped) -> None:
        self._told.popleft()
        self.dropped[why] += 1

    def _post(self, api: EventsApi, event: Event, when: float) -> None:
        event = _with_uid(event, api)
        standing = self._standing.get(event.identity)
        if standing is not None:
            try:
                self._count(api, event, standing, when)
                return
            except ApiServerError as e:
                if e.status != HTTPStatus.NOT_FOUND:  # the API server forgets Events after an hour
                    raise
        namespace, body = render_event(event, self._node, when)
        try:
            api.create_event(namespace, body)
        except ApiServerError as e:
            if e.status != HTTPStatus.CONFLICT:  # else: it came through, only its answer did not
                raise
        self._remember(event, _Standing(namespace, body["metadata"]["name"], 1, self._clock()))

    def _count(self, api: EventsApi, event: Event, standing: _Standing, when: float) -> None:
        count, now = standing.count + 1, self._clock()
        written_at = standing.written_at
        if count & (count - 1) == 0 or now - written_at >= _SERIES_S:
            api.patch_event(standing.namespace, standing.name, render_series(count, when))
            written_at = now
        self._remember(event, _Standing(standing.namespace, standing.name, count, written_at))

    def _remember(self, event: Event, standing: _Standing) -> None:
        self._standing[event.identity] = standing
        self._standing.move_to_end(event.identity)
        if len(self._standing) > _MOST_STANDING:
            self._standing.popitem(last=False)

    def _stay_away(self, e: ApiServerError) -> float:
        if not self._is_away:
            self._log.warning("events cannot be posted now", error=str(e))
        self._is_away = True
        return self._backoff.failed()

    def _come_back(self) -> None:
        if self._is_away:
            self._log.info("events are posted again", dropped=dict(self.dropped))
        self._is_away = False
        self._backoff.worked()

    def _say_refused(self, e: ApiServerError) -> None:
        """Once for each status: a right that is missing is missing for all of them."""
        if e.status not in self._refusals:
            self._log.warning("an event is refused; more of the same are not logged", error=str(e))
        self._refusals.add(e.status)


def _with_uid(event: Event, api: EventsApi) -> Event:
    """`kubectl describe pod` finds Events by the pod's uid, which not every runtime tells."""
    pod = event.pod
    if pod is None or pod.uid:
        return event
    uid = api.pod_uid(pod.namespace, pod.name)
    return msgspec.structs.replace(event, pod=Pod(namespace=pod.namespace, name=pod.name, uid=uid))
