"""Adapter: the API server of the benchmark, the tests' own, as a process beside the agent's: what it takes to
serve is not counted as the agent's time.

As a program it is told what changes by lines on stdin, and answers each with the moment before the change.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from hw_tests.bench.in_pod_cluster import Put, Scale, every_object
from hw_tests.runtime import PROJECT
from tests.api_double import api_double


class Api:
    """`kubeconfig`: for the agent."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        self._guard = threading.Lock()
        self.kubeconfig = self._answer()

    def put(self, change: Put) -> float:
        """When it happened, by time.monotonic, which is the same in every process."""
        with self._guard:
            self._in.write(msgspec.json.encode(change) + b"\n")
            self._in.flush()
            return float(self._answer())

    def _answer(self) -> str:
        line = self._out.readline().decode().strip()
        if not line:
            raise RuntimeError("the API server of the benchmark ended; its last words are above")
        return line


@contextmanager
def running_api(folder: Path, scale: Scale, server: str) -> Iterator[Api]:
    words = [str(folder), msgspec.json.encode(scale).decode(), server]
    command = [sys.executable, "-m", "hw_tests.bench.in_pod_api", *words]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Api(process)
        finally:
            process.kill()


def main(arguments: list[str]) -> int:
    folder, scale, server = arguments
    with api_double() as api:
        for resource, found in every_object(msgspec.json.decode(scale, type=Scale), server):
            api.put(resource, found)
        _say(str(api.kubeconfig(Path(folder)).kubeconfig))
        for line in sys.stdin.buffer:
            resource, found = msgspec.json.decode(line, type=Put)
            moment = time.monotonic()
            api.put(resource, found)
            _say(repr(moment))
    return 0


def _say(answer: str) -> None:
    print(answer, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
