"""What NetworkPolicies allow, written from the API's documentation and nothing else.

It reads the objects as a user writes them, asks one question at a time and remembers nothing. It shares no
code with what it judges.
"""

from ipaddress import ip_address, ip_network
from typing import Any

Object = dict[str, Any]


def allowed(objects: list[Object], source: str, destination: str, proto: str, port: int | None) -> bool:
    """May `source` open a connection to this port of `destination`? Both are addresses; proto ICMP has no
    port. Every pod there is enforces its policies.

    "For a connection from a source pod to a destination pod to be allowed, both the egress policy on the
    source pod and the ingress policy on the destination pod need to allow the connection."
    """
    if source == destination:  # "a Pod cannot block access to itself"
        return True
    return _leaves(objects, source, destination, proto, port) and _enters(
        objects, source, destination, proto, port
    )


def _leaves(objects: list[Object], source: str, destination: str, proto: str, port: int | None) -> bool:
    pod = _pod_at(objects, source)
    policies = _policies(objects, pod, "Egress")
    if pod is None or not policies:
        return True  # "By default, a pod is non-isolated for egress; all outbound connections are allowed."
    target = _pod_at(objects, destination)
    return any(
        _peer_is_in(rule.get("to"), policy, objects, destination)
        and _port_is_in(rule.get("ports"), target, proto, port)
        for policy in policies
        for rule in policy["spec"].get("egress") or []
    )


def _enters(objects: list[Object], source: str, destination: str, proto: str, port: int | None) -> bool:
    pod = _pod_at(objects, destination)
    policies = _policies(objects, pod, "Ingress")
    if pod is None or not policies or _is_node(objects, source):
        return True  # "traffic to and from the node where a Pod is running is always allowed"
    return any(
        _peer_is_in(rule.get("from"), policy, objects, source)
        and _port_is_in(rule.get("ports"), pod, proto, port)
        for policy in policies
        for rule in policy["spec"].get("ingress") or []
    )


def _policies(objects: list[Object], pod: Object | None, kind: str) -> list[Object]:
    """Those that isolate the pod for this direction. "Policies do not conflict; they are additive." """
    return [
        policy
        for policy in objects
        if pod is not None
        and policy["kind"] == "NetworkPolicy"
        and policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
        and _selects(policy["spec"].get("podSelector") or {}, _labels(pod))
        and kind in _types(policy["spec"])
    ]


def _types(spec: Object) -> list[str]:
    """ "If no policyTypes are specified on a NetworkPolicy then by default Ingress will always be set and
    Egress will be set if the NetworkPolicy has any egress rules." """
    if spec.get("policyTypes"):
        return list(spec["policyTypes"])
    return ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


def _peer_is_in(peers: list[Object] | None, policy: Object, objects: list[Object], address: str) -> bool:
    """ "If this field is empty or missing, this rule matches all sources." """
    if not peers:
        return True
    return any(_is_peer(peer, policy, objects, address) for peer in peers)


def _is_peer(peer: Object, policy: Object, objects: list[Object], address: str) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        return _is_within(address, block["cidr"]) and not any(
            _is_within(address, hole) for hole in block.get("except") or []
        )
    pod = _pod_at(objects, address)
    if pod is None:
        return False
    namespace = pod["metadata"]["namespace"]
    if "namespaceSelector" in peer:
        labels = next((_labels(o) for o in objects if _is_namespace(o, namespace)), None)
        if labels is None or not _selects(peer["namespaceSelector"], labels):
            return False
    elif namespace != policy["metadata"]["namespace"]:
        return False
    return _selects(peer.get("podSelector") or {}, _labels(pod))


def _is_within(address: str, cidr: str) -> bool:
    return ip_address(address) in ip_network(cidr, strict=False)


def _port_is_in(ports: list[Object] | None, target: Object | None, proto: str, port: int | None) -> bool:
    """ "If this field is empty or missing, this rule matches all ports (traffic not restricted by port)." """
    if not ports:
        return True
    return any(_is_port(entry, target, proto, port) for entry in ports)


def _is_port(entry: Object, target: Object | None, proto: str, port: int | None) -> bool:
    if port is None or (entry.get("protocol") or "TCP") != proto:
        return False
    wanted = entry.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return target is not None and port in _numbers(target, wanted, proto)
    return bool(wanted <= port <= (entry.get("endPort") or wanted))


def _numbers(pod: Object, name: str, proto: str) -> list[int]:
    spec = pod["spec"]
    sidecars = [c for c in spec.get("initContainers") or [] if c.get("restartPolicy") == "Always"]
    return [
        port["containerPort"]
        for container in [*spec["containers"], *sidecars]
        for port in container.get("ports") or []
        if port.get("name") == name and port.get("protocol", "TCP") == proto
    ]


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    """ "The requirements are ANDed." An empty selector matches all objects."""
    equal = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in equal.items()) and all(
        _is_met(expression, labels) for expression in selector.get("matchExpressions") or []
    )


def _is_met(expression: Object, labels: dict[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or []
    return {
        "In": key in labels and labels[key] in values,
        "NotIn": key not in labels or labels[key] not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[expression["operator"]]


def _pod_at(objects: list[Object], address: str) -> Object | None:
    """Whom the address belongs to now. A pod of the host's network has none of its own, and one that has
    ended has none any more."""
    for pod in objects:
        if (
            pod["kind"] == "Pod"
            and not pod["spec"].get("hostNetwork")
            and pod["status"].get("phase") not in ("Succeeded", "Failed")
            and any(ip["ip"] == address for ip in pod["status"].get("podIPs") or [])
        ):
            return pod
    return None


def _is_node(objects: list[Object], address: str) -> bool:
    nodes = [o for o in objects if o["kind"] == "Node"]
    return any(a["address"] == address for node in nodes for a in node["status"]["addresses"])


def _is_namespace(candidate: Object, name: str) -> bool:
    return bool(candidate["kind"] == "Namespace" and candidate["metadata"]["name"] == name)


def _labels(of: Object) -> dict[str, str]:
    return of["metadata"].get("labels") or {}
