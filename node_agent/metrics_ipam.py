"""Adapter: how full the ranges of networks are, as metrics."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from node_agent.metric_families import gauge
from sriov_cni.fields import Fields
from sriov_cni.ipam.capacity import Capacity, read_capacity
from sriov_cni.ipam.config import HostLocalConf, IpRequest, parse_ipam
from sriov_cni.network import Network
from vf_manager.errors import KernelError


@dataclasses.dataclass(frozen=True)
class AddressState(Collector):
    """`networks`: those of the agent's config. Ranges of others are known to those who call with them."""

    networks: Callable[[], Sequence[Network]]
    lease_dir: Path

    def collect(self) -> Iterator[Metric]:
        found = [(network.name, one) for network in self.networks() for one in self._capacity(network)]
        labels = ("network", "ranges")
        yield gauge(
            "ipam_range_addresses",
            "Addresses for pods that host-local has in the ranges of a network.",
            labels,
            [((network, one.ranges), one.addresses) for network, one in found],
        )
        yield gauge(
            "ipam_range_leases",
            "Those of them that are taken.",
            labels,
            [((network, one.ranges), one.leased) for network, one in found],
        )

    def _capacity(self, network: Network) -> list[Capacity]:
        """None of an IPAM that is asked elsewhere, nor where the leases cannot be read."""
        conf = parse_ipam(Fields(network.ipam, "ipam"), IpRequest()) if network.ipam else None
        if not isinstance(conf, HostLocalConf):
            return []
        try:
            return read_capacity(conf, network.name, self.lease_dir)
        except KernelError:
            return []
