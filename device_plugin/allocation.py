"""Pure: how the VFs of a pool are given to containers, as the administrator wants it."""

from enum import StrEnum

import msgspec


class Policy(StrEnum):
    """Which of the free VFs a container gets, as far as the kubelet leaves the choice to us."""

    PACKED = "packed"  # as few PFs as possible, the fullest first
    SPREAD = "spread"  # over as many PFs as possible, the emptiest first
    ALIGNED = "aligned"  # of one PCIe root, else of one NUMA node


class Allocation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """`allocation` of a pool. `cdi`: device nodes by way of CDI specs. `reset_vfio`: a function-level reset
    of VFs with a vfio driver before each use."""

    policy: Policy = Policy.PACKED
    cdi: bool = False
    reset_vfio: bool = False
