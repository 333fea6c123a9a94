"""Orchestrator: which VFs the kubelet gave to a pod, and whether a VF is another pod's."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from sriov_cni.environment import Pod
from vf_manager.errors import InvalidInput, Refused
from vf_manager.model import PciAddress, parse_pci_address

_CACHED_S = 10.0


class Kubelet(Protocol):
    """Who was given which devices. Raises SriovError, transient, when the kubelet does not answer."""

    def is_there(self) -> bool: ...
    def devices_of(self, namespace: str, name: str) -> dict[str, list[str]]: ...
    def holder_of(self, device: str) -> tuple[str, str] | None: ...


class GivenVf(msgspec.Struct, frozen=True):
    pci: PciAddress
    pool: str


class PodVfs:
    """One question to the kubelet for all calls about one sandbox, while its answer will do. Thread-safe.

    `pools`: resource name -> pool, in the order in which a pod's VFs are given their interfaces.
    `pools_of`: the pools that a VF is in now; several only if they are shared.

    The kubelet's answer knows no uid. The question is one per container id, which no two sandboxes share; a
    predecessor of the same name that still holds its VF shows by its record (see Attacher).
    """

    def __init__(
        self,
        kubelet: Kubelet,
        pools: Mapping[str, str],
        pools_of: Callable[[PciAddress], tuple[str, ...]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kubelet = kubelet
        self._pools = dict(pools)
        self._pools_of = pools_of
        self._clock = clock
        self._guard = threading.Lock()
        self._known: dict[tuple[str, Pod], tuple[float, dict[str, list[str]]]] = {}

    def of(self, container_id: str, pod: Pod) -> tuple[GivenVf, ...]:
        """In the order of the pools, and of addresses within each. Empty: it requested none. Raises Refused
        if what the kubelet gave is not (any more) a VF of that pool."""
        devices = self._devices_of(container_id, pod)
        return tuple(
            self._verified(device, resource, pool)
            for resource, pool in self._pools.items()
            for device in sorted(devices.get(resource, ()))
        )

    def refuse_foreign(self, container_id: str, pod: Pod | None, vf: PciAddress) -> None:
        """Raises Refused if the kubelet gave the VF to another pod than this, or to none. The resource does
        not matter: another device plugin may have advertised it. A call without a pod (no Kubernetes behind
        it) may take what no pod has. On a node without a kubelet all is well."""
        if not self._kubelet.is_there():
            return
        if pod is None:
            holder = self._kubelet.holder_of(vf)
            if holder is not None:
                raise Refused(f"deviceID: the kubelet gave VF {vf} to a pod, and this call names none")
            return
        if not self._has(container_id, pod, vf):
            self._forget(container_id, pod)  # it may have got one meanwhile
            if not self._has(container_id, pod, vf):
                who = f"pod {pod.namespace}/{pod.name}"
                raise Refused(f"deviceID: the kubelet did not give VF {vf} to {who}")

    def _has(self, container_id: str, pod: Pod, vf: PciAddress) -> bool:
        return any(vf in ids for ids in self._devices_of(container_id, pod).values())

    def _devices_of(self, container_id: str, pod: Pod) -> dict[str, list[str]]:
        """An answer holds for a while, unless the pod has nothing: that may change any moment."""
        key, now = (container_id, pod), self._clock()
        with self._guard:
            self._known = {k: entry for k, entry in self._known.items() if entry[0] > now}
            if key in self._known:
                return self._known[key][1]
        devices = self._kubelet.devices_of(pod.namespace, pod.name)
        if any(devices.values()):
            with self._guard:
                self._known[key] = (now + _CACHED_S, devices)
        return devices

    def _forget(self, container_id: str, pod: Pod) -> None:
        with self._guard:
            self._known.pop((container_id, pod), None)

    def _verified(self, device: str, resource: str, pool: str) -> GivenVf:
        try:
            pci = parse_pci_address(device, resource)
        except InvalidInput as e:
            raise Refused(f"the kubelet gave out a device that is no VF: {e}") from e
        now = self._pools_of(pci)
        if pool not in now:
            where = f"in pool {', '.join(now)}" if now else "in no pool of this node's configuration"
            raise Refused(f"the kubelet gave VF {pci} to the pod as {resource}, but it is {where} now")
        return GivenVf(pci, pool)
