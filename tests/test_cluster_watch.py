"""An API server over real HTTP, followed by the official client: what is asked and allowed, and the end."""

import gc
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node_agent.api_errors import ApiServerError
from node_agent.backoff import Backoff
from node_agent.kube.api_stream import MOST_LINE, ApiStreams
from node_agent.kube.cluster_watch import ClusterWatch
from node_agent.kube.kinds import FOR_POLICY, FOR_SERVICES, Kind
from node_agent.kube.store import ClusterStore, WatchState
from node_agent.supervisor import Supervisor
from sriov_cni.in_pod.objects import Cluster
from tests.agent_node import eventually, open_fds
from tests.api_double import EVERYTHING, ApiDouble, Right, api_double, rights_of
from tests.cni_world import quiet_log
from tests.watch_cache import Object

COMPONENT = Path(__file__).parent.parent / "manifests/components/in-pod/rbac.yaml"
SHIPPED = rights_of(COMPONENT)
RESOURCE = {
    Kind.SERVICES: "services",
    Kind.SLICES: "endpointslices",
    Kind.POLICIES: "networkpolicies",
    Kind.PODS: "pods",
    Kind.NAMESPACES: "namespaces",
    Kind.NODE: "nodes",
}
ALL = frozenset(Kind)
SOON_S = 5.0
DENY = {"namespace": "ml", "name": "deny"}
SLICE = {"namespace": "ml", "name": "a-1"}


def service(name: str, ip: str = "10.96.0.1", **meta: Any) -> Object:
    metadata = {"namespace": "ml", "name": name, **meta}
    return {"metadata": metadata, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}}


def pod(name: str, phase: str = "Running", **meta: Any) -> Object:
    return {
        "metadata": {"namespace": "ml", "name": name, **meta},
        "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "pause"}]},
        "status": {"phase": phase, "podIPs": [{"ip": "10.0.0.1"}]},
    }


class Followed:
    """A cluster watch and its API server."""

    def __init__(self, double: ApiDouble, folder: Path) -> None:
        self.double = double
        self.supervisor = Supervisor(quiet_log())
        self.store = ClusterStore()
        self.watch = ClusterWatch(
            self.store, self.supervisor, quiet_log(), lambda: Backoff(0.002, 0.01, lambda: 0.0)
        )
        self.streams = ApiStreams(double.kubeconfig(folder), "node-1")

    def want(self, *kinds: Kind) -> None:
        self.watch.want(kinds, self.streams)

    def synced(self, *kinds: Kind) -> Cluster:
        assert self.store.wait_synced(kinds, SOON_S), self.store.states()
        return self.store.snapshot()

    def sees(self, condition: Callable[[Cluster], object]) -> None:
        eventually(lambda: condition(self.store.snapshot()), "it is seen")

    def state(self, kind: Kind) -> WatchState:
        eventually(lambda: kind in {state.kind for state in self.store.states()}, "its thread runs")
        (found,) = (state for state in self.store.states() if state.kind is kind)
        return found

    def end(self) -> None:
        began = time.monotonic()
        self.supervisor.stop.set()
        self.watch.wake()
        self.supervisor.join(SOON_S)
        assert time.monotonic() - began < SOON_S


def fds_in_use() -> int:
    """Without those of earlier tests that nothing has closed but the garbage collector may."""
    gc.collect()
    return open_fds()


@pytest.fixture
def double() -> Iterator[ApiDouble]:
    with api_double() as double:
        yield double


@pytest.fixture
def followed(double: ApiDouble, tmp_path: Path) -> Iterator[Followed]:
    before = set(threading.enumerate())
    followed = Followed(double, tmp_path)
    yield followed
    assert followed.supervisor.why_unwell() is None
    followed.end()
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("watch-")]


def test_everything_that_happens_is_seen(followed: Followed) -> None:
    double = followed.double
    double.put("services", service("a"))
    double.put("pods", pod("p", labels={"app": "x"}))
    double.put("namespaces", {"metadata": {"name": "ml", "labels": {"team": "a"}}})
    double.put("nodes", {"metadata": {"name": "node-1"}})
    double.put("nodes", {"metadata": {"name": "node-2"}})
    followed.want(*ALL)
    seen = followed.synced(*ALL)
    assert (list(seen.services), list(seen.pods), list(seen.namespaces)) == (["ml/a"], ["ml/p"], ["ml"])
    assert seen.node is not None
    assert seen.node.metadata.name == "node-1"
    double.put("services", service("a", "10.96.0.2"))
    double.put("services", service("b"))
    double.delete("pods", "ml/p")
    double.put("networkpolicies", {"metadata": DENY, "spec": {"podSelector": {}}})
    double.put("endpointslices", {"metadata": SLICE, "addressType": "IPv4", "endpoints": None})
    followed.sees(
        lambda now: (
            now.services.keys() == {"ml/a", "ml/b"}
            and now.services["ml/a"].spec.cluster_ip == "10.96.0.2"
            and not now.pods
            and now.policies.keys() == {"ml/deny"}
            and now.slices.keys() == {"ml/a-1"}
        )
    )
    assert seen.services.keys() == {"ml/a"}, "a snapshot stays as it is"


