"""Adapter: waits until the kernel says that something about NICs may have changed.

uevents by pyudev (lib/kobject_uevent.c; drivers/base/dd.c for `bind` and `unbind`), links, default routes and
nexthop objects by the multicast groups of rtnetlink (include/uapi/linux/rtnetlink.h RTNLGRP_*). What an event
says is not believed, only that there was one; so one that was lost (ENOBUFS, man 7 netlink) is one as well.
"""

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import pyudev

from vf_manager.kernel import route_messages
from vf_manager.kernel.netlink import NetlinkRefusal, split_messages

_GROUPS = (1, 7, 11, 32)  # RTNLGRP_LINK, _IPV4_ROUTE, _IPV6_ROUTE, _NEXTHOP
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_ROUTES = (route_messages.NEWROUTE, route_messages.DELROUTE)
_SUBSYSTEMS = ("pci", "net", "vfio", "vfio-dev", "uio", "infiniband")
_BUFFER = 64 * 1024


class Source(Protocol):
    def fileno(self) -> int: ...
    def close(self) -> None: ...

    def drain(self) -> bool:
        """Take all that has come. Whether any of it may matter."""


class RtnetlinkGroups:
    """Raises OSError if it cannot be opened."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            socket.NETLINK_ROUTE,
        )
        try:
            self._socket.bind((0, 0))
            for group in _GROUPS:
                self._join(group)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def drain(self) -> bool:
        matters = False
        while True:
            try:
                data, sender = self._socket.recvfrom(_BUFFER)
            except BlockingIOError:
                return matters
            except OSError as e:
                if e.errno != errno.ENOBUFS:
                    raise
                matters = True
            else:
                matters = matters or (sender[0] == 0 and may_matter(data))

    def _join(self, group: int) -> None:
        """EINVAL: a kernel without nexthop objects, before 5.3, has no group for them."""
        try:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except OSError as e:
            if e.errno != errno.EINVAL:
                raise


class Uevents:
    """Raises OSError if it cannot be opened, ImportError where libudev is not installed."""

    def __init__(self) -> None:
        # From the kernel: udev's own events come when it is done with a device, and only where there is udev.
        self._monitor: Any = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        for subsystem in _SUBSYSTEMS:
            self._monitor.filter_by(subsystem)
        self._monitor.start()

    def fileno(self) -> int:
        return int(self._monitor.fileno())

    def close(self) -> None:
        self._monitor = None  # libudev closes the socket with the last reference

    def drain(self) -> bool:
        """An event that the filter drops looks like the end; poll then says that there is more."""
        matters = False
        try:
            while self._monitor.poll(0) is not None:
                matters = True
        except OSError as e:
            if e.errno != errno.ENOBUFS:
                raise
            matters = True
        return matters


SOURCES: Mapping[str, Callable[[], Source]] = {"rtnetlink": RtnetlinkGroups, "uevents": Uevents}


class Events:
    """See `KernelEvents` for what each method does."""

    def __init__(self, sources: list[Source], unheard: tuple[str, ...]) -> None:
        self.unheard = unheard
        self._sources = {source.fileno(): source for source in sources}
        self._lock = threading.Lock()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        for fd in (self._wake_fd, *self._sources):
            self._poll.register(fd, select.POLLIN)

    def wait(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while True:
            ready = self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            matters = [self._drain(fd) for fd, _ in ready]
            if any(matters):
                return True
            if time.monotonic() >= deadline:
                return False

    def wake(self) -> None:
        with self._lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        with self._lock:
            os.close(self._wake_fd)
            self._wake_fd = -1

    def _drain(self, fd: int) -> bool:
        if fd == self._wake_fd:
            os.eventfd_read(fd)
            return True
        return self._sources[fd].drain()


@contextmanager
def listening(sources: Mapping[str, Callable[[], Source]] = SOURCES) -> Iterator[Events]:
    """In the network namespace of the calling thread. A source that cannot be opened is left out."""
    opened: list[Source] = []
    unheard: list[str] = []
    with ExitStack() as stack:
        for name, open_source in sources.items():
            try:
                source = open_source()
            except (OSError, ImportError) as e:
                unheard.append(f"{name}: {e}")
                continue
            stack.callback(source.close)
            opened.append(source)
        events = Events(opened, tuple(unheard))
        stack.callback(events.close)
        yield events


def may_matter(data: bytes) -> bool:
    """Pure: of a datagram of the groups. Links and nexthop objects do, of routes the default ones."""
    try:
        return any(
            kind not in _ROUTES or route_messages.is_default(payload)
            for kind, _, _, payload in split_messages(data)
        )
    except NetlinkRefusal:  # cut off
        return True
