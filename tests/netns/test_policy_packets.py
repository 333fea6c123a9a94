"""NetworkPolicies of nine pods against the oracle, with packets: every pod and host calls every other."""

from collections.abc import Iterator

import pytest

from tests import policy_oracle, policy_world
from tests.netns.segment import Call, Segment
from tests.policy_judge import QUESTIONS, TABLE, Judge, State
from tests.policy_sets import SETS
from vf_manager.kernel.meter import Meter
from vf_manager.kernel.netns import Netns
from vf_manager.kernel.nft import Table
from vf_manager.kernel.nft_messages import Memo
from vf_manager.kernel.nft_socket import apply_table, delete_table

CALLS = tuple(Call(q.source, q.destination, q.proto, q.port) for q in QUESTIONS if q.port is not None)


class Cluster:
    """Each address of a pod is a host; what is in force there follows the state of the cluster."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._tables: dict[str, Table] = {}
        self._memo = Memo()
        self._judge: Judge | None = None

    def become(self, state: State) -> None:
        self._judge = judge = Judge(state, self._judge)
        for address, space in self.segment.spaces.items():
            old, new = self._tables.pop(address, None), judge.tables.get(address)
            netns = Netns(space.fd)
            try:
                if new is not None:
                    apply_table(netns, old, new, self._memo, Meter())
                    self._tables[address] = new
                elif old is not None:
                    delete_table(netns, TABLE, Meter())
            finally:
                netns.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Made once: it takes longer than all packets of a set."""
    pods = {v: [policy_world.address(key, v) for key in policy_world.pod_keys()] for v in (4, 6)}
    hosts = {"node": tuple(policy_world.NODE.values())}
    hosts |= {address: (address, other) for address, other in zip(pods[4], pods[6], strict=True)}
    hosts[policy_world.RECREATED[4]] = tuple(policy_world.RECREATED.values())
    hosts["outside"] = policy_world.OUTSIDE[4] + policy_world.OUTSIDE[6]
    with Segment(hosts) as segment:
        yield Cluster(segment)


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
