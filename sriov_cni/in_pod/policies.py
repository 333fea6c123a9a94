"""Pure: which policies are for a pod of this node, and what all of them together let through.

As the API has it (networking.k8s.io/v1): a direction that no policy of the pod is about is open; else what
any of them allows is let through, and nothing more.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from sriov_cni.in_pod.model import Allow, Direction, PodPolicy
from sriov_cni.in_pod.objects import Cluster, NetworkPolicy, Pod
from sriov_cni.in_pod.peers import NamedPort, PeerIndex, named_ports
from sriov_cni.in_pod.policy_rules import PolicyRules, read_policy
from sriov_cni.in_pod.selectors import LabelIndex


def compile_policy(cluster: Cluster, pod: Pod) -> PodPolicy:
    """For one pod. Whoever asks for several keeps a PolicyCompiler."""
    return PolicyCompiler(cluster).compile(pod)


class PolicyCompiler:
    """Of one snapshot of the cluster, for any thread. Work is shared between its pods: peers are looked for
    once per policy.

    `previous`: the compiler of an earlier snapshot; what depends on nothing that changed is taken from it.
    """

    def __init__(self, cluster: Cluster, previous: "PolicyCompiler | None" = None) -> None:
        self._cluster = cluster
        self._by_namespace: defaultdict[str, list[NetworkPolicy]] = defaultdict(list)
        for _, policy in sorted(cluster.policies.items()):
            self._by_namespace[policy.metadata.namespace].append(policy)
        self._for_pods: dict[object, PodPolicy] = {}
        self._rules: dict[str, PolicyRules] = {}
        if previous is not None and previous._has_peers_of(cluster):
            self._index: PeerIndex = previous._index
            self._rules.update(previous._rules_that_hold(cluster))
        else:
            self._index = PeerIndex(cluster)

    def _has_peers_of(self, cluster: Cluster) -> bool:
        """Snapshots never change, and share what is the same in both."""
        return self._cluster.pods is cluster.pods and self._cluster.namespaces is cluster.namespaces

    def _rules_that_hold(self, cluster: Cluster) -> dict[str, PolicyRules]:
        return {key: rules for key, rules in self._rules.items() if cluster.policies.get(key) is rules.policy}

    def compile(self, pod: Pod) -> PodPolicy:
        """The pod need not be in the snapshot, nor have an address yet. Pods for which the same is true share
        one object."""
        policies, ports = self._policies_of(pod), named_ports(pod)
        alike = tuple(rules.policy.metadata.key for rules in policies), ports
        found = self._for_pods.get(alike)
        if found is None:
            found = self._for_pods[alike] = _combine(policies, _by_name(ports))
        return found

    def _policies_of(self, pod: Pod) -> list[PolicyRules]:
        this = LabelIndex({"": pod.metadata.labels})
        of_namespace = map(self._read, self._by_namespace.get(pod.metadata.namespace, ()))
        return [rules for rules in of_namespace if rules.selector is None or this.select(rules.selector)]

    def _read(self, policy: NetworkPolicy) -> PolicyRules:
        rules = self._rules.get(policy.metadata.key)
        if rules is None:
            rules = self._rules[policy.metadata.key] = read_policy(policy, self._index)
        return rules


def _by_name(ports: Iterable[tuple[NamedPort, int]]) -> Mapping[NamedPort, list[int]]:
    numbers: defaultdict[NamedPort, list[int]] = defaultdict(list)
    for name, number in ports:
        numbers[name].append(number)
    return numbers


def _combine(policies: list[PolicyRules], ports: Mapping[NamedPort, list[int]]) -> PodPolicy:
    into = [p for p in policies if Direction.INGRESS in p.directions]
    out = [p for p in policies if Direction.EGRESS in p.directions]
    ingress: tuple[Allow, ...] = tuple(rule.for_pod(ports) for p in into for rule in p.ingress)
    egress: tuple[Allow, ...] = tuple(allow for p in out for allow in p.egress)
    return PodPolicy(
        ingress=ingress if into else None,
        egress=egress if out else None,
        problems=tuple(problem for p in policies for problem in p.problems),
    )
