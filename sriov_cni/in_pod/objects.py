"""Pure: objects of the Kubernetes API, as far as a pod's services and policies depend on them.

The shapes are those of the API's JSON; whatever else an object has is dropped while it is decoded, so that
little is kept of a cluster. An absent list and an empty one differ in a NetworkPolicy: None is absent.
"""

from enum import StrEnum
from typing import Annotated

import msgspec


class ApiObject(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Unknown keys are let pass: the API grows."""


class Proto(StrEnum):
    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


class Meta(ApiObject, frozen=True, kw_only=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}  # of services alone; dropped from all others

    @property
    def key(self) -> str:
        """`namespace/name`; the name alone of what has no namespace."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


PortNumber = Annotated[int, msgspec.Meta(ge=0, le=65535)]

# --- core/v1 Service --------------------------------------------------------------------------------------


class ServicePort(ApiObject, frozen=True, kw_only=True):
    """`name` ties it to the ports of the EndpointSlices, whatever `targetPort` was."""

    name: str = ""
    protocol: Proto = Proto.TCP
    port: PortNumber
    node_port: PortNumber = 0


class ClientIpConfig(ApiObject, frozen=True, kw_only=True):
    timeout_seconds: int = 10800


class AffinityConfig(ApiObject, frozen=True, kw_only=True):
    client_ip: ClientIpConfig | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(ApiObject, frozen=True, kw_only=True):
    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    cluster_ips: tuple[str, ...] = msgspec.field(default=(), name="clusterIPs")
    external_ips: tuple[str, ...] = msgspec.field(default=(), name="externalIPs")
    ports: tuple[ServicePort, ...] = ()
    session_affinity: str = "None"
    session_affinity_config: AffinityConfig | None = None
    internal_traffic_policy: str = "Cluster"
    external_traffic_policy: str = "Cluster"
    publish_not_ready_addresses: bool = False
    load_balancer_source_ranges: tuple[str, ...] = ()
    traffic_distribution: str | None = None


class LoadBalancerIngress(ApiObject, frozen=True, kw_only=True):
    ip: str = ""
    ip_mode: str = "VIP"


class LoadBalancerStatus(ApiObject, frozen=True, kw_only=True):
    ingress: tuple[LoadBalancerIngress, ...] = ()


class ServiceStatus(ApiObject, frozen=True, kw_only=True):
    load_balancer: LoadBalancerStatus = LoadBalancerStatus()


class Service(ApiObject, frozen=True, kw_only=True):
    metadata: Meta
    spec: ServiceSpec
    status: ServiceStatus = ServiceStatus()


# --- discovery.k8s.io/v1 EndpointSlice --------------------------------------------------------------------

SERVICE_LABEL = "kubernetes.io/service-name"


class Conditions(ApiObject, frozen=True, kw_only=True):
    """None means what the API says that it means: ready if unknown, serving as ready, not terminating."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class ForZone(ApiObject, frozen=True, kw_only=True):
    name: str


class ForNode(ApiObject, frozen=True, kw_only=True):
    name: str


class Hints(ApiObject, frozen=True, kw_only=True):
    for_zones: tuple[ForZone, ...] = ()
    for_nodes: tuple[ForNode, ...] = ()


class SliceEndpoint(ApiObject, frozen=True, kw_only=True):
    addresses: tuple[str, ...]
    conditions: Conditions = Conditions()
    node_name: str | None = None
    zone: str | None = None
    hints: Hints | None = None


class SlicePort(ApiObject, frozen=True, kw_only=True):
    name: str | None = None
    protocol: Proto | None = None
    port: PortNumber | None = None


class EndpointSlice(ApiObject, frozen=True, kw_only=True):
    metadata: Meta
    address_type: str  # IPv4, IPv6, FQDN
    endpoints: tuple[SliceEndpoint, ...] | None = ()
    ports: tuple[SlicePort, ...] | None = ()


# --- core/v1 Pod, Namespace, Node -------------------------------------------------------------------------


class ContainerPort(ApiObject, frozen=True, kw_only=True):
    container_port: PortNumber
    name: str = ""
    protocol: Proto = Proto.TCP


class Container(ApiObject, frozen=True, kw_only=True):
    ports: tuple[ContainerPort, ...] = ()
    restart_policy: str = ""  # of an init container: `Always` makes it a sidecar


class PodSpec(ApiObject, frozen=True, kw_only=True):
    node_name: str = ""
    host_network: bool = False
    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()  # sidecars have ports, too


class PodIp(ApiObject, frozen=True, kw_only=True):
    ip: str = ""


class PodStatus(ApiObject, frozen=True, kw_only=True):
    phase: str = ""
    pod_ips: tuple[PodIp, ...] = msgspec.field(default=(), name="podIPs")


class Pod(ApiObject, frozen=True, kw_only=True):
    metadata: Meta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class Namespace(ApiObject, frozen=True, kw_only=True):
    metadata: Meta


class NodeAddress(ApiObject, frozen=True, kw_only=True):
    type: str  # InternalIP, ExternalIP, Hostname, ...
    address: str


class NodeStatus(ApiObject, frozen=True, kw_only=True):
    addresses: tuple[NodeAddress, ...] = ()


ZONE_LABEL = "topology.kubernetes.io/zone"


class Node(ApiObject, frozen=True, kw_only=True):
    metadata: Meta
    status: NodeStatus = NodeStatus()


# --- networking.k8s.io/v1 NetworkPolicy -------------------------------------------------------------------


class Requirement(ApiObject, frozen=True, kw_only=True):
    key: str
    operator: str  # In, NotIn, Exists, DoesNotExist
    values: tuple[str, ...] | None = ()


class LabelSelector(ApiObject, frozen=True, kw_only=True):
    """Empty: everything."""

    match_labels: dict[str, str] | None = None
    match_expressions: tuple[Requirement, ...] | None = None


class IpBlock(ApiObject, frozen=True, kw_only=True):
    cidr: str
    except_: tuple[str, ...] | None = msgspec.field(default=None, name="except")


class Peer(ApiObject, frozen=True, kw_only=True):
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IpBlock | None = None


class PolicyPort(ApiObject, frozen=True, kw_only=True):
    """`port`: a number, the name of a container port, or absent: any."""

    protocol: Proto = Proto.TCP
    port: int | str | None = None
    end_port: int | None = None


class IngressRule(ApiObject, frozen=True, kw_only=True):
    """An absent or empty list of either means everything."""

    from_: tuple[Peer, ...] | None = msgspec.field(default=None, name="from")
    ports: tuple[PolicyPort, ...] | None = None


class EgressRule(ApiObject, frozen=True, kw_only=True):
    to: tuple[Peer, ...] | None = None
    ports: tuple[PolicyPort, ...] | None = None


class PolicySpec(ApiObject, frozen=True, kw_only=True):
    pod_selector: LabelSelector = LabelSelector()
    ingress: tuple[IngressRule, ...] | None = None
    egress: tuple[EgressRule, ...] | None = None
    policy_types: tuple[str, ...] | None = None  # absent: Ingress, and Egress if there are egress rules


class NetworkPolicy(ApiObject, frozen=True, kw_only=True):
    metadata: Meta
    spec: PolicySpec = PolicySpec()


# --- all of it --------------------------------------------------------------------------------------------


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the cluster at one moment, each kind by `Meta.key`. The mappings never change."""

    services: dict[str, Service] = {}
    slices: dict[str, EndpointSlice] = {}
    policies: dict[str, NetworkPolicy] = {}
    pods: dict[str, Pod] = {}
    namespaces: dict[str, Namespace] = {}
    node: Node | None = None  # this one
