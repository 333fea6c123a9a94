"""Objects of a cluster as the API server has them: plain JSON, with as little as tests need to say."""

from typing import Any

Object = dict[str, Any]


def service(name: str, *ips: str, ports: dict[str, int] | None = None, **spec: Any) -> Object:
    """`ports`: by name; one that begins with `udp` or `sctp` is of that protocol."""
    listed = [
        {"name": key, "port": port, "protocol": _protocol(key)}
        for key, port in (ports or {"web": 80}).items()
    ]
    given = {
        "type": "ClusterIP",
        "clusterIP": ips[0] if ips else "None",
        "clusterIPs": list(ips),
        "ports": listed,
    }
    return _object("v1", "Service", name, spec=given | spec)


def endpoints(name: str, *addresses: str, ports: dict[str, int] | None = None, **more: Any) -> Object:
    """The EndpointSlice of a service: all of one family, and ready. `more`: of each endpoint."""
    listed = [
        {"name": key, "port": port, "protocol": _protocol(key)}
        for key, port in (ports or {"web": 8080}).items()
    ]
    ready = {"ready": True, "serving": True, "terminating": False}
    six = any(":" in address for address in addresses)
    return _object(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        f"{name}-{'six' if six else 'four'}",
        labels={"kubernetes.io/service-name": name},
        addressType="IPv6" if six else "IPv4",
        ports=listed,
        endpoints=[{"addresses": [one], "conditions": ready} | more for one in addresses],
    )


def pod(name: str, *ips: str, namespace: str = "default", node: str = "node-1", **more: Any) -> Object:
    """`more`: labels, or of its spec."""
    labels = more.pop("labels", {})
    return _object(
        "v1",
        "Pod",
        name,
        namespace=namespace,
        labels=labels,
        uid=f"uid-{namespace}-{name}",
        spec={"nodeName": node, "containers": [{"name": "main"}]} | more,
        status={"phase": "Running", "podIPs": [{"ip": ip} for ip in ips]},
    )


def namespace(name: str, **labels: str) -> Object:
    found = _object("v1", "Namespace", name, labels=labels | {"kubernetes.io/metadata.name": name})
    del found["metadata"]["namespace"]
    return found


def node(name: str = "node-1", *addresses: str, **labels: str) -> Object:
    listed = [{"type": "InternalIP", "address": one} for one in addresses]
    found = _object("v1", "Node", name, labels=labels, status={"addresses": listed})
    del found["metadata"]["namespace"]
    return found


def policy(name: str, namespace: str = "default", **spec: Any) -> Object:
    return _object("networking.k8s.io/v1", "NetworkPolicy", name, namespace=namespace, spec=spec)


def _protocol(port_name: str) -> str:
    return next((proto for proto in ("UDP", "SCTP") if port_name.startswith(proto.lower())), "TCP")


def _object(
    version: str,
    kind: str,
    name: str,
    *,
    namespace: str = "default",
    labels: dict[str, str] | None = None,
    uid: str = "",
    **body: Any,
) -> Object:
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": labels or {},
        "uid": uid or f"uid-{kind}-{name}",
    }
    return {"apiVersion": version, "kind": kind, "metadata": metadata} | body
