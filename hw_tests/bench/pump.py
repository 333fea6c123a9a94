"""Adapter: bytes and questions over TCP, for a process in the namespace of its own that it measures from:

    python -m hw_tests.bench.pump serve ADDRESS PORT
    python -m hw_tests.bench.pump flows ADDRESS PORT SECONDS COUNT     bytes a second, as they arrived
    python -m hw_tests.bench.pump asks ADDRESS PORT COUNT              microseconds of each question
    python -m hw_tests.bench.pump connects ADDRESS PORT COUNT          of each with a connection of its own

The first byte of a connection says what it is for. Nothing of the project is in here.
"""

import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

_PUMP, _ASK = b"p", b"a"
_CHUNK = 256 * 1024
_TIMEOUT_S = 5.0
_COUNT = struct.Struct("!Q")

Where = tuple[str, int]


def serve(where: Where) -> None:
    """For ever. Says by which port when it is ready."""
    with socket.create_server(where, backlog=256) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_serve_one, args=(client,), daemon=True).start()


def _serve_one(client: socket.socket) -> None:
    with client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if client.recv(1) == _PUMP:
            client.send(_COUNT.pack(_swallow(client)))
        else:
            while question := client.recv(64):
                client.send(question)


def _swallow(client: socket.socket) -> int:
    room, count = bytearray(_CHUNK), 0
    while more := client.recv_into(room):
        count += more
    return count


def flows(where: Where, seconds: float, count: int) -> float:
    """Of all together, from the first byte until the last one arrived."""
    arrived: list[int] = []

    def pump() -> None:
        with _connect(where, _PUMP) as client:
            piece, until = bytes(_CHUNK), time.monotonic() + seconds
            while time.monotonic() < until:
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
            arrived.append(_COUNT.unpack(client.recv(_COUNT.size, socket.MSG_WAITALL))[0])

    threads = [threading.Thread(target=pump) for _ in range(count)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(arrived) != count:
        raise OSError(f"{count - len(arrived)} of {count} flows broke off")
    return sum(arrived) / (time.monotonic() - began)


def asks(where: Where, count: int) -> list[float]:
    with _connect(where, _ASK) as client:

        def ask() -> None:
            client.send(b"?")
            client.recv(1)

        return _timed(ask, count)


def connects(where: Where, count: int) -> list[float]:
    def ask() -> None:
        with _connect(where, _ASK + b"?") as client:
            client.recv(1)

    return _timed(ask, count)


def _connect(where: Where, first: bytes) -> socket.socket:
    client = socket.create_connection(where, timeout=_TIMEOUT_S)
    client.settimeout(None)  # one that has a time is polled before each call
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.send(first)
    return client


def _timed(ask: Callable[[], None], count: int) -> list[float]:
    found = []
    for _ in range(count):
        began = time.perf_counter()
        ask()
        found.append((time.perf_counter() - began) * 1e6)
    return found


def main(arguments: list[str]) -> int:
    what, address, port, *numbers = arguments
    where = address, int(port)
    match what:
        case "serve":
            serve(where)
        case "flows":
            print(json.dumps([flows(where, float(numbers[0]), int(numbers[1]))]))
        case "asks":
            print(json.dumps(asks(where, int(numbers[0]))))
        case "connects":
            print(json.dumps(connects(where, int(numbers[0]))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
