"""Pure: the pods of a cluster as peers of policies: whom a selector means, by which addresses and ports."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property

from sriov_cni.in_pod.addresses import canonical_address
from sriov_cni.in_pod.ip_ranges import Span, find_span
from sriov_cni.in_pod.objects import Cluster, Container, Pod, Proto
from sriov_cni.in_pod.selectors import LabelIndex, Requirements

NamedPort = tuple[str, Proto]
Socket = tuple[str, Proto, int]
_ENDED = ("Succeeded", "Failed")  # the address may be another pod's by now


def named_ports(pod: Pod) -> frozenset[tuple[NamedPort, int]]:
    """Of its containers and sidecars. An init container that ends before them has none that last."""
    sidecars = (c for c in pod.spec.init_containers if c.restart_policy == "Always")
    return frozenset(_ports((*pod.spec.containers, *sidecars)))


def _ports(containers: Iterable[Container]) -> Iterator[tuple[NamedPort, int]]:
    for container in containers:
        for port in container.ports:
            if port.name:
                yield (port.name, port.protocol), port.container_port


class PeerIndex:
    """All pods that may be peers, by namespace, labels and named ports.

    Pods of the host's network are none: their address is the node's, which other programs and, after
    masquerading, other pods use as well. Traffic of theirs is the node's, for ipBlock to let through.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._pods = {key: pod for key, pod in cluster.pods.items() if _is_peer(pod)}
        self._addresses = {key: _addresses(pod) for key, pod in self._pods.items()}
        self._by_labels = LabelIndex({key: pod.metadata.labels for key, pod in self._pods.items()})
        self._by_namespace: defaultdict[str, set[str]] = defaultdict(set)
        for key, pod in self._pods.items():
            self._by_namespace[pod.metadata.namespace].add(key)
        self._namespaces = LabelIndex({key: n.metadata.labels for key, n in cluster.namespaces.items()})
        self._selected: dict[tuple[Requirements, Requirements | str], frozenset[str]] = {}
        self._known_sockets: dict[object, frozenset[Socket]] = {}
        self._known_addresses: dict[frozenset[str], frozenset[str]] = {}

    def select(self, pods: Requirements, namespaces: Requirements | str) -> frozenset[str]:
        """The keys of pods in all namespaces that are such, or in the one that is named."""
        found = self._selected.get((pods, namespaces))
        if found is None:
            found = self._by_labels.select(pods) & self._in_namespaces(namespaces)
            self._selected[pods, namespaces] = found
        return found

    def _in_namespaces(self, namespaces: Requirements | str) -> set[str]:
        if isinstance(namespaces, str):
            return self._by_namespace.get(namespaces, set())
        names = self._namespaces.select(namespaces)
        return set().union(*(self._by_namespace.get(name, ()) for name in names))

    def addresses(self, keys: frozenset[str]) -> frozenset[str]:
        """Of both families. The same object for the same pods."""
        found = self._known_addresses.get(keys)
        if found is None:
            found = frozenset(address for key in keys for address in self._addresses[key])
            self._known_addresses[keys] = found
        return found

    def sockets(
        self, ports: tuple[NamedPort, ...], pods: frozenset[str] | None, spans: tuple[Span, ...]
    ) -> frozenset[Socket]:
        """What these pods (None: all), and those whose address is in `spans`, call one of the ports."""
        key = ports, pods, spans
        found = self._known_sockets.get(key)
        if found is None:
            found = self._known_sockets[key] = frozenset(
                (address, port[1], number)
                for port in ports
                for pod, number in self._by_port.get(port, ())
                for address in self._addresses[pod]
                if pods is None or pod in pods or (spans and find_span(address, spans))
            )
        return found

    @cached_property
    def _by_port(self) -> dict[NamedPort, list[tuple[str, int]]]:
        found: defaultdict[NamedPort, list[tuple[str, int]]] = defaultdict(list)
        for key, pod in self._pods.items():
            for port, number in named_ports(pod):
                found[port].append((key, number))
        return found


def _is_peer(pod: Pod) -> bool:
    return not pod.spec.host_network and pod.status.phase not in _ENDED


def _addresses(pod: Pod) -> tuple[str, ...]:
    """Without what is no address: no packet can have it."""
    return tuple(text for address in pod.status.pod_ips if (text := canonical_address(address.ip)))
