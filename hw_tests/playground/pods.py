"""Orchestrator: what scheduler and kubelet do for the pods of one node: devices, a sandbox, containers.

There is no loop: whoever asks moves things on by one attempt (`sync`).
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import grpc

from hw_tests.cri.api import cri_runtime_v1_pb2 as pb
from hw_tests.cri.client import Cri, CriError
from hw_tests.playground.workloads import (
    NAMESPACE,
    PodSpec,
    container_config,
    resources_of,
    sandbox_config,
)
from tests.stub_kubelet import Allocation, InsufficientDevices, StubKubelet


class Phase(StrEnum):
    PENDING = "Pending"
    CREATING = "ContainerCreating"
    RUNNING = "Running"
    REFUSED = "UnexpectedAdmissionError"  # for good


@dataclass
class RunningPod:
    """A pod and how far it has come. `reason`: why no further."""

    spec: PodSpec
    phase: Phase = Phase.PENDING
    reason: str = ""
    attempts: int = 0
    devices: list[Allocation] = field(default_factory=list)
    sandbox: str = ""
    addresses: list[str] = field(default_factory=list)
    containers: dict[str, str] = field(default_factory=dict)  # their ids, by name

    @property
    def name(self) -> str:
        return self.spec.name


@dataclass
class Pods:
    """`folder`: for logs and volumes."""

    cri: Cri
    kubelet: StubKubelet
    folder: Path
    by_name: dict[str, RunningPod] = field(default_factory=dict)

    def add(self, spec: PodSpec) -> RunningPod:
        """One that is there already stays as it is."""
        pod = self.by_name.setdefault(spec.name, RunningPod(spec))
        self.sync(pod)
        return pod

    def remove(self, name: str) -> None:
        """Raises CriError; then it is still there, and the next attempt may succeed."""
        pod = self.by_name[name]
        for sandbox in self._sandboxes_of(name):
            self.cri.stop(sandbox)
            self.cri.remove(sandbox)
        self.kubelet.free(NAMESPACE, name)
        shutil.rmtree(self._folder_of(pod), ignore_errors=True)
        del self.by_name[name]

    def sync(self, pod: RunningPod) -> None:
        """One attempt to bring it on."""
        if pod.phase is Phase.PENDING:
            self._admit(pod)
        if pod.phase is Phase.CREATING:
            self._create(pod)

    def logs(self, pod: RunningPod, container: str) -> str:
        """The runtime puts a time, the stream and a flag before each line."""
        path = self._folder_of(pod) / "logs" / f"{container}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return "".join(f"{line.split(' ', 3)[3]}\n" for line in lines)

    def _admit(self, pod: RunningPod) -> None:
        wanted = [(c["name"], *one) for c in pod.spec.containers for one in resources_of(c).items()]
        missing = self._missing(resource for _, resource, _ in wanted)
        try:
            if missing:
                raise InsufficientDevices(missing)
            for container, resource, count in wanted:
                given = self.kubelet.allocate(NAMESPACE, pod.name, resource, count, container)
                pod.devices.append(given)
        except InsufficientDevices as e:
            pod.reason = f"0/1 nodes are available: {e}"
            self._give_back(pod)
        except grpc.RpcError as e:
            pod.phase = Phase.REFUSED
            pod.reason = f"Allocate failed: {e.details() if isinstance(e, grpc.Call) else e}"
            self._give_back(pod)
        else:
            pod.phase = Phase.CREATING

    def _missing(self, resources: Iterable[str]) -> str:
        registered = set(self.kubelet.registrations())
        return ", ".join(f"Insufficient {name}" for name in resources if name not in registered)

    def _give_back(self, pod: RunningPod) -> None:
        self.kubelet.free(NAMESPACE, pod.name)
        pod.devices.clear()

    def _create(self, pod: RunningPod) -> None:
        folder = self._folder_of(pod)
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        config = sandbox_config(pod.spec, pod.attempts, folder / "logs")
        pod.attempts += 1
        try:
            for left in self._sandboxes_of(pod.name):
                self.cri.stop(left)
                self.cri.remove(left)
            pod.sandbox = self.cri.run(config)
            pod.addresses = [address for address in self.cri.addresses(pod.sandbox) if address]
            for container in pod.spec.containers:
                self._start(pod, config, container["name"], folder)
        except CriError as e:
            pod.reason = f"Failed to create pod sandbox: {e}"
        else:
            pod.phase, pod.reason = Phase.RUNNING, ""

    def _start(self, pod: RunningPod, of: pb.PodSandboxConfig, name: str, folder: Path) -> None:
        (container,) = (one for one in pod.spec.containers if one["name"] == name)
        for mount in container.get("volumeMounts", ()):
            (folder / "volumes" / mount["name"]).mkdir(parents=True, exist_ok=True)
        config = container_config(
            pod.spec,
            container,
            [given.response for given in pod.devices if given.container == name],
            {"status.podIP": next(iter(pod.addresses), "")},
            folder / "volumes",
            lambda program: shutil.which(program) is not None,
        )
        pod.containers[name] = self.cri.start_container(pod.sandbox, of, config)

    def _sandboxes_of(self, name: str) -> list[str]:
        found = (one for one in self.cri.sandboxes() if one.metadata.namespace == NAMESPACE)
        return [one.id for one in found if one.metadata.name == name]

    def _folder_of(self, pod: RunningPod) -> Path:
        return self.folder / "pods" / pod.name
