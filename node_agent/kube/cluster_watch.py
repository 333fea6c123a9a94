"""Orchestrator: which kinds are followed, at which API server, as the config wants it now."""

import threading
from collections.abc import Callable, Collection
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from node_agent.backoff import Backoff
from node_agent.kube.kinds import Kind
from node_agent.kube.reflector import Reflector, Source
from node_agent.kube.store import ClusterStore
from node_agent.supervisor import Supervisor


class Sources(Protocol):
    """See api_stream.py."""

    def open(self, kind: Kind) -> Source: ...


class ClusterWatch:
    """Thread-safe. A kind has a thread from when it is first wanted; while nobody wants it, that waits."""

    def __init__(
        self,
        store: ClusterStore,
        supervisor: Supervisor,
        log: FilteringBoundLogger,
        backoff: Callable[[], Backoff] = lambda: Backoff(1.0, 30.0),
    ) -> None:
        self._store = store
        self._backoff = backoff
        self._supervisor = supervisor
        self._log = log
        self._guard = threading.Lock()
        self._reflectors: dict[Kind, Reflector] = {}
        self._wanted: frozenset[Kind] = frozenset()
        self._sources: Sources | None = None

    def want(self, kinds: Collection[Kind], sources: Sources | None) -> None:
        """Follow these and no others. The same `sources` as before: a kind that is followed goes on. Other
        ones: it is listed anew from there, and what is known stays until then. None: nothing is followed."""
        with self._guard:
            wanted = frozenset(kinds) if sources is not None else frozenset()
            stay = self._wanted & wanted if sources is self._sources else frozenset[Kind]()
            opened = {kind: sources.open(kind) for kind in wanted - stay} if sources is not None else {}
            for kind in self._wanted - wanted:
                self._reflectors[kind].aim(None)
            for kind, source in opened.items():
                self._reflector(kind).aim(source)
            self._wanted, self._sources = wanted, sources

    def wake(self) -> None:
        """End what is under way, after the supervisor's `stop` is set."""
        with self._guard:
            for reflector in self._reflectors.values():
                reflector.aim(None)

    def _reflector(self, kind: Kind) -> Reflector:
        if kind not in self._reflectors:
            reflector = self._reflectors[kind] = Reflector(
                kind, self._store, self._log, backoff=self._backoff()
            )
            self._supervisor.start(f"watch-{kind}", lambda: reflector.run(self._supervisor.stop))
        return self._reflectors[kind]
