"""Orchestrator: what an allocation takes on this node: device nodes that are there, VFs without traces of
their last user, and the files by which runtimes and Multus know them.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from structlog.typing import FilteringBoundLogger

from device_plugin import cdi, devices
from device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from device_plugin.cdi_files import CdiFiles
from device_plugin.device_info import DeviceInfoFiles
from device_plugin.nodes import VHOST_NET, Node, VfNodes, find_nodes, is_vfio
from device_plugin.pools import Pool, envs_of, resource_of
from vf_manager.device_info import PciInfo
from vf_manager.errors import KernelError, Refused, SriovError
from vf_manager.kernel.device_nodes import DeviceNodes
from vf_manager.model import PciAddress, Vf


class Resource(NamedTuple):
    """A pool and the node's prefix, by which it goes if it has none of its own."""

    pool: Pool
    node_prefix: str

    @property
    def name(self) -> str:
        return resource_of(self.pool, self.node_prefix)

    @property
    def kind(self) -> str | None:
        """Of its CDI devices. None: it has none."""
        return cdi.cdi_kind(self.name) if self.pool.allocation.cdi else None


class Places(NamedTuple):
    """Where the host keeps what an allocation is about."""

    dev: Path = Path("/dev")
    sys: Path = Path("/sys")
    cdi: Path = Path("/var/run/cdi")
    device_info: Path = Path("/var/run/k8s.cni.cncf.io/devinfo/dp")


PLACES = Places()


class Users(NamedTuple):
    """`attached`: VFs that are in a pod now. `given`: these and those that the kubelet gave to a container;
    raises SriovError if it does not tell."""

    attached: Callable[[], Set[PciAddress]]
    given: Callable[[], Set[str]]


