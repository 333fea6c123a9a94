"""Pure: `sriovctl doctor`: services and policy inside of pods."""

from collections.abc import Iterator

from node_agent.doctor.facts import Facts, WayOut
from node_agent.doctor.rules import Finding, Rule, Severity
from node_agent.vf_holders import holder_word

RULES_MISSING = Rule(
    id="rules-missing",
    severity=Severity.ERROR,
    cause="the network asks for {what}: in-pod, and the pod's namespace has no nftables table of ours:"
    " somebody removed it, or the agent could not make it again",
    cure="the agent puts it back within 30 s, or says why it cannot (`sriovctl status`); a pod with NET_ADMIN"
    " can take it away at any time",
)
SERVICES_WITHOUT_ROUTE = Rule(
    id="services-without-route",
    severity=Severity.WARNING,
    cause="the network asks for services: in-pod, but the pod has routes to its own subnets alone, and what"
    " has no route is not sent: no ClusterIP is reached",
    cure="`routes` in `ipam` of its network: a default route, or one to the service range",
)
CLUSTER_NOT_HEARD = Rule(
    id="cluster-not-heard",
    severity=Severity.WARNING,
    cause="{trouble}; services and policies inside of pods may be old, and new pods wait or fail",
    cure="see that the API server is reached, and that the component `in-pod` gives the agent the right to"
    " list and watch",
)
RULES = (RULES_MISSING, SERVICES_WITHOUT_ROUTE, CLUSTER_NOT_HEARD)


def find(facts: Facts) -> Iterator[Finding]:
    for attachment in facts.attachments:
        pod, options = facts.pods.get(attachment.port.pci), attachment.asked.in_pod
        if pod is None or options is None:
            continue
        about = f"{holder_word(attachment)} {attachment.ifname}"
        if not pod.has_rules:
            yield RULES_MISSING.finding(about, what=options.describe())
        if options.services and pod.way_out is WayOut.NONE and attachment.ifname == attachment.primary:
            yield SERVICES_WITHOUT_ROUTE.finding(about)
    if facts.status is not None:
        for trouble in facts.status.in_pod.troubles:
            yield CLUSTER_NOT_HEARD.finding("the agent", trouble=trouble)
