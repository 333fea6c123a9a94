"""Pure: `sriovctl doctor`: whether VFs can be given to userspace drivers."""

from collections.abc import Iterator

from node_agent.config import AgentConfig
from node_agent.doctor.facts import Facts, GroupMember
from node_agent.doctor.rules import Finding, Rule, Severity
from vf_manager.model import Vf
from vf_manager.provision_steps import DriverKind

_VFIO = DriverKind.VFIO_PCI.value
# Drivers that leave a group to userspace: `driver_managed_dma` in drivers/pci/pcie/portdrv.c, pci-stub.c.
_HARMLESS = ("pcieport", "pci-stub", _VFIO, None)

IOMMU_OFF = Rule(
    id="iommu-off",
    severity=Severity.ERROR,
    cause="VFs are to be used by vfio-pci ({who}), and this node has no IOMMU groups",
    cure="switch VT-d or AMD-Vi on in the firmware, boot with `intel_iommu=on iommu=pt` (AMD: `iommu=pt`)",
)
GROUP_NOT_VIABLE = Rule(
    id="vfio-group-not-viable",
    severity=Severity.ERROR,
    cause="IOMMU group {group} of the VF has devices that a driver of the host holds: {others}",
    cure="use a slot whose bridges have ACS, or unbind these devices too",
)
RULES = (IOMMU_OFF, GROUP_NOT_VIABLE)


def find(facts: Facts) -> Iterator[Finding]:
    vfs = [vf for vf in facts.inventory.vfs() if vf.driver == _VFIO]
    wanting = _wanting(facts.config) if facts.config else []
    if not facts.has_iommu and (vfs or wanting):
        who = ", ".join([*(f"pool {name}" for name in wanting), *(f"VF {vf.pci}" for vf in vfs)])
        yield IOMMU_OFF.finding("IOMMU", who=who)
    for vf in vfs:
        others = [member for member in _group(vf, facts) if member.driver not in _HARMLESS]
        if others:
            named = ", ".join(f"{member.pci} ({member.driver})" for member in others)
            yield GROUP_NOT_VIABLE.finding(f"VF {vf.pci}", group=vf.iommu_group, others=named)


def _wanting(config: AgentConfig) -> list[str]:
    return [pool.name for pool in config.pools if pool.vfs and pool.vfs.driver is DriverKind.VFIO_PCI]


def _group(vf: Vf, facts: Facts) -> tuple[GroupMember, ...]:
    return facts.groups.get(vf.iommu_group, ()) if vf.iommu_group is not None else ()
