"""A cluster as the keeper of rules sees it, in memory: how well it is known is the test's to say."""

from typing import Any

import msgspec

from sriov_cni.in_pod.keeper import Knowledge
from sriov_cni.in_pod.objects import Cluster, EndpointSlice, Namespace, NetworkPolicy, Node, Pod, Service
from sriov_cni.in_pod.options import InPod
from vf_manager.errors import Refused

_KINDS: dict[str, tuple[str, type[Any]]] = {
    "Service": ("services", Service),
    "EndpointSlice": ("slices", EndpointSlice),
    "NetworkPolicy": ("policies", NetworkPolicy),
    "Pod": ("pods", Pod),
    "Namespace": ("namespaces", Namespace),
}


class FakeCluster:
    """`wanted`: what was asked for. `is_there` False: the config has no way to an API server."""

    def __init__(self, *objects: dict[str, Any]) -> None:
        self.knowledge = Knowledge.FRESH
        self.is_there = True
        self.wanted: list[InPod] = []
        self.cluster = Cluster()
        self.put(*objects)

    def put(self, *objects: dict[str, Any]) -> None:
        """As the API server has them."""
        for one in objects:
            if one["kind"] == "Node":
                self.cluster = msgspec.structs.replace(self.cluster, node=msgspec.convert(one, Node))
                continue
            field, kind = _KINDS[one["kind"]]
            found = msgspec.convert(one, kind)
            known = getattr(self.cluster, field) | {found.metadata.key: found}
            self.cluster = msgspec.structs.replace(self.cluster, **{field: known})

    def want(self, options: InPod) -> None:
        if not self.is_there:
            raise Refused("no way to the API server")
        self.wanted.append(options)

    def known(self, options: InPod) -> Knowledge:
        return self.knowledge

    def snapshot(self) -> Cluster:
        return self.cluster
