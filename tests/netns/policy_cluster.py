"""Nine pods with the rules of their policies in force, as namespaces on one segment."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests import policy_world
from tests.netns.segment import Segment
from tests.policy_judge import TABLE, Judge, State
from vf_manager.kernel.meter import Meter
from vf_manager.kernel.netns import Netns
from vf_manager.kernel.nft import Chain, Elements, Table
from vf_manager.kernel.nft_messages import Memo
from vf_manager.kernel.nft_socket import apply_table, delete_table


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

    def put(self, address: str, endpoints: Elements, services: Chain) -> None:
        """Into the table of that pod, besides its policy, until the next state."""
        old = self._tables[address]
        new = Table(TABLE, {**old.sets, "endpoints4": endpoints}, {**old.chains, "services": services})
        netns = Netns(self.segment.spaces[address].fd)
        try:
            apply_table(netns, old, new, self._memo, Meter())
        finally:
            netns.close()
        self._tables[address] = new


@contextmanager
def policy_cluster() -> Iterator[Cluster]:
    """One host for each address that a pod has at some moment; the node comes first."""
    pods = {v: [policy_world.address(key, v) for key in policy_world.pod_keys()] for v in (4, 6)}
    hosts = {"node": tuple(policy_world.NODE.values())}
    hosts |= {address: (address, other) for address, other in zip(pods[4], pods[6], strict=True)}
    hosts[policy_world.RECREATED[4]] = tuple(policy_world.RECREATED.values())
    hosts["outside"] = policy_world.OUTSIDE[4] + policy_world.OUTSIDE[6]
    with Segment(hosts) as segment:
        yield Cluster(segment)
