"""The device plugin against a kubelet that speaks the real protocol over real sockets."""

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import msgspec
import pytest

from device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from device_plugin.api import podresources_v1_pb2 as pod_pb
from device_plugin.api import podresources_v1_pb2_grpc as pod_rpc
from device_plugin.endpoint import CHANNEL_OPTIONS, unix_target
from device_plugin.service import MAX_STREAMS
from tests.plugin_world import (
    FAST,
    FAST_ENV,
    NONE,
    PREFIX,
    SLOW,
    Agent,
    client,
    eventually,
    make_inventory,
    vf_id,
)
from tests.stub_kubelet import InsufficientDevices, StubKubelet
from vf_manager.model import PciAddress


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    eventually("all threads ended", lambda: set(threading.enumerate()) <= before)


@pytest.fixture
def kubelet_dir() -> Iterator[Path]:
    """Not tmp_path: the path of a socket may have 107 bytes only."""
    with tempfile.TemporaryDirectory(prefix="kubelet-") as folder:
        yield Path(folder)


@pytest.fixture
def kubelet(kubelet_dir: Path) -> Iterator[StubKubelet]:
    with StubKubelet(kubelet_dir) as stub:
        yield stub


@pytest.fixture
def agent(kubelet_dir: Path) -> Iterator[Agent]:
    """Not started."""
    agent = Agent(kubelet_dir)
    yield agent
    agent.stop()


@pytest.fixture
def running(agent: Agent, kubelet: StubKubelet) -> Agent:
    """Started, and registered with the kubelet."""
    agent.plugin.update(make_inventory())
    agent.start()
    eventually("registered", agent.is_registered)
    return agent


def allocate_request(*ids: str) -> pb.AllocateRequest:
    return pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(device_ids=ids)])


def first_answer(stream: Iterator[pb.ListAndWatchResponse]) -> int | grpc.StatusCode:
    """The number of devices in the first message, or why there is none."""
    try:
        return len(next(stream).devices)
    except grpc.RpcError as error:
        return error.code()


# -- what the kubelet is told --------------------------------------------------------------------------


def test_each_pool_is_a_resource(running: Agent, kubelet: StubKubelet) -> None:
    fast = kubelet.wait_devices(FAST, 3)
    assert list(fast) == [vf_id(1, 0), vf_id(1, 1), vf_id(1, 2)]
    assert all([node.id for node in device.topology.nodes] == [1] for device in fast.values())
    slow = kubelet.wait_devices(SLOW, 2)
    assert not any(device.HasField("topology") for device in slow.values())
    assert kubelet.wait_devices(NONE, 0) == {}
    assert sorted(kubelet.registrations()) == sorted([FAST, SLOW, NONE])


def test_status_says_how_each_pool_stands(agent: Agent, kubelet: StubKubelet, kubelet_dir: Path) -> None:
    assert [status.registered for status in agent.plugin.registered()] == [False] * 3
    agent.plugin.update(make_inventory())
    agent.start()
    eventually("registered", agent.is_registered)
    status = agent.plugin.registered()
    assert [(one.resource, one.devices, one.reason) for one in status] == [
        (FAST, 3, None),
        (SLOW, 2, None),
        (NONE, 0, None),
    ]
    assert status[0].socket == str(kubelet_dir / f"device-plugins/{PREFIX}_fast.sock")


def test_nothing_is_registered_before_the_first_inventory(agent: Agent, kubelet: StubKubelet) -> None:
    rounds = threading.Event()
    agent.start()
    rounds.wait(0.1)
    assert kubelet.registrations() == []
    agent.plugin.update(make_inventory())
    kubelet.wait_devices(FAST, 3)


def test_a_change_is_pushed_and_only_a_change(
    running: Agent, kubelet: StubKubelet, kubelet_dir: Path
) -> None:
    with client(running.sockets()[0]) as stub:
        stream = stub.ListAndWatch(pb.Empty())
        assert len(next(stream).devices) == 3
        # What the kubelet does not see: a generation, a VF that moved into a pod, another pool.
        running.plugin.update(msgspec.structs.replace(make_inventory(slow=1), generation=7))
        running.plugin.update(make_inventory(fast=1))
        assert [device.id for device in next(stream).devices] == [vf_id(1, 0)]
        stream.cancel()
    kubelet.wait_devices(FAST, 1)
    kubelet.wait_devices(SLOW, 2)


