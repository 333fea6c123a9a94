"""Lists and watches as an API server answers them: one resourceVersion for all, and a bounded history.

What a client has to live with comes on demand: a history that is forgotten, watches that are dropped, changes
that are sent a second time, bookmarks or none.
"""

import copy
import itertools
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple

Object = dict[str, Any]
Query = Mapping[str, str]

RESOURCES = frozenset(  # group, resource
    {
        ("", "services"),
        ("", "pods"),
        ("", "namespaces"),
        ("", "nodes"),
        ("discovery.k8s.io", "endpointslices"),
        ("networking.k8s.io", "networkpolicies"),
    }
)
Lines = Generator[bytes, None, None]
_LOOK_S = 0.02


class Refused(Exception):
    """A status instead of an answer."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class Dropped(Exception):
    """The connection ends in the middle of the answer."""


class Change(NamedTuple):
    version: int
    resource: str
    before: Object | None
    after: Object | None


class _Watcher:
    def __init__(self, resource: str, due: list[Change]) -> None:
        self.resource = resource
        self.due: deque[Change | int] = deque(due)  # a number: a bookmark
        self.is_dropped: bool | None = None  # True: in the middle; False: in good order


class WatchCache:
    """`says_gone_late`: that the history is forgotten is said in the stream, not by the status. `replay`: how
    many changes before the one that it asks for a watch gets once more. `keeps_time`: a watch ends when it is
    to."""

    def __init__(self) -> None:
        self.version = 100
        self.says_gone_late = False
        self.replay = 0
        self.keeps_time = True
        self._moved = threading.Condition()
        self._objects: dict[str, dict[str, Object]] = {resource: {} for _, resource in RESOURCES}
        self._history: list[Change] = []
        self._forgotten = self.version
        self._pages: dict[str, tuple[int, list[Object]]] = {}
        self._watchers: list[_Watcher] = []
        self._names = itertools.count(1)

    def put(self, resource: str, found: Object) -> None:
        with self._moved:
            held = copy.deepcopy(found)
            before = self._objects[resource].get(key_of(held))
            uid = before["metadata"]["uid"] if before else f"u{next(self._names)}"
            held["metadata"] = {"uid": uid} | held["metadata"]
            self._happen(resource, before, held)
            self._objects[resource][key_of(held)] = held

    def delete(self, resource: str, key: str) -> None:
        with self._moved:
            self._happen(resource, self._objects[resource].pop(key), None)

    def objects(self, resource: str) -> dict[str, Object]:
        with self._moved:
            return dict(self._objects[resource])

    def forget_history(self) -> None:
        with self._moved:
            self._history.clear()
            self._pages.clear()
            self._forgotten = self.version

    def drop_watches(self, *, in_the_middle: bool = True) -> None:
        with self._moved:
            for watcher in self._watchers:
                watcher.is_dropped = in_the_middle
            self._moved.notify_all()

    def bookmark(self) -> None:
        with self._moved:
            for watcher in self._watchers:
                watcher.due.append(self.version)
            self._moved.notify_all()

    @property
    def watching(self) -> list[str]:
        with self._moved:
            return sorted(watcher.resource for watcher in self._watchers)

    def page(self, resource: str, query: Query) -> Object:
        with self._moved:
            if int(query.get("resourceVersion") or 0) > self.version:
                raise Refused(504, "Too large resource version")
            version, rest = self._page_of(resource, query)
            limit = int(query.get("limit") or 0) or len(rest)
            metadata: Object = {"resourceVersion": str(version)}
            if rest[limit:]:
                token = f"page-{next(self._names)}"
                self._pages[token] = (version, rest[limit:])
                metadata |= {"continue": token, "remainingItemCount": len(rest[limit:])}
            return {"kind": "List", "metadata": metadata, "items": rest[:limit]}

    def watch(self, resource: str, query: Query, is_wanted: Callable[[], bool]) -> Lines:
        """Lines, each with its end, until it is closed. Raises Dropped; Refused before the first one."""
        since = int(query.get("resourceVersion") or self.version)
        with self._moved:
            if since < self._forgotten:
                gone = Refused(410, f"too old resource version: {since} ({self._forgotten})")
                if not self.says_gone_late:
                    raise gone
                said = _line("ERROR", {"kind": "Status", "code": 410, "message": str(gone)})
                return (line for line in [said])
            past = [change for change in self._history if change.resource == resource]
            first = next((i for i, change in enumerate(past) if change.version > since), len(past))
            watcher = _Watcher(resource, past[max(0, first - self.replay) :])
            self._watchers.append(watcher)
        lines = self._serve(watcher, query, is_wanted)
        next(lines)  # from here on its end is noticed, also before the first line
        return lines

    def _serve(self, watcher: _Watcher, query: Query, is_wanted: Callable[[], bool]) -> Lines:
        until = time.monotonic() + int(query["timeoutSeconds"]) if self.keeps_time else math.inf
        try:
            yield b""
            while True:
                with self._moved:
                    due, watcher.due = watcher.due, deque()
                for change in due:
                    yield from _said(change, query)
                if watcher.is_dropped:
                    raise Dropped
                if watcher.is_dropped is False or not is_wanted() or time.monotonic() >= until:
                    return
                with self._moved:
                    if not watcher.due and watcher.is_dropped is None:
                        self._moved.wait(_LOOK_S)
        finally:
            with self._moved:
                self._watchers.remove(watcher)

    def _happen(self, resource: str, before: Object | None, after: Object | None) -> None:
        self.version += 1
        if after is not None:
            after["metadata"]["resourceVersion"] = str(self.version)
        change = Change(self.version, resource, before, after)
        self._history.append(change)
        for watcher in self._watchers:
            if watcher.resource == resource:
                watcher.due.append(change)
        self._moved.notify_all()

    def _page_of(self, resource: str, query: Query) -> tuple[int, list[Object]]:
        token = query.get("continue")
        if token is None:
            found = sorted(self._objects[resource].items())
            return self.version, [one for _, one in found if _matches(one, query)]
        if token not in self._pages:
            raise Refused(410, "The provided continue parameter is too old")
        return self._pages[token]


def key_of(found: Object) -> str:
    metadata = found["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if "namespace" in metadata else str(metadata["name"])


def _said(change: Change | int, query: Query) -> Iterator[bytes]:
    """What somebody with these selectors hears: one that leaves them is deleted as far as he can see."""
    if isinstance(change, int):
        if query.get("allowWatchBookmarks") == "true":
            yield _line("BOOKMARK", {"kind": "Any", "metadata": {"resourceVersion": str(change)}})
        return
    was, is_there = (one is not None and _matches(one, query) for one in (change.before, change.after))
    match was, is_there:
        case False, True:
            yield _line("ADDED", change.after)
        case True, True:
            yield _line("MODIFIED", change.after)
        case True, False:
            assert change.before is not None
            metadata = change.before["metadata"] | {"resourceVersion": str(change.version)}
            yield _line("DELETED", change.before | {"metadata": metadata})


def _line(kind: str, found: Object | None) -> bytes:
    return json.dumps({"type": kind, "object": found}).encode() + b"\n"


def _matches(found: Object, query: Query) -> bool:
    labels = found["metadata"].get("labels") or {}
    return all(_holds(term, labels.get) for term in _terms(query, "labelSelector")) and all(
        _holds(term, lambda path: _field(found, path)) for term in _terms(query, "fieldSelector")
    )


def _terms(query: Query, name: str) -> list[str]:
    return [term for term in query.get(name, "").split(",") if term]


def _holds(term: str, value_of: Callable[[str], str | None]) -> bool:
    if term.startswith("!"):
        return value_of(term[1:]) is None
    if "!=" in term:
        key, _, value = term.partition("!=")
        return value_of(key) != value
    key, is_equation, value = term.partition("=")
    return value_of(key) == value if is_equation else value_of(key) is not None


def _field(found: Object, path: str) -> str | None:
    if path not in ("metadata.name", "metadata.namespace", "status.phase", "spec.nodeName"):
        raise Refused(400, f"field label not supported: {path}")
    for part in path.split("."):
        found = found.get(part) or {}
    return str(found) if found else ""
