"""Policies of pods by example: what is not understood, what is shared, what rules look like."""

from textwrap import dedent
from typing import Any

import msgspec
import pytest
import yaml

from sriov_cni.in_pod.model import Allow, Direction, IpRange, Peers, PodPolicy, PortRange
from sriov_cni.in_pod.objects import Cluster, Pod, Proto
from sriov_cni.in_pod.policies import PolicyCompiler, compile_policy
from sriov_cni.in_pod.policy_steps import step_between
from sriov_cni.in_pod.render_policy import PolicyParts, PolicyRenderer
from sriov_cni.in_pod.trace_policy import Passage, trace_policy
from tests import policy_world
from tests.nft_evaluator import passes
from vf_manager.kernel.nft import Base, Chain, Field, Hook, In, Is, Table, Type, Verdict, VerdictKind, Within

X_A = policy_world.address("x/a", 4)
X_B = policy_world.address("x/b", 4)
ACCEPT, DROP = Verdict(VerdictKind.ACCEPT), Verdict(VerdictKind.DROP)


def cluster(policies: str) -> Cluster:
    """At the end of all that happens."""
    *_, last = policy_world.states(policies)
    return policy_world.cluster(last)


def policy_of(pod: str, policies: str) -> PodPolicy:
    known = cluster(policies)
    return compile_policy(known, known.pods[pod])


# -- what is not understood lets nothing through


@pytest.mark.parametrize(
    ("peer", "said"),
    [
        ("{}", "from[1]: '{}' is not valid; expected podSelector, namespaceSelector or ipBlock"),
        ("{ipBlock: {cidr: 10.0.0.0}}", "ipBlock.cidr: '10.0.0.0' is not valid"),
        ("{ipBlock: {cidr: 10.0.0.0/33}}", "ipBlock.cidr: '10.0.0.0/33' is not valid"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: [q]}}", "ipBlock.except[0]: 'q' is not valid"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/8']}}", "expected an IPv4 CIDR as that of the block"),
        ("{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}", "expected one of them in each peer"),
        (
            "{podSelector: {matchExpressions: [{key: k, operator: Gt, values: ['1']}]}}",
            "podSelector.matchExpressions[0].operator: 'Gt' is not valid",
        ),
        (
            "{namespaceSelector: {matchExpressions: [{key: k, operator: In, values: []}]}}",
            "namespaceSelector.matchExpressions[0].values: () is not valid; expected at least one value",
        ),
        ("{podSelector: {matchExpressions: [{key: k, operator: Exists, values: [v]}]}}", "none, with Exists"),
    ],
)
def test_a_peer_that_is_not_understood_is_nobody(peer: str, said: str) -> None:
    other = "{podSelector: {matchLabels: {pod: b}}}"
    text = f"x/p: {{podSelector: {{}}, ingress: [{{from: [{other}, {peer}]}}]}}"
    policy = policy_of("x/a", text)
    assert policy.ingress is not None
    (allow,) = policy.ingress
    assert allow.peers is not None
    assert allow.peers.addresses == {X_B, policy_world.address("x/b", 6)}
    assert allow.peers.ranges == ()
    (problem,) = policy.problems
    assert problem.startswith("NetworkPolicy x/p: spec.ingress[0].from[1]")
    assert said in problem


@pytest.mark.parametrize(
    "port",
    [
        "{port: 0}",
        "{port: 65536}",
        "{port: 80, endPort: 79}",
        "{port: 80, endPort: 65536}",
        "{endPort: 80}",
        "{port: web, endPort: 90}",
    ],
)
def test_a_port_that_is_not_understood_is_none(port: str) -> None:
    policy = policy_of("x/a", f"x/p: {{podSelector: {{}}, ingress: [{{ports: [{port}]}}]}}")
    assert policy.ingress == (Allow(policy="x/p", ports=()),)
    assert "spec.ingress[0].ports[0]" in policy.problems[0]


def test_a_pod_selector_that_is_not_understood_isolates_everybody() -> None:
    selector = "{matchExpressions: [{key: k, operator: Near}]}"
    text = f"x/p: {{podSelector: {selector}, ingress: [{{}}], policyTypes: [Ingress, Egress]}}"
    for pod in ("x/a", "x/c"):
        policy = policy_of(pod, text)
        assert (policy.ingress, policy.egress) == ((), ())
        assert "spec.podSelector.matchExpressions[0].operator" in policy.problems[0]
    assert policy_of("y/a", text) == PodPolicy()


