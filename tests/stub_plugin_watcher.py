"""Adapter: the part of a kubelet that finds plugins in a folder (pkg/kubelet/pluginmanager).

It keeps the real one's habits: a pass over the folder each tick (of a second, there), which unregisters
before it registers and has one operation per path at a time, so that a socket that was made anew is taken up
a pass later; GetInfo within a second; a plugin whose connection failed is on its books and not tried again
before its file is a new one; and a path whose operation failed is left alone for a while that doubles.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc

from device_plugin.api import pluginregistration_v1_pb2 as pb
from device_plugin.api import pluginregistration_v1_pb2_grpc as rpc
from device_plugin.endpoint import CHANNEL_OPTIONS, FileIdentity, read_socket_identity, unix_target
from device_plugin.registration import API_VERSION, PLUGIN_TYPE

_DIAL_TIMEOUT_S = 10.0
_GET_INFO_TIMEOUT_S = 1.0
_NOTIFY_TIMEOUT_S = 5.0
_MAX_BACKOFF_TICKS = 122


class Refused(Exception):
    """The kubelet does not take this plugin."""


@dataclass
class _Book:
    """What is known of a path. `desired`: the file that was seen; `actual`: the one that was taken, and its
    resource; both None if there is none. `busy`: an operation is at work on it."""

    desired: FileIdentity | None = None
    actual: FileIdentity | None = None
    resource: str = ""
    busy: bool = False
    backoff_s: float = 0.0
    retry_at: float = 0.0


@dataclass
class PluginWatcher:
    """`connect` raises Refused; `disconnect` is given the resource and the socket. Both on other threads."""

    folder: Path
    tick_s: float
    connect: Callable[[str, Path], None]
    disconnect: Callable[[str, Path], None]
    _books: dict[Path, _Book] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self._workers = ThreadPoolExecutor(8, thread_name_prefix="kubelet-plugins")
        self._thread = threading.Thread(target=self._run, name="kubelet-plugin-watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._workers.shutdown()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._look()
            self._pass()
            self._stop.wait(self.tick_s)

    def _look(self) -> None:
        found = [path for path in self.folder.iterdir() if not path.name.startswith(".")]
        with self._lock:
            for path in {*found, *self._books}:
                self._books.setdefault(path, _Book()).desired = read_socket_identity(path)

    def _pass(self) -> None:
        with self._lock:
            books = list(self._books.items())
        for path, book in books:
            if book.actual is not None and book.actual != book.desired:
                self._begin(book, partial(self._unregister, path, book))
        for path, book in books:
            if book.desired is not None and book.actual != book.desired:
                self._begin(book, partial(self._register, path, book))

    def _begin(self, book: _Book, operation: Callable[[], None]) -> None:
        with self._lock:
            if book.busy or time.monotonic() < book.retry_at:
                return
            book.busy = True
        self._workers.submit(self._operate, book, operation)

    def _operate(self, book: _Book, operation: Callable[[], None]) -> None:
        try:
            operation()
            book.backoff_s = book.retry_at = 0.0
        except (grpc.RpcError, Refused):
            book.backoff_s = min(2 * book.backoff_s or self.tick_s / 2, _MAX_BACKOFF_TICKS * self.tick_s)
            book.retry_at = time.monotonic() + book.backoff_s
        finally:
            book.busy = False

    def _unregister(self, path: Path, book: _Book) -> None:
        book.actual = None
        self.disconnect(book.resource, path)

    def _register(self, path: Path, book: _Book) -> None:
        identity = book.desired
        with grpc.insecure_channel(unix_target(path), options=CHANNEL_OPTIONS) as channel:
            stub = rpc.RegistrationStub(channel)
            info = stub.GetInfo(pb.InfoRequest(), timeout=_GET_INFO_TIMEOUT_S)
            try:
                if info.type != PLUGIN_TYPE or API_VERSION not in info.supported_versions:
                    raise Refused(f"no handler for {info.type} {list(info.supported_versions)}")
                book.actual, book.resource = identity, info.name
                self.connect(info.name, Path(info.endpoint or path))
            except Refused as e:
                error = f"plugin registration failed with err: {e}"
                stub.NotifyRegistrationStatus(pb.RegistrationStatus(error=error), timeout=_NOTIFY_TIMEOUT_S)
                raise
            stub.NotifyRegistrationStatus(pb.RegistrationStatus(registered=True), timeout=_NOTIFY_TIMEOUT_S)
