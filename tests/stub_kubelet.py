"""Adapter: a kubelet reduced to what device plugins and readers of pod resources see of it.

It speaks the real protocols over real sockets below a folder of the caller's choice, and keeps the real
one's habits: it calls a plugin back before it answers Register, takes the end of a ListAndWatch stream
for the plugin's death, removes all sockets of its folder when it starts, and looks for plugins by itself in
another folder.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from device_plugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from device_plugin.api import podresources_v1_pb2 as pod_pb
from device_plugin.api import podresources_v1_pb2_grpc as pod_rpc
from device_plugin.endpoint import CHANNEL_OPTIONS, unix_target
from device_plugin.registration import API_VERSION
from tests.stub_plugin_watcher import PluginWatcher, Refused

DIAL_TIMEOUT_S = 10.0


class InsufficientDevices(Exception):
    """Fewer healthy free devices than a pod asked for."""


@dataclasses.dataclass(frozen=True)
class Allocation:
    """Devices of one resource that one container holds, and what the plugin said about them."""

    pod_namespace: str
    pod_name: str
    container: str
    resource: str
    ids: tuple[str, ...]
    response: pb.ContainerAllocateResponse

    @property
    def pod(self) -> tuple[str, str]:
        return self.pod_namespace, self.pod_name


class _Plugin:
    """A registered plugin: a connection to it and a thread that reads its list of devices."""

    def __init__(self, socket: Path, on_devices: Callable[["_Plugin", Iterable[pb.Device]], None]) -> None:
        self.socket = socket
        self.devices: dict[str, pb.Device] = {}  # guarded by the kubelet's condition
        self._on_devices = on_devices
        self._channel = grpc.insecure_channel(unix_target(socket), options=CHANNEL_OPTIONS)
        self.stub = rpc.DevicePluginStub(self._channel)
        try:
            self.options = self.stub.GetDevicePluginOptions(pb.Empty(), timeout=DIAL_TIMEOUT_S)
        except grpc.RpcError:
            self._channel.close()
            raise
        # Not without: gRPC's iterator then hangs for ever if the connection fails just now.
        self._stream = self.stub.ListAndWatch(pb.Empty(), wait_for_ready=True)
        self._thread = threading.Thread(target=self._read, name=f"kubelet-{socket.name}", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for response in self._stream:
                self._on_devices(self, response.devices)
        self._on_devices(
            self, [pb.Device(id=d.id, health="Unhealthy", topology=d.topology) for d in self.devices.values()]
        )

    def is_connected(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        self._channel.close()
        self._thread.join()


class _Registration(rpc.RegistrationServicer):
    def __init__(self, kubelet: "StubKubelet") -> None:
        self._kubelet = kubelet

    def Register(self, request: pb.RegisterRequest, context: grpc.ServicerContext) -> pb.Empty:
        try:
            self._kubelet.register(request)
        except Refused as refusal:
            context.abort(grpc.StatusCode.UNKNOWN, str(refusal))  # what an error of a Go handler becomes
        return pb.Empty()


class _PodResources(pod_rpc.PodResourcesListerServicer):
    def __init__(self, kubelet: "StubKubelet") -> None:
        self._kubelet = kubelet

    def List(
        self, request: pod_pb.ListPodResourcesRequest, context: grpc.ServicerContext
    ) -> pod_pb.ListPodResourcesResponse:
        return pod_pb.ListPodResourcesResponse(pod_resources=self._kubelet.pod_resources())

    def GetAllocatableResources(
        self, request: pod_pb.AllocatableResourcesRequest, context: grpc.ServicerContext
    ) -> pod_pb.AllocatableResourcesResponse:
        return pod_pb.AllocatableResourcesResponse(devices=self._kubelet.allocatable())

    def Get(
        self, request: pod_pb.GetPodResourcesRequest, context: grpc.ServicerContext
    ) -> pod_pb.GetPodResourcesResponse:
        wanted = request.pod_namespace, request.pod_name
        found = [pod for pod in self._kubelet.pod_resources() if (pod.namespace, pod.name) == wanted]
        if not found:
            context.abort(grpc.StatusCode.UNKNOWN, f"pod {wanted[1]} in namespace {wanted[0]} not found")
        return pod_pb.GetPodResourcesResponse(pod_resources=found[0])


class StubKubelet:
    """`kubelet_dir` plays /var/lib/kubelet. Use it as a context manager, or `start` and `stop` it.

    `takes_calls`, `looks`: whether it serves Register, and looks for plugins each `tick_s` (the real one does
    both, the latter each second).
    """

    def __init__(
        self, kubelet_dir: Path, *, takes_calls: bool = True, looks: bool = True, tick_s: float = 0.02
    ) -> None:
        self._plugin_dir = kubelet_dir / "device-plugins"
        self._registry_dir = kubelet_dir / "plugins_registry"
        self._takes_calls = takes_calls
        self._looks = looks
        self._tick_s = tick_s
        self._pod_dir = kubelet_dir / "pod-resources"
        self._allocating = threading.Lock()  # one at a time, or two pods would be given the same device
        self._changed = threading.Condition()  # guards all below
        self._plugins: dict[str, _Plugin] = {}
        self._allocations: list[Allocation] = []
        self._refusals: list[str] = []
        self._registrations: list[str] = []
        self._doubled: list[str] = []
        self._mute: set[str] = set()
        self._watcher: PluginWatcher | None = None
        self._running: list[tuple[grpc.Server, ThreadPoolExecutor]] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """As the real one: clears its folders of sockets, then serves, then looks for plugins."""
        for folder in (self._plugin_dir, self._pod_dir):
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():
                if path.is_socket():
                    path.unlink()
        if self._takes_calls:
            self._serve(
                self._plugin_dir, lambda s: rpc.add_RegistrationServicer_to_server(_Registration(self), s)
            )
        self._serve(
            self._pod_dir, lambda s: pod_rpc.add_PodResourcesListerServicer_to_server(_PodResources(self), s)
        )
        if self._looks:
            self._registry_dir.mkdir(exist_ok=True)
            self._watcher = PluginWatcher(self._registry_dir, self._tick_s, self.connect, self._disconnect)
            self._watcher.start()

    def stop(self) -> None:
        """Lets go of all plugins. Allocations stay: the real one has them in its checkpoint."""
        self.speak()
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher = None
        for server, executor in self._running:
            server.stop(grace=None).wait()
            executor.shutdown()
        self._running.clear()
        with self._changed:
            plugins = list(self._plugins.values())
            self._plugins.clear()
        for plugin in plugins:
            plugin.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def _serve(self, folder: Path, add: Callable[[grpc.Server], None]) -> None:
        executor = ThreadPoolExecutor(8, thread_name_prefix=f"kubelet-{folder.name}")
        server = grpc.server(executor)
        add(server)
        server.add_insecure_port(unix_target(folder / "kubelet.sock"))
        server.start()
        self._running.append((server, executor))

    # -- registration ----------------------------------------------------------------------------------

    def refuse_next(self, count: int = 1, reason: str = "refused by the test") -> None:
        """The next registrations fail."""
        with self._changed:
            self._refusals.extend([reason] * count)

    def registrations(self) -> list[str]:
        """The resource of each registration taken so far, in order."""
        with self._changed:
            return list(self._registrations)

    def options(self, resource: str) -> pb.DevicePluginOptions:
        """What the plugin of a resource says that it may be asked."""
        with self._changed:
            return self._plugins[resource].options

    def doubled(self) -> list[str]:
        """Resources that were registered while another socket of theirs was connected: a real one then may
        disconnect either."""
        with self._changed:
            return list(self._doubled)

    def mute(self, *resources: str) -> None:
        """Registrations of these get no answer, until `speak` or the end."""
        with self._changed:
            self._mute.update(resources)

    def speak(self) -> None:
        with self._changed:
            self._mute.clear()
            self._changed.notify_all()

    def register(self, request: pb.RegisterRequest) -> None:
        """Raises Refused."""
        if request.version != API_VERSION:
            raise Refused(f"requested API version {request.version!r} is not supported")
        if "/" in request.endpoint:
            raise Refused(f"bad endpoint {request.endpoint!r}")
        self.connect(request.resource_name, self._plugin_dir / request.endpoint)

    def connect(self, resource: str, socket: Path) -> None:
        """Raises Refused."""
        with self._changed:
            self._changed.wait_for(lambda: resource not in self._mute)
            if self._refusals:
                raise Refused(self._refusals.pop(0))
        if "/" not in resource:
            raise Refused(f"bad resource name {resource!r}")
        try:
            plugin = _Plugin(socket, self._take_devices)
        except grpc.RpcError as error:
            raise Refused(f"failed to dial device plugin: {error}") from error
        self._replace(resource, plugin)

    def _replace(self, resource: str, plugin: _Plugin) -> None:
        with self._changed:
            old = self._plugins.get(resource)
            self._plugins[resource] = plugin
            self._registrations.append(resource)
            if old is not None and old.socket != plugin.socket and old.is_connected():
                self._doubled.append(resource)
            self._changed.notify_all()
        if old is not None:
            old.close()

    def _disconnect(self, resource: str, socket: Path) -> None:
        """The resource stays, its devices are unhealthy: the real one drops it 5 minutes later."""
        with self._changed:
            plugin = self._plugins.get(resource)
        if plugin is not None and plugin.socket == socket:
            plugin.close()

    def drop(self, resource: str) -> None:
        """Ends the stream of a resource, as after an error in it. The real one does not open it again."""
        with self._changed:
            plugin = self._plugins[resource]
        plugin.close()

    def _take_devices(self, plugin: _Plugin, devices: Iterable[pb.Device]) -> None:
        with self._changed:
            plugin.devices = {device.id: device for device in devices}
            self._changed.notify_all()

    # -- devices ---------------------------------------------------------------------------------------

    def devices(self, resource: str) -> dict[str, pb.Device]:
        """All devices of a resource by id. KeyError if it is not registered."""
        with self._changed:
            return dict(self._plugins[resource].devices)

    def wait_for(self, what: str, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Raises TimeoutError that says `what` did not happen."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout_s):
                raise TimeoutError(f"no {what} after {timeout_s} s; the resources are {self._summary()}")

    def wait_devices(self, resource: str, count: int, timeout_s: float = 10.0) -> dict[str, pb.Device]:
        """Waits until a resource is registered and has `count` healthy devices; returns them by id."""
        self.wait_for(
            f"{count} healthy devices of {resource}",
            lambda: resource in self._plugins and len(self._healthy(resource)) == count,
            timeout_s,
        )
        with self._changed:
            return self._healthy(resource)

    def _healthy(self, resource: str) -> dict[str, pb.Device]:
        plugin = self._plugins.get(resource)
        return {i: d for i, d in plugin.devices.items() if d.health == "Healthy"} if plugin else {}

    def _summary(self) -> dict[str, int]:
        return {resource: len(self._healthy(resource)) for resource in self._plugins}

    # -- allocation ------------------------------------------------------------------------------------

    def allocate(
        self, pod_namespace: str, pod_name: str, resource: str, count: int = 1, container: str = "main"
    ) -> Allocation:
        """Gives free devices to a container, those that the plugin prefers, or else the lowest ids. Raises
        InsufficientDevices, grpc.RpcError."""
        with self._allocating:
            allocation = self._allocate((pod_namespace, pod_name), container, resource, count)
            with self._changed:
                self._allocations.append(allocation)
        return allocation

    def give(self, pod_namespace: str, pod_name: str, resource: str, device: str) -> None:
        """Tell everybody who asks that this pod has the device, whoever else may have it. No plugin is asked:
        for pods that name a device by themselves."""
        given = Allocation(
            pod_namespace, pod_name, "main", resource, (device,), pb.ContainerAllocateResponse()
        )
        with self._changed:
            if not any(a.pod == given.pod and device in a.ids for a in self._allocations):
                self._allocations.append(given)

    def _allocate(self, pod: tuple[str, str], container: str, resource: str, count: int) -> Allocation:
        with self._changed:
            taken = {i for one in self._allocations if one.resource == resource for i in one.ids}
            free = sorted(set(self._healthy(resource)) - taken)
            if len(free) < count:
                raise InsufficientDevices(f"{count} of {resource} asked for, {len(free)} free")
            plugin = self._plugins[resource]
        ids = tuple(free[:count])
        if plugin.options.preferred_allocation_available:
            ids = self._preferred(plugin, free, count)
        request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(device_ids=ids)])
        response = plugin.stub.Allocate(request, timeout=DIAL_TIMEOUT_S).container_responses[0]
        return Allocation(*pod, container, resource, ids, response)

    def _preferred(self, plugin: _Plugin, free: list[str], count: int) -> tuple[str, ...]:
        container = pb.ContainerPreferredAllocationRequest(available_ids=free, size=count)
        request = pb.PreferredAllocationRequest(container_requests=[container])
        answer = plugin.stub.GetPreferredAllocation(request, timeout=DIAL_TIMEOUT_S)
        return tuple(answer.container_responses[0].device_ids)

    def free(self, pod_namespace: str, pod_name: str) -> None:
        """The pod is gone: its devices are free again."""
        with self._changed:
            self._allocations = [a for a in self._allocations if a.pod != (pod_namespace, pod_name)]

    # -- pod resources ---------------------------------------------------------------------------------

    def pod_resources(self) -> list[pod_pb.PodResources]:
        """Pods that hold devices, in the order of their first allocation."""
        pods: dict[tuple[str, str], dict[str, list[pod_pb.ContainerDevices]]] = {}
        with self._changed:
            for a in self._allocations:
                containers = pods.setdefault(a.pod, {})
                containers.setdefault(a.container, []).extend(self._by_numa_node(a.resource, a.ids))
        return [
            pod_pb.PodResources(
                namespace=namespace,
                name=name,
                containers=[pod_pb.ContainerResources(name=c, devices=d) for c, d in containers.items()],
            )
            for (namespace, name), containers in pods.items()
        ]

    def allocatable(self) -> list[pod_pb.ContainerDevices]:
        with self._changed:
            entries = [self._by_numa_node(name, self._healthy(name)) for name in self._plugins]
        return [entry for one in entries for entry in one]

    def _by_numa_node(self, resource: str, ids: Iterable[str]) -> list[pod_pb.ContainerDevices]:
        """One entry for each NUMA node, which is how the real one splits the devices of a container."""
        plugin = self._plugins.get(resource)
        groups: dict[tuple[int, ...], list[str]] = {}
        for device_id in ids:
            device = plugin.devices.get(device_id) if plugin else None
            nodes = tuple(node.id for node in device.topology.nodes) if device else ()
            groups.setdefault(nodes, []).append(device_id)
        return [
            pod_pb.ContainerDevices(
                resource_name=resource,
                device_ids=members,
                topology=pod_pb.TopologyInfo(nodes=[pod_pb.NumaNode(id=node) for node in nodes])
                if nodes
                else None,
            )
            for nodes, members in groups.items()
        ]
