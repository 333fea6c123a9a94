"""Pure: what a network asks for inside the pod's own network namespace: Services and NetworkPolicy.

Four keys, in a network of the agent's config as in a CNI configuration: `services`, `policy`, `syncTimeout`
and `unsynced`. The last two say what an ADD does while it is not known what the cluster has.
"""

from enum import StrEnum

import msgspec

from sriov_cni.fields import Fields
from vf_manager.errors import InvalidInput
from vf_manager.model import IfName

IN_POD_KEYS = frozenset({"services", "policy", "syncTimeout", "unsynced"})
IN_POD = "in-pod"
LONGEST_WAIT_S = 30
_WAIT_S = 5


class Unsynced(StrEnum):
    """What comes after the wait. `START`: the pod starts with what was known last; of policy nothing is known
    if there was never anything, and then nothing is let through. `OPEN`: then everything is."""

    FAIL = "fail"
    START = "start"
    OPEN = "open"


class InPod(msgspec.Struct, frozen=True, kw_only=True):
    services: bool = False
    policy: bool = False
    wait_s: int = _WAIT_S
    unsynced: Unsynced = Unsynced.FAIL

    def describe(self) -> str:
        """`services and policy`."""
        return " and ".join(name for name in ("services", "policy") if getattr(self, name))


class Ruled(msgspec.Struct, frozen=True, kw_only=True):
    """An interface of a pod that rules are for. `pod`: `namespace/name`, and its uid, as far as they are
    told. `beside`: the pod's end of a veth to the node, by which node ports of the node would leave."""

    ifname: IfName
    pod: str = ""
    uid: str = ""
    beside: IfName | None = None
    options: InPod


def parse_in_pod(top: Fields) -> InPod | None:
    """None: neither is asked for. Raises InvalidInput that names the key."""
    services = top.choice("services", (IN_POD,)) is not None
    policy = top.choice("policy", (IN_POD,)) is not None
    wait_s = top.integer("syncTimeout", 0, LONGEST_WAIT_S)
    unsynced = top.choice("unsynced", tuple(Unsynced))
    if not services and not policy:
        for key, value in (("syncTimeout", wait_s), ("unsynced", unsynced)):
            if value is not None:
                raise InvalidInput(top.path_of(key), value, f"services or policy: {IN_POD} beside it")
        return None
    if unsynced == Unsynced.OPEN and not policy:
        raise InvalidInput(top.path_of("unsynced"), unsynced, f"policy: {IN_POD} beside it, or start")
    return InPod(
        services=services,
        policy=policy,
        wait_s=_WAIT_S if wait_s is None else wait_s,
        unsynced=Unsynced(unsynced or Unsynced.FAIL),
    )