def test_a_vf_that_is_unhealthy_is_told(running: Agent, kubelet: StubKubelet) -> None:
    sick = PciAddress(vf_id(1, 1))
    running.plugin.update(make_inventory(), {"fast": {sick: "no carrier"}})
    assert list(kubelet.wait_devices(FAST, 2)) == [vf_id(1, 0), vf_id(1, 2)]
    assert kubelet.devices(FAST)[sick].health == "Unhealthy"
    running.plugin.update(make_inventory())
    kubelet.wait_devices(FAST, 3)


# -- allocation ----------------------------------------------------------------------------------------


def test_allocate_names_the_devices(running: Agent, kubelet: StubKubelet) -> None:
    kubelet.wait_devices(FAST, 3)
    one = kubelet.allocate("default", "pod-a", FAST)
    two = kubelet.allocate("default", "pod-b", FAST, 2)
    assert one.ids == (vf_id(1, 0),)
    assert one.response.envs[FAST_ENV] == vf_id(1, 0)
    assert two.response.envs[FAST_ENV] == f"{vf_id(1, 1)},{vf_id(1, 2)}"
    assert {*one.response.envs} == {FAST_ENV, f"{FAST_ENV}_INFO"}
    assert not one.response.devices
    with pytest.raises(InsufficientDevices):
        kubelet.allocate("default", "pod-c", FAST)
    kubelet.free("default", "pod-a")
    assert kubelet.allocate("default", "pod-c", FAST).ids == one.ids


def test_vfio_vfs_come_with_their_nodes(running: Agent, kubelet: StubKubelet) -> None:
    running.plugin.update(make_inventory(driver="vfio-pci", iommu_group=42))
    running.node.add_nodes("/dev/vfio/vfio", "/dev/vfio/42")
    allocation = kubelet.allocate("default", "pod", SLOW, 2)
    assert [
        (node.container_path, node.host_path, node.permissions) for node in allocation.response.devices
    ] == [
        ("/dev/vfio/42", "/dev/vfio/42", "rw"),
        ("/dev/vfio/vfio", "/dev/vfio/vfio", "rw"),
    ]


def test_a_missing_node_is_refused(running: Agent, kubelet: StubKubelet) -> None:
    running.plugin.update(make_inventory(driver="vfio-pci", iommu_group=42))
    with pytest.raises(grpc.RpcError) as caught:
        kubelet.allocate("default", "pod", SLOW)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert vf_id(2, 0) in str(caught.value.details())
    assert "/dev/vfio/vfio is not there" in str(caught.value.details())


def test_device_information_is_there_until_its_device_is_gone(
    running: Agent, kubelet: StubKubelet, kubelet_dir: Path
) -> None:
    def files() -> list[str]:
        return sorted(path.name for path in running.node.device_info_dir.iterdir())

    kubelet.wait_devices(FAST, 3)
    held = kubelet.allocate("default", "pod", FAST, 2)
    assert files() == [f"sriov-underlay.io-fast-{id_}-device.json" for id_ in held.ids]
    running.node.given = {held.ids[0]}
    running.plugin.update(make_inventory(fast=0))
    assert files() == [f"sriov-underlay.io-fast-{held.ids[0]}-device.json"]


