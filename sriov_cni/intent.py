"""Orchestrator: the record of an attachment that is about to be made, if the VF as it is may be given."""

from sriov_cni.attachment import Attachment, LeaseRef, Original, Sandbox, Wanted
from sriov_cni.ground import Ground
from sriov_cni.host_link.options import HostLink
from sriov_cni.host_link.plan import refuse_unlinkable
from sriov_cni.ipam.config import DelegateConf, HostLocalConf, IpamConf
from sriov_cni.limits import refuse_what_needs_a_pf
from vf_manager.discovery import read_vf, why_unusable
from vf_manager.errors import NotFound, Refused
from vf_manager.kernel.api import NetnsHandle
from vf_manager.model import Vf
from vf_manager.vf_attributes import VfPort

_USERSPACE_DRIVERS = ("vfio-pci", "uio_pci_generic", "igb_uio")


def make_intent(wanted: Wanted, sandbox: NetnsHandle, ground: Ground) -> Attachment:
    """Raises NotFound and Refused: the VF cannot be what is wanted of it."""
    by_pf = wanted.asked.host_link is HostLink.PF  # then it matters which VLAN the VF is on
    with_attributes = by_pf or not wanted.asked.change.is_empty()
    now = read_vf(ground.kernel, ground.host, wanted.device, with_attributes=with_attributes)
    if (reason := why_unusable(ground.kernel, ground.host, now)) is not None:
        hint = "free it, or keep the VF out of the pool" if now.netdev else "keep it out of the pool"
        raise Refused(f"deviceID: VF {now.pci} cannot be given to a pod: {reason}; {hint}")
    _refuse_unreported(wanted, now)
    if now.netdev is None:
        _refuse_without_interface(wanted, now)
    refuse_unlinkable(wanted, now)
    return Attachment(
        config=wanted.config,
        network=wanted.network,
        primary=wanted.primary,
        container_id=wanted.container_id,
        ifname=wanted.ifname,
        sandbox=Sandbox(path=wanted.netns, id=sandbox.id),
        pod=wanted.pod,
        port=VfPort(pci=now.pci, pf=now.pf_pci, index=now.index),
        original=Original(driver=now.driver, netdev=now.netdev, attributes=now.attributes),
        asked=wanted.asked,
        lease=_lease_ref(wanted.ipam),
    )


def _refuse_unreported(wanted: Wanted, now: Vf) -> None:
    """What cannot be read cannot be put back."""
    change = wanted.asked.change
    if now.pf_pci is None:
        refuse_what_needs_a_pf(change, f"VF {now.pci}")
    elif not change.is_empty() and now.attributes is None:
        asked = ", ".join(key for key, _ in change.items())
        raise Refused(f"{asked}: PF {now.pf_pci} does not report the attributes of VF {now.pci}")


def _refuse_without_interface(wanted: Wanted, now: Vf) -> None:
    """A userspace driver has the VF, or it is not where it should be."""
    if now.driver not in _USERSPACE_DRIVERS:
        raise NotFound(
            f"deviceID: VF {now.pci} (driver {now.driver or 'none'}) has no network interface on the"
            " host; is it in another network namespace, or its driver not loaded?"
        )
    if (in_pod := wanted.asked.in_pod) is not None:
        raise Refused(
            f"{in_pod.describe()}: in-pod: VF {now.pci} (driver {now.driver}) has no network interface,"
            " and what its application sends passes no firewall of the kernel; leave it out for this pool"
        )
    if now.pf_pci is None and wanted.asked.mac is not None:
        raise Refused(
            f"mac: VF {now.pci} (driver {now.driver}) has no PF on this node, and no network interface"
            " either; the application that uses it sets it"
        )


def _lease_ref(conf: IpamConf | None) -> LeaseRef | None:
    if conf is None:
        return None
    if isinstance(conf, HostLocalConf):
        return LeaseRef(kind="host-local", data_dir=conf.data_dir)
    if isinstance(conf, DelegateConf):
        return LeaseRef(kind=conf.kind, delegate=conf)
    return LeaseRef(kind="static")
