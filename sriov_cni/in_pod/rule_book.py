"""Orchestrator: all that follows from one look at the cluster, and the table of each pod by it.

What is the same for every pod is made once, and is the very same object in every pod's table; what did not
change since the look before is taken from there.
"""

import threading
from collections.abc import Iterable
from itertools import count

import msgspec

from sriov_cni.in_pod.model import PodPolicy, ServiceTable
from sriov_cni.in_pod.objects import ZONE_LABEL, Cluster, Node, Pod
from sriov_cni.in_pod.policies import PolicyCompiler
from sriov_cni.in_pod.render_policy import PolicyRenderer
from sriov_cni.in_pod.render_services import ServiceRenderer
from sriov_cni.in_pod.service_endpoints import Place
from sriov_cni.in_pod.services import ServiceCompiler
from sriov_cni.in_pod.stale_flows import udp_targets
from sriov_cni.in_pod.table import Parts, assemble
from vf_manager.kernel.nft import Table
from vf_manager.model import IfName

CLOSED, OPEN = PodPolicy(ingress=(), egress=()), PodPolicy()
_NODE_ADDRESSES = ("InternalIP", "ExternalIP")


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules of a pod are made of. `services`, `policy`: the interfaces that they are for. `pod`
    None: it is not known what the pod is; then, as while no policy is known, nothing is let through unless
    `is_open`."""

    services: frozenset[IfName] = frozenset()
    policy: frozenset[IfName] = frozenset()
    pod: Pod | None = None
    is_open: bool = False
    knows_policy: bool = True


class RuleBook:
    """Of one snapshot. `number`: how many were read before. Thread-safe."""

    def __init__(
        self,
        number: int,
        cluster: Cluster,
        services: ServiceTable,
        parts: Parts,
        policies: PolicyCompiler,
        renderer: PolicyRenderer,
    ) -> None:
        self.number = number
        self.cluster = cluster
        self.services = services
        self.udp_targets = udp_targets(services)
        self._parts = parts
        self._policies = policies
        self._renderer = renderer
        self._guard = threading.Lock()

    def policy_for(self, ask: Ask) -> PodPolicy:
        if not ask.policy:
            return OPEN
        if ask.pod is None or not ask.knows_policy:
            return OPEN if ask.is_open else CLOSED
        with self._guard:
            return self._policies.compile(ask.pod)

    def table_for(self, ask: Ask) -> Table:
        parts = [self._parts] if ask.services else []
        if ask.policy:
            policy = self.policy_for(ask)
            with self._guard:
                found = self._renderer.render(policy)
            parts.append(Parts(found.sets, found.chains))
        return assemble(ask.services, ask.policy, parts)


class RuleBooks:
    """Reads snapshots, one after the other; for one thread at a time."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._numbers = count()
        self._services = ServiceCompiler()
        self._renderer = ServiceRenderer()
        self._policies: PolicyCompiler | None = None
        self._policy_renderer: PolicyRenderer | None = None

    def read(self, cluster: Cluster, host_addresses: Iterable[str]) -> RuleBook:
        """`host_addresses`: those that this node's kubelet may probe from, besides what the cluster says."""
        own = node_addresses(cluster.node)
        zone = cluster.node.metadata.labels.get(ZONE_LABEL) if cluster.node else None
        table = self._services.compile(cluster.services, cluster.slices, Place(self._node, zone, own))
        self._policies = PolicyCompiler(cluster, self._policies)
        self._policy_renderer = PolicyRenderer({*own, *host_addresses}, self._policy_renderer)
        parts = Parts(*self._renderer.render(table))
        number = next(self._numbers)
        return RuleBook(number, cluster, table, parts, self._policies, self._policy_renderer)


def node_addresses(node: Node | None) -> tuple[str, ...]:
    if node is None:
        return ()
    return tuple(one.address for one in node.status.addresses if one.type in _NODE_ADDRESSES)
