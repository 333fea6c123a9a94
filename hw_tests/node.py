"""Adapter: a node with the agent on it: a stub kubelet, the agent as a process, and their folders."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from hw_tests.nics import Nic
from hw_tests.runtime import PROJECT, CniError, Runtime
from node_agent.agent import ATTACHMENTS, SOCKET_NAME
from tests.stub_kubelet import StubKubelet

PREFIX = "sriov-underlay.io"
READY_TIMEOUT_S = 90.0
REGISTER_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0


def pool_of(nic: Nic) -> str:
    """One pool per PF, by its place on the bus."""
    return f"pf-{nic.pci.replace(':', '-').replace('.', '-')}"


def resource_of(nic: Nic) -> str:
    return f"{PREFIX}/{pool_of(nic)}"


def render_config(nics: tuple[Nic, ...]) -> str:
    """A pool for each PF with as many VFs as the tests use."""
    pools = [
        {"name": pool_of(nic), "select": {"pfNames": [nic.name]}, "vfs": {"count": nic.vfs_used}}
        for nic in nics
    ]
    return yaml.safe_dump({"pools": pools}, sort_keys=False, default_flow_style=None)


@dataclass
class Node:
    """`folder` holds everything that the agent, the kubelet and the leases keep on disk. `start` the agent,
    `kill` it, `start` it again; `stop` is what a service manager would do. `module`, `options`, `env`: which
    program it is, and what it is told besides."""

    folder: Path
    nics: tuple[Nic, ...]
    plugin_dirs: tuple[str, ...] = ()
    module: str = "node_agent.main"
    options: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    kubelet: StubKubelet = field(init=False)
    ready_s: float = field(init=False, default=0.0)
    _registered_before: int = field(init=False, default=0)
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        for path in (self.run_dir, self.kubelet_dir, self.lease_dir):
            path.mkdir(parents=True)
        self.config.write_text(render_config(self.nics))
        self.log.touch()
        self.kubelet = StubKubelet(self.kubelet_dir)

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def kubelet_dir(self) -> Path:
        return self.folder / "kubelet"

    @property
    def lease_dir(self) -> Path:
        return self.folder / "leases"

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def log(self) -> Path:
        return self.folder / "agent.log"

    @property
    def runtime(self) -> Runtime:
        return Runtime(self.run_dir / SOCKET_NAME, plugin_dirs=self.plugin_dirs)

    @property
    def pid(self) -> int:
        assert self._process is not None, "the agent does not run"
        return self._process.pid

    def start(self) -> None:
        """Start the agent and wait until STATUS says that an ADD could succeed."""
        began = time.monotonic()
        self._registered_before = len(self.kubelet.registrations())
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), cwd=PROJECT, stdout=log, stderr=log, env=os.environ | self.env
            )
        self._wait_ready(began + READY_TIMEOUT_S)
        self.ready_s = time.monotonic() - began

    def wait_registered(self) -> None:
        """Until the kubelet has every pool with all its VFs."""
        for nic in self.nics:
            self.kubelet.wait_devices(resource_of(nic), nic.vfs_used, REGISTER_TIMEOUT_S)

    def registered(self) -> set[str]:
        """The resources that this agent has registered since it was started."""
        return set(self.kubelet.registrations()[self._registered_before :])

    def kill(self) -> None:
        """SIGKILL: nothing is cleaned up."""
        assert self._process is not None, "the agent does not run"
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT_S)
        self._process = None

    def stop(self) -> int:
        """SIGTERM; the agent's exit code. One that does not end is killed, and that raises TimeoutExpired."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.terminate()
        try:
            return process.wait(STOP_TIMEOUT_S)
        finally:
            process.kill()

    def records(self) -> list[str]:
        """What the agent has on record as attached or half-attached."""
        folder = self.run_dir / ATTACHMENTS
        return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []

    def leases(self) -> list[str]:
        """`network/address` of every address that is given out."""
        return read_leases(self.lease_dir)

    def log_text(self, start: int = 0) -> str:
        with self.log.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")

    def log_events(self, start: int = 0) -> list[dict[str, str]]:
        """The structured lines of the agent's log."""
        lines = (line for line in self.log_text(start).splitlines() if line.startswith("{"))
        return [json.loads(line) for line in lines]

    def _command(self) -> list[str]:
        folders = [
            "--run-dir",
            self.run_dir,
            "--kubelet-dir",
            self.kubelet_dir,
            "--lease-dir",
            self.lease_dir,
            "--cdi-dir",
            self.run_dir.parent / "cdi",
            "--device-info-dir",
            self.run_dir.parent / "device-info",
        ]
        options = ["--config", self.config, *folders, "--log-level", "debug", *self.options]
        return [sys.executable, "-m", self.module, *(str(option) for option in options)]

    def _wait_ready(self, deadline: float) -> None:
        assert self._process is not None
        while True:
            try:
                self.runtime.status()
                return
            except CniError as e:
                reason = str(e)
            if self._process.poll() is not None:
                raise RuntimeError(f"the agent ended with {self._process.returncode}:\n{self.log_text()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the agent is not ready: {reason}\n{self.log_text()}")


def read_leases(lease_dir: Path) -> list[str]:
    return sorted(
        f"{network.name}/{lease.name}"
        for network in lease_dir.iterdir()
        for lease in network.iterdir()
        if lease.name != "lock" and not lease.name.startswith("last_reserved_ip")
    )


@contextlib.contextmanager
def running_node(folder: Path, nics: tuple[Nic, ...]) -> Iterator[Node]:
    """A node with its kubelet and its agent up; in the end the agent is stopped as a service would be."""
    node = Node(folder, nics)
    with node.kubelet:
        try:
            node.start()
            node.wait_registered()
            yield node
        finally:
            code = node.stop()
            if code:
                raise RuntimeError(f"the agent ended with {code}:\n{node.log_text()[-4000:]}")
