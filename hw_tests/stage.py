"""Orchestrator: pods, VFs given to them by the kubelet, and their attachments; all taken back in the end."""

from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from hw_tests.nics import Nic
from hw_tests.node import Node, resource_of
from hw_tests.runtime import IFNAME, Answer, Conf, Pod


@dataclass
class Stage:
    """A context manager. What a test leaves attached is detached at its end, as a runtime would do it."""

    node: Node
    pods: list[Pod] = field(default_factory=list)
    _attached: dict[tuple[str, str], tuple[Pod, Conf]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for key in list(self._attached):
                self.detach(self._attached[key][0], key[1])
        finally:
            for pod in self.pods:
                pod.destroy()
                self.node.kubelet.free(pod.namespace, pod.name)

    def pod(self, name: str) -> Pod:
        pod = Pod(name).create()
        self.pods.append(pod)
        return pod

    def allocate(self, pod: Pod, nic: Nic) -> str:
        """A VF of this PF, from the kubelet, by the variable that the container gets."""
        resource = resource_of(nic)
        given = self.node.kubelet.allocate(pod.namespace, pod.name, resource)
        (variable,) = [key for key in given.response.envs if not key.endswith("_INFO")]
        address = given.response.envs[variable]
        assert given.ids == (address,), f"{variable}={address}, but the kubelet allocated {given.ids}"
        return address

    def attach(self, pod: Pod, conf: Conf, vf: str, ifname: str = IFNAME) -> Answer:
        """ADD. The kubelet has given the VF to the pod, if not before, then now. Raises CniError."""
        nic = next((nic for nic in self.node.nics if vf in nic.vf_addresses()), None)
        if nic is not None:
            self.node.kubelet.give(pod.namespace, pod.name, resource_of(nic), vf)
        answer = self.node.runtime.add(pod, conf, vf, ifname)
        self._attached[pod.container_id, ifname] = pod, conf
        return answer

    def attach_new(self, name: str, nic: Nic, conf: Conf) -> tuple[Pod, Answer]:
        """A new pod with a VF of this PF."""
        pod = self.pod(name)
        return pod, self.attach(pod, conf, self.allocate(pod, nic))

    def detach(self, pod: Pod, ifname: str = IFNAME) -> Answer:
        """DEL. Raises CniError."""
        _, conf = self._attached.pop((pod.container_id, ifname))
        return self.node.runtime.delete(pod, conf, ifname=ifname)
