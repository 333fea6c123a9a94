"""Pure: the Events that the agent has to tell, in words, and as objects of events.k8s.io/v1.

An Event that tells the same as one before (of the same object, with the same reason, about the same thing) is
counted on that one: see EventPoster.
"""

import datetime
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from sriov_cni.attachment import Attachment
from sriov_cni.environment import Pod
from sriov_cni.in_pod.options import Ruled, Unsynced
from vf_manager.health import HealthReason
from vf_manager.model import Inventory, PciAddress
from vf_manager.provision import RefusalKind
from vf_manager.provisioner import Outcome

CONTROLLER = "sriov-underlay.io/agent"
_MOST_BYTES = 1024  # of `note` (ValidateEventCreate in pkg/apis/core/validation/events.go of Kubernetes)
_MOST_NAMED = 8
_POD_INTERFACE = "eth0"  # what the kubelet's runtimes call a pod's own interface
_DEFAULT_ROUTES = ("0.0.0.0/0", "::/0")


class Reason(StrEnum):
    VF_ATTACHED = "VfAttached"
    KUBE_PROXY_BYPASSED = "KubeProxyBypassed"
    CLUSTER_UNKNOWN = "ClusterUnknown"
    PROVISIONING_PENDING = "VfProvisioningPending"
    PROVISIONING_REFUSED = "VfProvisioningRefused"
    PROVISIONING_FAILED = "VfProvisioningFailed"
    CONFIG_REFUSED = "ConfigRefused"
    VF_UNHEALTHY = "VfUnhealthy"
    VF_HEALTHY = "VfHealthy"

    @property
    def is_normal(self) -> bool:
        return self in (Reason.VF_ATTACHED, Reason.VF_HEALTHY)


_ACTIONS = {
    Reason.VF_ATTACHED: "Attach",
    Reason.KUBE_PROXY_BYPASSED: "Attach",
    Reason.CLUSTER_UNKNOWN: "Attach",
    Reason.PROVISIONING_PENDING: "Provision",
    Reason.PROVISIONING_REFUSED: "Provision",
    Reason.PROVISIONING_FAILED: "Provision",
    Reason.CONFIG_REFUSED: "Configure",
    Reason.VF_UNHEALTHY: "CheckHealth",
    Reason.VF_HEALTHY: "CheckHealth",
}

BYPASSED = (
    "eth0 is a VF: its traffic bypasses the node's kube-proxy. ClusterIPs and cluster DNS do not work from"
    " this pod, unless the physical network routes them. Give its network services: in-pod; or use dnsPolicy"
    " None with resolvers that the network reaches, and headless Services or pod addresses; or keep eth0 on"
    " the cluster network, with the VF as a second interface. See docs/kube-proxy.md"
)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """`pod`: whose it is; None: the node's. `about`: what it is about, beside pod and reason."""

    reason: Reason
    note: str
    pod: Pod | None = None
    about: str = ""

    @property
    def identity(self) -> tuple[Pod | None, Reason, str]:
        return self.pod, self.reason, self.about


class HealthChange(msgspec.Struct, frozen=True):
    """What VFs of a pool have in common that fell ill, or are well again."""

    pool: str
    healthy: bool
    reason: HealthReason


def events_of_attachments(
    attachments: Sequence[Attachment], inventory: Inventory, seconds: float
) -> Iterator[Event]:
    """Of one ADD that took so long. Nothing if the runtime named no pod."""
    if not attachments or (pod := attachments[0].pod) is None:
        return
    vfs = _listed([_attached_words(attachment, inventory) for attachment in attachments])
    about = ",".join(f"{attachment.port.pci}={attachment.network}" for attachment in attachments)
    note = f"{vfs}, in {seconds * 1000:.0f} ms"
    yield Event(reason=Reason.VF_ATTACHED, pod=pod, note=note, about=about)
    if is_only_way_out(attachments) and not has_services(attachments[0]):
        yield Event(reason=Reason.KUBE_PROXY_BYPASSED, pod=pod, note=BYPASSED)


def is_only_way_out(attachments: Sequence[Attachment]) -> bool:
    """The VF is the pod's own interface and has the default route. The pod then has no interface of the
    fallback chain: that is for pods without VFs. Under Multus a VF usually is a second interface."""
    first = attachments[0]
    if first.primary != _POD_INTERFACE or first.original.netdev is None or first.result is None:
        return False
    return any(route.dst in _DEFAULT_ROUTES for route in first.result.routes)


def has_services(attachment: Attachment) -> bool:
    return attachment.asked.in_pod is not None and attachment.asked.in_pod.services


