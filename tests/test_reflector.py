"""One kind followed, whatever the API server does: it converges, and never shows what never was."""

import itertools
import json
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from node_agent.api_errors import ApiServerError
from node_agent.backoff import Backoff
from node_agent.kube.decode import TooLong, parse_object, split_lines
from node_agent.kube.kinds import Kind, selectors_of
from node_agent.kube.reflector import Reflector
from node_agent.kube.store import ClusterStore
from sriov_cni.in_pod.objects import Pod
from tests.cni_world import quiet_log
from tests.fake_clock import FakeClock
from tests.watch_cache import Dropped, Object, Refused, WatchCache, key_of

MOST_LINE = 16384


class CacheSource:
    """A watch cache without a network. A watch ends with what there is. `is_away`: nobody answers. `cut_at`:
    after how many bytes the next watch is cut off."""

    def __init__(self, cache: WatchCache) -> None:
        self.cache = cache
        self.is_away = False
        self.cut_at: int | None = None
        self.lists: list[int] = []
        self.most_page: int | None = None
        self._selector = {"fieldSelector": selectors_of(Kind.PODS, "node-1").field or ""}

    def list_page(self, limit: int, token: str) -> bytes:
        self.lists.append(limit)
        if self.most_page is not None and limit > self.most_page:
            raise TooLong("a page")
        query = {"limit": str(limit)} | ({"continue": token} if token else {})
        with self._answered():
            return json.dumps(self.cache.page("pods", self._selector | query)).encode()

    @contextmanager
    def watch(self, version: str, timeout_s: int) -> Iterator[Iterator[bytes]]:
        query = {"resourceVersion": version, "timeoutSeconds": "0", "allowWatchBookmarks": "true"}
        with self._answered():
            chunks = self.cache.watch("pods", self._selector | query, lambda: True)
        yield self._lines(chunks)

    def close(self) -> None:
        pass

    def _lines(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        with self._answered():
            yield from split_lines(self._cut(chunks), MOST_LINE)

    def _cut(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        rest, self.cut_at = self.cut_at, None
        for chunk in chunks:
            if rest is not None and (rest := rest - len(chunk)) < 0:
                yield chunk[:rest]
                raise Dropped
            yield chunk

    @contextmanager
    def _answered(self) -> Iterator[None]:
        if self.is_away:
            raise ApiServerError("nobody answers")
        try:
            yield
        except Refused as e:
            raise ApiServerError(str(e), e.status) from e
        except Dropped as e:
            raise ApiServerError("the connection ended") from e


class World:
    def __init__(self, page: int = 2) -> None:
        self.cache = WatchCache()
        self.source = CacheSource(self.cache)
        self.store = ClusterStore()
        self.clock = FakeClock()
        self.reflector = Reflector(
            Kind.PODS,
            self.store,
            quiet_log(),
            backoff=Backoff(1.0, 30.0, lambda: 0.0),
            page=page,
            fraction=lambda: 0.0,
            clock=self.clock,
        )
        self.store.begin(Kind.PODS)
        self.reflector.aim(self.source)

    def step(self) -> float:
        return self.reflector.step(self.source)

    def seen(self) -> Mapping[str, Pod]:
        return self.store.snapshot().pods

    def there(self) -> dict[str, Pod]:
        """Of what is asked for and understood."""
        running = {k: one for k, one in self.cache.objects("pods").items() if one["status"]["phase"] == RUNS}
        return {k: decoded(one) for k, one in running.items() if one["spec"] != BROKEN}

    def is_synced(self) -> bool:
        return self.store.synced({Kind.PODS})


RUNS, ENDED = "Running", "Succeeded"
BROKEN: Object = {"containers": [{"ports": [{"containerPort": "http"}]}]}


def pod(name: str, ip: int = 1, phase: str = RUNS, spec: Object | None = None, **meta: Any) -> Object:
    return {
        "metadata": {"namespace": "ml", "name": name, **meta},
        "spec": spec or {"nodeName": "node-1", "containers": [{"ports": [{"containerPort": 80}]}]},
        "status": {"phase": phase, "podIPs": [{"ip": f"10.0.0.{ip}"}]},
    }


def decoded(one: Object) -> Pod:
    found, _ = parse_object(Kind.PODS, msgspec.Raw(json.dumps(one).encode()))
    assert isinstance(found, Pod)
    return found


# -- any order of things

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
OPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), NAMES, st.integers(1, 3)),
        st.tuples(st.just("end"), NAMES),
        st.tuples(st.just("delete"), NAMES),
        st.tuples(st.just("break"), NAMES),
        st.tuples(st.just("away"), st.booleans()),
        st.tuples(st.just("cut"), st.integers(0, 3000)),
        st.tuples(st.just("forget"), st.booleans()),
        st.just(("step",)),
        st.just(("step",)),
    ),
    max_size=30,
)


