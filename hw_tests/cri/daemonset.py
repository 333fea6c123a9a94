"""Pure: the pod of a DaemonSet as the kubelet asks a container runtime for it (pkg/kubelet/kuberuntime).

What it does not know it refuses, so that a manifest is never run with less than it says.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hw_tests.cri.api import cri_runtime_v1_pb2 as pb
from hw_tests.kustomize import Object

UID = "5f0e4f53-0000-4000-8000-000000000001"
_PROPAGATION = {
    None: pb.PROPAGATION_PRIVATE,
    "HostToContainer": pb.PROPAGATION_HOST_TO_CONTAINER,
    "Bidirectional": pb.PROPAGATION_BIDIRECTIONAL,
}
# pkg/securitycontext/util.go, for a container that is not privileged
_MASKED = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def sandbox_config(daemonset: Object, node: str, attempt: int, log_directory: Path) -> pb.PodSandboxConfig:
    spec = daemonset["spec"]["template"]["spec"]
    assert spec["hostNetwork"] is True
    context = pb.LinuxSandboxSecurityContext(namespace_options=_namespaces(spec))
    metadata = daemonset["metadata"]
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(
            name=f"{metadata['name']}-{node}", uid=UID, namespace=metadata["namespace"], attempt=attempt
        ),
        log_directory=str(log_directory),
        linux=pb.LinuxPodSandboxConfig(security_context=context),
    )


def container_config(daemonset: Object, node: str, attempt: int, configmaps: Path) -> pb.ContainerConfig:
    """`configmaps`: a folder with a folder for each ConfigMap. The node's folders must be there."""
    spec = daemonset["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    env = {entry["name"]: _env_value(entry, node) for entry in container["env"]}
    sources = {volume["name"]: _source(volume, configmaps) for volume in spec["volumes"]}
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=container["name"], attempt=attempt),
        image=pb.ImageSpec(image=container["image"]),
        args=[expand(word, env) for word in container["args"]],
        envs=[pb.KeyValue(key=key, value=value) for key, value in env.items()],
        mounts=[_mount(mount, sources) for mount in container["volumeMounts"]],
        log_path=f"{container['name']}.log",
        linux=pb.LinuxContainerConfig(
            resources=pb.LinuxContainerResources(
                memory_limit_in_bytes=parse_quantity(container["resources"]["limits"]["memory"])
            ),
            security_context=_security(container["securityContext"], _namespaces(spec)),
        ),
    )


def probe_command(daemonset: Object, name: str) -> list[str]:
    (container,) = daemonset["spec"]["template"]["spec"]["containers"]
    return [str(word) for word in container[name]["exec"]["command"]]


def expand(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)`, as in `args`."""
    return re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], text)


def parse_quantity(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w*)", text).groups()  # type: ignore[union-attr]
    return int(number) * (_UNITS[unit] if unit else 1)


def _env_value(entry: Object, node: str) -> str:
    assert entry["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}, entry
    return node


def _source(volume: Object, configmaps: Path) -> str:
    match volume:
        case {"hostPath": {"path": path}}:
            return str(path)
        case {"configMap": {"name": name}}:
            return str(configmaps / name)
        case _:
            raise ValueError(f"volume {volume} is of a kind that is not known here")


def _mount(mount: Object, sources: Mapping[str, str]) -> pb.Mount:
    assert mount.keys() <= {"name", "mountPath", "readOnly", "mountPropagation"}, mount
    return pb.Mount(
        container_path=mount["mountPath"],
        host_path=sources[mount["name"]],
        readonly=mount.get("readOnly", False),
        propagation=_PROPAGATION[mount.get("mountPropagation")],
    )


def _namespaces(spec: Object) -> pb.NamespaceOption:
    pid = pb.NODE if spec.get("hostPID", False) else pb.CONTAINER
    return pb.NamespaceOption(network=pb.NODE, pid=pid, ipc=pb.POD)


def _security(given: Object, namespaces: pb.NamespaceOption) -> pb.LinuxContainerSecurityContext:
    context = dict(given)
    capabilities = context.pop("capabilities")
    made = pb.LinuxContainerSecurityContext(
        capabilities=pb.Capability(
            add_capabilities=capabilities["add"], drop_capabilities=capabilities["drop"]
        ),
        namespace_options=namespaces,
        run_as_user=pb.Int64Value(value=context.pop("runAsUser")),
        readonly_rootfs=context.pop("readOnlyRootFilesystem"),
        no_new_privs=not context.pop("allowPrivilegeEscalation"),
        masked_paths=_MASKED,
        readonly_paths=_READONLY,
        seccomp=_profile(context.pop("seccompProfile")),
        apparmor=_profile(context.pop("appArmorProfile")),
        selinux_options=pb.SelinuxOption(**context.pop("seLinuxOptions")),
    )
    assert not context, f"securityContext: {', '.join(context)} is not known here"
    return made


def _profile(profile: Mapping[str, Any]) -> pb.SecurityProfile:
    return pb.SecurityProfile(profile_type=str(profile["type"]))
