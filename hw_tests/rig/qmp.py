"""Adapter: QEMU's control channel (QMP), for faults that only an emulated machine can have on demand."""

import json
import socket
from collections import deque
from typing import Any

from hw_tests.rig.host import RigError
from hw_tests.rig.lines import Lines


class Qmp:
    """A connected QMP session, for one thread; commands are answered one at a time."""

    def __init__(self, connection: socket.socket, timeout_s: float = 60.0) -> None:
        connection.settimeout(timeout_s)
        self._connection = connection
        self._timeout_s = timeout_s
        self._lines = Lines()
        self._inbox = deque[dict[str, Any]]()
        self._events: list[dict[str, Any]] = []  # since the last command was sent
        self._ready = False

    def command(self, name: str, /, **arguments: Any) -> Any:
        """The command's return value; an error of QEMU's raises RigError with its text."""
        if not self._ready:
            self._reply("greeting", "QMP")
            self._ready = True
            self.command("qmp_capabilities")
        self._events.clear()
        request = {"execute": name, "arguments": arguments}
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        return self._reply(name, "return")

    def wait_event(self, name: str, /, **data: Any) -> None:
        """Until there has been such an event, with this data, since the last command was sent."""

        def came() -> bool:
            return any(e["event"] == name and data.items() <= e.get("data", {}).items() for e in self._events)

        while not came():
            self._take(self._next(name))

    def _reply(self, name: str, key: str) -> Any:
        """The next message that is an answer: events come in between whenever they like."""
        while True:
            message = self._next(name)
            if "error" in message:
                raise RigError(f"QMP {name}: {message['error']['desc']}")
            if key in message:
                return message[key]
            self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._events.append(message)

    def _next(self, what: str) -> dict[str, Any]:
        while not self._inbox:
            try:
                data = self._connection.recv(65536)
            except TimeoutError as e:
                raise RigError(f"QMP {what}: nothing came for {self._timeout_s:g} s") from e
            if not data:
                raise RigError(f"QMP {what}: QEMU is gone")
            self._inbox += [json.loads(line) for line in self._lines.feed(data)]
        return self._inbox.popleft()

    def close(self) -> None:
        self._connection.close()