def test_what_nobody_needs_is_not_asked_for(followed: Followed) -> None:
    double = followed.double
    double.put("services", service("theirs", labels={"service.kubernetes.io/service-proxy-name": "other"}))
    double.put("pods", pod("done", "Succeeded"))
    double.put("pods", pod("p"))
    headless = {"labels": {"service.kubernetes.io/headless": ""}}
    double.put("endpointslices", {"metadata": SLICE | headless, "addressType": "IPv4"})
    followed.want(*ALL)
    seen = followed.synced(*ALL)
    assert (seen.services, list(seen.pods), seen.slices) == ({}, ["ml/p"], {})
    double.put("pods", pod("p", "Failed"))
    followed.sees(lambda now: not now.pods)


def test_what_is_kept_of_an_object(followed: Followed) -> None:
    mode = {"service.kubernetes.io/topology-mode": "Auto"}
    followed.double.put("services", service("a", annotations=mode | {"big": "y" * 1000}, managedFields=[{}]))
    followed.double.put("pods", pod("p", annotations=mode, managedFields=[{}]))
    followed.want(*ALL)
    seen = followed.synced(*ALL)
    assert seen.services["ml/a"].metadata.annotations == mode
    assert seen.pods["ml/p"].metadata.annotations == {}
    assert seen.pods["ml/p"].metadata.uid


def test_many_objects_come_in_pages_of_one_moment(followed: Followed) -> None:
    for i in range(1001):
        followed.double.put("pods", pod(f"p{i}"))
    followed.want(Kind.PODS)
    assert len(followed.synced(Kind.PODS).pods) == 1001
    assert sum("limit=500" in request for request in followed.double.requests) == 3


def test_watches_do_not_end_at_one_moment(followed: Followed) -> None:
    followed.want(*ALL)
    eventually(lambda: len(followed.double.cache.watching) == 6, "all are watched")
    asked = re.findall(r"timeoutSeconds=(\d+)", " ".join(followed.double.requests))
    assert len(asked) == 6
    assert all(300 <= int(seconds) <= 600 for seconds in asked)
    assert len(set(asked)) > 1


@pytest.mark.parametrize("in_the_middle", [True, False])
def test_a_watch_that_ends_is_resumed(followed: Followed, in_the_middle: bool) -> None:
    followed.want(Kind.SERVICES)
    followed.synced(Kind.SERVICES)
    eventually(lambda: followed.double.cache.watching, "it watches")
    followed.double.drop_watches(in_the_middle=in_the_middle)
    followed.double.put("services", service("a"))
    followed.sees(lambda now: now.services)
    assert followed.state(Kind.SERVICES).relists == 0


@pytest.mark.parametrize("late", [True, False])
def test_a_forgotten_history_is_a_new_list(followed: Followed, late: bool) -> None:
    double = followed.double
    double.cache.says_gone_late = late
    double.put("services", service("a"))
    followed.want(Kind.SERVICES)
    before = followed.synced(Kind.SERVICES)
    eventually(lambda: double.cache.watching, "it watches")
    double.go_away()
    eventually(lambda: not followed.store.synced({Kind.SERVICES}), "it is noticed")
    assert followed.store.listed({Kind.SERVICES})
    assert followed.store.snapshot() is before, "what is known stays"
    assert followed.state(Kind.SERVICES).trouble
    double.delete("services", "ml/a")
    double.put("services", service("b"))
    double.put("services", service("c"))
    double.forget_history()
    double.come_back()
    followed.sees(lambda now: now.services.keys() == {"ml/b", "ml/c"})
    followed.synced(Kind.SERVICES)
    state = followed.state(Kind.SERVICES)
    assert (state.relists, state.trouble, state.objects) == (1, "", 2)
    assert state.failures > 1