def happen(world: World, op: tuple[Any, ...]) -> None:
    match op:
        case "put", name, ip:
            world.cache.put("pods", pod(name, ip))
        case "end", name:
            world.cache.put("pods", pod(name, phase=ENDED))
        case "delete", name if f"ml/{name}" in world.cache.objects("pods"):
            world.cache.delete("pods", f"ml/{name}")
        case "break", name:
            world.cache.put("pods", pod(name, spec=BROKEN))
        case "away", is_away:
            world.source.is_away = is_away
        case "cut", cut_at:
            world.source.cut_at = cut_at
        case "forget", late:
            world.cache.says_gone_late = late
            world.cache.forget_history()
        case ("step",):
            world.step()


def converge(world: World) -> None:
    """It is there again, and everything may fail once more."""
    world.source.is_away = False
    for _ in range(4):
        world.step()


@settings(max_examples=100)
@given(ops=OPS, replay=st.integers(0, 3))
def test_whatever_happens_it_ends_with_what_is_there(ops: list[tuple[Any, ...]], replay: int) -> None:
    world = World()
    world.cache.replay = replay
    for op in ops:
        happen(world, op)
    converge(world)
    broken = {key for key, one in world.cache.objects("pods").items() if one["spec"] == BROKEN}
    assert {key: one for key, one in world.seen().items() if key not in broken} == world.there()
    (state,) = world.store.states()
    assert (world.is_synced(), state.skipped, state.objects) == (True, len(broken), len(world.seen()))


@settings(max_examples=100)
@given(ops=OPS.filter(lambda ops: not any(op[0] == "break" for op in ops)))
def test_what_is_shown_was_true_at_one_moment(ops: list[tuple[Any, ...]]) -> None:
    """Also while everything is listed anew, which takes several pages."""
    world = World()
    was = [world.there()]
    shown = []
    world.store.subscribe(lambda: shown.append(world.seen()))
    for op in ops:
        happen(world, op)
        was.append(world.there())
    converge(world)
    assert all(one in was for one in shown)


# -- one thing after another


def test_what_is_known_stays_until_the_new_list_is_complete() -> None:
    world = World()
    for name in "abc":
        world.cache.put("pods", pod(name))
    world.step()
    before = world.seen()
    world.cache.put("pods", pod("d"))
    world.cache.forget_history()
    world.step()
    assert (world.seen() is before, world.is_synced()) == (True, False)
    world.source.is_away = True
    world.step()
    assert world.seen() is before
    world.source.is_away = False
    world.step()
    assert world.seen() == world.there()
    assert world.seen()["ml/a"] is before["ml/a"], "no second one of what is as it was"


def test_pages_that_expire_are_begun_anew() -> None:
    world = World()
    for name in "abcde":
        world.cache.put("pods", pod(name))
    plain, pages = world.source.list_page, iter([True, False])

    def forgetful(limit: int, token: str) -> bytes:
        if token and next(pages, False):
            world.cache.forget_history()
        return plain(limit, token)

    world.source.list_page = forgetful  # type: ignore[method-assign]
    assert world.step() == 1
    assert world.seen() == {}
    world.step()
    assert world.seen() == world.there()


def test_pages_that_are_too_long_get_shorter() -> None:
    world = World(page=100)
    world.source.most_page = 30
    world.cache.put("pods", pod("a"))
    world.step()
    assert not world.is_synced()
    world.step()
    world.step()
    assert world.source.lists == [100, 50, 25]
    assert world.seen() == world.there()


def test_an_object_that_is_not_understood_is_named_once_and_stays_as_it_was() -> None:
    world = World()
    world.cache.put("pods", pod("a"))
    world.step()
    with capture_logs() as log:
        for ip in (2, 3):
            world.cache.put("pods", pod("a", ip, spec=BROKEN))
            world.cache.put("pods", pod("b", ip))
            world.step()
        world.cache.put("pods", pod("c"))
        world.cache.forget_history()
        world.step()
        world.step()
    assert world.store.states()[0].relists == 1
    said = [line for line in log if "not understood" in line["event"]]
    assert [(line["object"], line["kind"]) for line in said] == [("ml/a", "pods")]
    assert "containerPort" in said[0]["error"]
    assert world.seen()["ml/a"].status.pod_ips[0].ip == "10.0.0.1"
    assert world.seen()["ml/b"].status.pod_ips[0].ip == "10.0.0.3"
    world.cache.put("pods", pod("a", 4))
    world.step()
    assert world.seen() == world.there()
    assert world.store.states()[0].skipped == 0


def test_a_line_that_is_too_long_ends_the_watch_and_all_is_listed() -> None:
    world = World()
    world.step()
    world.cache.put("pods", pod("a", annotations={"x": "y" * MOST_LINE}))
    world.step()
    assert "longer than 16384 bytes" in world.store.states()[0].trouble
    world.step()
    assert world.seen() == world.there()


