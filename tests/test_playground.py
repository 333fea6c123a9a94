"""What the playground makes of objects: the pods, and their containers as a runtime is asked for them."""

from pathlib import Path

import pytest

from device_plugin.api import deviceplugin_v1beta1_pb2 as plugin_pb
from hw_tests.kustomize import MANIFESTS, read_objects
from hw_tests.playground.workloads import PodSpec, container_config, pods_of, resources_of

EXAMPLES = MANIFESTS / "examples"


def pods_in(example: str) -> list[PodSpec]:
    return [pod for one in read_objects(EXAMPLES / example) for pod in pods_of(one)]


@pytest.mark.parametrize(
    ("example", "names"),
    [
        ("one-vf.yaml", ["one-vf"]),
        ("service.yaml", ["web-0", "web-1"]),
        ("statefulset.yaml", ["cassandra-0", "cassandra-1", "cassandra-2"]),
        ("ml-training.yaml", ["training-0", "training-1", "training-2", "training-3"]),
        ("config.yaml", []),
    ],
)
def test_the_pods_of_an_example(example: str, names: list[str]) -> None:
    assert [pod.name for pod in pods_in(example)] == names


def test_a_kind_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="'CronJob' is not known here"):
        pods_of({"kind": "CronJob", "metadata": {"name": "a"}})


def test_only_resources_of_device_plugins_count() -> None:
    [pod] = pods_in("dpdk.yaml")
    assert resources_of(pod.containers[0]) == {"sriov-underlay.io/dpdk": 1}


def test_a_container_has_what_the_device_plugin_answered() -> None:
    [pod] = pods_in("dpdk.yaml")
    node = plugin_pb.DeviceSpec(container_path="/dev/vfio/42", host_path="/dev/vfio/42", permissions="mrw")
    answer = plugin_pb.ContainerAllocateResponse(envs={"VF": "0000:3b:02.0"}, devices=[node])
    config = container_config(pod, pod.containers[0], [answer], {}, Path("/v"), lambda program: True)
    assert ("VF", "0000:3b:02.0") in [(one.key, one.value) for one in config.envs]
    assert [(one.host_path, one.permissions) for one in config.devices] == [("/dev/vfio/42", "mrw")]
    assert "/v/hugepages" in [mount.host_path for mount in config.mounts]
    assert list(config.linux.security_context.capabilities.add_capabilities) == ["IPC_LOCK"]
    assert config.command[0] == "sh"


def test_names_and_the_pods_own_address() -> None:
    worker, member = pods_in("ml-training.yaml")[2], pods_in("statefulset.yaml")[0]
    config = container_config(worker, worker.containers[0], [], {}, Path("/v"), lambda program: True)
    assert "--node-rank=2" in config.command
    config = container_config(
        member, member.containers[0], [], {"status.podIP": "10.56.0.2"}, Path("/v"), lambda program: True
    )
    assert ("CASSANDRA_LISTEN_ADDRESS", "10.56.0.2") in [(one.key, one.value) for one in config.envs]


def test_a_program_that_is_not_here_is_not_run() -> None:
    worker = pods_in("ml-training.yaml")[0]
    config = container_config(worker, worker.containers[0], [], {}, Path("/v"), lambda program: False)
    assert list(config.command) == []


def test_what_is_not_known_of_an_answer_is_refused() -> None:
    [pod] = pods_in("dpdk.yaml")
    answer = plugin_pb.ContainerAllocateResponse(cdi_devices=[plugin_pb.CdiDevice(name="a.io/b=c")])
    with pytest.raises(ValueError, match="CDI"):
        container_config(pod, pod.containers[0], [answer], {}, Path("/v"), lambda program: True)
