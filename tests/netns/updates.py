"""Pure: a cluster whose endpoints, policies and labels change at random, and what its states let through.

Policies and endpoints are about one pod, `judge`: in a moment when one pod has the new rules and another has
the old ones, what gets through is neither's. What is watched comes in streams, one for each resource, and
each may be ahead of the others: a state that may have been in force is any mixture of theirs.
"""

import random
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product

from tests import policy_oracle
from tests.cluster_objects import Object, endpoints, namespace, node, pod, policy, service
from tests.netns.rounds import Arrival, Expected, straight
from tests.netns.segment import Call

JUDGE, WITNESS = "judge", "witness"  # pods, each in a namespace of that name; the others are in `default`
VIPS = {"web": "10.96.0.10", "sticky": "10.96.0.20"}
VIP_PORT = 80
PORTS = (8080, 8081)
PROTOS = ("TCP", "UDP")
MARKS = ("endpointslices", "networkpolicies", "pods")  # what changes, and so what is marked
_AFFINITY = {
    "sessionAffinity": "ClientIP",
    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
}
_APPS = ("red", "green", "blue")
_VIP_PORTS = {"web": VIP_PORT, "udp": VIP_PORT}

State = Mapping[str, Object | None]  # by resource and key; None: it was deleted


def plural(found: Object) -> str:
    kind = str(found["kind"])
    return "networkpolicies" if kind == "NetworkPolicy" else f"{kind.lower()}s"


