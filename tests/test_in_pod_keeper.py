"""Who has which rules, over the in-memory kernel: put, renewed, taken away, and what happens while nothing is
known."""

import errno
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from sriov_cni.attachment import Sandbox
from sriov_cni.in_pod.keeper import Knowledge, RuleKeeper
from sriov_cni.in_pod.options import InPod, Ruled, Unsynced
from sriov_cni.in_pod.rule_book import RuleBooks
from sriov_cni.in_pod.table import TABLE
from tests.cluster_objects import endpoints, node, pod, policy, service
from tests.cni_world import quiet_log
from tests.fake_cluster import FakeCluster
from tests.fake_kernel import FakeKernel
from vf_manager.errors import Busy, KernelError, Refused
from vf_manager.kernel.api import Flow, FlowSide
from vf_manager.kernel.nft import Table
from vf_manager.model import IfName

ETH0, NET1 = IfName("eth0"), IfName("net1")
SERVICES, POLICY = InPod(services=True, wait_s=0), InPod(policy=True, wait_s=0)
BOTH = InPod(services=True, policy=True, wait_s=0)
WEB = service("web", "10.96.0.10")
DENY: dict[str, Any] = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@dataclass
class Place:
    kernel: FakeKernel = field(default_factory=FakeKernel)
    cluster: FakeCluster = field(
        default_factory=lambda: FakeCluster(node(), WEB, endpoints("web", "10.56.0.7"))
    )
    told: list[tuple[str, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keeper = self.new_keeper()

    def new_keeper(self) -> RuleKeeper:
        books = RuleBooks("node-1")

        def on_unknown(ruled: Ruled, why: str, *, failed: bool) -> None:
            self.told.append((why, failed))

        return RuleKeeper(
            self.kernel, self.cluster, lambda cluster: books.read(cluster, ()), quiet_log(), on_unknown
        )

    def new_pod(self, name: str = "a") -> "PodPlace":
        path = f"/run/netns/{name}"
        number = self.kernel.new_netns(path)
        return PodPlace(self, number, path, name)


@dataclass
class PodPlace:
    place: Place
    number: int
    path: str
    name: str

    @property
    def sandbox(self) -> Sandbox:
        return Sandbox(path=self.path, id=self.place.kernel.netns(self.number).id)

    def put(self, options: InPod = SERVICES, ifname: IfName = ETH0, uid: str = "") -> None:
        ruled = Ruled(ifname=ifname, pod=f"default/{self.name}", uid=uid, options=options)
        self.place.keeper.put(self.place.kernel.netns(self.number), self.sandbox, ruled)

    def remove(self, ifname: IfName = ETH0) -> None:
        self.place.keeper.remove(self.place.kernel.netns(self.number), self.sandbox, ifname)

    @property
    def table(self) -> Table | None:
        return self.place.kernel.nft.get(self.number, {}).get(TABLE)

    def endpoints_of(self, address: str = "10.96.0.10") -> set[str]:
        assert self.table is not None
        entries = self.table.sets["endpoints4"].entries
        packed = socket.inet_aton(address)
        return {
            socket.inet_ntoa(value[:4])
            for key, value in entries.items()
            if packed in key and isinstance(value, bytes)
        }

    def is_closed(self) -> bool:
        """Isolated, with nothing that lets anybody in."""
        assert self.table is not None
        return "policy-in" in self.table.chains and "policy-out" in self.table.chains


@pytest.fixture
def place() -> Place:
    return Place()


def test_the_table_goes_with_the_last_interface(place: Place) -> None:
    one = place.new_pod()
    one.put()
    one.put(ifname=NET1)
    assert one.table is not None
    assert [key.rstrip(b"\0") for key in one.table.sets["service_ifs"].entries] == [b"eth0", b"net1"]
    one.remove()
    assert [key.rstrip(b"\0") for key in one.table.sets["service_ifs"].entries] == [b"net1"]
    one.remove(NET1)
    assert one.table is None
    assert place.keeper.count() == 0
    one.remove(NET1)


def test_a_table_that_could_not_be_removed_is_removed_the_next_time(place: Place) -> None:
    one = place.new_pod()
    one.put()

    def refuse(name: str) -> None:
        if name == "delete_nft_table":
            raise KernelError(name, errno.ENOMEM)

    place.kernel.on_change = refuse
    with pytest.raises(KernelError):
        one.remove()
    place.kernel.on_change = lambda name: None
    one.remove()
    assert one.table is None
    assert place.keeper.count() == 0


def test_what_was_never_there_is_not_missed(place: Place) -> None:
    one = place.new_pod()
    place.kernel.nft[one.number] = {TABLE: Table(name=TABLE)}
    one.remove()
    assert one.table is not None, "it is somebody else's as far as we know"


def test_a_change_reaches_every_pod_once(place: Place) -> None:
    pods = [place.new_pod(name) for name in "abc"]
    for one in pods:
        one.put()
    changes: list[str] = []
    place.cluster.put(endpoints("web", "10.56.0.8"))
    place.kernel.on_change = changes.append
    place.keeper.renew()
    place.keeper.renew()
    assert changes == ["apply_nft"] * 3
    assert [one.endpoints_of() for one in pods] == [{"10.56.0.8"}] * 3


def test_what_is_the_same_for_all_is_the_same_object(place: Place) -> None:
    tables = []
    for name in "ab":
        one = place.new_pod(name)
        one.put()
        tables.append(one.table)
    first, second = tables
    assert first is not None
    assert second is not None
    assert first.sets["endpoints4"] is second.sets["endpoints4"]


def test_a_pod_that_fails_does_not_keep_others_waiting(place: Place) -> None:
    one, two = place.new_pod("a"), place.new_pod("b")
    one.put()
    two.put()
    broken = {one.number}

    def refuse(name: str) -> None:
        if name == "apply_nft" and broken:
            broken.clear()
            raise KernelError("apply", errno.ENOMEM)

    place.kernel.on_change = refuse
    place.cluster.put(endpoints("web", "10.56.0.9"))
    place.keeper.renew()
    assert two.endpoints_of() == {"10.56.0.9"}
    place.keeper.renew()
    assert one.endpoints_of() == {"10.56.0.9"}
    assert place.keeper.troubles() == {}


def test_a_table_that_somebody_removed_comes_back(place: Place) -> None:
    one = place.new_pod()
    one.put()
    place.kernel.nft[one.number].clear()
    place.keeper.renew()
    assert one.table is None, "nobody looks at every change"
    place.keeper.renew(look=True)
    assert one.endpoints_of() == {"10.56.0.7"}


def test_it_is_looked_for_while_the_cluster_changes_all_the_time(place: Place) -> None:
    one = place.new_pod()
    one.put()
    place.kernel.nft[one.number].clear()
    stop = threading.Event()
    watching = threading.Thread(target=place.keeper.watch, args=(stop, 0.2))
    watching.start()
    deadline = time.monotonic() + 10
    while one.table is None and time.monotonic() < deadline:
        place.keeper.mark()
        time.sleep(0.01)
    stop.set()
    place.keeper.mark()
    watching.join()
    assert one.endpoints_of() == {"10.56.0.7"}


def test_a_second_put_looks_whether_the_first_still_holds(place: Place) -> None:
    one = place.new_pod()
    one.put()
    place.kernel.nft[one.number].clear()
    one.put()
    assert one.endpoints_of() == {"10.56.0.7"}


# -- several at once

POD_NAMES, OWNERS, STEPS = "abc", 3, 60


def test_many_at_once_end_in_the_right_tables(place: Place) -> None:
    """Each owner has interfaces of his own in every pod, as calls for one interface come one by one; pods get
    rules and lose them while the cluster changes and everything is renewed."""
    pods = [place.new_pod(name) for name in POD_NAMES]
    place.cluster.put(*(pod(name, f"10.56.0.{number}") for number, name in enumerate(POD_NAMES, 100)))
    held: dict[tuple[str, IfName], InPod] = {}
    stop = threading.Event()

    def own(number: int) -> None:
        luck = random.Random(number)
        for _ in range(STEPS):
            one, ifname = luck.choice(pods), IfName(f"net{number}")
            if held.pop((one.name, ifname), None):
                one.remove(ifname)
            else:
                options = luck.choice((SERVICES, POLICY, BOTH))
                one.put(options, ifname)
                held[one.name, ifname] = options

    def change() -> None:
        luck = random.Random(0)
        while not stop.is_set():
            place.cluster.put(endpoints("web", f"10.56.0.{luck.randrange(1, 50)}"))
            selector = {"matchLabels": {"is": luck.choice("xy")}}
            place.cluster.put(policy("deny", podSelector=selector, policyTypes=["Egress"]))
            place.cluster.put(pod(luck.choice(POD_NAMES), labels={"is": luck.choice("xy")}))
            place.keeper.mark()

    def renew() -> None:
        while not stop.is_set():
            place.keeper.renew(look=True)

    with ThreadPoolExecutor() as threads:
        around = [threads.submit(change), threads.submit(renew), threads.submit(renew)]
        owners = [threads.submit(own, number) for number in range(OWNERS)]
        try:
            for owner in owners:
                owner.result(timeout=60)
        finally:
            stop.set()
        for one in around:
            one.result(timeout=60)
    place.keeper.renew()
    assert place.keeper.troubles() == {}
    found = {one.name: one.table for one in pods}
    assert found == {one.name: fresh_table(place, one.name, held) for one in pods}
    for name, ifname in held:
        next(one for one in pods if one.name == name).remove(ifname)
    assert [one.table for one in pods] == [None] * len(pods)
    assert place.keeper.count() == 0


def fresh_table(place: Place, name: str, held: dict[tuple[str, IfName], InPod]) -> Table | None:
    """What a pod with these interfaces gets that had nothing before."""
    elsewhere = Place(cluster=place.cluster).new_pod(name)
    for (holder, ifname), options in held.items():
        if holder == name:
            elsewhere.put(options, ifname)
    return elsewhere.table


def test_flows_are_looked_through_when_udp_goes_elsewhere(place: Place) -> None:
    """Not with every change: it takes the kernel longer than the change itself."""
    place.cluster.put(service("dns", "10.96.0.53", ports={"udp": 53}))
    place.cluster.put(endpoints("dns", "10.56.0.8", ports={"udp": 53}))
    one = place.new_pod()
    one.put()
    sent, answers = (
        FlowSide("10.56.0.5", 40000, "10.96.0.53", 53),
        FlowSide("10.56.0.9", 53, "10.56.0.5", 40000),
    )
    tracked = place.kernel.udp[one.number] = [Flow(17, sent, answers, dnat=True)]
    place.cluster.put(endpoints("web", "10.56.0.6"))
    place.keeper.renew()
    assert one.endpoints_of() == {"10.56.0.6"}
    assert len(tracked) == 1
    place.cluster.put(endpoints("dns", "10.56.0.7", ports={"udp": 53}))
    place.keeper.renew()
    assert tracked == []
    tracked.append(Flow(17, sent, answers, dnat=True))
    place.kernel.nft[one.number].clear()
    place.keeper.renew(look=True)
    assert tracked == [], "while there was no table anything may have begun"


def test_a_namespace_that_is_gone(place: Place) -> None:
    one = place.new_pod()
    one.put()
    del place.kernel.paths[one.path]
    place.cluster.put(endpoints("web", "10.56.0.9"))
    place.keeper.renew()
    assert place.keeper.troubles() == {}
    place.keeper.remove(None, one.sandbox, ETH0)
    assert place.keeper.count() == 0


# -- policy


def test_a_pod_is_judged_by_its_own_labels(place: Place) -> None:
    place.cluster.put(policy("deny", **DENY | {"podSelector": {"matchLabels": {"app": "db"}}}))
    place.cluster.put(pod("a", labels={"app": "db"}), pod("b"))
    for name, isolated in (("a", True), ("b", False)):
        one = place.new_pod(name)
        one.put(POLICY)
        assert one.table is not None
        assert ("policy-in" in one.table.chains) is isolated
        assert "services" not in one.table.chains


def test_a_peer_that_moves_between_rules_is_in_both_for_a_moment(place: Place) -> None:
    """Services change with the first of the two steps."""

    def rules(app: str, port: int) -> dict[str, Any]:
        return {"from": [{"podSelector": {"matchLabels": {"app": app}}}], "ports": [{"port": port}]}

    place.cluster.put(policy("in", podSelector={}, ingress=[rules("b", 80), rules("c", 81)]))
    place.cluster.put(pod("a"), pod("peer", "10.56.0.8", labels={"app": "b"}))
    one = place.new_pod()
    one.put(BOTH)
    seen: list[int] = []

    def count_peers(name: str) -> None:
        if name == "apply_nft" and one.table is not None:
            sets = one.table.sets
            seen.append(sum(socket.inet_aton("10.56.0.8") in sets[name].entries for name in sets))

    place.kernel.on_change = count_peers
    place.cluster.put(pod("peer", "10.56.0.8", labels={"app": "c"}), endpoints("web", "10.56.0.9"))
    place.keeper.renew()
    count_peers("apply_nft")
    assert seen == [1, 2, 1]
    assert one.endpoints_of() == {"10.56.0.9"}


def test_another_pod_of_the_same_name(place: Place) -> None:
    place.cluster.put(pod("a"))
    one = place.new_pod()
    with pytest.raises(Busy, match="says nothing of pod default/a"):
        one.put(POLICY, uid="another")
    assert one.table is None
    one.put(POLICY, uid="uid-default-a")


def test_labels_that_are_known_last_count_when_the_pod_is_gone(place: Place) -> None:
    place.cluster.put(policy("deny", **DENY | {"podSelector": {"matchLabels": {"app": "db"}}}))
    place.cluster.put(pod("a", labels={"app": "db"}))
    one = place.new_pod()
    one.put(POLICY)
    place.cluster.cluster = FakeCluster(policy("deny", **DENY)).cluster
    place.keeper.renew()
    assert one.is_closed()


def test_what_an_add_knows_is_not_undone_by_somebody_who_looked_before(place: Place) -> None:
    """The thread that renews looks once for all pods, and comes to this one after the ADD."""
    place.cluster.put(pod("a"), pod("b"))
    one, two = place.new_pod("a"), place.new_pod("b")
    one.put()
    two.put()

    def add_meanwhile(_: str) -> None:
        place.kernel.on_change = lambda _: None
        place.cluster.put(policy("deny", **DENY))
        two.put(POLICY, NET1)

    place.kernel.on_change = add_meanwhile
    place.cluster.put(endpoints("web", "10.56.0.9"))
    place.keeper.renew()
    assert two.is_closed()


def test_a_runtime_that_names_no_pod(place: Place) -> None:
    one = place.new_pod()
    ruled = Ruled(ifname=ETH0, options=POLICY)
    with pytest.raises(Refused, match="did not say which pod"):
        place.keeper.put(place.kernel.netns(one.number), one.sandbox, ruled)


# -- while the cluster is not known


@pytest.mark.parametrize("knowledge", [Knowledge.NOTHING, Knowledge.LAST])
def test_fail(place: Place, knowledge: Knowledge) -> None:
    place.cluster.knowledge = knowledge
    one = place.new_pod()
    with pytest.raises(Busy, match="; try again"):
        one.put()
    assert one.table is None
    assert place.keeper.count() == 0
    assert [failed for _, failed in place.told] == [True]


def test_start_with_what_was_known_last(place: Place) -> None:
    place.cluster.knowledge = Knowledge.LAST
    one = place.new_pod()
    one.put(InPod(services=True, wait_s=0, unsynced=Unsynced.START))
    assert one.endpoints_of() == {"10.56.0.7"}
    assert [failed for _, failed in place.told] == [False]


@pytest.mark.parametrize(("unsynced", "closed"), [(Unsynced.START, True), (Unsynced.OPEN, False)])
def test_start_while_no_policy_is_known(place: Place, unsynced: Unsynced, closed: bool) -> None:
    place.cluster.knowledge = Knowledge.NOTHING
    one = place.new_pod()
    one.put(InPod(policy=True, wait_s=0, unsynced=unsynced))
    assert one.is_closed() is closed
    place.cluster.put(pod("a"))
    place.cluster.knowledge = Knowledge.FRESH
    place.keeper.renew()
    assert not one.is_closed()


def test_after_a_restart_nothing_changes_until_the_cluster_is_known(place: Place) -> None:
    place.cluster.put(pod("a"), policy("deny", **DENY))
    one = place.new_pod()
    one.put(BOTH)
    before = one.table
    place.cluster = FakeCluster()
    place.cluster.knowledge = Knowledge.NOTHING
    place.keeper = place.new_keeper()
    ruled = Ruled(ifname=ETH0, pod="default/a", options=BOTH)
    place.keeper.adopt(one.sandbox, ruled)
    place.keeper.renew()
    place.keeper.renew(look=True)
    assert one.table is before
    place.cluster.put(
        pod("a"), policy("deny", **DENY), service("web", "10.96.0.10"), endpoints("web", "10.56.0.8")
    )
    place.cluster.knowledge = Knowledge.FRESH
    place.keeper.renew()
    assert one.endpoints_of() == {"10.56.0.8"}
    assert one.is_closed()
    one.remove()
    assert one.table is None


def test_a_cluster_that_is_not_followed_any_more(place: Place) -> None:
    """The config lost its `kubernetes`: whoever has rules keeps them."""
    place.cluster.put(pod("a"), policy("deny", **DENY))
    one = place.new_pod()
    one.put(BOTH)
    one.put(BOTH, NET1)
    before = one.table
    place.cluster.cluster, place.cluster.knowledge = FakeCluster().cluster, Knowledge.NOTHING
    place.keeper.renew(look=True)
    one.remove(NET1)
    assert one.table is before
    one.remove()
    assert one.table is None


def test_without_a_way_to_the_api_server(place: Place) -> None:
    place.cluster.is_there = False
    one = place.new_pod()
    with pytest.raises(Refused):
        one.put()
    assert one.table is None
