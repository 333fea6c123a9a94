"""Orchestrator: pods as the kubelet runs them: sandboxes by the CRI, made anew after failures, removed."""

import hashlib
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hw_tests.cri.api import cri_runtime_v1_pb2 as pb
from hw_tests.cri.client import Cri, CriError
from hw_tests.runtime import Pod

NAMESPACE = "rig"
# What the agent, or the executable in its place, says when the same call may succeed later (CNI code 11).
RETRYABLE = re.compile(r"node agent|try again")
_RETRY_S = 0.5
_PATIENCE_S = 180.0


@dataclass
class SandboxPod(Pod):
    """A pod with a sandbox that the runtime made, in a namespace that the runtime named."""

    sandbox: str = ""
    netns_name: str = ""
    addresses_told: list[str] = field(default_factory=list)  # by the runtime

    @property
    def container_id(self) -> str:
        return self.sandbox

    @property
    def netns(self) -> str:
        return self.netns_name


@dataclass
class PodRunner:
    """Thread-safe for different pods. `retried`: what the runtime said each time that it was asked again."""

    cri: Cri
    retried: list[str] = field(default_factory=list)

    def run(
        self, name: str, ports: Sequence[pb.PortMapping] = (), patience_s: float = _PATIENCE_S
    ) -> SandboxPod:
        """Asks until there is a sandbox. Raises CriError: one that is not retryable, or the last in time."""
        uid = str(uuid.UUID(hashlib.md5(name.encode()).hexdigest()))
        deadline = time.monotonic() + patience_s
        attempt = 0
        while True:
            config = pb.PodSandboxConfig(
                metadata=pb.PodSandboxMetadata(name=name, uid=uid, namespace=NAMESPACE, attempt=attempt),
                hostname=name,
                dns_config=pb.DnsConfig(servers=["198.18.0.53"]),
                port_mappings=ports,
            )
            try:
                return self._look_at(SandboxPod(name, NAMESPACE, uid, sandbox=self.cri.run(config)))
            except CriError as e:
                self._may_retry(e, deadline)
            self.remove(name, patience_s)
            attempt += 1

    def stop(self, name: str, patience_s: float = _PATIENCE_S) -> None:
        """Every sandbox of the pod: its network is taken back, its process ended. Raises CriError."""
        for sandbox in self.sandboxes_of(name):
            self._insist(self.cri.stop, sandbox, patience_s)

    def remove(self, name: str, patience_s: float = _PATIENCE_S) -> None:
        """Every sandbox of the pod: stopped, and gone from the runtime's list. Raises CriError."""
        for sandbox in self.sandboxes_of(name):
            self._insist(self.cri.stop, sandbox, patience_s)
            self._insist(self.cri.remove, sandbox, patience_s)

    def sandboxes_of(self, name: str) -> list[str]:
        return [one.id for one in self.cri.sandboxes() if one.metadata.name == name]

    def _insist(self, call: Callable[[str], None], sandbox: str, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return call(sandbox)
            except CriError as e:
                self._may_retry(e, deadline)

    def _may_retry(self, error: CriError, deadline: float) -> None:
        if not RETRYABLE.search(str(error)) or time.monotonic() > deadline:
            raise error
        self.retried.append(str(error))
        time.sleep(_RETRY_S)  # the kubelet's own waits are longer

    def _look_at(self, pod: SandboxPod) -> SandboxPod:
        pod.netns_name = self.cri.netns(pod.sandbox).name
        pod.addresses_told = self.cri.addresses(pod.sandbox)
        return pod