def test_a_bookmark_spares_a_new_list(followed: Followed) -> None:
    followed.want(Kind.SERVICES)
    followed.synced(Kind.SERVICES)
    eventually(lambda: followed.double.cache.watching, "it watches")
    heard = followed.state(Kind.SERVICES).last_event_unix
    followed.double.put("pods", pod("p"))  # of another kind: the version goes on all the same
    followed.double.cache.bookmark()
    eventually(lambda: followed.state(Kind.SERVICES).last_event_unix > heard, "the bookmark arrives")
    followed.double.forget_history()
    followed.double.drop_watches()
    followed.double.put("services", service("a"))
    followed.sees(lambda now: now.services)
    assert followed.state(Kind.SERVICES).relists == 0


def test_an_api_server_that_is_busy_says_when_to_come_again(double: ApiDouble, tmp_path: Path) -> None:
    stream = ApiStreams(double.kubeconfig(tmp_path), "node-1").open(Kind.PODS)
    double.status, double.retry_after_s = 429, 7
    with pytest.raises(ApiServerError, match="list pods: the API server says 429") as caught:
        stream.list_page(1, "")
    assert (caught.value.retry_after_s, caught.value.is_away) == (7, True)
    stream.close()


def test_a_line_that_is_too_long_is_dropped_and_all_is_listed(followed: Followed) -> None:
    followed.want(Kind.SERVICES)
    followed.synced(Kind.SERVICES)
    eventually(lambda: followed.double.cache.watching, "it watches")
    followed.double.put("services", service("a", annotations={"x": "y" * MOST_LINE}))
    followed.sees(lambda now: now.services)
    assert followed.state(Kind.SERVICES).relists == 1


def test_a_peer_that_falls_silent_is_noticed(double: ApiDouble, tmp_path: Path) -> None:
    double.cache.keeps_time = False
    stream = ApiStreams(double.kubeconfig(tmp_path), "node-1", slack_s=0.05).open(Kind.PODS)
    began = time.monotonic()
    with stream.watch("100", 1) as lines, pytest.raises(ApiServerError, match=r"watch pods: .* timed out"):
        next(lines)
    assert 1 < time.monotonic() - began < 5
    stream.close()


def test_a_connection_that_rests_ends_with_its_stream(double: ApiDouble, tmp_path: Path) -> None:
    stream = ApiStreams(double.kubeconfig(tmp_path), "node-1").open(Kind.PODS)
    before = fds_in_use()
    assert b'"items": []' in stream.list_page(1, "")
    assert open_fds() > before
    stream.close()
    eventually(lambda: open_fds() <= before, "no descriptor is left")
    with pytest.raises(ApiServerError, match="list pods: the API server cannot be reached"):
        stream.list_page(1, "")


def test_what_is_wanted_changes_while_it_runs(followed: Followed) -> None:
    double = followed.double
    double.put("services", service("a"))
    double.put("pods", pod("p"))
    followed.want(*FOR_SERVICES)
    assert followed.synced(*FOR_SERVICES).pods == {}
    eventually(lambda: len(double.cache.watching) == 3, "these are followed")
    asked = len(double.requests)
    followed.want(*FOR_SERVICES, *FOR_POLICY)
    assert followed.synced(*ALL).pods
    eventually(lambda: len(double.cache.watching) == 6, "all are followed")
    assert len(double.requests) == asked + 6, "what was followed goes on"
    followed.want(*FOR_POLICY)
    eventually(lambda: len(double.cache.watching) == 4, "the others are not, any more")
    eventually(lambda: followed.store.snapshot().services == {}, "nothing is kept of them")
    assert not followed.store.listed({Kind.SERVICES})
    followed.watch.want((), None)
    eventually(lambda: not double.cache.watching and not followed.store.states(), "nothing is")
    followed.want(Kind.SERVICES)
    assert followed.synced(Kind.SERVICES).services


def test_another_api_server(followed: Followed, tmp_path: Path) -> None:
    followed.double.put("services", service("a"))
    followed.want(Kind.SERVICES)
    followed.synced(Kind.SERVICES)
    with api_double() as other:
        other.put("services", service("b"))
        other.gate.clear()
        followed.watch.want([Kind.SERVICES], ApiStreams(other.kubeconfig(tmp_path), "node-1"))
        eventually(lambda: other.requests, "it is asked")
        assert not followed.store.synced({Kind.SERVICES})
        assert followed.store.snapshot().services.keys() == {"ml/a"}, "until that answers"
        other.gate.set()
        followed.sees(lambda now: now.services.keys() == {"ml/b"})
        eventually(lambda: not followed.double.cache.watching, "the old one is left alone")
        followed.watch.want((), None)


@pytest.mark.parametrize("hangs", [False, True])
def test_the_end_comes_at_once_and_leaves_nothing(double: ApiDouble, tmp_path: Path, hangs: bool) -> None:
    begin_and_end(double, tmp_path, hangs)