def test_an_address_that_is_none_is_left_out() -> None:
    text = """
        x/p: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}
        ---
        Pod x/b: {status: {podIPs: [{ip: q}, {ip: "FD00:0::22"}]}}
        """
    policy = policy_of("x/a", text)
    assert policy.ingress is not None
    assert policy.ingress[0].peers is not None
    assert policy.ingress[0].peers.addresses == {"fd00::22"}


# -- the pod itself


def test_a_pod_that_nobody_has_heard_of_yet_is_isolated() -> None:
    known = cluster("x/p: {podSelector: {matchLabels: {pod: new}}, ingress: [{ports: [{port: web}]}]}")
    pod = msgspec.convert(
        yaml.safe_load(
            "{metadata: {namespace: x, name: new, labels: {pod: new}}, "
            "spec: {containers: [{ports: [{name: web, containerPort: 8080}]}]}}"
        ),
        Pod,
    )
    allow = Allow(policy="x/p", ports=(PortRange(Proto.TCP, 8080, 8080),))
    assert compile_policy(known, pod).ingress == (allow,)


# -- what is shared

_FROM_Y = "x/p: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}"


def test_pods_for_which_the_same_is_true_share_it() -> None:
    known = cluster(_FROM_Y)
    compiler, renderer = PolicyCompiler(known), PolicyRenderer([])
    first, second = compiler.compile(known.pods["x/b"]), compiler.compile(known.pods["x/c"])
    assert first == second
    assert renderer.render(first) is renderer.render(second)


def test_what_depends_on_nothing_that_changed_is_taken_from_the_last_snapshot() -> None:
    before = cluster(_FROM_Y)
    after = msgspec.structs.replace(before, policies={**before.policies, **_deny_all_out().policies})
    pod = before.pods["x/a"]
    old = PolicyCompiler(before)
    one, two = old.compile(pod), PolicyCompiler(after, old).compile(pod)
    assert (one.egress, two.egress) == (None, ())
    assert one.ingress is not None
    assert two.ingress is not None
    assert two.ingress[0] is one.ingress[0]


@pytest.mark.parametrize(
    "change", ["Namespace y: {metadata: {labels: {}}}", "Pod y/a: {status: {phase: Failed}}"]
)
def test_what_changed_is_not_taken_from_the_last_snapshot(change: str) -> None:
    before, changed = cluster(_FROM_Y), cluster(f"{_FROM_Y}\n---\n{change}")
    kind = "namespaces" if change.startswith("Namespace") else "pods"
    after = msgspec.structs.replace(before, **{kind: getattr(changed, kind)})
    pod = before.pods["x/a"]
    old = PolicyCompiler(before)
    assert old.compile(pod) != compile_policy(after, pod)
    assert PolicyCompiler(after, old).compile(pod) == compile_policy(after, pod)


def _deny_all_out() -> Cluster:
    return cluster("x/out: {podSelector: {}, policyTypes: [Egress]}")


def test_a_pod_that_comes_is_an_element() -> None:
    new = """
        ---
        Pod y/new:
          metadata: {labels: {}}
          spec: {containers: [{ports: [{name: web, containerPort: 81}]}]}
          status: {phase: Running, podIPs: [{ip: 10.0.0.99}]}
        """
    text = f"""
        {_FROM_Y}
        x/out:
          podSelector: {{}}
          policyTypes: [Egress]
          egress:
          - {{to: [{{namespaceSelector: {{matchLabels: {{ns: y}}}}}}], ports: [{{port: web}}, {{port: 80}}]}}
        """
    before, after = cluster(text), cluster(text + new)
    renderer = PolicyRenderer([])
    old = renderer.render(compile_policy(before, before.pods["x/a"]))
    later = PolicyRenderer([], renderer).render(compile_policy(after, after.pods["x/a"]))
    assert later.chains == old.chains
    assert _new_elements(old, later) == {
        "4": {policy_world.packed("10.0.0.99")},
        "sockets4": {policy_world.packed("10.0.0.99") + bytes([6, 0, 0, 0, 0, 81, 0, 0])},
    }


def _new_elements(old: PolicyParts, later: PolicyParts) -> dict[str, set[bytes]]:
    """By the kind of set."""
    assert later.sets.keys() == old.sets.keys()
    found = {}
    for name, elements in later.sets.items():
        more = set(elements.entries) - set(old.sets[name].entries)
        if more:
            kind, _, family = name.split("-")
            found[family if kind == "peers" else f"{kind}{family}"] = more
    return found


