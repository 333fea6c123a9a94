"""Nine pods with the rules of their policies in force, as namespaces on one segment."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from sriov_cni.in_pod.policy_steps import step_between
from sriov_cni.in_pod.render_policy import PolicyParts
from tests import policy_world
from tests.netns.segment import Segment
from tests.policy_judge import TABLE, Judge, State, table_of
from vf_manager.kernel.meter import Meter
from vf_manager.kernel.netns import Netns
from vf_manager.kernel.nft import Chain, Elements, Table
from vf_manager.kernel.nft_messages import Memo
from vf_manager.kernel.nft_socket import apply_table, delete_table


class Cluster:
    """Each address of a pod is a host; what is in force there follows the state of the cluster."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._parts: dict[str, PolicyParts] = {}
        self._tables: dict[str, Table] = {}
        self._memo = Memo()
        self._judge: Judge | None = None

    def become(self, state: State) -> None:
        self._judge = judge = Judge(state, self._judge)
        for address in self.segment.spaces:
            old, new = self._parts.pop(address, None), judge.parts.get(address)
            if new is not None:
                self._parts[address] = new
                between = step_between(old, new) if old else None
                for parts in filter(None, (between, new)):
                    self._put(address, table_of(parts))
            elif old is not None:
                self._delete(address)

    def add_service(self, address: str, endpoints: Elements, services: Chain) -> None:
        """Into the table of that pod, besides its policy, until the next state."""
        old = self._tables[address]
        sets, chains = {**old.sets, "endpoints4": endpoints}, {**old.chains, "services": services}
        self._put(address, Table(TABLE, sets, chains))

    def _put(self, address: str, table: Table) -> None:
        with closing(Netns(self.segment.spaces[address].fd)) as netns:
            apply_table(netns, self._tables.get(address), table, self._memo, Meter())
        self._tables[address] = table

    def _delete(self, address: str) -> None:
        with closing(Netns(self.segment.spaces[address].fd)) as netns:
            delete_table(netns, TABLE, Meter())
        del self._tables[address]


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
