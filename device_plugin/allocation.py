"""Pure: how the VFs of a pool are given to containers, as the administrator wants it."""

from enum import StrEnum
from typing import Annotated

import msgspec

from vf_manager.meaning import meaning


class Policy(StrEnum):
    """Which of the free VFs a container gets, as far as the kubelet leaves the choice to us."""

    PACKED = "packed"  # as few PFs as possible, the fullest first
    SPREAD = "spread"  # over as many PFs as possible, the emptiest first
    ALIGNED = "aligned"  # of one PCIe root, else of one NUMA node


class Allocation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """How containers get the VFs of a pool."""

    policy: Annotated[
        Policy,
        meaning(
            "which of the free VFs: `packed`, of as few PFs as possible; `spread`, over as many PFs as"
            " possible; `aligned`, of one PCIe root, else of one NUMA node"
        ),
    ] = Policy.PACKED
    cdi: Annotated[bool, meaning("device nodes by way of CDI specs, whose names outlive a reboot")] = False
    reset_vfio: Annotated[
        bool, meaning("a function-level reset of VFs with a vfio driver before each use")
    ] = False
