"""Orchestrator: the step of an attachment that puts rules into the pod."""

import msgspec

from sriov_cni.attachment import Attachment, Sandbox
from sriov_cni.ground import Ground
from sriov_cni.host_link.options import HostLink
from sriov_cni.host_link.plan import pod_link_name
from sriov_cni.in_pod.options import Ruled
from sriov_cni.in_pod.table import TABLE
from vf_manager.errors import NotFound, Refused


class WriteRules(msgspec.Struct, frozen=True):
    """Before the interface is up: there is no moment in which it is open. Rules go by its name."""

    sandbox: Sandbox
    ruled: Ruled

    def describe(self) -> str:
        return f"put rules for {self.ruled.options.describe()} of {self.ruled.ifname} into the pod"

    def apply(self, ground: Ground) -> None:
        if ground.pod_netns is None:
            raise NotFound("the pod's network namespace is gone")
        if ground.rules is None:
            raise Refused(f"{self.ruled.options.describe()}: in-pod: the agent's config has no `kubernetes`")
        ground.rules.put(ground.pod_netns, self.sandbox, self.ruled)

    def undo(self, ground: Ground) -> None:
        if ground.rules is not None:
            ground.rules.remove(ground.pod_netns, self.sandbox, self.ruled.ifname)


def missing_rules(record: Attachment, ground: Ground) -> WriteRules | None:
    """What puts them back, if an attachment that asked for rules has none any more."""
    ruled = ruled_of(record)
    if ruled is None or ground.pod_netns is None or TABLE in ground.kernel.nft_tables(ground.pod_netns):
        return None
    return WriteRules(record.sandbox, ruled)


def ruled_of(record: Attachment) -> Ruled | None:
    """The interface of an attachment as the rules see it; None: it asks for none."""
    if record.asked.in_pod is None or record.original.netdev is None:
        return None
    pod = f"{record.pod.namespace}/{record.pod.name}" if record.pod else ""
    uid = record.pod.uid if record.pod else ""
    beside = pod_link_name(record.ifname) if record.asked.host_link is HostLink.VETH else None
    return Ruled(ifname=record.ifname, pod=pod, uid=uid, beside=beside, options=record.asked.in_pod)