class Updates:
    """`addresses`: of the judge and of its peers, by name. State `n` is that after `n` updates."""

    def __init__(self, seed: int, addresses: Mapping[str, str], node_address: str) -> None:
        self._luck = random.Random(seed)
        self._addresses = addresses
        self.own = addresses[JUDGE]
        self.peers = {name: address for name, address in addresses.items() if name != JUDGE}
        pairs = [ends for peer in self.peers.values() for ends in ((peer, self.own), (self.own, peer))]
        self.straight_calls = [
            Call(*ends, proto, port) for ends, proto, port in product(pairs, PROTOS, PORTS)
        ]
        self.vip_calls = [
            Call(self.own, vip, proto, VIP_PORT) for vip, proto in product(VIPS.values(), PROTOS)
        ]
        self.fixed = [
            node("node-1", node_address),
            *map(namespace, ("default", JUDGE, WITNESS)),
            *(service(name, ip, ports=_VIP_PORTS, **_affinity(name)) for name, ip in VIPS.items()),
        ]
        first = [
            *(self._labelled(name) for name in addresses),
            *(self._endpoints(name, [*self.peers.values()], PORTS[0]) for name in VIPS),
        ]
        self._states: dict[str, list[State]] = {mark: [{}] for mark in MARKS}
        for one in first:
            self._states[plural(one)][0] = {**self._states[plural(one)][0], key_of(one): one}
        self._versions: list[tuple[int, ...]] = [(0, 0, 0)]

    @property
    def first(self) -> Iterator[Object]:
        for states in self._states.values():
            yield from (one for one in states[0].values() if one is not None)

    def __len__(self) -> int:
        """How many updates there were."""
        return len(self._versions) - 1

    def make(self) -> tuple[str, str, Object | None]:
        """The next one: resource, key, and the object, unless it is deleted."""
        made: Object | None
        match self._luck.choice(MARKS):
            case "pods":
                made = self._labelled(self._luck.choice([*self._addresses]))
            case "networkpolicies":
                made = self._policy(f"p{self._luck.randrange(3)}")
            case _:
                some = self._luck.sample([*self.peers.values()], self._luck.randint(0, len(self.peers)))
                made = self._endpoints(self._luck.choice([*VIPS]), some, self._luck.choice(PORTS))
        resource, key = plural(made), key_of(made)
        if resource == "networkpolicies" and self._luck.random() < 0.3 and self._latest(resource).get(key):
            made = None
        self._states[resource].append({**self._latest(resource), key: made})
        self._versions.append(tuple(len(self._states[mark]) - 1 for mark in MARKS))
        return resource, key, made

    def expect(self, first: int, last: int) -> Expected:
        """While any state between these may have been in force."""
        slices, *others = (
            sorted({version[at] for version in self._versions[first : last + 1]}) for at in range(len(MARKS))
        )
        all_of_them = [self._let_through(*mixture) for mixture in product(*others)]
        some, every = frozenset[Call]().union(*all_of_them), all_of_them[0].intersection(*all_of_them)
        may, must = set(map(straight, some)), set(every)
        for call in self.vip_calls:
            chosen = [self._leads_to(number, call) for number in slices]
            may |= {Arrival(call, c.destination, c.port) for calls in chosen for c in calls & some}
            if all(calls and calls <= every for calls in chosen):
                must.add(call)
        return Expected(may, must)

    @cache  # noqa: B019 - it lives as long as its test
    def _let_through(self, policies: int, pods: int) -> frozenset[Call]:
        parts = (self._states["networkpolicies"][policies], self._states["pods"][pods])
        known = [one for part in parts for one in part.values() if one is not None] + self.fixed
        return frozenset(call for call in self.straight_calls if policy_oracle.allowed(known, *call))

    @cache  # noqa: B019
    def _leads_to(self, slices: int, call: Call) -> frozenset[Call]:
        name = next(name for name, vip in VIPS.items() if vip == call.destination)
        found = self._states["endpointslices"][slices][f"default/{name}-four"]
        assert found is not None
        port = found["ports"][0]["port"]
        addresses = [one["addresses"][0] for one in found["endpoints"]]
        return frozenset(Call(call.source, address, call.proto, port) for address in addresses)

    def _latest(self, resource: str) -> State:
        return self._states[resource][-1]

    def _labelled(self, name: str) -> Object:
        where = JUDGE if name == JUDGE else "default"
        return pod(name, self._addresses[name], namespace=where, labels={"app": self._luck.choice(_APPS)})

    def _endpoints(self, name: str, addresses: list[str], port: int) -> Object:
        return endpoints(name, *addresses, ports=dict.fromkeys(_VIP_PORTS, port))

    def _policy(self, name: str) -> Object:
        selector = self._luck.choice([{}, {"matchLabels": {"app": self._luck.choice(_APPS)}}])
        direction, peer = self._luck.choice([("Ingress", "from"), ("Egress", "to")])
        rules = [self._rule(peer) for _ in range(self._luck.randrange(4))]
        given = {"podSelector": selector, "policyTypes": [direction], direction.lower(): rules}
        return policy(name, JUDGE, **given)

    def _rule(self, peer: str) -> Object:
        block = self._luck.randrange(256) & ~7
        hole = f"10.56.0.{block + self._luck.randrange(8)}/32"
        peers = [
            {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": self._luck.choice(_APPS)}}},
            {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": self._luck.choice(_APPS)}}},
            {"ipBlock": {"cidr": "10.56.0.0/24", "except": [f"10.56.0.{block}/29"]}},
            {"ipBlock": {"cidr": f"10.56.0.{block}/29", "except": [hole]}},
        ]
        ports = [
            {"protocol": self._luck.choice(PROTOS), "port": self._luck.choice(PORTS)},
            {"protocol": self._luck.choice(PROTOS)},
        ]
        return {
            peer: self._luck.sample(peers, self._luck.randint(0, 2)),
            "ports": self._luck.sample(ports, self._luck.randint(0, 1)),
        }


def key_of(found: Object) -> str:
    return f"{found['metadata']['namespace']}/{found['metadata']['name']}"


def _affinity(name: str) -> Object:
    return _AFFINITY if name == "sticky" else {}


# -- marks: what a pod of its own, `witness`, has in its rules, for nothing but to be seen there


def witness_of(address: str) -> list[Object]:
    """Policies and endpoints of nothing else."""
    to = [{"podSelector": {"matchLabels": {"app": "mark"}}}]
    return [
        pod(WITNESS, address, namespace=WITNESS, labels={"app": WITNESS}),
        service("mark", "10.96.255.1"),
        _witness_policy("marked", [{"to": to}]),
    ]


def marks(number: int) -> dict[str, Object]:
    """An update of each resource, by the address that it leads to."""
    tail = f"{100 + number // 100}.{100 + number % 100}"  # none is the beginning of another
    block = [{"to": [{"ipBlock": {"cidr": f"198.18.{tail}/32"}}]}]
    return {
        f"198.18.{tail}": _witness_policy("mark", block),
        f"198.19.{tail}": endpoints("mark", f"198.19.{tail}"),
        f"198.20.{tail}": pod("mark", f"198.20.{tail}", namespace=WITNESS, labels={"app": "mark"}),
    }


def _witness_policy(name: str, egress: list[Object]) -> Object:
    selector = {"matchLabels": {"app": WITNESS}}
    return policy(name, WITNESS, podSelector=selector, policyTypes=["Egress"], egress=egress)
