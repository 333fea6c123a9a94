"""Pure: `sriovctl doctor`: VFs that are in pods."""

from collections import defaultdict
from collections.abc import Iterator
from typing import assert_never

from node_agent.doctor.facts import Facts, PodLink, WayOut
from node_agent.doctor.rules import Finding, Rule, Severity
from node_agent.events import has_services
from node_agent.vf_holders import holder_word
from sriov_cni.attachment import Attachment
from vf_manager.model import ZERO_MAC, Vf

SPOOFCHK_MAC = Rule(
    id="spoofchk-mac",
    severity=Severity.ERROR,
    cause="spoofchk of VF {vf} is on and its PF knows it by {known}, but the pod sends from {mac}: the NIC"
    " drops every frame of it",
    cure="ask for the MAC in the network (`mac`), or for `spoofchk: off`, instead of setting it in the pod",
)
ADDRESS_TWICE = Rule(
    id="address-twice",
    severity=Severity.ERROR,
    cause="{address} was given to several pods of this node: {pods}",
    cure="let both networks use one `ipam` (the same name, range and dataDir), or ranges that do not overlap",
)
ADDRESS_IN_USE = Rule(
    id="address-in-use",
    severity=Severity.ERROR,
    cause="{mac} on the wire answers for {address}, which this pod was given",
    cure="take the address out of the range; with `probe: true` in `ipam` ADD looks first",
)
BYPASSES_KUBE_PROXY = Rule(
    id="bypasses-kube-proxy",
    severity=Severity.NOTE,
    cause="the pod's only default route goes by its VF, past the host's kube-proxy: ClusterIPs and cluster"
    " DNS do not work from there, and no NetworkPolicy of the cluster filters it",
    cure="`services: in-pod` and `policy: in-pod` in its network; or reach Services by the pods' own"
    " addresses, or give the pod an interface of the cluster network and a route to the service range by it",
)
NO_WAY_OUT = Rule(
    id="no-route-to-services",
    severity=Severity.NOTE,
    cause="the pod has routes to its own subnets alone: no ClusterIP, no cluster DNS and nothing else beyond"
    " them is reached from there",
    cure="if it needs them: `routes` in `ipam` of its network, or an interface of the cluster network",
)
RULES = (SPOOFCHK_MAC, ADDRESS_TWICE, ADDRESS_IN_USE, BYPASSES_KUBE_PROXY, NO_WAY_OUT)


def find(facts: Facts) -> Iterator[Finding]:
    for attachment in facts.attachments:
        pod = facts.pods.get(attachment.port.pci)
        if pod is not None:
            yield from _of_pod(attachment, pod, facts.inventory.find_vf(attachment.port.pci))
    yield from _given_twice(facts)


def _of_pod(attachment: Attachment, pod: PodLink, vf: Vf | None) -> Iterator[Finding]:
    about = f"{holder_word(attachment)} {attachment.ifname}"
    known = vf.attributes if vf else None
    if vf and known and known.spoofchk and known.mac not in (ZERO_MAC, pod.netdev.mac):
        yield SPOOFCHK_MAC.finding(about, vf=vf.pci, known=known.mac, mac=pod.netdev.mac)
    for address, mac in sorted(pod.holders.items()):
        yield ADDRESS_IN_USE.finding(about, address=address, mac=mac)
    yield from _way_out(about, attachment, pod.way_out)


def _way_out(about: str, attachment: Attachment, way_out: WayOut) -> Iterator[Finding]:
    """A pod that has none is told of once, whatever the number of its VFs."""
    match way_out:
        case WayOut.VF:
            if not has_services(attachment):
                yield BYPASSES_KUBE_PROXY.finding(about)
        case WayOut.NONE:
            if attachment.ifname == attachment.primary and not has_services(attachment):
                yield NO_WAY_OUT.finding(about)
        case WayOut.CLUSTER | WayOut.OTHER_VF:
            return
        case _:
            assert_never(way_out)


def _given_twice(facts: Facts) -> Iterator[Finding]:
    """On one wire only: VLANs keep equal addresses apart, and so do PFs as far as anybody here knows."""
    having: dict[tuple[object, ...], list[Attachment]] = defaultdict(list)
    for attachment in facts.attachments:
        for ip in attachment.result.ips if attachment.result else ():
            wire = (attachment.port.pf, attachment.asked.change.vlan or 0)
            having[(*wire, ip.address.partition("/")[0])].append(attachment)
    for (*_, address), attachments in having.items():
        if len(attachments) > 1:
            pods = ", ".join(f"{holder_word(one)} {one.ifname}" for one in attachments)
            yield ADDRESS_TWICE.finding(str(address), address=address, pods=pods)
