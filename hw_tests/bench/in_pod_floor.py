"""Adapter: the rules of a pod, put into an empty namespace by a process that has the messages ready: what is
left is the kernel, and a visit to the namespace."""

import contextlib
import time
from collections.abc import Iterable

import msgspec

from hw_tests.bench.in_pod_cluster import HOME, NODE_NAME, Put, Scale, every_object
from hw_tests.bench.in_pod_place import IFNAME, SERVER
from hw_tests.runtime import Pod
from node_agent.kube.decode import parse_object
from node_agent.kube.kinds import Kind
from node_agent.kube.store import ClusterStore
from sriov_cni.in_pod.objects import Cluster
from sriov_cni.in_pod.rule_book import Ask, RuleBooks
from sriov_cni.in_pod.table import TABLE
from vf_manager.kernel.linux import LinuxKernel
from vf_manager.kernel.nft import Table
from vf_manager.model import IfName

_PAUSE_S = 0.05  # the kernel frees a table by and by, on the processors that measure
_KINDS = {
    "services": Kind.SERVICES,
    "endpointslices": Kind.SLICES,
    "networkpolicies": Kind.POLICIES,
    "pods": Kind.PODS,
    "namespaces": Kind.NAMESPACES,
    "nodes": Kind.NODE,
}


def time_of_rules(scale: Scale, pod: Pod, rounds: int) -> list[float]:
    """ms. `pod`: one that is not attached; nothing is left in it."""
    table = _table_of(every_object(scale, SERVER), f"{HOME}/{pod.name}")
    kernel = LinuxKernel()
    netns = kernel.netns_at(str(pod.path))
    if netns is None:
        raise RuntimeError(f"there is no {pod.path}")
    found = []
    with contextlib.closing(netns):
        for _ in range(rounds + 1):
            began = time.perf_counter()
            kernel.apply_nft(netns, None, table)
            found.append((time.perf_counter() - began) * 1000)
            kernel.delete_nft_table(netns, TABLE)
            time.sleep(_PAUSE_S)
    return found[1:]  # the first one makes the messages


def _table_of(objects: Iterable[Put], pod: str) -> Table:
    cluster = cluster_of(objects)
    ask = Ask(services=frozenset({IfName(IFNAME)}), policy=frozenset({IfName(IFNAME)}), pod=cluster.pods[pod])
    return RuleBooks(NODE_NAME).read(cluster, ()).table_for(ask)


def cluster_of(objects: Iterable[Put]) -> Cluster:
    """As the agent sees it."""
    store = ClusterStore()
    for kind in Kind:
        store.begin(kind)
    for resource, one in objects:
        whole = one | {"metadata": one["metadata"] | {"resourceVersion": "1"}}
        held, _ = parse_object(_KINDS[resource], msgspec.Raw(msgspec.json.encode(whole)))
        store.put(_KINDS[resource], held.metadata.key, held)
    return store.snapshot()
