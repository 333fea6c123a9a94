"""Orchestrator: one kind of objects, as the API server has it: listed once, then followed by a watch.

The watch is resumed where it ended. Only when the API server does not remember that far back everything is
listed anew; what was known before stays in force until the new list is complete, and is then replaced in one
step. Pauses are jittered: the agents of all nodes lose an API server at one moment.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, assert_never

import msgspec
from structlog.typing import FilteringBoundLogger

from node_agent.api_errors import ApiServerError
from node_agent.backoff import Backoff
from node_agent.kube.decode import (
    EventType,
    Garbled,
    Identity,
    Page,
    TooLong,
    parse_event,
    parse_identity,
    parse_object,
    parse_page,
    parse_status,
)
from node_agent.kube.kinds import Held, Kind
from node_agent.kube.store import ClusterStore

PAGE = 500
_WATCH_S = 300  # to twice that
_LONG_S = 10.0
_MOST_PAUSE_S = 60.0


class Source(Protocol):
    """See api_stream.py."""

    def list_page(self, limit: int, token: str) -> bytes | bytearray: ...
    def watch(self, version: str, timeout_s: int) -> AbstractContextManager[Iterator[bytes]]: ...
    def close(self) -> None: ...


class Reflector:
    """`run` on a thread of its own; the rest from any.

    An object that is not understood is skipped: what was known of it before stays, and the log names it once.
    """

    def __init__(
        self,
        kind: Kind,
        store: ClusterStore,
        log: FilteringBoundLogger,
        *,
        backoff: Backoff,
        page: int = PAGE,
        fraction: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kind = kind
        self._store = store
        self._log = log.bind(kind=kind.value)
        self._backoff = backoff
        self._fraction = fraction
        self._clock = clock
        self._source: Source | None = None
        self._turned = threading.Event()
        self._version: str | None = None  # up to which everything is known; None: nothing is
        self._most_page = self._page = page
        self._is_in_trouble = False

    def aim(self, source: Source | None) -> None:
        """Follow this one, and no more the one before; None: none, and forget what is known."""
        before, self._source = self._source, source
        if before is not None:
            before.close()
        self._turned.set()

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set and `aim` was called after that."""
        while not stop.is_set():
            source = self._source
            if source is None:
                self._store.forget(self._kind)
                self._wait(None)
            else:
                self._begin()
                while self._source is source and not stop.is_set():
                    self._wait(self.step(source))

    def step(self, source: Source) -> float:
        """List, if need be, and watch until that ends. Returns the seconds to wait before the next one."""
        try:
            if self._version is None:
                self._list(source)
            return self._watch(source)
        except ApiServerError as e:
            if self._source is not source:
                return 0.0
            return self._failed(e)

    def _begin(self) -> None:
        self._store.begin(self._kind)
        self._version = None
        self._page = self._most_page

    def _wait(self, pause_s: float | None) -> None:
        self._turned.wait(pause_s)
        self._turned.clear()

    # -- everything

    def _list(self, source: Source) -> None:
        began = self._clock()
        objects, skipped, token = dict[str, Held](), set[str](), ""
        while True:
            page = self._next_page(source, token)
            for raw in page.items or ():
                self._take(raw, objects, skipped)
            if not (token := page.metadata.continue_):
                break
        self._store.replace(self._kind, objects, skipped)
        self._version = page.metadata.resource_version
        self._log.info("listed", objects=len(objects), seconds=round(self._clock() - began, 3))

    def _next_page(self, source: Source, token: str) -> Page:
        try:
            return parse_page(source.list_page(self._page, token))
        except TooLong:
            self._page = max(1, self._page // 2)
            raise

    def _take(self, raw: msgspec.Raw, objects: dict[str, Held], skipped: set[str]) -> None:
        """An object of a list. One that is as it was stays the one that it was: no second one is held."""
        known = self._store.known(self._kind)
        try:
            found, _ = parse_object(self._kind, raw)
        except msgspec.DecodeError as e:
            key = self._skip(raw, e).key
            skipped.add(key)
            if key in known:
                objects[key] = known[key]
            return
        key = found.metadata.key
        old = known.get(key)
        objects[key] = old if old == found else found

    def _skip(self, raw: msgspec.Raw, error: Exception) -> Identity:
        identity = parse_identity(raw)
        if self._store.skip(self._kind, identity.key):
            self._log.warning(
                "an object is not understood; what was known of it stays",
                object=identity.key,
                error=str(error),
            )
        return identity

    # -- what happens to it

    def _watch(self, source: Source) -> float:
        assert self._version is not None, "everything was listed"
        timeout_s = int(_WATCH_S * (1 + self._fraction()))
        with source.watch(self._version, timeout_s) as lines:
            began = self._clock()
            self._recovered()
            try:
                for line in lines:
                    self._version = self._hear(line) or self._version
                    self._backoff.worked()
            finally:
                lasted_s = self._clock() - began
                if lasted_s >= _LONG_S:  # where nothing happens nothing is heard
                    self._backoff.worked()
        return 0.0 if lasted_s >= timeout_s else self._backoff.failed()

    def _hear(self, line: bytes) -> str:
        """Up to which resourceVersion everything is known now."""
        event = parse_event(line)
        match event.type:
            case EventType.ADDED | EventType.MODIFIED:
                return self._put(event.object)
            case EventType.DELETED:
                identity = parse_identity(event.object)
                self._store.remove(self._kind, identity.key)
            case EventType.BOOKMARK:
                identity = parse_identity(event.object)
                self._store.hear(self._kind)
            case EventType.ERROR:
                raise parse_status(event.object)
            case _:
                assert_never(event.type)
        return identity.resource_version

    def _put(self, raw: msgspec.Raw) -> str:
        try:
            found, version = parse_object(self._kind, raw)
        except msgspec.DecodeError as e:
            return self._skip(raw, e).resource_version
        self._store.put(self._kind, found.metadata.key, found)
        return version

    # -- trouble

    def _failed(self, e: ApiServerError) -> float:
        """An answer that says no is about what was asked for (410: the history does not reach back that far),
        and one that is not understood may be: begin anew. Everything else is about the way there."""
        if isinstance(e, Garbled | TooLong) or not e.is_away:
            self._version = None
        if not self._is_in_trouble:
            self._log.warning("not followed for now; what is known stays", error=str(e))
        self._is_in_trouble = True
        self._store.fail(self._kind, str(e))
        return min(e.retry_after_s, _MOST_PAUSE_S) + self._backoff.failed()

    def _recovered(self) -> None:
        if self._is_in_trouble:
            self._log.info("followed again")
        self._is_in_trouble = False
        self._store.well(self._kind)
