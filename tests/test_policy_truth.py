"""What a pod's policy means, and what its rules do, against the oracle."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sriov_cni.in_pod.model import Direction, PodPolicy
from sriov_cni.in_pod.objects import Proto
from sriov_cni.in_pod.policies import PolicyCompiler
from sriov_cni.in_pod.render_policy import POLICY_IFS, PolicyRenderer
from sriov_cni.in_pod.trace_policy import trace_policy
from tests import policy_oracle, policy_world
from tests.nft_evaluator import passes
from tests.policy_sets import SETS
from vf_manager.kernel.nft import Elements, Field, Hook, Table, Type

State = list[dict[str, Any]]
_NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_NET1 = b"net1".ljust(16, b"\0")


class Question(NamedTuple):
    source: str
    destination: str
    proto: str  # ICMP has no port
    port: int | None


def questions() -> Iterator[Question]:
    """Every address to every other of its family, from and to hosts beyond the cluster, too."""
    pods = policy_world.pod_keys()
    for version in (4, 6):
        inside = [policy_world.address(key, version) for key in pods]
        all_of_it = [
            *inside,
            policy_world.RECREATED[version],
            policy_world.NODE[version],
            *policy_world.OUTSIDE[version],
        ]
        for source in all_of_it:
            for destination in all_of_it:
                yield Question(source, destination, "ICMP", None)
                for proto in policy_world.PROTOCOLS:
                    for port in policy_world.PORTS:
                        yield Question(source, destination, proto, port)


QUESTIONS = tuple(questions())


class Judge:
    """Answers by what the agent makes of the objects: its model and, beside it, its rules."""

    def __init__(self, state: State, previous: "Judge | None" = None) -> None:
        cluster = policy_world.cluster(state)
        self.compiler: PolicyCompiler = PolicyCompiler(cluster, previous.compiler if previous else None)
        assert cluster.node is not None
        self.node = frozenset(a.address for a in cluster.node.status.addresses)
        self.renderer: PolicyRenderer = PolicyRenderer(self.node, previous.renderer if previous else None)
        self.policies: dict[str, PodPolicy] = {}
        self.tables: dict[str, Table] = {}
        for pod in cluster.pods.values():
            if pod.spec.host_network or pod.status.phase != "Running":
                continue
            policy = self.compiler.compile(pod)
            table = self._table(policy)
            for ip in pod.status.pod_ips:
                self.policies[ip.ip], self.tables[ip.ip] = policy, table

    def _table(self, policy: PodPolicy) -> Table:
        parts = self.renderer.render(policy)
        interfaces = Elements(key=(Type.IFNAME,), entries={_NET1: b""})
        return Table("sriov_underlay", {**parts.sets, POLICY_IFS: interfaces}, parts.chains)

    def by_model(self, q: Question) -> bool:
        return self._traced(q, Direction.EGRESS, q.source, q.destination) and (
            q.source in self.node or self._traced(q, Direction.INGRESS, q.destination, q.source)
        )

    def _traced(self, q: Question, direction: Direction, own: str, other: str) -> bool:
        proto = None if q.proto == "ICMP" else Proto(q.proto)
        policy = self.policies.get(own, PodPolicy())
        return trace_policy(policy, direction, other, proto, q.port).allowed

    def by_rules(self, q: Question) -> bool:
        empty = Table("none")
        packet = _packet(q)
        out = passes(self.tables.get(q.source, empty), Hook.POSTROUTING, packet)
        return out and passes(self.tables.get(q.destination, empty), Hook.INPUT, packet)


def _packet(q: Question) -> dict[Field, bytes]:
    """An ICMP packet here is an echo request."""
    six = ":" in q.source
    packed = policy_world.packed
    addresses = (Field.SADDR6, Field.DADDR6) if six else (Field.SADDR4, Field.DADDR4)
    fields = {Field.IIFNAME: _NET1, Field.OIFNAME: _NET1}
    fields |= {addresses[0]: packed(q.source), addresses[1]: packed(q.destination)}
    if q.port is None:
        fields[Field.L4PROTO] = bytes([58 if six else 1])
        return fields | ({Field.ICMPV6_TYPE: bytes([128])} if six else {})
    return fields | {Field.L4PROTO: bytes([_NUMBERS[q.proto]]), Field.DPORT: q.port.to_bytes(2, "big")}


def compare(state: State, judge: Judge, asked: tuple[Question, ...] = QUESTIONS) -> None:
    expected = {q: policy_oracle.allowed(state, *q) for q in asked if q.source != q.destination}
    assert [q for q, answer in expected.items() if judge.by_model(q) != answer] == []
    assert [q for q, answer in expected.items() if judge.by_rules(q) != answer] == []


@pytest.mark.parametrize("name", SETS)
def test_the_truth_table(name: str) -> None:
    judge = None
    for state in policy_world.states(SETS[name]):
        judge = Judge(state, judge)
        compare(state, judge)


def test_the_table_asks_what_may_go_either_way() -> None:
    """A set that lets everything through at every moment, or nothing, shows little."""
    one_answer = {name for name, text in SETS.items() if len(_answers(text)) == 1}
    assert one_answer == {
        "no policy",
        "allow all in",
        "allow all out",
        "absent lists are null",
        "empty lists allow everything",
        "no pod of the policy",
    }
    assert len(SETS) >= 45


def _answers(text: str) -> set[bool]:
    asked = [q for q in QUESTIONS if q.source in _SOURCES]
    return {policy_oracle.allowed(state, *q) for state in policy_world.states(text) for q in asked}


_SOURCES = (policy_world.address("x/a", 4), policy_world.address("x/b", 6), policy_world.OUTSIDE[4][1])


# -- any policies, any labels

_SOME = frozenset(
    [policy_world.address(key, v) for key in ("x/a", "x/b", "y/a", "z/c") for v in (4, 6)]
    + [policy_world.OUTSIDE[v][0] for v in (4, 6)]
)
_SOME_QUESTIONS = tuple(
    q for q in QUESTIONS if {q.source, q.destination} <= _SOME and (q.proto, q.port) != ("UDP", 81)
)

_VALUES = st.sampled_from(["a", "b", ""])
_KEYS = st.sampled_from(["k", "l"])
_LABELS = st.dictionaries(_KEYS, _VALUES)
_EXPRESSIONS = st.one_of(
    st.fixed_dictionaries(
        {
            "key": _KEYS,
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(_VALUES, min_size=1, max_size=2),
        }
    ),
    st.fixed_dictionaries({"key": _KEYS, "operator": st.sampled_from(["Exists", "DoesNotExist"])}),
)
_SELECTORS = st.fixed_dictionaries(
    {}, optional={"matchLabels": _LABELS, "matchExpressions": st.lists(_EXPRESSIONS, max_size=2)}
)


def _cidrs(of: str, shortest: int, longest: int) -> st.SearchStrategy[str]:
    return st.integers(shortest, longest).map(lambda length: f"{of}/{length}")


def _blocks(addresses: list[str], longest: int) -> st.SearchStrategy[dict[str, Any]]:
    cidrs = st.sampled_from(addresses).flatmap(lambda of: _cidrs(of, longest - 8, longest))
    whole = st.just("0.0.0.0/0" if longest == 32 else "::/0")
    return st.fixed_dictionaries({"cidr": cidrs | whole}, optional={"except": st.lists(cidrs, max_size=3)})


_BLOCKS = _blocks([a for a in sorted(_SOME) if "." in a], 32) | _blocks(
    [a for a in sorted(_SOME) if ":" in a], 128
)
_PEERS = st.one_of(
    st.fixed_dictionaries({"podSelector": _SELECTORS}, optional={"namespaceSelector": _SELECTORS}),
    st.fixed_dictionaries({"namespaceSelector": _SELECTORS}),
    st.fixed_dictionaries({"ipBlock": _BLOCKS}),
)
_PROTOCOLS = {"protocol": st.sampled_from(["TCP", "UDP", "SCTP"])}
_PORTS = st.one_of(
    st.fixed_dictionaries({}, optional=_PROTOCOLS),
    st.fixed_dictionaries({"port": st.sampled_from([79, 80, 81, "web", "dns", "side"])}, optional=_PROTOCOLS),
    st.fixed_dictionaries({"port": st.integers(78, 81), "endPort": st.integers(81, 82)}, optional=_PROTOCOLS),
)


def _rules(peers: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    lists = {peers: st.lists(_PEERS, max_size=3), "ports": st.lists(_PORTS, max_size=3)}
    return st.lists(st.fixed_dictionaries({}, optional=lists), max_size=2)


_SPECS = st.fixed_dictionaries(
    {"podSelector": _SELECTORS},
    optional={
        "ingress": _rules("from"),
        "egress": _rules("to"),
        "policyTypes": st.lists(st.sampled_from(["Ingress", "Egress"]), unique=True),
    },
)
_POLICIES = st.dictionaries(
    st.sampled_from([f"{namespace}/{name}" for namespace in "xyz" for name in "pq"]), _SPECS, min_size=1
)


@settings(max_examples=50)
@given(policies=_POLICIES, data=st.data())
def test_any_policies_on_any_labels(policies: dict[str, dict[str, Any]], data: st.DataObject) -> None:
    state = policy_world.objects()
    for key, spec in policies.items():
        namespace, name = key.split("/")
        metadata = {"namespace": namespace, "name": name}
        state.append({"kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
    for labelled in state:
        if labelled["kind"] in ("Pod", "Namespace"):
            labelled["metadata"]["labels"] = data.draw(_LABELS)
    compare(state, Judge(state), _SOME_QUESTIONS)
