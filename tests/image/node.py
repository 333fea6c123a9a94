"""Orchestrator: a node on which the agent runs as its DaemonSet says, made by containerd from its image.

The folders that the manifests name are folders of the test, in a mount namespace of containerd's own or over
those of a machine that is there for the test alone. So what the manifests say is run as it stands.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from hw_tests.cluster import chain_conflist
from hw_tests.containerd import REFERENCE_PLUGINS, Containerd, running_containerd
from hw_tests.cri.api import cri_runtime_v1_pb2 as pb
from hw_tests.cri.client import Cri, CriError
from hw_tests.cri.daemonset import container_config, probe_command, sandbox_config
from hw_tests.cri.pods import PodRunner
from hw_tests.kustomize import MANIFESTS, Object, apply_patch
from hw_tests.nics import wait_until
from hw_tests.runtime import NETNS_DIR
from node_agent.agent import RUN_DIR, SOCKET_NAME
from tests.stub_kubelet import StubKubelet

NAME = "node-1"
GRACE_S = 30
_PATIENCE_S = 120
PLAIN = "10-plain.conflist"  # what the node's pods had before
_PLUGINS = ("bridge", "host-local", "loopback", "portmap")
_PLACES = {
    "/opt/cni/bin": "containerd/bin",
    "/etc/cni/net.d": "containerd/net.d",
    "/var/lib/kubelet": "kubelet",
    "/var/lib/cni": "cni",
    "/run/sriov-underlay": "run",
    "/run/k8s.cni.cncf.io": "device-info",
    "/run/cdi": "cdi",
    "/run/netns": "netns",
}
_ENTER = """
mount --make-rshared /
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
shift
exec "$@"
"""


@dataclass
class ClusterNode:
    """`start` the agent of a DaemonSet, look at its node, `stop` it."""

    folder: Path
    containerd: Containerd
    cri: Cri
    kubelet: StubKubelet
    places: Mapping[str, str]  # of the node -> below `folder`
    _attempts: int = field(init=False, default=0)
    _sandbox: str = field(init=False, default="")
    _container: str = field(init=False, default="")
    _daemonset: Object = field(init=False, default_factory=dict)

    @property
    def runner(self) -> PodRunner:
        return PodRunner(self.cri)

    def at(self, path: str) -> Path:
        """A path of the node, outside of it."""
        place = next(place for place in self.places if Path(path).is_relative_to(place))
        return self.folder / self.places[place] / Path(path).relative_to(place)

    def start(self, objects: list[Object], image: str) -> None:
        """What the kubelet does, up to the start of the process."""
        (daemonset,) = (one for one in objects if one["kind"] == "DaemonSet")
        self._daemonset = with_image(daemonset, image)
        for one in objects:
            if one["kind"] == "ConfigMap":
                self._write_configmap(one)
        self._attempts += 1
        of = sandbox_config(self._daemonset, NAME, self._attempts, self.folder / "logs")
        config = container_config(self._daemonset, NAME, 0, self.folder / "configmaps")
        self._sandbox = self.cri.run(of)
        self._container = self.cri.start_container(self._sandbox, of, config)

    def probe(self, name: str) -> bool:
        return self.execute(*probe_command(self._daemonset, name)).exit_code == 0

    def wait_probe(self, name: str) -> None:
        self.wait_for(lambda: self.probe(name), f"success of the {name}")

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """What goes wrong is raised with the agent's log."""
        try:
            wait_until(condition, what, _PATIENCE_S)
        except (TimeoutError, CriError) as e:
            raise AssertionError(f"{e}; the agent's log:\n{self.log()}") from e

    def execute(self, *command: str) -> pb.ExecSyncResponse:
        return self.cri.execute(self._container, command)

    def stop(self) -> int:
        """As for an upgrade, or for ever. The exit code."""
        self.cri.stop_container(self._container, GRACE_S)
        code = self.cri.container_status(self._container).exit_code
        self.cri.stop(self._sandbox)
        self.cri.remove(self._sandbox)
        return code

    def log(self) -> str:
        path = self.folder / "logs/agent.log"
        return path.read_text() if path.exists() else ""

    def left(self) -> list[str]:
        """What there is of us on the node. The results that containerd keeps are its own: it forgets those of
        pods whose network was taken out of its configuration."""
        return sorted(
            str(path.relative_to(self.folder))
            for place in self.places.values()
            for path in (self.folder / place).rglob("*")
            if ("sriov" in path.name and path.parent.name != "results") or place == "run"
        )

    def wipe(self) -> None:
        """Whatever a test left."""
        for sandbox in self.cri.sandboxes():
            self.cri.stop(sandbox.id)
            self.cri.remove(sandbox.id)
        for relative in reversed(self.left()):
            path = self.folder / relative
            path.rmdir() if path.is_dir() else path.unlink()
        (self.folder / "logs/agent.log").unlink(missing_ok=True)

    def started_to(self, event: str) -> float:
        """Seconds from the start of the container to the first such line of the agent's log."""
        started = self.cri.container_status(self._container).started_at / 1e9
        self.wait_for(lambda: bool(self.events(event)), f"line {event!r} in the agent's log")
        first = self.events(event)[0]
        return datetime.fromisoformat(first["timestamp"]).timestamp() - started

    def cpu_s(self) -> float:
        """Of the agent's process until now."""
        lines = self.execute("sh", "-c", "cat /proc/[0-9]*/stat").stdout.decode().splitlines()
        (fields,) = (line.rpartition(")")[2].split() for line in lines if "(sriov-agent)" in line)
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime

    def events(self, name: str) -> list[dict[str, Any]]:
        """Such lines of the agent's log, of all its containers. The runtime puts a time, the stream and a
        flag before each."""
        found = (line.split(" ", 3)[3] for line in self.log().splitlines())
        lines = [json.loads(line) for line in found if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def _write_configmap(self, one: Object) -> None:
        folder = self.folder / "configmaps" / one["metadata"]["name"]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for key, value in one["data"].items():
            (folder / key).write_text(value)


def with_image(daemonset: Object, image: str) -> Object:
    path = "/spec/template/spec/containers/0/image"
    return apply_patch(daemonset, [{"op": "replace", "path": path, "value": image}])


def with_config(objects: list[Object], config: str) -> list[Object]:
    """What a user edits."""
    edit = {"op": "replace", "path": "/data/config.yaml", "value": config}
    return [apply_patch(one, [edit]) if one["kind"] == "ConfigMap" else one for one in objects]


def leaving(objects: list[Object]) -> list[Object]:
    """After `kubectl patch daemonset ... --patch-file manifests/uninstall.yaml`."""
    patch = yaml.safe_load((MANIFESTS / "uninstall.yaml").read_text())
    return [apply_patch(one, patch) if one["kind"] == "DaemonSet" else one for one in objects]


@contextlib.contextmanager
def running_node(folder: Path, archive: Path, image: str, *, apart: bool = True) -> Iterator[ClusterNode]:
    """A node whose pods have a bridge, with a kubelet and the images of an archive; no agent yet.

    `apart`: in a mount namespace of its own. If not, the machine is the node, and `ip netns` finds its pods.
    """
    places = {place: source for place, source in _PLACES.items() if apart or place != str(NETNS_DIR)}
    binds = [(folder / source, place) for place, source in places.items()]
    with mount_points(*places), StubKubelet(folder / "kubelet") as kubelet, contextlib.ExitStack() as stack:
        containerd = Containerd(
            folder / "containerd",
            chain_conflist(Path("/var/lib/cni/plain")),
            RUN_DIR / SOCKET_NAME,
            enter=_entering(binds) if apart else (),
            plugins=(),
            conflist_name=PLAIN,
            snapshotter="native" if apart else "overlayfs",
        )
        for source, _ in binds:
            source.mkdir(exist_ok=True)
        for name in _PLUGINS:
            shutil.copy(REFERENCE_PLUGINS / name, folder / "containerd/bin" / name)
        if not apart:
            stack.enter_context(bound(binds))
        cri = stack.enter_context(running_containerd(containerd))
        containerd.import_image(cri, archive, image)
        yield ClusterNode(folder, containerd, cri, kubelet, places)


def _entering(binds: Sequence[tuple[Path, str]]) -> tuple[str, ...]:
    words = (word for source, place in binds for word in (str(source), place))
    return ("unshare", "--mount", "--", "sh", "-c", _ENTER, "sh", *words, "--")


@contextlib.contextmanager
def bound(binds: Sequence[tuple[Path, str]]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for source, place in binds:
            subprocess.run(["mount", "--bind", source, place], check=True)
            stack.callback(subprocess.run, ["umount", place], check=True)
        yield


@contextlib.contextmanager
def mount_points(*places: str) -> Iterator[None]:
    """A folder must be there to mount one over it. Those that were not are taken away again."""
    made = []
    for place in map(Path, places):
        missing = [path for path in (place, *place.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir()
            made.append(path)
    try:
        yield
    finally:
        for path in reversed(made):
            subprocess.run(["rmdir", "--ignore-fail-on-non-empty", path], check=True)
