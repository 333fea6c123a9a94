"""Orchestrator: the emulated machine as the node of docs/getting-started.md after its step 5.

Files, names and commands are those of the page: two PFs called ens1f0 and ens1f1, an agent that was installed
and does not run, a container runtime with a bridge, another machine on the wire. Kubernetes and the service
manager are stand-ins (`bin/`).
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hw_tests.containerd import REFERENCE_PLUGINS, Containerd, running_containerd
from hw_tests.kustomize import MANIFESTS
from hw_tests.nics import Nic, as_found, find_plain_nic, ip
from hw_tests.playground.kubectl import Kubectl, serving
from hw_tests.playground.pods import Pods
from hw_tests.runtime import PROJECT, Pod
from node_agent.agent import RUN_DIR, SOCKET_NAME
from tests.stub_kubelet import StubKubelet

PF_NAMES = ("ens1f0", "ens1f1")
NEIGHBOUR_ADDRESS = "192.168.50.1"
KUBELET_DIR = Path("/var/lib/kubelet")
BIN = Path(__file__).with_name("bin")
FOLDER = Path("/run/playground")
_PREFIX = Path("/opt/sriov-underlay")
_BRIDGE = "cni0"  # of manifests/fallback.conflist
_CONFLIST = "10-containerd-net.conflist"
_PLACES = {Path("/opt/cni/bin"): "bin", Path("/etc/cni/net.d"): "net.d"}
_RUNTIME = Path("/etc/containerd/config.toml")
_LEFT = (RUN_DIR, FOLDER, KUBELET_DIR, Path("/etc/sriov-underlay"), Path("/var/lib/cni/networks"))
_PROGRAMS = {"sriov-agent": "node_agent.main", "sriovctl": "node_agent.cli"}
_PROGRAM = """\
#!/usr/bin/python3
import sys
sys.path[:0] = {path}
from {module} import run
run()
"""
_COMMAND_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Playground:
    """`run` what the documentation shows. `neighbour`: the other machine."""

    pods: Pods
    neighbour: Pod

    def run(self, command: str, **env: str) -> tuple[int, str]:
        """As a person types it, in the project's folder: the exit code, and all that it said."""
        print(f"$ {command}", flush=True)
        # Into a file: a pipe is waited for as long as anything that the command left running holds it.
        with tempfile.TemporaryFile("w+") as said:
            code = subprocess.run(
                ["bash", "-c", command],
                cwd=PROJECT,
                env=environment() | env,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=_COMMAND_TIMEOUT_S,
            ).returncode
            said.seek(0)
            return code, said.read()


def environment() -> dict[str, str]:
    """Of a person at this node."""
    return os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}


@contextlib.contextmanager
def playground(nics: tuple[Nic, ...]) -> Iterator[Playground]:
    """It fills the places that a real node has, so it is for a machine that is thrown away."""
    if os.environ.get("RIG") != "emulated":
        raise RuntimeError("a playground needs the emulated machine: `make rig-shell`")
    with contextlib.ExitStack() as stack:
        for nic, name in zip(nics, PF_NAMES, strict=True):
            stack.enter_context(as_found(nic))
            stack.enter_context(_renamed(nic, name))
        neighbour = stack.enter_context(_neighbour(find_plain_nic()))
        stack.callback(_clear)
        containerd = Containerd(
            FOLDER / "containerd",
            (MANIFESTS / "fallback.conflist").read_text(),
            RUN_DIR / SOCKET_NAME,
            plugins=tuple(REFERENCE_PLUGINS.glob("*")),
            conflist_name=_CONFLIST,
        )
        _mount(containerd.folder)
        install()
        kubelet = stack.enter_context(StubKubelet(KUBELET_DIR))
        stack.callback(_stop_agent)  # after the pods: it takes back their VFs
        cri = stack.enter_context(running_containerd(containerd))
        pods = Pods(cri, kubelet, FOLDER)
        stack.enter_context(serving(Kubectl(pods, socket.gethostname()).answer))
        yield Playground(pods, neighbour)


@contextlib.contextmanager
def _renamed(nic: Nic, name: str) -> Iterator[None]:
    _rename(nic.name, name)
    try:
        yield
    finally:
        _rename(name, nic.name)


def _rename(old: str, new: str) -> None:
    with contextlib.suppress(RuntimeError):  # udev has kept it as another name of the interface
        ip("link", "property", "del", "dev", old, "altname", new)
    ip("link", "set", old, "down")
    ip("link", "set", old, "name", new)


@contextlib.contextmanager
def _neighbour(nic: Nic) -> Iterator[Pod]:
    machine = Pod("machine", "neighbour").create()
    try:
        ip("link", "set", nic.name, "netns", machine.netns)
        ip("-n", machine.netns, "link", "set", nic.name, "name", "eth0", "up")
        ip("-n", machine.netns, "address", "add", f"{NEIGHBOUR_ADDRESS}/24", "dev", "eth0")
        yield machine
    finally:
        ip("-n", machine.netns, "link", "set", "eth0", "down")
        ip("-n", machine.netns, "link", "set", "eth0", "name", nic.name, "netns", "1")
        machine.destroy()


def _mount(folder: Path) -> None:
    """The runtime's folders where they usually are, and its file that says so: Debian's names other ones."""
    config = (folder / "config.toml").read_text()
    for place, name in _PLACES.items():
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", folder / name, place], check=True)
        config = config.replace(str(folder / name), str(place))
    (folder / "config.toml").write_text(config)
    _RUNTIME.parent.mkdir(exist_ok=True)
    _RUNTIME.touch()
    subprocess.run(["mount", "--bind", folder / "config.toml", _RUNTIME], check=True)


def install() -> None:
    """What `make install` does, but for the virtual environment: this machine has the packages already."""
    (_PREFIX / "bin").mkdir(parents=True, exist_ok=True)
    (_PREFIX / "pyvenv.cfg").touch()  # by which `make uninstall` knows that it is ours
    for name, module in _PROGRAMS.items():
        program = _PREFIX / "bin" / name
        program.write_text(_PROGRAM.format(path=[str(PROJECT), "/env"], module=module))
        program.chmod(0o755)
    # -o: the executable is the one that was built, whatever the times of files say.
    words = ["make", "-s", "-o", "build/sriov-underlay", "install-node"]
    subprocess.run(words, cwd=PROJECT, check=True)


def _stop_agent() -> None:
    if Path("/etc/systemd/system/sriov-agent.service").exists():
        subprocess.run([BIN / "systemctl", "stop", "sriov-agent"], check=True)


def _clear() -> None:
    mounted = {line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()}
    for place in (*_PLACES, _RUNTIME):
        if str(place) in mounted:
            subprocess.run(["umount", place], check=True)
    for path in _LEFT:
        shutil.rmtree(path, ignore_errors=True)
    subprocess.run(["make", "-s", "uninstall"], cwd=PROJECT, check=True)
    with contextlib.suppress(RuntimeError):  # no pod has had it made
        ip("link", "delete", _BRIDGE)
