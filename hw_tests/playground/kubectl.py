"""Orchestrator: what `kubectl` says in the playground, which knows the commands of the documentation."""

import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import yaml

from hw_tests.cri.client import CriError
from hw_tests.kustomize import read_objects
from hw_tests.playground.pods import Phase, Pods, RunningPod
from hw_tests.playground.workloads import PodSpec, pods_of

SOCKET = Path("/run/playground-kubectl.sock")  # bin/kubectl has it, too
ALLOCATABLE = "jsonpath={.items[*].status.allocatable}"
_KNOWN = (
    f"apply -f FILE, get pods [NAME] [-o wide], get nodes [-o {ALLOCATABLE}], describe pod NAME, "
    "wait --for=condition=Ready pod/NAME, logs NAME, exec NAME -- COMMAND, delete pod NAME, delete -f FILE, "
    "cordon NODE, uncordon NODE"
)
_WAIT_S = 60.0
_POLL_S = 0.5


class Request(msgspec.Struct, frozen=True):
    words: tuple[str, ...]
    cwd: str


class Reply(msgspec.Struct, frozen=True):
    out: str = ""
    err: str = ""
    code: int = 0


class KubectlError(Exception):
    """What goes to stderr, in kubectl's own words where it has some."""


@dataclass
class Kubectl:
    """Thread-safe: one command at a time."""

    pods: Pods
    node: str

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def answer(self, request: Request) -> Reply:
        with self._lock:
            try:
                return self._run(request)
            except (KubectlError, CriError, ValueError, OSError, yaml.YAMLError) as e:
                return Reply(err=f"error: {e}\n", code=1)

    def _run(self, request: Request) -> Reply:
        match request.words:
            case ["apply", "-f", name]:
                return self._apply(_specs(Path(request.cwd, name)))
            case ["delete", "-f", name]:
                return self._delete([spec.name for spec in _specs(Path(request.cwd, name))])
            case ["delete", "pod", *names]:
                return self._delete(names)
            case ["get", what, *rest]:
                return self._get(what, rest)
            case ["wait", "--for=condition=Ready", name]:
                return self._wait(self._pod(name.removeprefix("pod/")))
            case ["exec", name, "--", *command] if command:
                return self._exec(self._pod(name), command)
            case [verb, *_, name]:
                return self._of_one(verb, name)
        raise _unknown()

    def _get(self, what: str, rest: Sequence[str]) -> Reply:
        match what, [word for word in rest if word != "-o"]:
            case "nodes", [output] if output == ALLOCATABLE:
                return Reply(f"{json.dumps(self._allocatable(), separators=(',', ':'))}\n")
            case "nodes", []:
                return Reply(_table([("NAME", "STATUS"), (self.node, "Ready")]))
            case "pod" | "pods", words:
                return self._get_pods([word for word in words if word != "wide"], "wide" in words)
        raise _unknown()

    def _of_one(self, verb: str, name: str) -> Reply:
        match verb:
            case "cordon" | "uncordon" if name == self.node:
                return Reply(f"node/{name} {verb}ed\n")
            case "describe":
                return Reply(_description(self._pod(name), self.node))
            case "logs":
                pod = self._pod(name)
                return Reply("".join(self.pods.logs(pod, container) for container in pod.containers))
        raise _unknown()

    def _pod(self, name: str) -> RunningPod:
        if name not in self.pods.by_name:
            raise KubectlError(f'pods "{name}" not found')
        return self.pods.by_name[name]

    def _apply(self, specs: Sequence[PodSpec]) -> Reply:
        for spec in specs:
            self.pods.add(spec)
        return Reply("".join(f"pod/{spec.name} created\n" for spec in specs))

    def _delete(self, names: Sequence[str]) -> Reply:
        for name in names:
            self._pod(name)
        for name in names:
            self.pods.remove(name)
        return Reply("".join(f'pod "{name}" deleted\n' for name in names))

    def _get_pods(self, names: Sequence[str], wide: bool) -> Reply:
        pods = [self._pod(name) for name in names] or list(self.pods.by_name.values())
        titles = ("NAME", "READY", "STATUS", "IP", "NODE")
        rows = [titles, *(self._row(pod) for pod in pods)]
        return Reply(_table([row if wide else row[:3] for row in rows]))

    def _row(self, pod: RunningPod) -> tuple[str, ...]:
        self.pods.sync(pod)
        ready = f"{len(pod.containers)}/{len(pod.spec.containers)}"
        return pod.name, ready, pod.phase, next(iter(pod.addresses), "<none>"), self.node

    def _allocatable(self) -> dict[str, str]:
        kubelet = self.pods.kubelet
        healthy = {name: kubelet.devices(name) for name in sorted(set(kubelet.registrations()))}
        return {
            name: str(sum(d.health == "Healthy" for d in devices.values()))
            for name, devices in healthy.items()
        }

    def _wait(self, pod: RunningPod) -> Reply:
        deadline = time.monotonic() + _WAIT_S
        while pod.phase is not Phase.RUNNING:
            if pod.phase is Phase.REFUSED or time.monotonic() > deadline:
                raise KubectlError(f"pods/{pod.name} is {pod.phase}: {pod.reason}")
            time.sleep(_POLL_S)
            self.pods.sync(pod)
        return Reply(f"pod/{pod.name} condition met\n")

    def _exec(self, pod: RunningPod, command: Sequence[str]) -> Reply:
        if pod.phase is not Phase.RUNNING:
            raise KubectlError(f"pod {pod.name} is {pod.phase}: {pod.reason}")
        first = next(iter(pod.containers.values()))
        done = self.pods.cri.execute(first, command)
        return Reply(done.stdout.decode(), done.stderr.decode(), done.exit_code)


def _unknown() -> KubectlError:
    return KubectlError(f"this kubectl is a stand-in; it knows {_KNOWN}")


def _specs(path: Path) -> list[PodSpec]:
    return [spec for one in read_objects(path) for spec in pods_of(one)]


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _description(pod: RunningPod, node: str) -> str:
    devices = {one.resource: " ".join(one.ids) for one in pod.devices}
    lines = [
        ("Name:", pod.name),
        ("Node:", node),
        ("Status:", str(pod.phase)),
        ("IP:", ", ".join(pod.addresses)),
        *((f"{resource}:", ids) for resource, ids in devices.items()),
        ("Reason:", pod.reason or "-"),
    ]
    return _table([(title, value) for title, value in lines])


@contextmanager
def serving(answer: Callable[[Request], Reply], path: Path = SOCKET) -> Iterator[None]:
    """A line of JSON each way, for each command."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            request = msgspec.json.decode(self.rfile.readline(), type=Request)
            self.wfile.write(msgspec.json.encode(answer(request)) + b"\n")

    path.unlink(missing_ok=True)
    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="kubectl")
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            path.unlink()