class Allocator:
    """One for all pools of the node. Thread-safe."""

    def __init__(
        self,
        users: Users,
        reset: Callable[[PciAddress], None],
        log: FilteringBoundLogger,
        places: Places = PLACES,
    ) -> None:
        self._users = users
        self._reset = reset
        self._log = log
        self._nodes = DeviceNodes(places.dev, places.sys)
        self._cdi = CdiFiles(places.cdi)
        self._device_info = DeviceInfoFiles(places.device_info)
        self._counts: Counter[tuple[str, bool]] = Counter()
        self._seen: set[str] = set()  # resources that had devices in the life of this process
        self._writing = threading.Lock()

    def allocate(
        self, resource: Resource, vfs: Sequence[Vf], request: pb.AllocateRequest
    ) -> pb.AllocateResponse:
        """`vfs`: all of the pool. Nothing is changed before all of the request is seen to be possible. Raises
        InvalidInput, NotFound, Refused (with what would help) and KernelError."""
        done = False
        try:
            answer = self._allocate(resource, vfs, request)
            done = True
            return answer
        finally:
            with self._writing:
                self._counts[resource.name, done] += 1

    def counts(self) -> dict[tuple[str, bool], int]:
        """How many requests came since the start: by resource, and whether they were granted."""
        with self._writing:
            return dict(self._counts)

    def _allocate(
        self, resource: Resource, vfs: Sequence[Vf], request: pb.AllocateRequest
    ) -> pb.AllocateResponse:
        wanted = [
            devices.find_vfs(vfs, container.device_ids, resource.name)
            for container in request.container_requests
        ]
        asked_for = {vf.pci: vf for of_one in wanted for vf in of_one}
        nodes = {pci: self._find_nodes(resource.pool, vf) for pci, vf in asked_for.items()}
        if resource.pool.allocation.reset_vfio:
            self._reset_vfs([vf for vf in asked_for.values() if is_vfio(vf)])
        with self._writing:
            self._write_spec(resource, vfs)
            for vf in asked_for.values():
                self._device_info.write(resource.name, _pci_info(resource.pool, vf))
        return pb.AllocateResponse(
            container_responses=[_answer(resource, {vf.pci: nodes[vf.pci] for vf in one}) for one in wanted]
        )

    def publish(self, resource: Resource, vfs: Sequence[Vf]) -> None:
        """Before the kubelet hears of these VFs: their CDI spec. What goes wrong is logged here, and then an
        error of each allocation."""
        with self._writing:
            self._seen.add(resource.name)
            try:
                self._write_spec(resource, vfs)
            except SriovError as e:
                self._log.warning("no CDI spec", resource=resource.name, reason=str(e))

    def tidy(self, now: Iterable[tuple[Resource, Sequence[Vf]]]) -> None:
        """Removes the files of devices and pools that are no more. `now`: all pools with their VFs. What a
        container has, or may have, stays until the next change."""
        try:
            self._tidy(list(now))
        except SriovError as e:
            self._log.warning("files of former devices stay", reason=str(e))

    def _tidy(self, now: list[tuple[Resource, Sequence[Vf]]]) -> None:
        infos = self._former_infos(now)
        specs = self._former_in_specs(now)
        if not infos and not specs:
            return
        # It asks the kubelet: only where something hangs on it, and never while an allocation waits for us.
        given = self._users.given()
        with self._writing:
            for resource, of_resource in infos.items():
                self._device_info.remove(resource, of_resource - given)
            for file, in_file in specs.items():
                self._cdi.drop(file, in_file - given)

    def _former_infos(self, now: list[tuple[Resource, Sequence[Vf]]]) -> dict[str, set[PciAddress]]:
        """By resource, the devices that have a file and are not in its pool."""
        known = {resource.name: {vf.pci for vf in vfs} for resource, vfs in now}
        with self._writing:
            names = self._seen | known.keys()
        former = {name: self._device_info.devices(name) - known.get(name, set()) for name in names}
        return {name: devices for name, devices in former.items() if devices}

    def _former_in_specs(self, now: list[tuple[Resource, Sequence[Vf]]]) -> dict[str, set[str]]:
        """By file, the devices that are in it and not in its pool; a file of no pool in any case."""
        known: dict[str, set[str]] = {
            cdi.spec_file_name(resource.name): {vf.pci for vf in vfs}
            for resource, vfs in now
            if resource.kind
        }
        former = {name: devices - known.get(name, set()) for name, devices in self._cdi.devices().items()}
        return {name: devices for name, devices in former.items() if devices or name not in known}

    def _find_nodes(self, pool: Pool, vf: Vf) -> VfNodes:
        return find_nodes(vf, self._nodes, vhost_net=pool.vhost_net, rdma=pool.wants_rdma)

    def _reset_vfs(self, vfs: Sequence[Vf]) -> None:
        attached = self._users.attached()
        for vf in vfs:
            if vf.pci in attached:
                raise Refused(
                    f"allocate VF {vf.pci}: it is to be reset before use (allocation.resetVfio), but a pod"
                    f" has it still; it is free once that pod's DEL went through"
                )
        for vf in vfs:
            try:
                self._reset(vf.pci)
            except KernelError as e:
                raise Refused(f"allocate VF {vf.pci}: no reset before use (allocation.resetVfio): {e}") from e
            self._log.info("reset", vf=vf.pci)

    def _write_spec(self, resource: Resource, vfs: Sequence[Vf]) -> None:
        if resource.kind is None:
            return
        nodes: dict[PciAddress, tuple[Node, ...]] = {}
        for vf in vfs:
            with suppress(Refused):  # an allocation of it says why, and it stays out of the spec
                nodes[vf.pci] = self._find_nodes(resource.pool, vf).nodes
        known = {vf.pci for vf in vfs}
        self._cdi.put(cdi.spec_file_name(resource.name), resource.kind, cdi.make_devices(nodes), known)


def _answer(resource: Resource, nodes: Mapping[PciAddress, VfNodes]) -> pb.ContainerAllocateResponse:
    names = None
    if resource.kind is not None:
        names = [cdi.cdi_name(resource.kind, pci) for pci, of_vf in nodes.items() if of_vf.nodes]
    envs = envs_of(resource.pool, resource.node_prefix)
    return devices.render_answer(nodes, envs, resource.pool.additional_info, names)


def _pci_info(pool: Pool, vf: Vf) -> PciInfo:
    return PciInfo(
        pci_address=vf.pci,
        vhost_net=VHOST_NET if pool.vhost_net else None,
        rdma_device=",".join(vf.rdma_devices) or None,
        pf_pci_address=vf.pf_pci,
        representor_device=vf.representor,
    )
