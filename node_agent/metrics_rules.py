"""Adapter: services and policies inside of pods, as metrics."""

import dataclasses
from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from node_agent.metric_families import gauge
from sriov_cni.in_pod.keeper import RuleKeeper


@dataclasses.dataclass(frozen=True)
class RulesState(Collector):
    keeper: RuleKeeper

    def collect(self) -> Iterator[Metric]:
        yield gauge("rules_pods", "Pods with rules.", (), [((), self.keeper.count())])
        late = len(self.keeper.troubles())
        yield gauge("rules_late_pods", "Pods whose rules could not be renewed.", (), [((), late)])
