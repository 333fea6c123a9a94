"""Adapter: the device plugin service of one pool, as the kubelet calls it.

Answers come from the list of VFs that `update` was given last. A ListAndWatch call holds a worker thread
for as long as its client stays, so their number is bounded and some workers are always left for the rest.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import grpc
from structlog.typing import FilteringBoundLogger

from device_plugin import devices
from device_plugin.allocator import Allocator, Resource
from device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from device_plugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from device_plugin.pools import Pool
from device_plugin.preference import choose
from vf_manager.errors import InvalidInput, NotFound, Refused, SriovError
from vf_manager.model import PciAddress, Vf

MAX_STREAMS = 8  # a kubelet holds one; the rest is for streams that are ending and for people who look
WORKERS = MAX_STREAMS + 4

Answer = TypeVar("Answer")


class PoolService(rpc.DevicePluginServicer):
    """`prefix`: the node's, for a pool that has none of its own. `allocator`: that of the node."""

    def __init__(self, pool: Pool, prefix: str, log: FilteringBoundLogger, allocator: Allocator) -> None:
        self.of = Resource(pool, prefix)
        self.resource = self.of.name
        self._log = log.bind(resource=self.resource)
        self._allocator = allocator
        self._changed = threading.Condition()  # guards all below
        self._vfs: tuple[Vf, ...] = ()
        self._unhealthy: Mapping[PciAddress, str] = {}
        self._list: pb.ListAndWatchResponse | None = None  # None: no inventory was seen yet
        self._streams: set[object] = set()

    def update(self, vfs: Sequence[Vf], unhealthy: Mapping[PciAddress, str]) -> None:
        """Takes the VFs that the pool has now, and why some of them cannot be used; open streams send the
        list if the kubelet sees a difference."""
        self._allocator.publish(self.of, vfs)
        new = devices.list_devices(vfs, unhealthy, topology=not self.of.pool.exclude_topology)
        with self._changed:
            self._vfs = tuple(vfs)
            self._unhealthy = dict(unhealthy)
            if new != self._list:
                self._list = new
                self._changed.notify_all()

    def is_ready(self) -> bool:
        """Whether there is a list to send. An empty list is one; a list nobody has read yet is not."""
        with self._changed:
            return self._list is not None

    def device_count(self) -> int:
        with self._changed:
            return len(self._vfs)

    def stream_count(self) -> int:
        """Open ListAndWatch calls. 0 after a registration means that the kubelet has given us up."""
        with self._changed:
            return len(self._streams)

    def options(self) -> pb.DevicePluginOptions:
        """What the kubelet may ask besides Allocate, for its registration too."""
        return pb.DevicePluginOptions(preferred_allocation_available=True)

    def GetDevicePluginOptions(
        self, request: pb.Empty, context: grpc.ServicerContext
    ) -> pb.DevicePluginOptions:
        return self.options()

    def ListAndWatch(
        self, request: pb.Empty, context: grpc.ServicerContext
    ) -> Iterator[pb.ListAndWatchResponse]:
        stream = object()
        if not self._open(stream):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self.resource}: {MAX_STREAMS} streams are open already"
            )
        if not context.add_callback(lambda: self._end(stream)):
            self._end(stream)  # the client went before we came here
        yield from self._lists_for(stream)

    def GetPreferredAllocation(
        self, request: pb.PreferredAllocationRequest, context: grpc.ServicerContext
    ) -> pb.PreferredAllocationResponse:
        return self._answer("GetPreferredAllocation", context, lambda: self._prefer(request))

    def Allocate(self, request: pb.AllocateRequest, context: grpc.ServicerContext) -> pb.AllocateResponse:
        return self._answer("Allocate", context, lambda: self._allocate(request))

    def PreStartContainer(
        self, request: pb.PreStartContainerRequest, context: grpc.ServicerContext
    ) -> pb.PreStartContainerResponse:
        return pb.PreStartContainerResponse()

    def _allocate(self, request: pb.AllocateRequest) -> pb.AllocateResponse:
        with self._changed:
            vfs = self._vfs
        response = self._allocator.allocate(self.of, vfs, request)
        self._log.info("allocated", devices=[list(one.device_ids) for one in request.container_requests])
        return response

    def _prefer(self, request: pb.PreferredAllocationRequest) -> pb.PreferredAllocationResponse:
        with self._changed:
            healthy = [vf for vf in self._vfs if vf.pci not in self._unhealthy]
        response = pb.PreferredAllocationResponse()
        for one in request.container_requests:
            choice = choose(
                self.of.pool.allocation.policy, healthy, one.available_ids, one.must_include_ids, one.size
            )
            self._log.info("preferred", devices=list(choice.devices), reason=choice.reason)
            response.container_responses.add(device_ids=choice.devices)
        return response

    def _open(self, stream: object) -> bool:
        with self._changed:
            if len(self._streams) >= MAX_STREAMS:
                return False
            self._streams.add(stream)
            return True

    def _end(self, stream: object) -> None:
        """The client is gone or the server stops: the handler that waits for a change returns."""
        with self._changed:
            self._streams.discard(stream)
            self._changed.notify_all()

    def _lists_for(self, stream: object) -> Iterator[pb.ListAndWatchResponse]:
        sent: pb.ListAndWatchResponse | None = None
        while True:
            with self._changed:
                while stream in self._streams and self._list is sent:
                    self._changed.wait()
                if stream not in self._streams or self._list is None:
                    return
                sent = self._list
            yield sent

    def _answer(self, call: str, context: grpc.ServicerContext, work: Callable[[], Answer]) -> Answer:
        """The request boundary: an expected failure becomes a status, any other one a logged INTERNAL."""
        try:
            return work()
        except SriovError as error:
            self._log.warning("refused", call=call, reason=str(error))
            context.abort(status_of(error), str(error))
        except Exception:  # noqa: BLE001  # logged with its traceback
            self._log.exception("failed", call=call)
            context.abort(grpc.StatusCode.INTERNAL, f"{self.resource}: {call} failed; see the agent's log")


def status_of(error: SriovError) -> grpc.StatusCode:
    """The gRPC status of an expected failure."""
    match error:
        case InvalidInput():
            return grpc.StatusCode.INVALID_ARGUMENT
        case NotFound():
            return grpc.StatusCode.NOT_FOUND
        case Refused():
            return grpc.StatusCode.FAILED_PRECONDITION
        case _ if error.transient:
            return grpc.StatusCode.UNAVAILABLE
        case _:
            return grpc.StatusCode.INTERNAL