def test_sets_that_stay_the_same_are_the_same_object() -> None:
    known = cluster(_FROM_Y)
    renderer = PolicyRenderer(["10.0.0.1"])
    old = renderer.render(compile_policy(known, known.pods["x/a"]))
    later = PolicyRenderer(["10.0.0.1"], renderer).render(compile_policy(known, known.pods["x/b"]))
    assert all(later.sets[name] is old.sets[name] for name in old.sets)


# -- from one to the next

_FROM_B_OR_C = """
    x/p:
      podSelector: {}
      ingress:
      - {from: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}]}
      - {from: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: c}}}], ports: [{port: 80}]}
    """


def parts_after(*changes: str) -> PolicyParts:
    known = cluster("\n---\n".join((dedent(_FROM_B_OR_C), *changes)))
    return PolicyRenderer([]).render(compile_policy(known, known.pods["x/a"]))


def test_an_address_that_moves_is_in_both_sets_for_a_moment() -> None:
    old, new = parts_after(), parts_after("Pod y/b: {metadata: {labels: {pod: c}}}")
    between = step_between(old, new)
    assert between is not None
    assert between.chains == new.chains
    for name, elements in between.sets.items():
        assert elements.entries.keys() == old.sets[name].entries.keys() | new.sets[name].entries.keys()
    assert sum(len(elements.entries) for elements in between.sets.values()) == 14


@pytest.mark.parametrize(
    "change",
    [
        "Pod y/b: {metadata: {labels: {}}}",  # it goes
        "Pod y/a: {metadata: {labels: {pod: b}}}",  # it comes
        "Pod y/b: {metadata: {labels: {pod: c}}}\nNetworkPolicy x/q: {spec: {ingress: [{}]}}",
    ],
)
def test_all_else_is_one_step(change: str) -> None:
    assert step_between(parts_after(), parts_after(change)) is None


# -- rules


def test_an_open_direction_has_no_rules() -> None:
    assert PolicyRenderer(["10.0.0.1"]).render(PodPolicy()) == PolicyParts({}, {})


def test_the_rules_of_a_policy() -> None:
    peers = Peers(name="db", addresses=frozenset([X_B]), ranges=(IpRange("192.0.2.0", "192.0.2.127"),))
    ports = (PortRange(Proto.TCP, 80, 80), PortRange(Proto.TCP, 8000, 8099), PortRange(Proto.UDP))
    allow = Allow(policy="x/p", peers=peers, ports=ports)
    parts = PolicyRenderer([]).render(PodPolicy(egress=(allow,)))
    assert list(parts.sets) == ["peers-db-4", "peers-db-ranges4", "peers-db-6"]
    assert parts.sets["peers-db-4"].entries == {policy_world.packed(X_B): b""}
    assert parts.sets["peers-db-4"].key == (Type.IPV4_ADDR,)
    assert parts.sets["peers-db-ranges4"].entries == {bytes([192, 0, 2, 0]): bytes([192, 0, 2, 127])}
    assert parts.sets["peers-db-ranges4"].interval
    assert parts.sets["peers-db-6"].entries == {}
    ports_chain = "ports-tcp80-tcp8000_8099-udp"
    assert set(parts.chains) == {"policy-out", ports_chain}
    assert parts.chains["policy-out"].base == Base("filter", Hook.POSTROUTING, 0)
    jump = Verdict(VerdictKind.JUMP, ports_chain)
    assert parts.chains["policy-out"].rules[-4:] == (
        (In((Field.DADDR4,), "peers-db-4"), jump),
        (In((Field.DADDR4,), "peers-db-ranges4"), jump),
        (In((Field.DADDR6,), "peers-db-6"), jump),
        (DROP,),
    )
    tcp, udp = Is(Field.L4PROTO, b"\x06"), Is(Field.L4PROTO, b"\x11")
    assert parts.chains[ports_chain] == Chain(
        rules=(
            (tcp, Is(Field.DPORT, b"\x00\x50"), ACCEPT),
            (tcp, Within(Field.DPORT, b"\x1f\x40", b"\x1f\xa3"), ACCEPT),
            (udp, ACCEPT),
        )
    )


