"""Adapter: asks the kubelet which devices it has given to a pod (pod resources API v1).

The answer has no pod uid: a pod that was just made anew under the same name may for a moment be answered with
its predecessor's devices. Whoever acts on it must see that a device is free.
"""

from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from device_plugin.api import podresources_v1_pb2 as pb
from device_plugin.api import podresources_v1_pb2_grpc as rpc
from device_plugin.endpoint import CHANNEL_OPTIONS, read_socket_identity, unix_target
from vf_manager.errors import SriovError

_MAX_ANSWER_BYTES = 16 * 1024 * 1024  # gRPC's own 4 MiB are too few for List on a large node
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class KubeletUnavailable(SriovError):
    """The kubelet does not answer. It may soon."""

    transient = True


class PodResources:
    """`socket`: the kubelet's pod-resources/kubelet.sock. Thread-safe; a connection per question, since the
    kubelet may have been restarted between two of them."""

    def __init__(self, socket: Path, *, timeout_s: float = 5.0) -> None:
        self._socket = socket
        self._timeout_s = timeout_s

    def is_there(self) -> bool:
        """Whether this node has a kubelet with this interface."""
        return read_socket_identity(self._socket) is not None

    def devices_of(self, namespace: str, name: str) -> dict[str, list[str]]:
        """Device ids by resource name, of all containers of the pod; empty if the kubelet gave it none or
        does not know it. Raises KubeletUnavailable."""
        with self._lister(f"devices of {namespace}/{name}") as lister:
            return _merge(self._ask(lister, namespace, name))

    def holder_of(self, device: str) -> tuple[str, str] | None:
        """Namespace and name of the pod that was given this device, whatever the resource. Raises
        KubeletUnavailable."""
        with self._lister(f"who holds {device}") as lister:
            pods = lister.List(pb.ListPodResourcesRequest(), timeout=self._timeout_s).pod_resources
        held = (pod for pod in pods if any(device in ids for ids in _merge([pod]).values()))
        return next(((pod.namespace, pod.name) for pod in held), None)

    def holders(self, resources: Container[str] | None = None) -> dict[str, tuple[str, str]]:
        """Namespace and name of the pod that was given a device, by device id; of these resources, or of
        every one. Raises KubeletUnavailable."""
        with self._lister("who holds which device") as lister:
            pods = lister.List(pb.ListPodResourcesRequest(), timeout=self._timeout_s).pod_resources
        return {
            device: (pod.namespace, pod.name)
            for pod in pods
            for resource, ids in _merge([pod]).items()
            if resources is None or resource in resources
            for device in ids
        }

    @contextmanager
    def _lister(self, question: str) -> Iterator[rpc.PodResourcesListerStub]:
        options = [*CHANNEL_OPTIONS, ("grpc.max_receive_message_length", _MAX_ANSWER_BYTES)]
        with grpc.insecure_channel(unix_target(self._socket), options=options) as channel:
            try:
                yield rpc.PodResourcesListerStub(channel)
            except grpc.RpcError as e:
                why = f"{e.code().name}: {e.details()}" if isinstance(e, grpc.Call) else str(e)
                raise KubeletUnavailable(f"ask the kubelet for {question}: {why}") from e

    def _ask(self, lister: rpc.PodResourcesListerStub, namespace: str, name: str) -> list[pb.PodResources]:
        """Get, or List where the kubelet has no Get: it then answers with whatever status its version has."""
        request = pb.GetPodResourcesRequest(pod_name=name, pod_namespace=namespace)
        try:
            return [lister.Get(request, timeout=self._timeout_s).pod_resources]
        except grpc.RpcError as e:
            if isinstance(e, grpc.Call) and e.code() in _GONE:
                raise
        pods = lister.List(pb.ListPodResourcesRequest(), timeout=self._timeout_s).pod_resources
        return [pod for pod in pods if (pod.namespace, pod.name) == (namespace, name)]


def _merge(pods: Iterable[pb.PodResources]) -> dict[str, list[str]]:
    """One resource may come in several pieces, one per NUMA node."""
    found: dict[str, list[str]] = {}
    for pod in pods:
        for container in pod.containers:
            for devices in container.devices:
                found.setdefault(devices.resource_name, []).extend(devices.device_ids)
    return {resource: sorted(set(ids)) for resource, ids in found.items()}