@pytest.mark.parametrize("hangs", [False, True])
def test_the_end_comes_at_once_with_tls_too(certificate: Path, tmp_path: Path, hangs: bool) -> None:
    with api_double(certificate=certificate) as double:
        begin_and_end(double, tmp_path, hangs)


def begin_and_end(double: ApiDouble, tmp_path: Path, hangs: bool) -> None:
    before = fds_in_use()
    followed = Followed(double, tmp_path)
    if hangs:  # no answer begins
        double.gate.clear()
        followed.want(*ALL)
        eventually(lambda: len(double.requests) == 6, "all are asked for")
    else:
        followed.want(*ALL)
        followed.synced(*ALL)
        eventually(lambda: len(double.cache.watching) == 6, "all are watched")
    followed.end()
    double.gate.set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("watch-")]
    eventually(lambda: open_fds() <= before, "no descriptor is left")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = (
        "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -subj /CN=api"
    )
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *names, "-keyout", path, "-out", path], check=True, capture_output=True)
    return path


def test_an_end_while_nobody_is_there(double: ApiDouble, tmp_path: Path) -> None:
    followed = Followed(double, tmp_path)
    double.go_away()
    followed.want(*ALL)
    eventually(lambda: sum(state.failures > 0 for state in followed.store.states()) == 6, "all fail")
    assert not followed.store.wait_synced(ALL, 0.01)
    followed.end()
    double.come_back()


@pytest.mark.parametrize("seed", range(3))
def test_a_bad_day_of_the_api_server(followed: Followed, seed: int) -> None:
    """All of it, with real threads; every order of things is in test_reflector.py."""
    double, dice = followed.double, random.Random(seed)
    followed.want(*ALL)
    for step in range(300):
        name = f"x{dice.randrange(8)}"
        match dice.choice(
            ["put", "put", "put", "delete", "drop", "forget", "bookmark", "away", "busy", "hang"]
        ):
            case "put":
                double.put("services", service(name, f"10.96.0.{step % 250}"))
                double.put("pods", pod(name, dice.choice(["Running", "Succeeded"]), uid=str(step)))
            case "delete" if f"ml/{name}" in double.cache.objects("pods"):
                double.delete("services", f"ml/{name}")
                double.delete("pods", f"ml/{name}")
            case "drop":
                double.drop_watches(in_the_middle=dice.random() < 0.5)
                double.cache.replay = dice.randrange(3)
            case "forget":
                double.cache.says_gone_late = dice.random() < 0.5
                double.forget_history()
            case "bookmark":
                double.cache.bookmark()
            case "away" if dice.random() < 0.3:
                double.go_away()
                double.put("services", service(name, "10.97.0.1"))
                double.come_back()
            case "busy":
                double.status = dice.choice([429, 500, 503, None])
            case "hang":
                double.gate.clear() if double.gate.is_set() else double.gate.set()
    double.status = None
    double.gate.set()
    followed.sees(lambda now: seen_in(now) == there_in(double))
    followed.synced(*ALL)


def seen_in(now: Cluster) -> object:
    pods = {key: one.metadata.uid for key, one in now.pods.items()}
    return {key: one.spec.cluster_ip for key, one in now.services.items()}, pods


def there_in(double: ApiDouble) -> object:
    services, pods = double.cache.objects("services"), double.cache.objects("pods")
    running = {key: one for key, one in pods.items() if one["status"]["phase"] == "Running"}
    return (
        {key: one["spec"]["clusterIP"] for key, one in services.items()},
        {key: one["metadata"]["uid"] for key, one in running.items()},
    )


# -- RBAC


def test_the_shipped_rules_are_enough(followed: Followed) -> None:
    followed.double.rights = SHIPPED
    followed.want(*ALL)
    followed.synced(*ALL)
    eventually(lambda: len(followed.double.cache.watching) == 6, "all are watched")
    assert followed.double.forbidden == []


@pytest.mark.parametrize("right", sorted(SHIPPED), ids=" ".join)
def test_no_shipped_rule_is_idle(followed: Followed, right: Right) -> None:
    followed.double.rights = SHIPPED - {right}
    (lost,) = (kind for kind, resource in RESOURCE.items() if resource == right.resource)
    followed.want(*ALL)
    followed.synced(*ALL - {lost})
    eventually(lambda: "403" in followed.state(lost).trouble, "that is refused, and said")
    assert set(followed.double.forbidden) == {right}
    assert followed.store.listed({lost}) == (right.verb == "watch")
    followed.double.rights = EVERYTHING
    followed.synced(lost)


def test_it_adds_nothing_that_the_agent_has_already() -> None:
    assert not SHIPPED & rights_of()
    assert {right.verb for right in SHIPPED} == {"list", "watch"}
