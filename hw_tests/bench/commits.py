"""Adapter: when rules of pods changed: the kernel tells whoever listens in their namespaces of each commit.

Nothing is asked, so nobody waits for the one who looks (nf_tables_gen_notify, after the new rules are in
force). The sockets keep the namespaces: they are closed before pods go.
"""

import errno
import os
import select
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kernel_contract import Space
from tests.netns.namespaces import entered

_NETLINK_NETFILTER, _SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES = 12, 270, 1, 7
_DISCARD = 9
_QUIET_S = 0.3


class Commits:
    def __init__(self, sockets: Iterable[socket.socket]) -> None:
        self._sockets = {one.fileno(): one for one in sockets}
        self._poll = select.poll()
        for fd in self._sockets:
            self._poll.register(fd, select.POLLIN)

    def last(self, timeout_s: float) -> float:
        """Until every pod had one and then none for a while: when the last one came. Raises TimeoutError."""
        due, latest, deadline = set(self._sockets), 0.0, time.monotonic() + timeout_s
        while due or time.monotonic() < latest + _QUIET_S:
            for fd, _ in self._poll.poll(20):
                _drain(self._sockets[fd])
                due.discard(fd)
                latest = time.monotonic()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(due)} of {len(self._sockets)} pods did not change")
        return latest


@contextmanager
def listening(namespaces: Iterable[Path]) -> Iterator[Commits]:
    sockets = [_listen(path) for path in namespaces]
    try:
        yield Commits(sockets)
    finally:
        for one in sockets:
            one.close()


def say_something(namespace: Path, address: str) -> None:
    """A datagram from there that nobody answers."""
    with _opened(namespace, socket.AF_INET, socket.SOCK_DGRAM, 0) as one:
        one.sendto(b"?", (address, _DISCARD))


def _listen(namespace: Path) -> socket.socket:
    opened = _opened(namespace, socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    opened.bind((0, 0))  # one that is not bound hears nothing
    opened.setblocking(False)
    opened.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
    return opened


def _opened(namespace: Path, family: int, kind: int, protocol: int) -> socket.socket:
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with entered(Space(fd, str(namespace))):
            return socket.socket(family, kind, protocol)
    finally:
        os.close(fd)


def _drain(one: socket.socket) -> None:
    """More than fits (ENOBUFS) is a commit, too."""
    while True:
        try:
            one.recv(65536)
        except BlockingIOError:
            return
        except OSError as e:
            if e.errno != errno.ENOBUFS:
                raise