@pytest.mark.parametrize(
    ("device_id", "code"),
    [
        (vf_id(2, 0), grpc.StatusCode.NOT_FOUND),  # of the other pool
        (vf_id(1, 7), grpc.StatusCode.NOT_FOUND),
        ("nonsense", grpc.StatusCode.INVALID_ARGUMENT),
        ("", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_ids_that_are_not_of_the_pool(
    running: Agent, kubelet_dir: Path, device_id: str, code: grpc.StatusCode
) -> None:
    with client(running.sockets()[0]) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Allocate(allocate_request(vf_id(1, 0), device_id))
    assert caught.value.code() is code
    assert repr(device_id) in str(caught.value.details())
    assert [entry["call"] for entry in running.events("refused")] == ["Allocate"]


def test_a_preference_is_advertised_and_its_reason_logged(running: Agent, kubelet: StubKubelet) -> None:
    options = pb.DevicePluginOptions(preferred_allocation_available=True)
    assert [kubelet.options(name) for name in (FAST, SLOW, NONE)] == [options] * 3
    with client(running.sockets()[0]) as stub:
        assert stub.GetDevicePluginOptions(pb.Empty()) == options
        assert stub.PreStartContainer(pb.PreStartContainerRequest()) == pb.PreStartContainerResponse()

        def prefer(size: int) -> list[str]:
            one = pb.ContainerPreferredAllocationRequest(
                available_ids=[vf_id(1, i) for i in (2, 0, 1)], must_include_ids=[vf_id(1, 1)], size=size
            )
            answer = stub.GetPreferredAllocation(pb.PreferredAllocationRequest(container_requests=[one]))
            return list(answer.container_responses[0].device_ids)

        assert prefer(2) == [vf_id(1, 1), vf_id(1, 0)]
        [preferred] = running.events("preferred")
        assert preferred["devices"] == [vf_id(1, 1), vf_id(1, 0)]
        assert preferred["reason"] == "packed: 2 of PF 0000:01:00.0; PCIe root unknown; NUMA node 1"
        for size in (0, 4):
            with pytest.raises(grpc.RpcError) as caught:
                prefer(size)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_unexpected_failure_is_logged_and_answered(
    running: Agent, kubelet_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> pb.AllocateResponse:
        raise ZeroDivisionError

    monkeypatch.setattr(running.node.allocator, "allocate", broken)
    with client(running.sockets()[0]) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Allocate(allocate_request(vf_id(1, 0)))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert [entry["exc_info"] for entry in running.events("failed")] == [True]


# -- streams -------------------------------------------------------------------------------------------


def test_reconnects_leave_no_handler_behind(running: Agent, kubelet_dir: Path) -> None:
    service = running.plugin._resources["fast"].service
    for _ in range(100):
        with client(running.sockets()[0]) as stub:
            stream = stub.ListAndWatch(pb.Empty())
            assert len(next(stream).devices) == 3
            stream.cancel()
        eventually("few streams", lambda: service.stream_count() < MAX_STREAMS)
    eventually("only the kubelet's stream", lambda: service.stream_count() == 1)


def test_many_streams_do_not_keep_allocate_waiting(running: Agent, kubelet_dir: Path) -> None:
    with client(running.sockets()[0]) as stub:
        streams = [stub.ListAndWatch(pb.Empty()) for _ in range(MAX_STREAMS + 3)]
        answers = [first_answer(stream) for stream in streams]
        assert answers.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 4  # the kubelet holds one
        assert answers.count(3) == MAX_STREAMS - 1
        assert stub.Allocate(allocate_request(vf_id(1, 0)), timeout=5).container_responses[0].envs
        for stream in streams:
            stream.cancel()


# -- the kubelet's other side --------------------------------------------------------------------------


def test_pod_resources_of_the_stub(running: Agent, kubelet: StubKubelet, kubelet_dir: Path) -> None:
    kubelet.wait_devices(FAST, 3)
    kubelet.wait_devices(SLOW, 2)
    held = kubelet.allocate("team", "pod", FAST, 2, container="app")
    target = unix_target(kubelet_dir / "pod-resources/kubelet.sock")
    with grpc.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        stub = pod_rpc.PodResourcesListerStub(channel)
        pods = stub.List(pod_pb.ListPodResourcesRequest()).pod_resources
        assert [(pod.namespace, pod.name, pod.containers[0].name) for pod in pods] == [("team", "pod", "app")]
        devices = pods[0].containers[0].devices
        assert [(one.resource_name, tuple(one.device_ids)) for one in devices] == [(FAST, held.ids)]
        assert [node.id for node in devices[0].topology.nodes] == [1]

        request = pod_pb.GetPodResourcesRequest(pod_namespace="team", pod_name="pod")
        assert stub.Get(request).pod_resources == pods[0]
        all_ = stub.GetAllocatableResources(pod_pb.AllocatableResourcesRequest()).devices
        assert sorted(len(one.device_ids) for one in all_) == [2, 3]

        kubelet.free("team", "pod")
        assert not stub.List(pod_pb.ListPodResourcesRequest()).pod_resources
        with pytest.raises(grpc.RpcError, match="not found"):
            stub.Get(request)
