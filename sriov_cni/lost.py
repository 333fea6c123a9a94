"""Adapter: whether the pod of an attachment is gone, by the kernel and the kubelet."""

from sriov_cni.attachment import Attachment, State
from sriov_cni.pod_vfs import Kubelet
from vf_manager.discovery import host_link
from vf_manager.kernel.api import Kernel


def why_lost(record: Attachment, kernel: Kernel, kubelet: Kubelet) -> str | None:
    """Half-done; or the VF's interface came back to the host, or went with its device, or a userspace driver
    has the VF and its pod is gone. None: the pod has it."""
    if record.state is State.INTENT:
        return "it was begun and not finished"
    pci = record.port.pci
    if kernel.read_function(pci) is None:
        return None if _sandbox_is_there(record, kernel) else "the device and the pod are gone"
    if record.original.netdev is None:
        has_pod = _sandbox_is_there(record, kernel) or _pod_has(record, kubelet)
        return None if has_pod else "the pod is gone"
    with kernel.links() as host:
        return "its interface came back to the host" if host_link(kernel, host, pci) is not None else None


def _sandbox_is_there(record: Attachment, kernel: Kernel) -> bool:
    handle = kernel.netns_at(record.sandbox.path)
    if handle is None:
        return False
    try:
        return handle.id == record.sandbox.id
    finally:
        handle.close()


def _pod_has(record: Attachment, kubelet: Kubelet) -> bool:
    """In doubt it has."""
    if record.pod is None or not kubelet.is_there():
        return record.pod is not None
    devices = kubelet.devices_of(record.pod.namespace, record.pod.name)
    return any(record.port.pci in ids for ids in devices.values())
