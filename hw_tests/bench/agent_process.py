"""Adapter: the agent as a process of its own, started and stopped, its log and its memory read."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw_tests.runtime import PROJECT, CniError, Runtime
from node_agent.agent import SOCKET_NAME

_READY_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 30.0
_POLL_S = 0.05

_FOLDERS = ("run", "kubelet", "lease", "cdi", "device-info")


@dataclass(frozen=True)
class AgentProcess:
    """There is no kubelet beside it: who may have a VF is not asked, as host-device does not ask it."""

    pid: int
    runtime: Runtime
    log: Path

    def rss_mib(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) / 1024

    def events(self) -> list[dict[str, Any]]:
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def prepare_agent(folder: Path, config: str, *options: str) -> list[str]:
    """The command, once its folders and its config are there."""
    (folder / "kubelet").mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    paths = {"config": "config.yaml"} | {f"{name}-dir": name for name in _FOLDERS}
    words = [word for key, name in paths.items() for word in (f"--{key}", str(folder / name))]
    return [sys.executable, "-m", "hw_tests.bench.agent", *words, *options]


@contextmanager
def running_agent(
    folder: Path, config: str, *options: str, log_level: str = "info", env: dict[str, str] | None = None
) -> Iterator[AgentProcess]:
    """`folder`: for all that it keeps on disk. Ready when the context is entered."""
    command = prepare_agent(folder, config, "--log-level", log_level, *options)
    log = folder / "agent.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=PROJECT, env={**os.environ, **(env or {})}, stdout=sink, stderr=sink
        )
    try:
        agent = AgentProcess(process.pid, Runtime(folder / "run" / SOCKET_NAME), log)
        _wait_ready(process, agent)
        yield agent
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        finally:
            process.kill()


def _wait_ready(process: subprocess.Popen[bytes], agent: AgentProcess) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while True:
        try:
            agent.runtime.status()
            return
        except CniError as e:
            reason = str(e)
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the agent is not ready: {reason}\n{agent.log.read_text()}")
        time.sleep(_POLL_S)
