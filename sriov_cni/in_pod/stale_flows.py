"""Pure: which UDP flows of a pod go where the services no longer send them.

TCP and SCTP notice by themselves that a peer is gone. To UDP the kernel applies the translation that it has
noted for as long as packets flow, and a resolver that asks again and again keeps a dead endpoint for ever.
What is deleted here is translated anew, or rejected, with its next packet.
"""

from collections.abc import Iterable, Mapping

from sriov_cni.in_pod.model import Endpoint, Frontend, ServiceTable, Target
from sriov_cni.in_pod.objects import Proto
from vf_manager.kernel.api import Flow


def udp_targets(table: ServiceTable) -> Mapping[Frontend, Target]:
    """Where UDP goes. As long as that is the same, a flow that was not stale does not become it."""
    return {frontend: target for frontend, target in table.targets.items() if frontend.proto is Proto.UDP}


def stale_flows(flows: Iterable[Flow], table: ServiceTable) -> list[Flow]:
    return [flow for flow in flows if _is_stale(flow, table)]


def _is_stale(flow: Flow, table: ServiceTable) -> bool:
    """As with kube-proxy, a flow lives on for as long as its endpoint answers, even if new ones would go
    elsewhere. One that was not translated, and is to a frontend, began before there was the service."""
    sent, answers = flow.original, flow.reply
    if _is_loopback(answers.source):
        return False  # no endpoint is there: rules of the pod's own, such as a proxy's beside it
    target = table.targets.get(Frontend(Proto.UDP, sent.destination, sent.destination_port))
    if target is None:
        return flow.dnat
    endpoint = Endpoint(answers.source, answers.source_port)
    return endpoint not in target.endpoints and endpoint not in target.others


def _is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith("127.")
