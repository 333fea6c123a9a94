"""Pure: the pods that objects of Kubernetes ask for, and their containers as a runtime is asked for them.

What a container does is not the point: a program that is not on this machine is not run, and the container
waits in its place. Nobody looks at probes, affinity, requests for CPU and memory, or what is in a volume.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from device_plugin.api import deviceplugin_v1beta1_pb2 as plugin_pb
from hw_tests.cri.api import cri_runtime_v1_pb2 as pb
from hw_tests.cri.pause_image import IMAGE
from hw_tests.kustomize import Object

NAMESPACE = "default"
# The image has one program alone, so containers see those of this machine.
_PROGRAMS = {"/usr": "/usr", "/bin": "/usr/bin", "/lib": "/usr/lib", "/lib64": "/usr/lib64"}
_PATH = "/usr/local/bin:/usr/bin:/usr/sbin"
_NAMESERVER = "192.0.2.53"  # there is none
_NOT_PODS = ("ConfigMap", "Namespace", "Service")


@dataclass(frozen=True)
class PodSpec:
    """`owner`: `kind/name` of the object that it was asked for by."""

    name: str
    owner: str
    spec: Object
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def uid(self) -> str:
        return str(uuid.UUID(hashlib.md5(self.name.encode()).hexdigest()))

    @property
    def containers(self) -> list[Object]:
        return list(self.spec["containers"])


def pods_of(one: Object) -> list[PodSpec]:
    """None for objects that are no pods. Raises ValueError for a kind that is not known here."""
    kind, metadata = one["kind"], one["metadata"]
    owner = f"{kind.lower()}/{metadata['name']}"
    match kind:
        case "Pod":
            return [PodSpec(metadata["name"], owner, one["spec"], metadata.get("labels", {}))]
        case "Deployment" | "StatefulSet":
            return list(_numbered(one, owner, one["spec"]["replicas"]))
        case "Job":
            return list(_numbered(one, owner, one["spec"]["parallelism"]))
        case _ if kind in _NOT_PODS:
            return []
        case _:
            raise ValueError(f"kind: '{kind}' is not known here")


def _numbered(one: Object, owner: str, count: int) -> Iterator[PodSpec]:
    template = one["spec"]["template"]
    labels = template.get("metadata", {}).get("labels", {})
    for number in range(count):
        name = f"{one['metadata']['name']}-{number}"
        env = {"JOB_COMPLETION_INDEX": str(number)} if one["kind"] == "Job" else {}
        yield PodSpec(name, owner, template["spec"], labels, env)


def resources_of(container: Object) -> dict[str, int]:
    """Those of device plugins. Names without a domain are the kubelet's own."""
    limits = container.get("resources", {}).get("limits", {})
    return {name: int(count) for name, count in limits.items() if "/" in name}


def sandbox_config(pod: PodSpec, attempt: int, logs: Path) -> pb.PodSandboxConfig:
    metadata = pb.PodSandboxMetadata(name=pod.name, uid=pod.uid, namespace=NAMESPACE, attempt=attempt)
    dns = pb.DnsConfig(servers=[_NAMESERVER])  # without, the runtime wants the resolv.conf of the machine
    return pb.PodSandboxConfig(metadata=metadata, hostname=pod.name, log_directory=str(logs), dns_config=dns)


def container_config(
    pod: PodSpec,
    container: Object,
    given: Iterable[plugin_pb.ContainerAllocateResponse],
    addresses: Mapping[str, str],
    volumes: Path,
    runs: Callable[[str], bool],
) -> pb.ContainerConfig:
    """`given`: what device plugins answered. `addresses`: what fields of the pod's status are. `volumes`: a
    folder with a folder for each. `runs`: whether there is such a program."""
    answers = list(given)
    env = {"PATH": _PATH, **pod.env, **_env_of(container, addresses)}
    for answer in answers:
        if answer.cdi_devices:
            raise ValueError("the device plugin names CDI devices, which are not known here")
        env |= dict(answer.envs)
    command = [_expanded(word, env) for word in (*container.get("command", ()), *container.get("args", ()))]
    if "command" not in container or not runs(command[0]):
        command = []
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=container["name"]),
        image=pb.ImageSpec(image=IMAGE),
        command=command,
        envs=[pb.KeyValue(key=key, value=value) for key, value in env.items()],
        mounts=[*_programs(), *_volume_mounts(container, volumes), *_mounts_of(answers)],
        devices=[
            pb.Device(container_path=d.container_path, host_path=d.host_path, permissions=d.permissions)
            for answer in answers
            for d in answer.devices
        ],
        log_path=f"{container['name']}.log",
        linux=pb.LinuxContainerConfig(security_context=_security(container)),
    )


def _env_of(container: Object, addresses: Mapping[str, str]) -> dict[str, str]:
    env = {}
    for entry in container.get("env", ()):
        if "valueFrom" in entry:
            env[entry["name"]] = addresses[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        else:
            env[entry["name"]] = str(entry["value"])
    return env


def _expanded(word: str, env: Mapping[str, str]) -> str:
    for name, value in env.items():
        word = word.replace(f"$({name})", value)
    return word


def _programs() -> list[pb.Mount]:
    return [
        pb.Mount(container_path=inside, host_path=outside, readonly=True)
        for inside, outside in _PROGRAMS.items()
    ]


def _volume_mounts(container: Object, volumes: Path) -> list[pb.Mount]:
    return [
        pb.Mount(container_path=mount["mountPath"], host_path=str(volumes / mount["name"]))
        for mount in container.get("volumeMounts", ())
    ]


def _mounts_of(answers: Iterable[plugin_pb.ContainerAllocateResponse]) -> list[pb.Mount]:
    return [
        pb.Mount(container_path=m.container_path, host_path=m.host_path, readonly=m.read_only)
        for answer in answers
        for m in answer.mounts
    ]


def _security(container: Object) -> pb.LinuxContainerSecurityContext:
    capabilities: Mapping[str, Any] = container.get("securityContext", {}).get("capabilities", {})
    return pb.LinuxContainerSecurityContext(
        capabilities=pb.Capability(
            add_capabilities=capabilities.get("add", ()), drop_capabilities=capabilities.get("drop", ())
        ),
        namespace_options=pb.NamespaceOption(pid=pb.CONTAINER),
    )
