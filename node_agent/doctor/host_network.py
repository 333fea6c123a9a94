"""Pure: `sriovctl doctor`: services of the host that would configure VFs as they do any interface."""

from collections import defaultdict
from collections.abc import Iterator

from node_agent.doctor.facts import Facts
from node_agent.doctor.networkd import HostInterface, file_of
from node_agent.doctor.rules import Finding, Rule, Severity

NETWORK_MANAGER = "NetworkManager"
NETWORKD = "systemd-networkd"
_MOST_NAMES = 4
_CURE = "`make install-unmanaged` and `udevadm control --reload`; it counts for VFs made from then on"

NETWORK_MANAGER_HOLDS = Rule(
    id="networkmanager-holds-vfs",
    severity=Severity.WARNING,
    cause="NetworkManager runs, and nothing tells it to leave VFs alone ({vfs})",
    cure=f"{_CURE}. Or `unmanaged-devices` in /etc/NetworkManager/conf.d",
)
NETWORKD_HOLDS = Rule(
    id="networkd-holds-vfs",
    severity=Severity.WARNING,
    cause="systemd-networkd runs, and {file} is the first of its files that is for VFs ({vfs}); it does not"
    " say `Unmanaged=yes`",
    cure=f"{_CURE}. Or narrow the `[Match]` of {{file}}",
)
RULES = (NETWORK_MANAGER_HOLDS, NETWORKD_HOLDS)


def find(facts: Facts) -> Iterator[Finding]:
    host = facts.host
    if NETWORK_MANAGER in host.services and not host.has_unmanaged_devices:
        held = [vf for vf in host.interfaces if vf.properties.get("NM_UNMANAGED") != "1"]
        if held:
            yield NETWORK_MANAGER_HOLDS.finding(NETWORK_MANAGER, vfs=_names(held))
    if NETWORKD in host.services:
        yield from _held_by_networkd(facts)


def _held_by_networkd(facts: Facts) -> Iterator[Finding]:
    """It does nothing to an interface that no file is for."""
    held: dict[str, list[HostInterface]] = defaultdict(list)
    for vf in facts.host.interfaces:
        file = file_of(vf, facts.host.network_files)
        if file is not None and not file.unmanaged:
            held[file.name].append(vf)
    for name, vfs in held.items():
        yield NETWORKD_HOLDS.finding(name, file=name, vfs=_names(vfs))


def _names(vfs: list[HostInterface]) -> str:
    shown = [vf.names[0] for vf in vfs[:_MOST_NAMES]]
    return ", ".join([*shown, *(["..."] if len(vfs) > _MOST_NAMES else [])])
