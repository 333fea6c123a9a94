"""A pod whose policies change all the time, and others that call it and are called without a pause."""

import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import count

import pytest

from tests import policy_oracle, policy_world
from tests.netns.namespaces import entered
from tests.netns.policy_cluster import Cluster, policy_cluster
from tests.netns.rounds import Expected, Round, find_astray, straight
from tests.netns.segment import Call, Segment
from tests.policy_judge import State

UPDATES = 1000
PORTS = (1080, 1081)
NODE = policy_world.NODE[4]
POD = policy_world.address("x/a", 4)
OTHERS = tuple(policy_world.address(key, 4) for key in policy_world.pod_keys() if key != "x/a")
CALLS = tuple(
    Call(source, destination, "UDP", port)
    for other in OTHERS
    for source, destination in ((other, POD), (POD, other))
    for port in PORTS
)
_MARKER_PORT = 1009
_MARKERS = 3  # each takes a hop, a call two
_DEADLINE_S = 5.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with policy_cluster() as made:
        yield made


def states(seed: int) -> Iterator[State]:
    """Policies of x/a alone: in a moment when one pod has the new rules and another has the old ones, what
    gets through is neither's."""
    luck = random.Random(seed)
    now = policy_world.objects()
    for _ in range(UPDATES):
        yield now
        now = policy_world.changed(now, *_change(luck))


def _change(luck: random.Random) -> tuple[str, dict[str, object] | None]:
    if luck.random() < 0.4:
        labels = {"ns": luck.choice("yz"), "pod": luck.choice("bc")}
        return f"Pod {luck.choice('yz')}/{luck.choice('abc')}", {"metadata": {"labels": labels}}
    policy = f"NetworkPolicy x/{luck.choice('pqr')}"
    rules = [_rule(luck) for _ in range(luck.randrange(3))]
    match luck.randrange(5):
        case 0:
            return policy, {"spec": {"podSelector": {"matchLabels": {"pod": "none"}}}}
        case 1 | 2:
            ingress = [{"from": peers, "ports": ports} for peers, ports in rules]
            spec = {"policyTypes": ["Ingress"], "ingress": ingress}
        case _:
            egress = [{"to": peers, "ports": ports} for peers, ports in rules]
            spec = {"policyTypes": ["Egress"], "egress": egress}
    return policy, {"spec": {"podSelector": {"matchLabels": {"pod": "a"}}, **spec}}


def _rule(luck: random.Random) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    number = luck.randrange(64)
    peers: list[dict[str, object]] = [
        {"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": luck.choice("bc")}}},
        {"namespaceSelector": {"matchLabels": {"ns": luck.choice("xyz")}}},
        {"ipBlock": {"cidr": f"10.0.0.{number & ~7}/29", "except": [f"10.0.0.{number}/32"]}},
    ]
    port = luck.choice(PORTS)
    ports: list[dict[str, object]] = [{"protocol": "UDP", "port": port}, {"protocol": "UDP"}]
    return luck.sample(peers, luck.randint(0, 2)), luck.sample(ports, luck.randint(0, 1))


class Traffic:
    """On another CPU than the updates, if there is one: rules change under the packets that they judge."""

    def __init__(self, segment: Segment, stack: ExitStack) -> None:
        self.begun = self.done = 0
        self.rounds: list[Round] = []
        self._segment, self._stack = segment, stack
        self._clients = {source: self._socket(source, 20_000) for source in (NODE, POD, *OTHERS)}
        self._servers = {(to, port): self._socket(to, port) for to in (POD, *OTHERS) for port in PORTS}
        self._marked = self._socket(POD, _MARKER_PORT)
        self._marked.settimeout(_DEADLINE_S)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        stack.callback(self.stop)

    def _socket(self, address: str, port: int) -> socket.socket:
        with entered(self._segment.space(address if address != NODE else "node")):
            made = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made.bind((address, port))
        made.setblocking(False)
        return made

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        os.sched_setaffinity(0, {max(self._segment.cpus)})
        for number in count():
            if self._stop.is_set():
                return
            first = self.done
            for call in CALLS:
                self._send(call.source, f"{number}", (call.destination, call.port))
            for _ in range(_MARKERS):
                self._send(NODE, f"{number}", (POD, _MARKER_PORT))
                assert self._marked.recv(16) == f"{number}".encode()
            last = self.begun
            self.rounds.append(
                Round(first, last, frozenset(CALLS), frozenset(map(straight, self._arrived(number))))
            )

    def _send(self, source: str, text: str, to: tuple[str, int]) -> None:
        with suppress(PermissionError):  # the pod's own rules have dropped it
            self._clients[source].sendto(text.encode(), to)

    def _arrived(self, number: int) -> Iterator[Call]:
        for (address, port), server in self._servers.items():
            with suppress(BlockingIOError):
                while True:
                    data, peer = server.recvfrom(16)
                    assert data == f"{number}".encode(), "a packet came when it had been given up"
                    yield Call(peer[0], address, "UDP", port)


def test_no_packet_goes_astray_while_policies_change(cluster: Cluster) -> None:
    all_states = list(states(seed=1))
    expected = [{c for c in CALLS if policy_oracle.allowed(state, *c)} for state in all_states]
    with ExitStack() as stack:
        traffic = Traffic(cluster.segment, stack)
        for at, state in enumerate(all_states):
            traffic.begun = at
            cluster.become(state)
            traffic.done = at

    def expect(first: int, last: int) -> Expected:
        states_ = expected[first : last + 1]
        return Expected(set(map(straight, set().union(*states_))), set(CALLS).intersection(*states_))

    assert find_astray(traffic.rounds, expect) == ([], [])
    assert sum(r.last > r.first for r in traffic.rounds) > 100, "few packets met a change"
