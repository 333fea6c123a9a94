"""NetworkPolicies of nine pods against the oracle, with packets: every pod and host calls every other."""

import socket
from collections.abc import Iterator

import pytest

from tests import policy_oracle, policy_world
from tests.netns.namespaces import entered, ip
from tests.netns.policy_cluster import Cluster, policy_cluster
from tests.netns.segment import Call
from tests.policy_judge import QUESTIONS, State
from tests.policy_sets import SETS
from vf_manager.kernel.nft import Base, Chain, Dnat, Elements, Field, Hook, Type

CALLS = tuple(Call(q.source, q.destination, q.proto, q.port) for q in QUESTIONS if q.port is not None)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Made once: it takes longer than all packets of a set."""
    with policy_cluster() as made:
        yield made


X_A, X_B, Y_A = (policy_world.address(key, 4) for key in ("x/a", "x/b", "y/a"))


def test_without_policies_every_call_arrives(cluster: Cluster) -> None:
    cluster.become(policy_world.objects())
    assert cluster.segment.ask(CALLS) == set(CALLS)


@pytest.mark.parametrize("name", SETS)
def test_the_truth_table(cluster: Cluster, name: str) -> None:
    for state in policy_world.states(SETS[name]):
        cluster.become(state)
        expected = {call for call in CALLS if policy_oracle.allowed(state, *call)}
        arrived = cluster.segment.ask(CALLS)
        assert sorted(arrived - expected) == [], "these must not arrive"
        assert sorted(expected - arrived) == [], "these must arrive"


def state_of(text: str) -> State:
    (state,) = policy_world.states(text)
    return state


FROM_B_ALONE = """
    x/deny: {podSelector: {}, policyTypes: [Ingress, Egress]}
    x/in: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}
    x/out: {podSelector: {matchLabels: {pod: b}}, egress: [{to: [{podSelector: {matchLabels: {pod: a}}}]}]}
    """


def test_neighbours_find_each_other_whatever_policies_say(cluster: Cluster) -> None:
    cluster.become(state_of(FROM_B_ALONE))
    own, other = policy_world.address("x/a", 6), policy_world.address("x/b", 6)
    there, here = cluster.segment.space(X_A), cluster.segment.spaces[X_B]
    ip("neigh", "del", other, "dev", "net1", space=there)
    ip("neigh", "del", own, "dev", "net1", space=here)
    with entered(there):
        server = socket.create_server((own, 82), family=socket.AF_INET6)
    with server, entered(here), socket.create_connection((own, 82), timeout=5) as client:
        connection, peer = server.accept()
        connection.close()
        assert peer[:2] == client.getsockname()[:2]


def test_a_connection_outlives_the_policy_that_let_it_in(cluster: Cluster) -> None:
    """As the API leaves open: what is established goes on, what is new does not begin."""
    cluster.become(state_of(FROM_B_ALONE))
    with entered(cluster.segment.space(X_A)):
        server = socket.create_server((X_A, 82))
    with server, entered(cluster.segment.space(X_B)):
        client = socket.create_connection((X_A, 82), timeout=5)
        connection, _ = server.accept()
    with client, connection:
        cluster.become(state_of("x/deny: {podSelector: {}, policyTypes: [Ingress, Egress]}"))
        client.sendall(b"there")
        assert connection.recv(8) == b"there"
        connection.sendall(b"back")
        assert client.recv(8) == b"back"
    assert cluster.segment.ask([Call(X_B, X_A, "TCP", 80)]) == set()


@pytest.mark.parametrize(
    ("peer", "arrives"),
    [
        ("{namespaceSelector: {matchLabels: {ns: y}}}", True),
        ("{ipBlock: {cidr: 10.96.0.0/16}}", False),
    ],
)
def test_egress_is_judged_when_a_service_is_translated(cluster: Cluster, peer: str, arrives: bool) -> None:
    """The policy is about the endpoint; the service's own address means nothing to it."""
    text = f"x/p: {{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{peer}]}}]}}"
    cluster.become(state_of(text))
    cluster.add_service(X_A, *_service("10.96.0.10", 53, Y_A, 83))
    space = cluster.segment.space(X_A)
    ip("route", "replace", "10.96.0.10", "dev", "net1", space=space)
    with entered(cluster.segment.space(Y_A)):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.settimeout(5)
        server.bind((Y_A, 83))
    with entered(space):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, client:
        if arrives:
            client.sendto(b"ask", ("10.96.0.10", 53))
            assert server.recvfrom(8)[1][0] == X_A
        else:
            with pytest.raises(PermissionError):
                client.sendto(b"ask", ("10.96.0.10", 53))


def _service(address: str, port: int, endpoint: str, its_port: int) -> tuple[Elements, Chain]:
    """One that has one endpoint, as in a pod that has its services inside."""
    key = (Field.L4PROTO, Field.DADDR4, Field.DPORT)
    packed = policy_world.packed
    entry = bytes([17, 0, 0, 0]) + packed(address) + port.to_bytes(2, "big") + bytes(2)
    value = packed(endpoint) + its_port.to_bytes(2, "big") + bytes(2)
    endpoints = Elements(
        key=(Type.INET_PROTO, Type.IPV4_ADDR, Type.INET_SERVICE),
        value=(Type.IPV4_ADDR, Type.INET_SERVICE),
        entries={entry: value},
    )
    rules = ((Dnat(socket.AF_INET, key, "endpoints4"),),)
    return endpoints, Chain(rules=rules, base=Base("nat", Hook.OUTPUT, -100))
