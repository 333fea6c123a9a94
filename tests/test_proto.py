"""The generated protocol code: it is what the .proto files say, and the types written for it fit."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from device_plugin.api import pluginregistration_v1_pb2 as registration_pb
from device_plugin.api import podresources_v1_pb2 as pod_pb
from hw_tests.cri.api import cri_runtime_v1_pb2 as cri_pb

ROOT = Path(__file__).parent.parent
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


@pytest.mark.parametrize("home", ["device_plugin", "hw_tests/cri"])
def test_generated_code_is_up_to_date(tmp_path: Path, home: str) -> None:
    (tmp_path / home).mkdir(parents=True)
    (tmp_path / home / "proto").symlink_to(ROOT / home / "proto")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"@{home}/proto/protoc.args"],
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    fresh = {path.name: path.read_bytes() for path in (tmp_path / home / "api").iterdir()}
    kept = {path.name: path.read_bytes() for path in (ROOT / home / "api").glob("*_pb2*")}
    kept = {name: content for name, content in kept.items() if name.endswith(GENERATED)}
    assert fresh == kept, "run `make proto` and commit what it changes"


@pytest.mark.parametrize("module", [pb, registration_pb, pod_pb, cri_pb])
def test_handwritten_types_name_every_method(module: object) -> None:
    descriptor = module.DESCRIPTOR  # type: ignore[attr-defined]
    stub = (ROOT / descriptor.name).with_name(Path(descriptor.name).stem + "_pb2_grpc.pyi")
    classes = {
        node.name: node for node in ast.walk(ast.parse(stub.read_text())) if isinstance(node, ast.ClassDef)
    }
    for service in descriptor.services_by_name.values():
        methods = set(service.methods_by_name)
        assert _members(classes[f"{service.name}Stub"]) == methods | {"__init__"}
        assert _members(classes[f"{service.name}Servicer"]) == methods


def _members(of: ast.ClassDef) -> set[str]:
    functions = {node.name for node in of.body if isinstance(node, ast.FunctionDef)}
    fields = {
        node.target.id
        for node in of.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return functions | fields


def test_wire_format_of_a_device() -> None:
    """Numbers and types as the kubelet has them, byte by byte."""
    device = pb.Device(id="a", health="b", topology=pb.TopologyInfo(nodes=[pb.NumaNode(id=1)]))
    assert device.SerializeToString() == b"\x0a\x01a\x12\x01b\x1a\x04\x0a\x02\x08\x01"


def test_wire_format_of_an_allocation() -> None:
    response = pb.ContainerAllocateResponse(
        envs={"k": "v"},
        mounts=[pb.Mount(container_path="c", host_path="h", read_only=True)],
        devices=[pb.DeviceSpec(container_path="c", host_path="h", permissions="r")],
        annotations={"k": "v"},
        cdi_devices=[pb.CdiDevice(name="n")],
    )
    assert response.SerializeToString(deterministic=True) == (
        b"\x0a\x06\x0a\x01k\x12\x01v"
        b"\x12\x08\x0a\x01c\x12\x01h\x18\x01"
        b"\x1a\x09\x0a\x01c\x12\x01h\x1a\x01r"
        b"\x22\x06\x0a\x01k\x12\x01v"
        b"\x2a\x03\x0a\x01n"
    )


def test_wire_format_of_a_registration() -> None:
    info = registration_pb.PluginInfo(type="t", name="n", endpoint="e", supported_versions=["v", "w"])
    assert info.SerializeToString() == b"\x0a\x01t\x12\x01n\x1a\x01e\x22\x01v\x22\x01w"
    status = registration_pb.RegistrationStatus(registered=True, error="e")
    assert status.SerializeToString() == b"\x08\x01\x12\x01e"


def test_wire_format_of_pod_resources() -> None:
    devices = pod_pb.ContainerDevices(resource_name="r", device_ids=["d"])
    container = pod_pb.ContainerResources(name="c", devices=[devices])
    pod = pod_pb.PodResources(name="p", namespace="n", containers=[container])
    assert pod.SerializeToString() == b"\x0a\x01p\x12\x01n\x1a\x0b\x0a\x01c\x12\x06\x0a\x01r\x12\x01d"


def test_wire_format_of_a_pod_sandbox() -> None:
    config = cri_pb.PodSandboxConfig(
        metadata=cri_pb.PodSandboxMetadata(name="n", uid="u", namespace="s", attempt=1),
        hostname="h",
        log_directory="l",
        dns_config=cri_pb.DnsConfig(servers=["d"]),
        port_mappings=[cri_pb.PortMapping(protocol=cri_pb.UDP, container_port=1, host_port=2, host_ip="i")],
        labels={"k": "v"},
        annotations={"k": "v"},
        linux=cri_pb.LinuxPodSandboxConfig(cgroup_parent="c"),
    )
    assert config.SerializeToString(deterministic=True) == (
        b"\x0a\x0b\x0a\x01n\x12\x01u\x1a\x01s\x20\x01"
        b"\x12\x01h\x1a\x01l\x22\x03\x0a\x01d"
        b"\x2a\x09\x08\x01\x10\x01\x18\x02\x22\x01i"
        b"\x32\x06\x0a\x01k\x12\x01v\x3a\x06\x0a\x01k\x12\x01v"
        b"\x42\x03\x0a\x01c"
    )


def test_wire_format_of_a_container() -> None:
    context = cri_pb.LinuxContainerSecurityContext(
        capabilities=cri_pb.Capability(add_capabilities=["A"], drop_capabilities=["D"]),
        namespace_options=cri_pb.NamespaceOption(network=cri_pb.NODE, pid=cri_pb.CONTAINER, ipc=cri_pb.NODE),
        selinux_options=cri_pb.SelinuxOption(type="t"),
        run_as_user=cri_pb.Int64Value(value=1),
        readonly_rootfs=True,
        no_new_privs=True,
        masked_paths=["m"],
        readonly_paths=["r"],
        seccomp=cri_pb.SecurityProfile(profile_type="Unconfined"),
        apparmor=cri_pb.SecurityProfile(profile_type="Localhost", localhost_ref="l"),
    )
    assert context.SerializeToString() == (
        b"\x0a\x06\x0a\x01A\x12\x01D\x1a\x06\x08\x02\x10\x01\x18\x02\x22\x03\x1a\x01t"
        b"\x2a\x02\x08\x01\x38\x01\x58\x01\x6a\x01m\x72\x01r\x7a\x02\x08\x01"
        b"\x82\x01\x05\x08\x02\x12\x01l"
    )
    config = cri_pb.ContainerConfig(
        metadata=cri_pb.ContainerMetadata(name="n", attempt=1),
        image=cri_pb.ImageSpec(image="i"),
        command=["c"],
        args=["a"],
        envs=[cri_pb.KeyValue(key="k", value="v")],
        mounts=[
            cri_pb.Mount(
                container_path="c",
                host_path="h",
                readonly=True,
                propagation=cri_pb.PROPAGATION_HOST_TO_CONTAINER,
            )
        ],
        log_path="l",
        linux=cri_pb.LinuxContainerConfig(
            resources=cri_pb.LinuxContainerResources(cpu_shares=1, memory_limit_in_bytes=2)
        ),
    )
    assert config.SerializeToString() == (
        b"\x0a\x05\x0a\x01n\x10\x01\x12\x03\x0a\x01i\x1a\x01c\x22\x01a"
        b"\x32\x06\x0a\x01k\x12\x01v\x3a\x0a\x0a\x01c\x12\x01h\x18\x01\x28\x01"
        b"\x5a\x01l\x7a\x06\x0a\x04\x18\x01\x20\x02"
    )


def test_method_names() -> None:
    names = {
        f"{service.full_name}/{method}"
        for module in (pb, registration_pb, pod_pb, cri_pb)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods_by_name
    }
    assert names == {
        "v1beta1.Registration/Register",
        "v1beta1.DevicePlugin/GetDevicePluginOptions",
        "v1beta1.DevicePlugin/ListAndWatch",
        "v1beta1.DevicePlugin/GetPreferredAllocation",
        "v1beta1.DevicePlugin/Allocate",
        "v1beta1.DevicePlugin/PreStartContainer",
        "pluginregistration.Registration/GetInfo",
        "pluginregistration.Registration/NotifyRegistrationStatus",
        "v1.PodResourcesLister/List",
        "v1.PodResourcesLister/GetAllocatableResources",
        "v1.PodResourcesLister/Get",
        "runtime.v1.RuntimeService/CreateContainer",
        "runtime.v1.RuntimeService/StartContainer",
        "runtime.v1.RuntimeService/StopContainer",
        "runtime.v1.RuntimeService/ContainerStatus",
        "runtime.v1.RuntimeService/ExecSync",
        "runtime.v1.RuntimeService/Version",
        "runtime.v1.RuntimeService/Status",
        "runtime.v1.RuntimeService/RunPodSandbox",
        "runtime.v1.RuntimeService/StopPodSandbox",
        "runtime.v1.RuntimeService/RemovePodSandbox",
        "runtime.v1.RuntimeService/PodSandboxStatus",
        "runtime.v1.RuntimeService/ListPodSandbox",
        "runtime.v1.ImageService/ImageStatus",
    }
