"""Pure: who has which VF, in the words of the log and of `sriovctl plan`."""

from collections.abc import Iterable
from typing import Protocol

from sriov_cni.attachment import Attachment
from vf_manager.model import PciAddress


class Kubelet(Protocol):
    def is_there(self) -> bool: ...

    def holders(self) -> dict[str, tuple[str, str]]:
        """Namespace and name of the pod that was given a device, by device id."""


def vf_holders(attachments: Iterable[Attachment], kubelet: Kubelet) -> dict[PciAddress, str]:
    """VFs that are attached, and those that the kubelet gave to a pod: one that gets its VF by vfio-pci alone
    needs no attachment. Raises what the kubelet raises if it does not answer."""
    given = kubelet.holders() if kubelet.is_there() else {}
    found = {PciAddress(device): f"{namespace}/{name}" for device, (namespace, name) in given.items()}
    return found | {attachment.port.pci: holder_word(attachment) for attachment in attachments}


def holder_word(attachment: Attachment) -> str:
    """`default/trainer`; the container's id where the runtime named no pod."""
    pod = attachment.pod
    return f"{pod.namespace}/{pod.name}" if pod else f"container {attachment.container_id[:12]}"
