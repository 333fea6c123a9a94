"""Questions about who may call whom, and what the agent's model and rules answer.

The rules are data here: tests.netns asks a kernel.
"""

from collections.abc import Iterator
from itertools import permutations, product
from typing import Any, NamedTuple

from sriov_cni.in_pod.model import Direction, PodPolicy
from sriov_cni.in_pod.objects import Proto
from sriov_cni.in_pod.policies import PolicyCompiler
from sriov_cni.in_pod.render_policy import POLICY_IFS, PolicyParts, PolicyRenderer
from sriov_cni.in_pod.trace_policy import trace_policy
from tests import policy_world
from tests.nft_evaluator import passes
from vf_manager.kernel.nft import Elements, Field, Hook, Table, Type

State = list[dict[str, Any]]
_NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132}
TABLE = "sriov_underlay"
_NET1 = b"net1".ljust(16, b"\0")


class Question(NamedTuple):
    source: str
    destination: str
    proto: str  # ICMP has no port
    port: int | None


def questions() -> Iterator[Question]:
    """Every pod, and hosts beyond the cluster, to every other, in both families."""
    for version in (4, 6):
        pods = [policy_world.address(key, version) for key in policy_world.pod_keys()]
        pods.append(policy_world.RECREATED[version])
        everybody = [*pods, policy_world.NODE[version], *policy_world.OUTSIDE[version]]
        for source, destination in permutations(everybody, 2):
            if source not in pods and destination not in pods:
                continue
            yield Question(source, destination, "ICMP", None)
            for proto, port in product(policy_world.PROTOCOLS, policy_world.PORTS):
                yield Question(source, destination, proto, port)


QUESTIONS = tuple(questions())


class Judge:
    """Answers by what the agent makes of the objects: its model and, beside it, its rules."""

    def __init__(self, state: State, previous: "Judge | None" = None) -> None:
        cluster = policy_world.cluster(state)
        self.compiler: PolicyCompiler = PolicyCompiler(cluster, previous.compiler if previous else None)
        assert cluster.node is not None
        self.node = frozenset(a.address for a in cluster.node.status.addresses)
        self.renderer: PolicyRenderer = PolicyRenderer(self.node, previous.renderer if previous else None)
        self.policies: dict[str, PodPolicy] = {}
        self.parts: dict[str, PolicyParts] = {}
        for pod in cluster.pods.values():
            if pod.spec.host_network or pod.status.phase != "Running":
                continue
            policy = self.compiler.compile(pod)
            parts = self.renderer.render(policy)
            for ip in pod.status.pod_ips:
                self.policies[ip.ip], self.parts[ip.ip] = policy, parts
        self._tables = {address: table_of(parts) for address, parts in self.parts.items()}

    def by_model(self, q: Question) -> bool:
        return self._traced(q, Direction.EGRESS, q.source, q.destination) and (
            q.source in self.node or self._traced(q, Direction.INGRESS, q.destination, q.source)
        )

    def _traced(self, q: Question, direction: Direction, own: str, other: str) -> bool:
        proto = None if q.proto == "ICMP" else Proto(q.proto)
        policy = self.policies.get(own, PodPolicy())
        return trace_policy(policy, direction, other, proto, q.port).allowed

    def by_rules(self, q: Question) -> bool:
        empty = Table("none")
        packet = _packet(q)
        out = passes(self._tables.get(q.source, empty), Hook.POSTROUTING, packet)
        return out and passes(self._tables.get(q.destination, empty), Hook.INPUT, packet)


def table_of(parts: PolicyParts) -> Table:
    """Whose interface is `net1`."""
    interfaces = Elements(key=(Type.IFNAME,), entries={_NET1: b""})
    return Table(TABLE, {**parts.sets, POLICY_IFS: interfaces}, parts.chains)


def _packet(q: Question) -> dict[Field, bytes]:
    """An ICMP packet here is an echo request."""
    six = ":" in q.source
    packed = policy_world.packed
    addresses = (Field.SADDR6, Field.DADDR6) if six else (Field.SADDR4, Field.DADDR4)
    fields = {Field.IIFNAME: _NET1, Field.OIFNAME: _NET1}
    fields |= {addresses[0]: packed(q.source), addresses[1]: packed(q.destination)}
    if q.port is None:
        fields[Field.L4PROTO] = bytes([58 if six else 1])
        return fields | ({Field.ICMPV6_TYPE: bytes([128])} if six else {})
    return fields | {Field.L4PROTO: bytes([_NUMBERS[q.proto]]), Field.DPORT: q.port.to_bytes(2, "big")}
