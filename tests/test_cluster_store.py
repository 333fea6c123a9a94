"""What is known of the cluster: snapshots that never change, what they share, and how it stands."""

import threading

import pytest

from node_agent.kube.kinds import FOR_POLICY, FOR_SERVICES, Kind
from node_agent.kube.store import ClusterStore
from sriov_cni.in_pod.objects import Cluster, Meta, Namespace, Node, Pod
from tests.fake_clock import FakeClock


def pod(name: str, **labels: str) -> Pod:
    return Pod(metadata=Meta(namespace="ml", name=name, labels=labels))


class Marks:
    def __init__(self, store: ClusterStore) -> None:
        self.count = 0
        store.subscribe(self._mark)

    def _mark(self) -> None:
        self.count += 1

    def taken(self) -> int:
        count, self.count = self.count, 0
        return count


@pytest.fixture
def store() -> ClusterStore:
    store = ClusterStore()
    for kind in (Kind.PODS, Kind.NAMESPACES, Kind.NODE):
        store.begin(kind)
    return store


def test_nothing_is_known_at_first() -> None:
    store = ClusterStore()
    assert store.snapshot() == Cluster()
    assert store.states() == ()
    assert not store.synced({Kind.PODS})
    assert store.synced(())


def test_a_snapshot_stays_as_it_is(store: ClusterStore) -> None:
    store.replace(Kind.PODS, {"ml/a": pod("a")}, set())
    first = store.snapshot()
    store.put(Kind.PODS, "ml/b", pod("b"))
    second = store.snapshot()
    store.remove(Kind.PODS, "ml/a")
    third = store.snapshot()
    store.replace(Kind.PODS, {}, set())
    found = [list(one.pods) for one in (first, second, third, store.snapshot())]
    assert found == [["ml/a"], ["ml/a", "ml/b"], ["ml/b"], []]


def test_what_did_not_change_is_the_same_object(store: ClusterStore) -> None:
    store.replace(Kind.PODS, {"ml/a": pod("a")}, set())
    store.replace(Kind.NAMESPACES, {"ml": Namespace(metadata=Meta(name="ml"))}, set())
    first = store.snapshot()
    assert store.snapshot() is first
    store.put(Kind.PODS, "ml/a", pod("a", app="x"))
    second = store.snapshot()
    assert second.namespaces is first.namespaces
    assert second.pods is not first.pods


def test_many_changes_between_two_looks_cost_one_copy(store: ClusterStore) -> None:
    store.replace(Kind.PODS, {}, set())
    store.snapshot()
    store.put(Kind.PODS, "ml/a", pod("a"))
    live = store.known(Kind.PODS)
    for i in range(100):
        store.put(Kind.PODS, "ml/a", pod("a", app=str(i)))
    assert store.known(Kind.PODS) is live


def test_what_changes_nothing_marks_nothing(store: ClusterStore) -> None:
    store.replace(Kind.PODS, {"ml/a": pod("a")}, set())
    first, marks = store.snapshot(), Marks(store)
    store.put(Kind.PODS, "ml/a", pod("a"))
    store.remove(Kind.PODS, "ml/z")
    store.well(Kind.PODS)
    store.hear(Kind.PODS)
    assert marks.taken() == 0
    store.replace(Kind.PODS, {"ml/a": pod("a")}, set())
    assert store.snapshot() is first
    store.put(Kind.PODS, "ml/b", pod("b"))
    assert marks.taken() >= 1


def test_the_node_is_one(store: ClusterStore) -> None:
    node = Node(metadata=Meta(name="node-1"))
    store.put(Kind.NODE, "node-1", node)
    assert store.snapshot().node == node
    store.remove(Kind.NODE, "node-1")
    assert store.snapshot().node is None


def test_trouble_ends_being_synced_but_not_being_known(store: ClusterStore) -> None:
    pods = {Kind.PODS}
    assert (store.synced(pods), store.listed(pods)) == (False, False)
    store.replace(Kind.PODS, {}, set())
    assert store.synced(pods)
    assert not store.synced({Kind.PODS, Kind.NODE})
    marks = Marks(store)
    store.fail(Kind.PODS, "it is gone")
    assert (store.synced(pods), store.listed(pods), marks.taken()) == (False, True, 1)
    store.well(Kind.PODS)
    assert (store.synced(pods), marks.taken()) == (True, 1)
    store.forget(Kind.PODS)
    assert (store.synced(pods), store.listed(pods)) == (False, False)


def test_waiting_ends_with_the_last_kind(store: ClusterStore) -> None:
    kinds = {Kind.PODS, Kind.NAMESPACES}
    assert not store.wait_synced(kinds, 0.001)
    store.replace(Kind.PODS, {}, set())
    last = threading.Thread(target=store.replace, args=(Kind.NAMESPACES, {}, set()))
    last.start()
    assert store.wait_synced(kinds, 5.0)
    last.join()


def test_how_it_stands() -> None:
    clock = FakeClock()
    store = ClusterStore(wall=clock)
    store.begin(Kind.PODS)
    (state,) = store.states()
    assert (state.kind, state.listed, state.trouble) == (Kind.PODS, False, "not listed yet")
    clock.pass_by(5)
    store.replace(Kind.PODS, {"ml/a": pod("a")}, {"ml/x", "ml/y"})
    store.fail(Kind.PODS, "it is gone")
    store.replace(Kind.PODS, {"ml/a": pod("a")}, {"ml/x"})
    (state,) = store.states()
    assert (state.objects, state.skipped, state.relists, state.failures) == (1, 1, 1, 1)
    assert (state.listed, state.synced, state.trouble) == (True, True, "")
    assert state.last_event_unix == clock.now
    clock.pass_by(5)
    store.hear(Kind.PODS)
    assert store.states()[0].last_event_unix == clock.now


def test_what_is_not_understood_is_counted_until_it_is_or_goes(store: ClusterStore) -> None:
    assert [store.skip(Kind.PODS, key) for key in ("ml/a", "ml/b", "ml/a")] == [True, True, False]

    def skipped() -> list[int]:
        return [state.skipped for state in store.states() if state.kind is Kind.PODS]

    assert skipped() == [2]
    store.put(Kind.PODS, "ml/a", pod("a"))
    assert skipped() == [1]
    store.remove(Kind.PODS, "ml/b")
    assert skipped() == [0]


def test_a_callback_may_look(store: ClusterStore) -> None:
    seen: list[int] = []
    store.subscribe(lambda: seen.append(len(store.snapshot().pods)))
    store.put(Kind.PODS, "ml/a", pod("a"))
    store.put(Kind.PODS, "ml/b", pod("b"))
    assert seen == [1, 2]


def test_kinds_are_the_fields_of_a_cluster() -> None:
    assert [kind.value for kind in Kind] == list(Cluster.__struct_fields__)
    assert set(Kind) == FOR_SERVICES | FOR_POLICY