def test_the_order_of_policies_means_nothing() -> None:
    ports = (PortRange(Proto.TCP, 80, 80),)
    allows = [Allow(policy="x/p", peers=Peers(name=name), ports=ports) for name in "abc"]
    one, other = (PolicyRenderer([]).render(PodPolicy(ingress=tuple(a))) for a in (allows, allows[::-1]))
    assert one == other


def test_long_lists_of_ports_have_a_name_that_the_kernel_takes() -> None:
    ports = tuple(PortRange(Proto.TCP, port, port) for port in range(1, 2000, 2))
    chains = PolicyRenderer([]).render(PodPolicy(ingress=(Allow(policy="x/p", ports=ports),))).chains
    assert all(len(name) < 32 for name in chains)
    assert sum(len(chain.rules) for chain in chains.values()) > 1000


def _deny_all() -> Table:
    parts = PolicyRenderer([]).render(PodPolicy(ingress=(), egress=()))
    interfaces = {b"net1".ljust(16, b"\0"): b""}
    known = msgspec.structs.replace(parts.sets["node_addresses4"], entries=interfaces)
    return Table("t", {**parts.sets, "policy_ifs": known}, parts.chains)


def packet(interface: str, **fields: Any) -> dict[Field, bytes]:
    name = interface.encode().ljust(16, b"\0")
    named = {Field[key.upper()]: bytes(value) for key, value in fields.items()}
    return {Field.IIFNAME: name, Field.OIFNAME: name, **named}


@pytest.mark.parametrize("hook", [Hook.INPUT, Hook.POSTROUTING])
def test_what_no_policy_stops(hook: Hook) -> None:
    table, tcp = _deny_all(), {"l4proto": [6], "dport": [0, 80]}
    assert not passes(table, hook, packet("net1", **tcp))
    assert passes(table, hook, packet("lo", **tcp))
    assert passes(table, hook, packet("eth0", **tcp))  # of another network, which has policies of its own
    assert passes(table, hook, packet("net1", **tcp), ct_state=0b10)  # established
    assert passes(table, hook, packet("net1", **tcp), ct_state=0b100)  # related
    assert not passes(table, hook, packet("net1", **tcp), ct_state=0b1)  # invalid


@pytest.mark.parametrize("hook", [Hook.INPUT, Hook.POSTROUTING])
@pytest.mark.parametrize(
    ("kind", "through"), [(128, False), (129, False), (135, True), (136, True), (143, True)]
)
def test_neighbours_are_found_whatever_policies_say(hook: Hook, kind: int, through: bool) -> None:
    assert passes(_deny_all(), hook, packet("net1", l4proto=[58], icmpv6_type=[kind])) is through


# -- what it says of itself


def test_a_trace_names_the_rules() -> None:
    policy = policy_of(
        "x/a",
        """
        x/p:
          podSelector: {}
          policyTypes: [Egress]
          egress:
          - {to: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 80}]}
          - {to: [{ipBlock: {cidr: 10.0.0.0/24}}], ports: [{port: web}, {port: 80}]}
          - {ports: [{port: 80, protocol: UDP}]}
          - {to: [{ipBlock: {cidr: "fd00::/16"}}]}
        """,
    )
    y_a = policy_world.address("y/a", 4)

    def traced(address: str, proto: Proto | None = None, port: int | None = None) -> list[tuple[int, str]]:
        trace = trace_policy(policy, Direction.EGRESS, address, proto, port)
        assert trace.isolated
        assert trace.allowed is bool(trace.passages)
        return [(passage.rule, passage.why) for passage in trace.passages]

    assert traced(y_a, Proto.TCP, 80) == [(0, f"the pod with {y_a}"), (1, "10.0.0.0 to 10.0.0.255")]
    assert traced(policy_world.address("y/b", 4), Proto.TCP, 81) == [
        (1, f"web/TCP of the pod with {policy_world.address('y/b', 4)}")
    ]
    assert traced("192.0.2.1", Proto.UDP, 80) == [(2, "everybody")]
    assert traced("192.0.2.1", Proto.TCP, 80) == []
    assert traced(y_a) == []
    assert traced("FD00:0::1") == [(3, "fd00:: to fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]
    assert trace_policy(policy, Direction.INGRESS, y_a, Proto.TCP, 80).allowed
    assert (
        Passage(policy="x/p", rule=2, why="everybody")
        in trace_policy(policy, Direction.EGRESS, "192.0.2.1", Proto.UDP, 80).passages
    )
