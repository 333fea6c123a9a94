"""Adapter: programs in network namespaces that talk by TCP, UDP and SCTP, and say who they are and who asked.

A socket stays in the namespace that it was made in, so all of them run in this process.
"""

import contextlib
import selectors
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.kernel_contract import Space
from vf_manager.kernel.netns import Netns

TIMEOUT_S = 3.0
_AGAIN_S = 0.2
_KINDS = {
    "TCP": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "UDP": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "SCTP": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}


class Reply(NamedTuple):
    """`server`: the name of who answered; `client`: the address that it was asked from."""

    server: str
    client: str


def socket_in(space: Space | None, family: int, proto: str) -> socket.socket:
    """None: in the namespace of the calling thread."""
    if space is None:
        return socket.socket(family, *_KINDS[proto])
    with contextlib.closing(Netns.open(Path(space.path))) as netns:
        return netns.run(lambda: socket.socket(family, *_KINDS[proto]))


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def ask(
    space: Space | None, address: str, port: int, proto: str = "TCP", *, timeout_s: float = TIMEOUT_S
) -> Reply:
    """By a connection of its own. Raises ConnectionRefusedError, TimeoutError, OSError."""
    with socket_in(space, family_of(address), proto) as client:
        client.settimeout(timeout_s)
        client.connect((address, port))
        return ask_by(client, timeout_s)


def ask_by(client: socket.socket, timeout_s: float = TIMEOUT_S) -> Reply:
    """By a socket that is connected. By UDP as often as it takes: an address of IPv6 that is new is not heard
    at once (RFC 4862 5.4)."""
    deadline = time.monotonic() + timeout_s
    client.settimeout(timeout_s if client.type == socket.SOCK_STREAM else _AGAIN_S)
    while True:
        client.send(b"?")
        try:
            return Reply(*client.recv(256).decode().split())
        except TimeoutError:
            if time.monotonic() > deadline:
                raise


class Server:
    """Answers on some ports of a namespace until the context ends."""

    def __init__(
        self, space: Space | None, name: str, *ports: int, protos: tuple[str, ...] = ("TCP", "UDP")
    ) -> None:
        self._name = name
        self._selector = selectors.DefaultSelector()
        self._bell, self._ear = socket.socketpair()
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._sockets: list[socket.socket] = []
        self.asked: list[tuple[str, int, str]] = []  # protocol, port, by whom
        for port in ports:
            for proto in protos:
                self._open(space, proto, port)
        self._thread = threading.Thread(target=self._run, name=f"server-{name}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bell.send(b"!")
        self._thread.join()
        for one in (*self._sockets, self._bell, self._ear):
            one.close()
        self._selector.close()

    def _open(self, space: Space | None, proto: str, port: int) -> None:
        made = socket_in(space, socket.AF_INET6, proto)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("::", port))  # IPv4 as well: net.ipv6.bindv6only is 0
        if proto != "UDP":
            made.listen(128)
        made.setblocking(False)
        self._sockets.append(made)
        self._selector.register(made, selectors.EVENT_READ, (proto, port))

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._ear:
                    return
                assert isinstance(key.fileobj, socket.socket)
                with contextlib.suppress(OSError):  # of a client that went
                    self._answer(key.fileobj, *key.data)

    def _answer(self, listener: socket.socket, proto: str, port: int) -> None:
        if proto == "UDP":
            _, address = listener.recvfrom(256)
            listener.sendto(self._reply(proto, port, address[0]), address)
            return
        client, address = listener.accept()
        with client:
            client.settimeout(TIMEOUT_S)
            client.recv(256)
            client.send(self._reply(proto, port, address[0]))

    def _reply(self, proto: str, port: int, client: str) -> bytes:
        who = client.removeprefix("::ffff:")
        self.asked.append((proto, port, who))
        return f"{self._name} {who}".encode()
