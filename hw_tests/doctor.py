"""Adapter: `sriovctl doctor` as a process, on a node with pods; a root of the host that can be broken."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from hw_tests.nics import Nic, ip, wait_until
from hw_tests.node import Node
from hw_tests.runtime import EXECUTABLE, IFNAME, PROJECT, Pod, host_local, network
from hw_tests.stage import Stage

VLAN, MAC = 100, "02:00:00:00:cd:71"
GATEWAY, CLUSTER_GATEWAY = "198.18.71.254", "10.244.0.1"
PLAIN = network("plain", ipam=host_local({"subnet": "198.18.70.0/24"}))
TAGGED = network(
    "tagged",
    vlan=VLAN,
    mac=MAC,
    ipam=host_local({"subnet": "198.18.71.0/24"}, routes=[{"dst": "198.51.100.0/24", "gw": GATEWAY}]),
)

Finding = dict[str, str]
_FOUND_WITHIN_S = 20.0

# A process for each call, all from one that has loaded the command and what it loads when it runs: that alone
# takes 3 s on the emulated CPU.
_FORKS = """
import contextlib, json, os, sys
from node_agent.cli import app
with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
    with contextlib.suppress(SystemExit):
        app(["doctor", "--json", "--root", os.devnull])
for line in sys.stdin:
    *words, out = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        app(words, prog_name="sriovctl")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass
class Doctor:
    """A context manager. `root`: what the command takes for the host's root. The kernel's and udev's folders
    in it are the real ones; what else there is, the tests put there."""

    node: Node
    root: Path
    config: Path | None = None
    _process: subprocess.Popen[str] = field(init=False)

    def __enter__(self) -> Self:
        (self.root / "run").mkdir(parents=True)
        (self.root / "sys").symlink_to("/sys")
        (self.root / "run/udev").symlink_to("/run/udev")
        for folder in (self.bin_dir, self.conf_dir):
            folder.mkdir(parents=True)
        self.install(EXECUTABLE)
        write_conflist(self.conf_dir / "10-underlay.conflist", "sriov-underlay")
        words = [sys.executable, "-c", _FORKS]
        self._process = subprocess.Popen(
            words, cwd=PROJECT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=30)

    @property
    def executable(self) -> Path:
        return self.bin_dir / "sriov-underlay"

    @property
    def bin_dir(self) -> Path:
        """Not below `root`: the agent, which looks for plugins in it too, has another root."""
        return self.root.parent / f"{self.root.name}-cni/bin"

    @property
    def conf_dir(self) -> Path:
        return self.bin_dir.with_name("net.d")

    def install(self, executable: Path) -> None:
        shutil.copy(executable, self.executable)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def words(self, *options: str) -> list[str]:
        places = {
            "--root": self.root,
            "--run-dir": self.node.run_dir,
            "--kubelet-dir": self.node.kubelet_dir,
            "--lease-dir": self.node.lease_dir,
            "--cni-conf-dir": self.conf_dir,
            "--cni-bin-dir": self.bin_dir,
        }
        if self.config is not None:
            places["--config"] = self.config
        given = [word for pair in places.items() for word in map(str, pair)]
        return ["doctor", "--json", *given, *options]

    def findings(self, *options: str) -> list[Finding]:
        out = self.root / "findings.json"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([*self.words(*options), str(out)]), file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        findings: list[Finding] = json.loads(out.read_text())["findings"]
        severities = {finding["severity"] for finding in findings}
        assert code == (4 if "error" in severities else 3 if "warning" in severities else 0)
        return findings

    def wait_for(self, rules: frozenset[str], *options: str) -> list[Finding]:
        """Until these rules and no others find something: the agent says what it knows a moment later."""
        found: list[Finding] = []

        def are_found() -> bool:
            found[:] = self.findings(*options)
            return {finding["id"] for finding in found} == rules

        try:
            wait_until(are_found, "such findings", _FOUND_WITHIN_S)
        except TimeoutError:
            raise AssertionError(
                f"instead of {set(rules) or 'nothing'}: {json.dumps(found, indent=1)}"
            ) from None
        return found


@dataclass
class Ward:
    """A node with pods. The agent keeps the first NIC as its pool asks; the second, whose VFs it has adopted,
    is nobody's to mend. `gateway`: to whom `tagged` has a route."""

    node: Node
    doctor: Doctor
    stage: Stage
    kept: Nic
    adopted: Nic
    lease_dir: Path
    plain: Pod = field(init=False)
    plain_address: str = field(init=False)
    tagged: Pod = field(init=False)
    tagged_index: int = field(init=False)
    gateway: Pod = field(init=False)

    @property
    def kubelet_socket(self) -> Path:
        return self.node.kubelet_dir / "device-plugins/kubelet.sock"

    @property
    def fallback(self) -> Path:
        return self.doctor.root / "fallback.conflist"

    def admit(self) -> None:
        self.plain, answer = self.stage.attach_new("plain", self.kept, PLAIN)
        self.plain_address = answer.address
        self.tagged = self.stage.pod("tagged")
        vf = self.stage.allocate(self.tagged, self.kept)
        self.stage.attach(self.tagged, TAGGED, vf)
        self.tagged_index = self.kept.vf_addresses().index(vf)
        self.gateway, _ = self.stage.attach_new("gateway", self.adopted, network("gateway", vlan=VLAN))
        ip("-n", self.gateway.netns, "address", "add", f"{GATEWAY}/24", "dev", IFNAME)
        for pod in (self.plain, self.tagged, self.gateway):
            add_cluster_network(pod)

    def prepare_config(self) -> str:
        """With a fallback chain, and a network whose leases have a folder of their own. Returns the usual."""
        (self.doctor.bin_dir / "bridge").touch(mode=0o755)
        write_conflist(self.fallback, "bridge")
        self.lease_dir.mkdir()

        def change(config: dict[str, Any]) -> None:
            kept, adopted = config["pools"]
            del adopted["vfs"]
            ipam = {"type": "host-local", "dataDir": str(self.lease_dir), "subnet": "198.18.73.0/24"}
            config["fallback"] = str(self.fallback)
            config["networks"] = [{"name": "kept", "pools": [kept["name"]], "ipam": ipam}]

        return self.rewrite_config(change)

    def rewrite_config(self, change: Callable[[dict[str, Any]], None]) -> str:
        """Returns the file as it was."""
        usual = self.node.config.read_text()
        config = yaml.safe_load(usual)
        change(config)
        replace_file(self.node.config, yaml.safe_dump(config))
        return usual


def write_conflist(path: Path, plugin: str) -> Path:
    path.write_text(json.dumps({"cniVersion": "1.0.0", "name": path.stem, "plugins": [{"type": plugin}]}))
    return path


def add_cluster_network(pod: Pod) -> None:
    """What a pod has besides VFs."""
    ip("-n", pod.netns, "link", "add", "eth0", "type", "dummy")
    ip("-n", pod.netns, "address", "add", "10.244.0.2/24", "dev", "eth0")
    ip("-n", pod.netns, "link", "set", "eth0", "up")
    ip("-n", pod.netns, "route", "add", "default", "via", CLUSTER_GATEWAY, "dev", "eth0")


def replace_file(path: Path, text: str) -> None:
    """As editors do: a whole new file takes the old one's name."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
