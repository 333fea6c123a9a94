"""What a pod's policy means, and what its rules do, against the oracle."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import policy_oracle, policy_world
from tests.policy_judge import QUESTIONS, Judge, Question, State
from tests.policy_sets import SETS


def compare(state: State, judge: Judge, asked: tuple[Question, ...] = QUESTIONS) -> None:
    expected = {q: policy_oracle.allowed(state, *q) for q in asked}
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
