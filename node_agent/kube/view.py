"""Orchestrator: what the rules inside of pods need of the cluster: what is followed, how well it is known."""

import threading
from collections.abc import Iterable

from node_agent.kube.cluster_watch import ClusterWatch, Sources
from node_agent.kube.kinds import FOR_POLICY, FOR_SERVICES, Kind
from node_agent.kube.store import ClusterStore
from sriov_cni.in_pod.keeper import Knowledge
from sriov_cni.in_pod.objects import Cluster
from sriov_cni.in_pod.options import InPod
from vf_manager.errors import Refused


class ClusterView:
    """Thread-safe. Follows what somebody wants, and nothing else."""

    def __init__(self, store: ClusterStore, watch: ClusterWatch) -> None:
        self._store = store
        self._watch = watch
        self._guard = threading.Lock()
        self._sources: Sources | None = None
        self._kinds: frozenset[Kind] = frozenset()

    def connect(self, sources: Sources | None, asked: Iterable[InPod]) -> None:
        """From now on, by this API server; None: by none. What was wanted before is not any more."""
        with self._guard:
            self._sources = sources
            self._kinds = frozenset[Kind]().union(*map(kinds_for, asked))
            self._watch.want(self._kinds, sources)

    def want(self, options: InPod) -> None:
        """Besides what was wanted before. Raises Refused: there is no way to the API server."""
        kinds = kinds_for(options)
        with self._guard:
            if self._sources is None:
                raise Refused(f"{options.describe()}: in-pod: the agent's config has no `kubernetes`")
            if not kinds <= self._kinds:
                self._kinds |= kinds
                self._watch.want(self._kinds, self._sources)

    def known(self, options: InPod) -> Knowledge:
        kinds = kinds_for(options)
        if self._store.synced(kinds):
            return Knowledge.FRESH
        return Knowledge.LAST if self._store.listed(kinds) else Knowledge.NOTHING

    def snapshot(self) -> Cluster:
        return self._store.snapshot()


def kinds_for(options: InPod) -> frozenset[Kind]:
    services = FOR_SERVICES if options.services else frozenset[Kind]()
    return services | (FOR_POLICY if options.policy else frozenset())
