"""The generated protocol code: it is what the .proto files say, and the types written for it fit."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from device_plugin.api import podresources_v1_pb2 as pod_pb

ROOT = Path(__file__).parent.parent
API = ROOT / "device_plugin/api"
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    (tmp_path / "device_plugin").mkdir()
    (tmp_path / "device_plugin/proto").symlink_to(ROOT / "device_plugin/proto")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "@device_plugin/proto/protoc.args"],
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "device_plugin/api").iterdir()}
    kept = {path.name: path.read_bytes() for path in API.iterdir() if path.name.endswith(GENERATED)}
    assert fresh == kept, "run `make proto` and commit what it changes"


@pytest.mark.parametrize("module", [pb, pod_pb])
def test_handwritten_types_name_every_method(module: object) -> None:
    descriptor = module.DESCRIPTOR  # type: ignore[attr-defined]
    stub = API / (Path(descriptor.name).stem + "_pb2_grpc.pyi")
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


def test_wire_format_of_pod_resources() -> None:
    devices = pod_pb.ContainerDevices(resource_name="r", device_ids=["d"])
    container = pod_pb.ContainerResources(name="c", devices=[devices])
    pod = pod_pb.PodResources(name="p", namespace="n", containers=[container])
    assert pod.SerializeToString() == b"\x0a\x01p\x12\x01n\x1a\x0b\x0a\x01c\x12\x06\x0a\x01r\x12\x01d"


def test_method_names() -> None:
    names = {
        f"{service.full_name}/{method}"
        for module in (pb, pod_pb)
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
        "v1.PodResourcesLister/List",
        "v1.PodResourcesLister/GetAllocatableResources",
        "v1.PodResourcesLister/Get",
    }
