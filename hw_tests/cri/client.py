"""Adapter: a container runtime as the kubelet talks to it, by the CRI socket."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc

from device_plugin.endpoint import CHANNEL_OPTIONS, unix_target
from hw_tests.cri.api import cri_runtime_v1_pb2 as pb
from hw_tests.cri.api import cri_runtime_v1_pb2_grpc as rpc

_TIMEOUT_S = 120.0  # the kubelet's own for what may take long
_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


class CriError(Exception):
    """The runtime's answer to a call that failed, or that there was no answer."""

    def __init__(self, error: grpc.RpcError) -> None:
        assert isinstance(error, grpc.Call)
        super().__init__(error.details())


@dataclass(frozen=True)
class Cri:
    """Thread-safe."""

    runtime: rpc.RuntimeServiceStub
    images: rpc.ImageServiceStub

    def version(self) -> str:
        answer = _ask(self.runtime.Version, pb.VersionRequest())
        return f"{answer.runtime_name} {answer.runtime_version}"

    def not_ready(self) -> list[str]:
        """What the runtime says that it lacks, its network's configuration for example."""
        answer = _ask(self.runtime.Status, pb.StatusRequest())
        return [f"{c.type}: {c.reason}: {c.message}" for c in answer.status.conditions if not c.status]

    def networks(self) -> list[str]:
        """The names of those that pods get now, loopback first."""
        answer = _ask(self.runtime.Status, pb.StatusRequest(verbose=True))
        return [one["Config"]["Name"] for one in json.loads(answer.info["cniconfig"])["Networks"]]

    def has_image(self, image: str) -> bool:
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=image))
        return _ask(self.images.ImageStatus, request).HasField("image")

    def run(self, config: pb.PodSandboxConfig) -> str:
        """The id of the new sandbox."""
        request = pb.RunPodSandboxRequest(config=config)
        return _ask(self.runtime.RunPodSandbox, request).pod_sandbox_id

    def stop(self, sandbox: str) -> None:
        request = pb.StopPodSandboxRequest(pod_sandbox_id=sandbox)
        _ask(self.runtime.StopPodSandbox, request)

    def remove(self, sandbox: str) -> None:
        request = pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox)
        _ask(self.runtime.RemovePodSandbox, request)

    def sandboxes(self) -> list[pb.PodSandbox]:
        answer = _ask(self.runtime.ListPodSandbox, pb.ListPodSandboxRequest())
        return list(answer.items)

    def addresses(self, sandbox: str) -> list[str]:
        """Those the kubelet puts into the pod's status; the first one is the pod's own."""
        network = self._status(sandbox, verbose=False).status.network
        return [network.ip, *(other.ip for other in network.additional_ips)]

    def is_ready(self, sandbox: str) -> bool:
        return self._status(sandbox, verbose=False).status.state == pb.SANDBOX_READY

    def netns(self, sandbox: str) -> Path:
        """Where the sandbox's network namespace is mounted."""
        info = json.loads(self._status(sandbox, verbose=True).info["info"])
        namespaces = info["runtimeSpec"]["linux"]["namespaces"]
        (path,) = [entry["path"] for entry in namespaces if entry["type"] == "network"]
        return Path(path)

    def start_container(self, sandbox: str, of: pb.PodSandboxConfig, config: pb.ContainerConfig) -> str:
        """The id of the new container."""
        request = pb.CreateContainerRequest(pod_sandbox_id=sandbox, config=config, sandbox_config=of)
        container = _ask(self.runtime.CreateContainer, request).container_id
        _ask(self.runtime.StartContainer, pb.StartContainerRequest(container_id=container))
        return container

    def stop_container(self, container: str, grace_s: int) -> None:
        """SIGTERM, and SIGKILL after the grace time."""
        request = pb.StopContainerRequest(container_id=container, timeout=grace_s)
        _ask(self.runtime.StopContainer, request)

    def container_status(self, container: str) -> pb.ContainerStatus:
        request = pb.ContainerStatusRequest(container_id=container)
        return _ask(self.runtime.ContainerStatus, request).status

    def execute(self, container: str, command: Sequence[str], timeout_s: int = 60) -> pb.ExecSyncResponse:
        """A command in a container that runs."""
        request = pb.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout_s)
        return _ask(self.runtime.ExecSync, request)

    def _status(self, sandbox: str, *, verbose: bool) -> pb.PodSandboxStatusResponse:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=verbose)
        return _ask(self.runtime.PodSandboxStatus, request)


@contextlib.contextmanager
def cri_at(socket: Path) -> Iterator[Cri]:
    """A runtime that is not there, or not yet again, is waited for by each call."""
    with grpc.insecure_channel(unix_target(socket), options=CHANNEL_OPTIONS) as channel:
        yield Cri(rpc.RuntimeServiceStub(channel), rpc.ImageServiceStub(channel))


def _ask(method: "grpc.UnaryUnaryMultiCallable[_Request, _Answer]", request: _Request) -> _Answer:
    try:
        return method(request, timeout=_TIMEOUT_S, wait_for_ready=True)
    except grpc.RpcError as e:
        raise CriError(e) from e