def event_of_unknown(ruled: Ruled, why: str, *, failed: bool) -> Iterator[Event]:
    """An ADD that had to do without knowing the cluster. Nothing if the runtime named no pod."""
    namespace, _, name = ruled.pod.partition("/")
    if not name:
        return
    options = ruled.options
    if failed:
        outcome = f"the pod is not started; the kubelet tries again (unsynced: {options.unsynced})"
    elif not options.policy:
        outcome = "started with what was known last"
    else:
        known = "everything" if options.unsynced is Unsynced.OPEN else "nothing"
        outcome = f"started with what was known last; while that is nothing, {known} is let through"
    note = f"{options.describe()}: in-pod for {ruled.ifname}: {why}; {outcome}"
    pod = Pod(namespace=namespace, name=name, uid=ruled.uid)
    yield Event(reason=Reason.CLUSTER_UNKNOWN, note=note, pod=pod, about=ruled.ifname)


def events_of_outcome(outcome: Outcome, inventory: Inventory) -> Iterator[Event]:
    """One for each PF and kind of trouble."""
    reasons = {
        RefusalKind.PENDING: Reason.PROVISIONING_PENDING,
        RefusalKind.REFUSED: Reason.PROVISIONING_REFUSED,
    }
    troubles: dict[tuple[Reason, PciAddress], list[str]] = {}
    for refusal in (*outcome.pending, *outcome.refused):
        troubles.setdefault((reasons[refusal.kind], refusal.pf), []).append(refusal.reason)
    for failure in outcome.failed:
        troubles.setdefault((Reason.PROVISIONING_FAILED, failure.pf), []).append(failure.error)
    for (reason, pci), texts in troubles.items():
        pf = inventory.find_pf(pci)
        label = pf.label if pf else pci
        yield Event(reason=reason, note=f"PF {label}: {_listed(texts)}", about=f"{pci} {_listed(texts)}")


def event_of_config(refusal: str) -> Event:
    note = f"config refused, the one before stays in force: {refusal}"
    return Event(reason=Reason.CONFIG_REFUSED, note=note, about=refusal)


def event_of_health(change: HealthChange, vfs: Collection[PciAddress], texts: Collection[str]) -> Event:
    """`texts`: what is said of the VFs, or was."""
    who = f"{len(vfs)} VF{'s' if len(vfs) > 1 else ''} of pool {change.pool}"
    addresses, why = _listed(sorted(vfs)), _listed(sorted(texts))
    if change.healthy:
        reason, note = Reason.VF_HEALTHY, f"{who} healthy again: {addresses} (was: {why})"
    else:
        reason, note = Reason.VF_UNHEALTHY, f"{who} unhealthy: {why} ({addresses})"
    return Event(reason=reason, note=note, about=f"{change.pool} {change.reason}")


def render_event(event: Event, node: str, when: float) -> tuple[str, dict[str, Any]]:
    """Its namespace, and the object. Told again at the same time it has the same name."""
    if event.pod is not None:
        kind, namespace, name, uid = "Pod", event.pod.namespace, event.pod.name, event.pod.uid
    else:
        # The namespace of what has none, and the uid by which the kubelet and `kubectl describe` know a node.
        kind, namespace, name, uid = "Node", "default", node, node
    regarding = {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid}
    if event.pod is not None:
        regarding["namespace"] = namespace
    mark = zlib.crc32(repr(event.identity).encode())
    stem = name[:220].rstrip(".-")  # an object's name is a DNS subdomain of 253 characters at most
    return namespace, {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": namespace, "name": f"{stem}.{int(when * 1e6):x}{mark:08x}"},
        "eventTime": micro_time(when),
        "regarding": regarding,
        "reason": event.reason.value,
        "action": _ACTIONS[event.reason],
        "type": "Normal" if event.reason.is_normal else "Warning",
        "note": _cut(event.note),
        "reportingController": CONTROLLER,
        "reportingInstance": node[:128],
    }


def render_series(count: int, when: float) -> Mapping[str, Any]:
    """What is to be patched of an Event that was seen `count` times, the last time then."""
    return {"series": {"count": count, "lastObservedTime": micro_time(when)}}


def micro_time(when: float) -> datetime.datetime:
    """Never a whole second: the client would leave the fraction away then, and the API server demands six
    digits (RFC3339Micro in apimachinery/pkg/apis/meta/v1/micro_time.go)."""
    exact = datetime.datetime.fromtimestamp(when, datetime.UTC)
    return exact.replace(microsecond=max(1, exact.microsecond))


def _attached_words(attachment: Attachment, inventory: Inventory) -> str:
    pf = inventory.find_pf(attachment.port.pf) if attachment.port.pf else None
    of_pf = f" of PF {pf.netdev.name}" if pf and pf.netdev else ""
    how = attachment.ifname if attachment.original.netdev else f"{attachment.original.driver} device"
    return f"VF {attachment.port.pci}{of_pf} attached as {how} to network {attachment.network}"


def _listed(words: Sequence[str]) -> str:
    more = len(words) - _MOST_NAMED
    return "; ".join([*words[:_MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])


def _cut(text: str) -> str:
    """To what the API server takes, in whole characters; names of files may have bytes that are none."""
    whole = text.encode(errors="replace")
    if len(whole) <= _MOST_BYTES:
        return whole.decode()
    return whole[: _MOST_BYTES - 3].decode(errors="ignore") + "..."
