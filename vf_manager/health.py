"""Pure: whether a VF is fit for a pod, by the facts of one moment, and if not, why.

The most fundamental fault of a VF is the one that counts: a device that is gone has no driver either. A VF
in a pod is judged by what breaks it there: that its interface is not on the host is no fault, nor that its
pool asks for another driver by now.

A reset of a PF is no fact of its own: the kernel shows its effects, a lost carrier or a device that goes.
"""

from collections.abc import Mapping, Sequence, Set
from enum import StrEnum
from typing import Annotated

import msgspec

from vf_manager.meaning import meaning
from vf_manager.model import Inventory, PciAddress, Pf, Vf
from vf_manager.provision_steps import DriverKind

# Of devlink's health reporters those about the firmware concern every VF: "fw", "fw_fatal". Others are about
# queues of the PF's interface: "tx", "rx" (Documentation/networking/devlink/mlx5.rst), or about single VFs.
_FIRMWARE = "fw"


class Reaction(StrEnum):
    """What a fact about the PF makes of its VFs."""

    UNHEALTHY = "unhealthy"
    IGNORE = "ignore"


class HealthPolicy(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True
):
    """What the state of a PF means for its VFs. A pod that starts without a wire gains nothing, so by default
    both count. Pods that talk among VFs of one PF need neither: the NIC switches between them by itself."""

    carrier: Annotated[Reaction, meaning("of VFs whose PF has no carrier")] = Reaction.UNHEALTHY
    pf_down: Annotated[Reaction, meaning("of VFs whose PF's interface is down")] = Reaction.UNHEALTHY


class HealthReason(StrEnum):
    """The kinds of faults, the most fundamental first."""

    PF_GONE = "pf-gone"
    GONE = "gone"
    HOST_NEEDS_IT = "host-needs-it"
    NO_DRIVER = "no-driver"
    OTHER_DRIVER = "other-driver"
    NO_VFIO_NODE = "no-vfio-node"
    PF_NO_DRIVER = "pf-no-driver"
    PF_SICK = "pf-sick"
    PF_DOWN = "pf-down"
    NO_CARRIER = "no-carrier"


class Fault(msgspec.Struct, frozen=True):
    """`text`: for people, with the device and what it is about it."""

    reason: HealthReason
    text: str


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What a pool expects of its VFs. `driver` None: any, as long as there is one."""

    policy: HealthPolicy = HealthPolicy()
    driver: DriverKind | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`attached`: VFs that an attachment owns. `vfio_nodes`: what is in /dev/vfio: "12", "devices/vfio3"."""

    inventory: Inventory
    attached: Set[PciAddress] = frozenset()
    vfio_nodes: Set[str] = frozenset()


def find_fault(vf: Vf, expected: Expected, facts: Facts) -> Fault | None:
    """Of a VF that is in a pool now. None: it is well."""
    pf = facts.inventory.find_pf(vf.pf_pci) if vf.pf_pci else None
    return (
        _host_fault(vf, facts)
        or _driver_fault(vf, expected.driver, facts)
        or _vfio_fault(vf, facts)
        or (_pf_fault(pf, expected.policy) if pf else None)
    )


def why_left(vf: Vf, inventory: Inventory) -> Fault | None:
    """Of a VF that was in a pool at the look before and is not now. None: nothing is wrong with the VF."""
    now = inventory.find_vf(vf.pci)
    if now is not None:
        return _host_fault(now, Facts(inventory=inventory)) or _without_driver(now)
    if vf.pf_pci is not None and inventory.find_pf(vf.pf_pci) is None:
        return Fault(HealthReason.PF_GONE, f"its PF {vf.pf_pci} is gone")
    return Fault(HealthReason.GONE, "the device is gone")


def find_faults(
    members: Mapping[str, Sequence[Vf]], expected: Mapping[str, Expected], facts: Facts
) -> dict[tuple[str, PciAddress], Fault | None]:
    """Of every VF of every pool."""
    return {
        (pool, vf.pci): find_fault(vf, expected[pool], facts) for pool, vfs in members.items() for vf in vfs
    }


def _is_in_use(vf: Vf, facts: Facts) -> bool:
    """Or its interface is not on the host, with a driver that makes one: then another namespace has it."""
    makes_one = vf.driver not in (None, DriverKind.VFIO_PCI.value)
    return vf.pci in facts.attached or (vf.netdev is None and makes_one)


def _host_fault(vf: Vf, facts: Facts) -> Fault | None:
    if vf.unusable is None or _is_in_use(vf, facts):
        return None
    return Fault(HealthReason.HOST_NEEDS_IT, vf.unusable)


def _without_driver(vf: Vf) -> Fault | None:
    return Fault(HealthReason.NO_DRIVER, "no driver is bound to it") if vf.driver is None else None


def _driver_fault(vf: Vf, wanted: DriverKind | None, facts: Facts) -> Fault | None:
    has_vfio = vf.driver == DriverKind.VFIO_PCI.value
    if vf.driver is None or wanted is None or has_vfio == (wanted is DriverKind.VFIO_PCI):
        return _without_driver(vf)
    if _is_in_use(vf, facts):
        return None
    return Fault(
        HealthReason.OTHER_DRIVER, f"its driver is {vf.driver}, and its pool has vfs.driver: {wanted.value}"
    )


def _vfio_fault(vf: Vf, facts: Facts) -> Fault | None:
    if vf.driver != DriverKind.VFIO_PCI.value:
        return None
    if vf.iommu_group is None:
        return Fault(
            HealthReason.NO_VFIO_NODE,
            "vfio-pci has it, but it is in no IOMMU group; switch the IOMMU on"
            " (intel_iommu=on or amd_iommu=on)",
        )
    nodes = {str(vf.iommu_group)} | ({f"devices/{vf.vfio_device}"} if vf.vfio_device else set())
    if nodes & facts.vfio_nodes:
        return None
    return Fault(HealthReason.NO_VFIO_NODE, f"/dev/vfio/{vf.iommu_group} is not there")


def _pf_fault(pf: Pf, policy: HealthPolicy) -> Fault | None:
    """A PF whose interface is not on the host tells nothing of its wire."""
    if pf.driver is None:
        return Fault(HealthReason.PF_NO_DRIVER, f"no driver is bound to its PF {pf.label}")
    if sick := [name for name in pf.sick_reporters if name.startswith(_FIRMWARE)]:
        return Fault(
            HealthReason.PF_SICK, f"devlink reports an error of {', '.join(sick)} of its PF {pf.label}"
        )
    if pf.netdev is None:
        return None
    if not pf.netdev.up:
        ignored = policy.pf_down is Reaction.IGNORE
        return None if ignored else Fault(HealthReason.PF_DOWN, f"its PF {pf.label} is down")
    if pf.netdev.carrier or policy.carrier is Reaction.IGNORE:
        return None
    return Fault(HealthReason.NO_CARRIER, f"its PF {pf.label} has no carrier")
