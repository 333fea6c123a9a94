"""Adapter: what each attached VF has counted, and how fast that grows.

Read from the VF's own interface in its pod: few drivers tell the PF what their VFs count, and a link that
moves to another namespace goes on counting. A VF with a userspace driver has no interface to ask.
"""

import time
from collections.abc import Iterable, Mapping

import msgspec

from sriov_cni.attachment import Attachment
from vf_manager.discovery import find_link
from vf_manager.errors import KernelError
from vf_manager.kernel.api import Kernel, LinkTraffic
from vf_manager.model import PciAddress


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """`traffic`: by VF, of those whose counters can be read."""

    at_s: float
    traffic: Mapping[PciAddress, LinkTraffic]


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Per second."""

    rx_bits: float = 0.0
    tx_bits: float = 0.0
    rx_packets: float = 0.0
    tx_packets: float = 0.0
    dropped: float = 0.0
    errors: float = 0.0


def take_sample(kernel: Kernel, attachments: Iterable[Attachment]) -> Sample:
    found = ((one.port.pci, _traffic(kernel, one)) for one in attachments)
    return Sample(at_s=time.monotonic(), traffic={vf: counted for vf, counted in found if counted})


def rates_between(before: Sample, after: Sample) -> dict[PciAddress, Rates]:
    """Of the VFs that both have. A counter that went back was begun anew, and nothing is known of it."""
    seconds = after.at_s - before.at_s
    return {
        vf: _rates(before.traffic[vf], now, seconds)
        for vf, now in after.traffic.items()
        if vf in before.traffic and seconds > 0
    }


def _rates(before: LinkTraffic, now: LinkTraffic, seconds: float) -> Rates:
    def growth(*names: str) -> float:
        grown: int = sum(max(0, getattr(now, name) - getattr(before, name)) for name in names)
        return grown / seconds

    return Rates(
        rx_bits=8 * growth("rx_bytes"),
        tx_bits=8 * growth("tx_bytes"),
        rx_packets=growth("rx_packets"),
        tx_packets=growth("tx_packets"),
        dropped=growth("rx_dropped", "tx_dropped"),
        errors=growth("rx_errors", "tx_errors"),
    )


def _traffic(kernel: Kernel, attachment: Attachment) -> LinkTraffic | None:
    netns = kernel.netns_at(attachment.sandbox.path)
    if netns is None:
        return None
    try:
        if netns.id != attachment.sandbox.id:
            return None
        with kernel.links(netns) as links:
            link = find_link(links, attachment.port.pci)
            counted = {one.ifindex: one for one in links.traffic()}
        return counted.get(link.ifindex) if link else None
    except KernelError:  # the pod goes while we look
        return None
    finally:
        netns.close()
