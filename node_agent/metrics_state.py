"""Adapter: what the rooms of the agent know at this moment, as metrics.

Nothing is kept here: each scrape asks them anew. Only a VF's traffic is asked of the kernel (vf_traffic.py).
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set

from prometheus_client.core import Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from device_plugin.allocator import Allocator
from device_plugin.dra import device_attributes
from device_plugin.plugin import DevicePlugin
from node_agent.metric_families import Row, counted, counter, gauge
from node_agent.pool_index import PoolView
from node_agent.vf_traffic import VfTraffic
from sriov_cni.attach import Attacher
from sriov_cni.attachment import Attachment
from sriov_cni.reconcile import Reconciler
from vf_manager.errors import SriovError
from vf_manager.health import HealthReason
from vf_manager.health_keeper import HealthKeeper
from vf_manager.inventory import InventoryKeeper
from vf_manager.kernel.api import LinkTraffic
from vf_manager.model import PciAddress, Vf
from vf_manager.provisioner import Outcome

_DRA_LABELS = (
    "resource.kubernetes.io/pcieRoot",
    "resource.kubernetes.io/pciBusID",
    "numaNode",
    "pfName",
    "vfID",
    "vendor",
    "deviceID",
    "linkType",
    "rdmaCapable",
)
_TRAFFIC = (
    ("receive_bytes", "rx_bytes", "Octets that the VF received."),
    ("receive_packets", "rx_packets", "Packets that the VF received."),
    ("receive_errors", "rx_errors", "Packets that came broken."),
    ("receive_drops", "rx_dropped", "Packets that came and found no room."),
    ("transmit_bytes", "tx_bytes", "Octets that the VF sent."),
    ("transmit_packets", "tx_packets", "Packets that the VF sent."),
    ("transmit_errors", "tx_errors", "Packets that could not be sent."),
    ("transmit_drops", "tx_dropped", "Packets that were to be sent and found no room."),
)


@dataclasses.dataclass(frozen=True)
class ConfigState:
    """`since`: seconds since the epoch. `refusal`: why the file, as it is now, is not in force."""

    since: float
    refusal: str | None


@dataclasses.dataclass(frozen=True)
class NodeState(Collector):
    """Whom to ask. `why_unready`: as /readyz says it.

    What can be counted is there with 0 before it happens: where a series begins, Prometheus sees no increase.
    """

    pools: Callable[[], PoolView]
    unhealthy: Callable[[], Mapping[str, Mapping[PciAddress, str]]]
    config: Callable[[], ConfigState]
    why_unready: Callable[[], str | None]
    provisioning: Callable[[], Outcome]
    keeper: InventoryKeeper
    attacher: Attacher
    plugin: DevicePlugin
    allocator: Allocator
    health: HealthKeeper
    reconciler: Reconciler
    traffic: VfTraffic

    def collect(self) -> Iterator[Metric]:
        records = self.attacher.attachments()
        yield from self._agent()
        yield from self._vfs(self.pools())
        yield from self._attachments(records)
        yield from self._kubelet()
        yield from self._traffic(records)

    def _agent(self) -> Iterator[Metric]:
        config, (looks, looks_s) = self.config(), self.keeper.looks()
        yield gauge("ready", "Whether /readyz says yes.", (), [((), not self.why_unready())])
        yield gauge(
            "config_in_force_timestamp_seconds",
            "Since when this config is in force.",
            (),
            [((), config.since)],
        )
        yield gauge(
            "config_refused",
            "Whether the config file, as it is now, is refused and an earlier one in force.",
            (),
            [((), config.refusal is not None)],
        )
        yield gauge(
            "inventory_generation", "Grows when a look finds a change.", (), [((), self._generation())]
        )
        yield SummaryMetricFamily(
            "sriov_underlay_inventory_look_duration_seconds",
            "Looks at all NICs.",
            count_value=looks,
            sum_value=looks_s,
        )
        yield gauge(
            "provisioning_unfinished",
            "PFs that are not as the config wants them, by why: pending, refused or failed.",
            ("pf", "state"),
            counted(_unfinished(self.provisioning())),
        )
        yield counter(
            "reconcile_findings",
            "What nobody sent a DEL for, and attributes that somebody else changed.",
            ("kind",),
            [((kind,), count) for kind, count in self.reconciler.findings().items()],
        )

    def _generation(self) -> int:
        return self.keeper.current.generation

    def _vfs(self, view: PoolView) -> Iterator[Metric]:
        held, unhealthy = self.attacher.held_vfs(), self.unhealthy()
        yield gauge(
            "vfs",
            "VFs of a pool that are there.",
            ("pool", "health", "use"),
            [
                ((pool, health, use), count)
                for pool, vfs in view.members.items()
                for (health, use), count in _by_state(vfs, unhealthy.get(pool, {}).keys(), held).items()
            ],
        )
        yield gauge(
            "vf_info",
            "A VF of a pool by Kubernetes' attributes of devices; always 1.",
            ("vf", "pools", "driver", *map(_label, _DRA_LABELS)),
            _vf_infos(view),
        )
        yield counter(
            "health_transitions",
            "VFs that became Unhealthy or Healthy again, by the fault that came or went.",
            ("pool", "reason", "to"),
            [
                ((pool, reason, "healthy" if healthy else "unhealthy"), count)
                for (pool, reason, healthy), count in self._transitions(view.members).items()
            ],
        )

    def _transitions(self, pools: Iterable[str]) -> dict[tuple[str, HealthReason, bool], int]:
        never = {(pool, reason, to): 0 for pool in pools for reason in HealthReason for to in (True, False)}
        return never | self.health.transitions()

    def _attachments(self, records: list[Attachment]) -> Iterator[Metric]:
        yield gauge(
            "attachments",
            "VFs on record as attached, or as half-done (intent).",
            ("network", "state"),
            counted((record.network, record.state) for record in records),
        )
        yield gauge(
            "attachment_info",
            "Which pod has which VF; always 1.",
            ("vf", "pod_namespace", "pod_name", "interface", "network"),
            [((r.port.pci, *_pod(r), r.ifname, r.network), 1) for r in records],
        )
        yield gauge(
            "ipam_addresses",
            "Addresses that attachments of a network have.",
            ("network",),
            counted((r.network,) for r in records if r.result for _ in r.result.ips),
        )
        yield counter(
            "ipam_exhaustions",
            "Attachments that failed because their network had no free address.",
            ("network",),
            [((network,), count) for network, count in _exhaustions(self.attacher, records).items()],
        )

    def _kubelet(self) -> Iterator[Metric]:
        yield gauge(
            "resource_registered",
            "Whether the kubelet has taken the resource of a pool.",
            ("resource",),
            [((pool.resource,), pool.registered) for pool in self.plugin.registered()],
        )
        yield counter(
            "allocations",
            "What the kubelet asked to allocate.",
            ("resource", "result"),
            [((r, "success" if ok else "error"), n) for (r, ok), n in self._allocations().items()],
        )

    def _allocations(self) -> dict[tuple[str, bool], int]:
        never = {(pool.resource, ok): 0 for pool in self.plugin.registered() for ok in (True, False)}
        return never | self.allocator.counts()

    def _traffic(self, records: list[Attachment]) -> Iterator[Metric]:
        try:
            traffic = self.traffic.read(self.keeper.current, records)
        except SriovError:
            traffic = {}
        record_of = {record.port.pci: record for record in records}
        for name, field, text in _TRAFFIC:
            yield counter(
                f"vf_{name}",
                text,
                ("vf", "pod_namespace", "pod_name", "interface"),
                [_traffic_row(pci, link, record_of.get(pci), field) for pci, link in traffic.items()],
            )


def _traffic_row(pci: PciAddress, link: LinkTraffic, record: Attachment | None, field: str) -> Row:
    return (pci, *_pod(record), link.name), getattr(link, field)


def _by_state(
    vfs: Iterable[Vf], unhealthy: Set[PciAddress], held: Set[PciAddress]
) -> dict[tuple[str, str], int]:
    """Each state has a number, be it 0."""
    states = (
        ("unhealthy" if vf.pci in unhealthy else "healthy", "attached" if vf.pci in held else "free")
        for vf in vfs
    )
    none = {(health, use): 0 for health in ("healthy", "unhealthy") for use in ("free", "attached")}
    return none | Counter(states)


def _exhaustions(attacher: Attacher, records: Iterable[Attachment]) -> dict[str, int]:
    """A network that is full has attachments, and so its 0 before its first failure."""
    return {record.network: 0 for record in records} | attacher.exhaustions()


def _vf_infos(view: PoolView) -> Iterator[Row]:
    for pci, pools in view.pools_by_vf.items():
        vf = view.inventory.find_vf(pci)
        if vf is None:
            continue
        pf = view.inventory.find_pf(vf.pf_pci) if vf.pf_pci else None
        known = device_attributes(vf, pf)
        shown = (_text(known.get(name, "")) for name in _DRA_LABELS)
        yield (pci, ",".join(pools), vf.driver or "", *shown), 1


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _label(attribute: str) -> str:
    """Prometheus' label names have neither dots nor slashes."""
    return re.sub(r"\W", "_", attribute, flags=re.ASCII)


def _unfinished(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Each PF once for each way in which it is unfinished."""
    yield from ((pf, "pending") for pf in {refusal.pf for refusal in outcome.pending})
    yield from ((pf, "refused") for pf in {refusal.pf for refusal in outcome.refused})
    yield from ((pf, "failed") for pf in {failure.pf for failure in outcome.failed})


def _pod(record: Attachment | None) -> tuple[str, str]:
    pod = record.pod if record else None
    return (pod.namespace, pod.name) if pod else ("", "")
