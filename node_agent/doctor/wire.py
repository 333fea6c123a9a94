"""Pure: `sriovctl doctor`: whether the wire behind the PF carries what pods send, their VLAN above all.

No NIC is told which VLANs its switch port lets pass. What can be known: that nothing ever came back, that the
gateway does not answer, that somebody took the VF to another VLAN, that the PF may not tag in its mode.
"""

from collections.abc import Iterator

from node_agent.doctor.facts import Facts, PodLink
from node_agent.doctor.rules import Finding, Rule, Severity
from node_agent.vf_holders import holder_word
from sriov_cni.attachment import Attachment, State
from vf_manager.model import Pf, Vf

_MANY = 32  # frames; a pod that has come up sends a handful by itself
_SWITCHDEV = "switchdev"

GATEWAY_SILENT = Rule(
    id="gateway-silent",
    severity=Severity.WARNING,
    cause="nobody on {wire} answers for the gateway {gateway}: the switch port may not let that pass, or the"
    " gateway is down or has another address",
    cure="allow the VLAN on the switch port of {pf}, or mend `gateway` and `routes` in `ipam`; pods of that"
    " VLAN on other PFs tell whether it is the port",
)
NOTHING_RECEIVED = Rule(
    id="nothing-received",
    severity=Severity.WARNING,
    cause="the VF has sent {sent} frames on {wire} and never received one: the switch port may not let"
    " that pass, or nobody else is there",
    cure="allow the VLAN on the switch port of {pf}; `tcpdump -eni {pf}` on the host shows what comes in",
)
VF_CHANGED = Rule(
    id="vf-attributes-changed",
    severity=Severity.WARNING,
    cause="somebody changed the VF of this pod at its PF: {what}",
    cure="find out who did; with `repairDrift: true` in the config the agent gives it back, else `ip link set"
    " {pf} vf {index} ...` does",
)
VLAN_IN_SWITCHDEV = Rule(
    id="vlan-in-switchdev",
    severity=Severity.WARNING,
    cause="network {network} asks for VLAN {vlan} on VFs of {pf}, which is in switchdev mode: there drivers"
    " leave VLANs to whatever the representors are ports of, and may refuse",
    cure="tag in the bridge of the representors and leave `vlan` out, or take `eswitchMode: legacy`",
)
RULES = (GATEWAY_SILENT, NOTHING_RECEIVED, VF_CHANGED, VLAN_IN_SWITCHDEV)


def find(facts: Facts) -> Iterator[Finding]:
    for attachment in facts.attachments:
        vf = facts.inventory.find_vf(attachment.port.pci)
        pf = facts.inventory.find_pf(attachment.port.pf) if attachment.port.pf else None
        if vf is None or pf is None:  # of a VF without a PF the hypervisor knows
            continue
        about = f"{holder_word(attachment)} {attachment.ifname}"
        yield from _changed(about, attachment, vf, pf)
        if (pod := facts.pods.get(vf.pci)) is not None:
            yield from _silence(about, pod, vf, pf)
    yield from _in_switchdev(facts)


def _silence(about: str, pod: PodLink, vf: Vf, pf: Pf) -> Iterator[Finding]:
    """Without a carrier nobody answers anyway, and `pf-no-carrier` says so."""
    if pf.netdev is None or not pf.netdev.carrier:
        return
    name, vlan = pf.netdev.name, vf.attributes.vlan if vf.attributes else 0
    wire = f"VLAN {vlan} of {name}" if vlan else f"the untagged network of {name}"
    for gateway in pod.silent_gateways:
        yield GATEWAY_SILENT.finding(about, gateway=gateway, wire=wire, pf=name)
    counted = pod.counted
    if counted is not None and counted.rx_packets == 0 and counted.tx_packets >= _MANY:
        yield NOTHING_RECEIVED.finding(about, sent=counted.tx_packets, wire=wire, pf=name)


def _changed(about: str, attachment: Attachment, vf: Vf, pf: Pf) -> Iterator[Finding]:
    """What the driver does not report has not been changed as far as anybody knows."""
    if vf.attributes is None or attachment.state is not State.ATTACHED:
        return
    pairs = [(key, getattr(vf.attributes, key), asked) for key, asked in attachment.asked.change.items()]
    wrong = [f"{key} is {now}, not {asked}" for key, now, asked in pairs if now not in (None, asked)]
    if wrong:
        name = pf.netdev.name if pf.netdev else pf.pci
        yield VF_CHANGED.finding(about, what=", ".join(wrong), pf=name, index=vf.index)


def _in_switchdev(facts: Facts) -> Iterator[Finding]:
    """By what the agent says of its pools."""
    if facts.config is None or facts.status is None:
        return
    pools = {pool.name: set(pool.vfs) for pool in facts.status.pools}
    switchdev = [pf for pf in facts.inventory.pfs if pf.eswitch_mode == _SWITCHDEV]
    for network in facts.config.pool_networks():
        vlan = network.asked.change.vlan
        vfs = {vf for name in network.pools for vf in pools.get(name, ())}
        for pf in switchdev if vlan else ():
            if not vfs.isdisjoint(vf.pci for vf in pf.vfs):
                yield VLAN_IN_SWITCHDEV.finding(network.name, network=network.name, vlan=vlan, pf=pf.label)
