"""Orchestrator: services and policies inside of pods: the cluster as it is known, and the rules by it."""

import threading
from collections.abc import Iterable

from structlog.typing import FilteringBoundLogger

from node_agent.kube.cluster_watch import ClusterWatch, Sources
from node_agent.kube.store import ClusterStore
from node_agent.kube.view import ClusterView
from node_agent.status_file import InPodState, Watched
from node_agent.supervisor import Supervisor
from sriov_cni.attachment import Attachment
from sriov_cni.host_addresses import HostAddresses
from sriov_cni.in_pod.keeper import RuleKeeper, Unknown
from sriov_cni.in_pod.objects import Cluster
from sriov_cni.in_pod.options import InPod
from sriov_cni.in_pod.rule_book import RuleBook, RuleBooks
from vf_manager.kernel.api import Kernel


class ClusterRules:
    """`node`: the name of this node. Nothing is followed, and no thread of the cluster's there, until some
    network or pod asks for it."""

    def __init__(
        self,
        kernel: Kernel,
        node: str,
        supervisor: Supervisor,
        log: FilteringBoundLogger,
        on_unknown: Unknown,
    ) -> None:
        self._books = RuleBooks(node)
        self._host = HostAddresses(kernel)
        self.store = ClusterStore()
        self._watch = ClusterWatch(self.store, supervisor, log)
        self._view = ClusterView(self.store, self._watch)
        self.keeper = RuleKeeper(kernel, self._view, self._read, log, on_unknown)
        self.store.subscribe(self.keeper.mark)

    def recover(self, records: Iterable[Attachment]) -> None:
        """At start, before anything is attached."""
        self.keeper.recover(records)

    def connect(self, sources: Sources | None, asked: Iterable[InPod]) -> None:
        """To the API server of the config that is in force now. `asked`: by its networks."""
        self._view.connect(sources, (*asked, *self.keeper.options()))

    def watch(self, stop: threading.Event) -> None:
        self.keeper.watch(stop)

    def wake(self) -> None:
        """After `stop` is set."""
        self._watch.wake()
        self.keeper.mark()

    def state(self) -> InPodState:
        watched = (Watched(kind=s.kind, known=s.listed, trouble=s.trouble) for s in self.store.states())
        return InPodState(pods=self.keeper.count(), late=self.keeper.troubles(), watched=tuple(watched))

    def _read(self, cluster: Cluster) -> RuleBook:
        return self._books.read(cluster, self._host.read())
