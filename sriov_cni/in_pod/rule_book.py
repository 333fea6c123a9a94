"""Pure: all that follows from one look at the cluster, and the table of each pod by it.

What is the same for every pod is made once, and is the very same object in every pod's table; what did not
change since the look before is taken from there.
"""

import msgspec

from sriov_cni.in_pod.objects import Cluster, Pod
from vf_manager.kernel.nft import Table
from vf_manager.model import IfName


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules of a pod are made of. `services`, `policy`: the interfaces that they are for. `pod`
    None: it is not known what the pod is; then, as while no policy is known, nothing is let through unless
    `is_open`."""

    services: frozenset[IfName] = frozenset()
    policy: frozenset[IfName] = frozenset()
    pod: Pod | None = None
    is_open: bool = False
    knows_policy: bool = True


class RuleBook:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def table_for(self, ask: Ask) -> Table:
        raise NotImplementedError
