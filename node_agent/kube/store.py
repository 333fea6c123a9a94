"""Orchestrator: what is known of the cluster: written by the reflectors, read as snapshots that never change.

A snapshot takes no copy. The first write after it copies the one mapping that it changes, so ten thousand
events between two looks cost one copy, and a kind that did not change is the same object in both snapshots:
`new.pods is old.pods` says that nothing happened to pods.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import msgspec

from node_agent.kube.kinds import Held, Kind
from sriov_cni.in_pod.objects import Cluster


class WatchState(msgspec.Struct, frozen=True, kw_only=True):
    """How it stands with one kind. `listed`: all of it was known at some time, and is kept. `synced`: that,
    and as far as anybody can tell it is not old. `relists`: after the first. `failures`: attempts since the
    start. `skipped`: objects that are there but not understood. `trouble`: of the last attempt; "": none.
    """

    kind: Kind
    listed: bool = False
    synced: bool = False
    objects: int = 0
    skipped: int = 0
    relists: int = 0
    failures: int = 0
    last_event_unix: float = 0.0
    trouble: str = ""


class _Shelf:
    """Objects of one kind. `is_shared`: a snapshot has this very mapping, so it stays as it is."""

    def __init__(self) -> None:
        self.objects: dict[str, Held] = {}
        self.is_shared = False
        self.is_listed = False
        self.skipped: set[str] = set()
        self.relists = 0
        self.failures = 0
        self.last_event_unix = 0.0
        self.trouble = ""

    @property
    def is_synced(self) -> bool:
        return self.is_listed and not self.trouble

    def own(self) -> dict[str, Held]:
        if self.is_shared:
            self.objects, self.is_shared = self.objects.copy(), False
        return self.objects


class ClusterStore:
    """Thread-safe; each kind has one writer. `wall`: seconds since 1970."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._changed = threading.Condition()
        self._shelves: dict[Kind, _Shelf] = {}
        self._cluster: Cluster | None = Cluster()
        self._callbacks: tuple[Callable[[], None], ...] = ()

    # -- for those who read

    def snapshot(self) -> Cluster:
        """The same one as before, if nothing changed."""
        with self._changed:
            if self._cluster is None:
                self._cluster = self._freeze()
            return self._cluster

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Called on a reflector's thread after every change of objects or of how it stands: it may only mark
        that a look is due."""
        with self._changed:
            self._callbacks += (callback,)

    def synced(self, kinds: Iterable[Kind]) -> bool:
        with self._changed:
            return self._are_synced(kinds)

    def listed(self, kinds: Iterable[Kind]) -> bool:
        """Whether there is a last known state of each, however old."""
        with self._changed:
            return all(kind in self._shelves and self._shelves[kind].is_listed for kind in kinds)

    def wait_synced(self, kinds: Collection[Kind], timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._are_synced(kinds), timeout_s)

    def states(self) -> tuple[WatchState, ...]:
        """Of the kinds that are followed."""
        with self._changed:
            return tuple(_state(kind, shelf) for kind, shelf in sorted(self._shelves.items()))

    # -- for the one who writes a kind

    def known(self, kind: Kind) -> Mapping[str, Held]:
        """As it is now; the writer's own view."""
        return self._shelves[kind].objects

    def begin(self, kind: Kind) -> None:
        """It is followed from now on, perhaps by another API server. What is known stays until `replace`."""
        with self._changed:
            self._shelves.setdefault(kind, _Shelf()).trouble = "not listed yet"
        self._tell()

    def replace(self, kind: Kind, objects: dict[str, Held], skipped: set[str]) -> None:
        """A complete list, in one step. `skipped`: keys of those that are not understood."""
        with self._changed:
            shelf = self._shelves[kind]
            shelf.relists += shelf.is_listed
            if shelf.objects != objects:
                shelf.objects, shelf.is_shared, self._cluster = objects, False, None
            shelf.is_listed, shelf.skipped, shelf.trouble = True, skipped, ""
            self._heard(kind)
            self._changed.notify_all()
        self._tell()

    def put(self, kind: Kind, key: str, found: Held) -> None:
        with self._changed:
            shelf = self._heard(kind)
            shelf.skipped.discard(key)
            if shelf.objects.get(key) == found:
                return
            shelf.own()[key] = found
            self._cluster = None
        self._tell()

    def remove(self, kind: Kind, key: str) -> None:
        with self._changed:
            shelf = self._heard(kind)
            shelf.skipped.discard(key)
            if key not in shelf.objects:
                return
            del shelf.own()[key]
            self._cluster = None
        self._tell()

    def skip(self, kind: Kind, key: str) -> bool:
        """It is not understood: what was known of it stays. Returns whether that is new."""
        with self._changed:
            shelf = self._heard(kind)
            is_new = key not in shelf.skipped
            shelf.skipped.add(key)
            return is_new

    def hear(self, kind: Kind) -> None:
        """A sign of life that changes no object."""
        with self._changed:
            self._heard(kind)

    def well(self, kind: Kind) -> None:
        """The API server sends what happens to objects of this kind."""
        with self._changed:
            if not self._shelves[kind].trouble:
                return
            self._shelves[kind].trouble = ""
            self._changed.notify_all()
        self._tell()

    def fail(self, kind: Kind, trouble: str) -> None:
        """What is known stays, but nobody can tell how old it is."""
        with self._changed:
            self._shelves[kind].failures += 1
            self._shelves[kind].trouble = trouble
        self._tell()

    def forget(self, kind: Kind) -> None:
        """Nobody wants it any more."""
        with self._changed:
            if self._shelves.pop(kind, None) is None:
                return
            self._cluster = None
        self._tell()

    def _heard(self, kind: Kind) -> _Shelf:
        shelf = self._shelves[kind]
        shelf.last_event_unix = self._wall()
        return shelf

    def _tell(self) -> None:
        """Without the lock: a callback may look."""
        for callback in self._callbacks:
            callback()

    def _are_synced(self, kinds: Iterable[Kind]) -> bool:
        return all(kind in self._shelves and self._shelves[kind].is_synced for kind in kinds)

    def _freeze(self) -> Cluster:
        fields: dict[str, Any] = {}
        for kind, shelf in self._shelves.items():
            shelf.is_shared = True
            fields[kind.value] = shelf.objects
        nodes = fields.pop(Kind.NODE, {})
        return Cluster(**fields, node=next(iter(nodes.values()), None))


def _state(kind: Kind, shelf: _Shelf) -> WatchState:
    return WatchState(
        kind=kind,
        listed=shelf.is_listed,
        synced=shelf.is_synced,
        objects=len(shelf.objects),
        skipped=len(shelf.skipped),
        relists=shelf.relists,
        failures=shelf.failures,
        last_event_unix=shelf.last_event_unix,
        trouble=shelf.trouble,
    )