def test_what_changes_nothing_that_is_kept_changes_nothing() -> None:
    world = World()
    world.cache.put("pods", pod("a"))
    world.step()
    before = world.store.snapshot()
    world.cache.put("pods", pod("a", annotations={"seen": "now"}))
    world.step()
    assert world.store.snapshot() is before


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'{"type": "NEWS", "object": {}}',
        b'{"type": "ADDED", "object": {"metadata": 1}}',
        b'{"type": "BOOKMARK", "object": {}}',
        b'{"type": "ERROR", "object": 1}',
        b'{"type": "ERROR", "object": {"code": 410}}',
        b"\xff",
    ],
)
def test_a_stream_that_says_nonsense_is_left_and_all_is_listed(line: bytes) -> None:
    world = World()
    world.step()
    plain = world.source.watch

    @contextmanager
    def nonsense(version: str, timeout_s: int) -> Iterator[Iterator[bytes]]:
        yield iter([line])

    world.source.watch = nonsense  # type: ignore[method-assign]
    world.cache.put("pods", pod("a"))
    world.step()
    assert not world.is_synced()
    world.source.watch = plain  # type: ignore[method-assign]
    world.step()
    assert (world.seen(), len(world.source.lists)) == (world.there(), 2)


def test_away_it_is_asked_ever_less_often() -> None:
    world = World()
    world.source.is_away = True
    with capture_logs() as log:
        assert [world.step() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert [line["log_level"] for line in log] == ["warning"]
    world.source.is_away = False
    world.step()
    world.cache.put("pods", pod("b"))
    assert world.step() == 1, "an event came: it works"


def test_a_server_that_ends_watches_at_once_is_not_asked_without_a_pause() -> None:
    world = World()
    assert [world.step() for _ in range(3)] == [1, 2, 4]


def test_it_asks_again_when_the_server_says() -> None:
    world = World()
    error = ApiServerError("busy", 429, 7)

    def busy(limit: int, token: str) -> bytes:
        raise error

    world.source.list_page = busy  # type: ignore[method-assign]
    assert world.step() == 7 + 1
    error.retry_after_s = 1e6
    assert world.step() == 60 + 2


@pytest.mark.parametrize(
    ("lasts_s", "pauses_s"), [(300, [0, 0, 0]), (60, [1, 1, 1]), (5, [1, 2, 4])], ids=str
)
def test_how_long_a_watch_lasted_says_whether_it_works(lasts_s: float, pauses_s: list[float]) -> None:
    """Where nothing happens nothing is heard."""
    world = World()

    def nothing() -> Iterator[bytes]:
        world.clock.pass_by(lasts_s)
        yield from ()

    @contextmanager
    def quiet(version: str, timeout_s: int) -> Iterator[Iterator[bytes]]:
        yield nothing()

    world.source.watch = quiet  # type: ignore[method-assign]
    assert [world.step() for _ in range(3)] == pauses_s


@given(
    lines=st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line)),
    cuts=st.lists(st.integers(0, 200)),
)
def test_lines_do_not_depend_on_how_they_are_cut(lines: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(line + b"\n" for line in lines)
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    chunks = [whole[a:b] for a, b in itertools.pairwise(places)]
    assert list(split_lines(chunks, 20)) == [line for line in lines if line]


@pytest.mark.parametrize("chunks", [[b"x" * 9], [b"x" * 5] * 2, [b"x" * 5, b"x" * 4 + b"\n"]])
def test_a_line_is_bounded_however_it_is_cut(chunks: list[bytes]) -> None:
    assert list(split_lines([b"x" * 8 + b"\nhalf"], 8)) == [b"x" * 8]
    with pytest.raises(TooLong):
        list(split_lines(chunks, 8))


def of_a_deployment(i: int) -> Object:
    """8 kB, most of which nobody here needs."""
    spec = {
        "nodeName": f"node-{i % 10}",
        "containers": [{"ports": [{"containerPort": 80, "name": "http"}]}, {"name": "sidecar"}],
    }
    labels = {"app": f"a{i // 10}", "pod-template-hash": "7f9c8d6b5"}
    return pod(f"app-{i}", i, spec=spec, labels=labels, managedFields=[{"fieldsV1": "y" * 7000}])


def test_little_is_kept_of_a_pod() -> None:
    """1.0 kB was measured."""
    bodies = [msgspec.Raw(json.dumps(of_a_deployment(i)).encode()) for i in range(1000)]
    tracemalloc.start()
    kept = [parse_object(Kind.PODS, body)[0] for body in bodies]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / len(kept) < 1500


def test_an_event_takes_little_time() -> None:
    """Most of the 0.1 ms is the double's: 0.03 ms were measured without it."""
    world = World()
    world.step()
    for i in range(1000):
        world.cache.put("pods", of_a_deployment(i))
    began = time.process_time()
    world.step()
    assert (time.process_time() - began) / 1000 < 0.001
    assert world.seen() == world.there()


def test_the_keys_are_those_of_the_double() -> None:
    assert decoded(pod("a")).metadata.key == key_of(pod("a"))
