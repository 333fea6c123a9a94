"""Pure: `sriovctl doctor`: services of the host that would configure VFs as they do any interface."""

from collections.abc import Iterator

from node_agent.doctor.facts import Facts
from node_agent.doctor.rules import Finding, Rule, Severity

NETWORK_MANAGER = "NetworkManager"
NETWORKD = "systemd-networkd"
_CURE = "`make install-unmanaged` and `udevadm control --reload`; it counts for VFs made from then on"

NETWORK_MANAGER_HOLDS = Rule(
    id="networkmanager-holds-vfs",
    severity=Severity.WARNING,
    cause="NetworkManager runs, and nothing tells it to leave VFs alone",
    cure=f"{_CURE}. Or `unmanaged-devices` in /etc/NetworkManager/conf.d",
)
NETWORKD_HOLDS = Rule(
    id="networkd-holds-vfs",
    severity=Severity.WARNING,
    cause="systemd-networkd runs with .network files, and nothing tells it to leave VFs alone",
    cure=_CURE,
)
RULES = (NETWORK_MANAGER_HOLDS, NETWORKD_HOLDS)


def find(facts: Facts) -> Iterator[Finding]:
    if not facts.inventory.vfs():
        return
    for service, rule in ((NETWORK_MANAGER, NETWORK_MANAGER_HOLDS), (NETWORKD, NETWORKD_HOLDS)):
        if service in facts.active_services and service not in facts.services_held_off:
            yield rule.finding(service)
