"""Adapter: QEMU's control channel (QMP), for faults that only an emulated machine can have on demand."""

import json
import socket
from typing import Any

from hw_tests.rig.host import RigError


class Qmp:
    """A connected QMP session; commands are answered one at a time."""

    def __init__(self, connection: socket.socket, timeout_s: float = 30.0) -> None:
        connection.settimeout(timeout_s)
        self._connection = connection
        self._stream = connection.makefile("rwb")
        self._ready = False

    def command(self, name: str, /, **arguments: Any) -> Any:
        """The command's return value; an error of QEMU's raises RigError with its text."""
        if not self._ready:
            self._reply("greeting", "QMP")
            self._ready = True
            self.command("qmp_capabilities")
        request = {"execute": name, "arguments": arguments}
        self._stream.write(json.dumps(request).encode() + b"\n")
        self._stream.flush()
        return self._reply(name, "return")

    def _reply(self, name: str, key: str) -> Any:
        """The next message that is an answer: events come in between whenever they like."""
        while line := self._stream.readline():
            message = json.loads(line)
            if "error" in message:
                raise RigError(f"QMP {name}: {message['error']['desc']}")
            if key in message:
                return message[key]
        raise RigError(f"QMP {name}: QEMU is gone")

    def close(self) -> None:
        self._stream.close()
        self._connection.close()
