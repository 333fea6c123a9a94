"""Pure: every check of `sriovctl doctor`."""

from node_agent.doctor import attached, clock, cni_files, host_network, in_pod, nics, node, vfio, wire
from node_agent.doctor.facts import Facts
from node_agent.doctor.rules import Finding, Rule, Severity

_CONCERNS = (node, clock, nics, vfio, host_network, cni_files, attached, in_pod, wire)
_ORDER = list(Severity)

RULES: tuple[Rule, ...] = tuple(rule for concern in _CONCERNS for rule in concern.RULES)


def find_all(facts: Facts) -> list[Finding]:
    """The worst first."""
    found = [finding for concern in _CONCERNS for finding in concern.find(facts)]
    return sorted(found, key=lambda finding: _ORDER.index(finding.severity))
