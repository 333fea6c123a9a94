"""Pure: which objects of the cluster are followed, and which of each kind are asked for.

Selectors spare both sides what nobody here has a use for. Those of services and slices are kube-proxy's
(cmd/kube-proxy/app/server.go): a headless service needs no proxy, one with another proxy's name has one.
"""

from enum import StrEnum
from typing import assert_never

import msgspec

from sriov_cni.in_pod.objects import (
    EndpointSlice,
    Meta,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    Service,
)

Held = Service | EndpointSlice | NetworkPolicy | Pod | Namespace | Node


class Kind(StrEnum):
    """The fields of `Cluster`."""

    SERVICES = "services"
    SLICES = "slices"
    POLICIES = "policies"
    PODS = "pods"
    NAMESPACES = "namespaces"
    NODE = "node"


FOR_SERVICES = frozenset({Kind.SERVICES, Kind.SLICES, Kind.NODE})
FOR_POLICY = frozenset({Kind.POLICIES, Kind.PODS, Kind.NAMESPACES, Kind.NODE})

_NOT_HEADLESS = "!service.kubernetes.io/headless"
_NO_OTHER_PROXY = "!service.kubernetes.io/service-proxy-name"
_KEPT_ANNOTATIONS = "service.kubernetes.io/"  # topology-mode and its forerunner


class Selectors(msgspec.Struct, frozen=True):
    """None: everything."""

    label: str | None = None
    field: str | None = None


def selectors_of(kind: Kind, node: str) -> Selectors:
    match kind:
        case Kind.SERVICES:
            return Selectors(label=f"{_NOT_HEADLESS},{_NO_OTHER_PROXY}")
        case Kind.SLICES:
            return Selectors(label=_NOT_HEADLESS)
        case Kind.PODS:  # one that has ended has an address that may be another's by now
            return Selectors(field="status.phase!=Succeeded,status.phase!=Failed")
        case Kind.NODE:
            return Selectors(field=f"metadata.name={node}")
        case Kind.POLICIES | Kind.NAMESPACES:
            return Selectors()
        case _:
            assert_never(kind)


def type_of(kind: Kind) -> type[Held]:
    match kind:
        case Kind.SERVICES:
            return Service
        case Kind.SLICES:
            return EndpointSlice
        case Kind.POLICIES:
            return NetworkPolicy
        case Kind.PODS:
            return Pod
        case Kind.NAMESPACES:
            return Namespace
        case Kind.NODE:
            return Node
        case _:
            assert_never(kind)


def kept_annotations(kind: Kind, meta: Meta) -> dict[str, str]:
    if kind is not Kind.SERVICES:
        return {}
    return {key: value for key, value in meta.annotations.items() if key.startswith(_KEPT_ANNOTATIONS)}
