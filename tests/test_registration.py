"""How the kubelet comes to know the pools, by either way, and how it keeps knowing them."""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_plugin.announcement import Timing
from device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from device_plugin.pools import Pool
from device_plugin.registration import Way
from device_plugin.selectors import Selector
from tests.plugin_world import (
    FAST,
    NONE,
    POOLS,
    PREFIX,
    SLOW,
    Agent,
    client,
    eventually,
    make_inventory,
    vf_id,
)
from tests.stub_kubelet import StubKubelet
from vf_manager.errors import InvalidInput, SriovError

ALL = (FAST, SLOW, NONE)
KUBELET = "device-plugins/kubelet.sock"


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    eventually("all threads ended", lambda: set(threading.enumerate()) <= before)


@pytest.fixture
def kubelet_dir() -> Iterator[Path]:
    """Not tmp_path: the path of a socket may have 107 bytes only."""
    with tempfile.TemporaryDirectory(prefix="kubelet-") as folder:
        yield Path(folder)


@pytest.fixture(params=Way)
def way(request: pytest.FixtureRequest) -> Way:
    chosen: Way = request.param
    return chosen


@pytest.fixture
def kubelet(kubelet_dir: Path) -> Iterator[StubKubelet]:
    """It takes both ways, as real ones do."""
    with StubKubelet(kubelet_dir) as stub:
        yield stub
    assert stub.doubled() == []


@pytest.fixture
def agent(kubelet_dir: Path, way: Way) -> Iterator[Agent]:
    """Not started."""
    agent = Agent(kubelet_dir, way)
    yield agent
    agent.stop()


@pytest.fixture
def running(agent: Agent, kubelet: StubKubelet) -> Agent:
    """Started, and registered with the kubelet."""
    begin(agent, kubelet)
    return agent


def begin(agent: Agent, kubelet: StubKubelet) -> None:
    agent.plugin.update(make_inventory())
    agent.start()
    wait_all(agent, kubelet)


def wait_all(agent: Agent, kubelet: StubKubelet) -> None:
    """Both sides agree that every pool is registered, and the agent has seen the kubelet's streams."""
    for resource, count in ((FAST, 3), (SLOW, 2), (NONE, 0)):
        kubelet.wait_devices(resource, count)
    eventually("registered", agent.is_registered)
    announcements = [one.announcement for one in agent.plugin._resources.values()]
    eventually("watched", lambda: all(one is not None and one._watched for one in announcements))


def found_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


# -- which way -----------------------------------------------------------------------------------------


def test_all_is_in_the_folder_of_the_way(running: Agent, kubelet_dir: Path, way: Way) -> None:
    ours = [f"{PREFIX}_{name}.sock" for name in ("fast", "none", "slow")]
    assert sorted(path.name for path in running.sockets()) == ours
    assert {path.parent for path in running.sockets()} == {kubelet_dir / way.folder}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in running.sockets())
    other = next(one for one in Way if one is not way)
    assert set(found_in(kubelet_dir / other.folder)) <= {"kubelet.sock"}
    assert {status.way for status in running.plugin.registered()} == {way}


@pytest.fixture
def undecided(kubelet_dir: Path) -> Iterator[Agent]:
    """Chooses the way by itself. Not started."""
    agent = Agent(kubelet_dir, timing=Timing(interval_s=0.01, fallback_s=0.1))
    agent.plugin.update(make_inventory())
    yield agent
    agent.stop()


def way_of(agent: Agent) -> Way | None:
    return agent.status(FAST).way


def test_a_kubelet_that_takes_calls_is_called(undecided: Agent, kubelet: StubKubelet) -> None:
    undecided.start()
    wait_all(undecided, kubelet)
    assert way_of(undecided) is Way.LEGACY
    assert sorted(kubelet.registrations()) == sorted(ALL)


def test_a_kubelet_that_only_looks_finds_us(undecided: Agent, kubelet_dir: Path) -> None:
    with StubKubelet(kubelet_dir, takes_calls=False) as kubelet:
        undecided.start()
        wait_all(undecided, kubelet)
        assert way_of(undecided) is Way.WATCHER


def test_a_kubelet_that_comes_later_finds_us_and_is_not_called(undecided: Agent, kubelet_dir: Path) -> None:
    """As at the boot of a node that was in the cluster before."""
    (kubelet_dir / "plugins_registry").mkdir()
    undecided.start()
    eventually("served", lambda: len(undecided.sockets()) == 3)
    with StubKubelet(kubelet_dir) as kubelet:
        wait_all(undecided, kubelet)
        undecided.stopping.wait(0.15)  # longer than fallback_s
        assert way_of(undecided) is Way.WATCHER
        assert sorted(kubelet.registrations()) == sorted(ALL)
        kubelet.restart()
        wait_all(undecided, kubelet)
        assert kubelet.doubled() == []


def test_a_kubelet_that_does_not_look_is_called_in_the_end(undecided: Agent, kubelet_dir: Path) -> None:
    (kubelet_dir / "plugins_registry").mkdir()
    undecided.start()
    eventually("served", lambda: len(undecided.sockets()) == 3)
    with StubKubelet(kubelet_dir, looks=False) as kubelet:
        wait_all(undecided, kubelet)
        assert way_of(undecided) is Way.LEGACY
        assert found_in(kubelet_dir / "plugins_registry") == []
        (entry,) = undecided.events("the kubelet does not look at our sockets: it is called instead")
        assert entry["folder"] == str(kubelet_dir / "plugins_registry")


def test_a_way_that_was_asked_for_stays(kubelet_dir: Path) -> None:
    """And says what is wrong."""
    agent = Agent(kubelet_dir, Way.WATCHER, Timing(interval_s=0.01, fallback_s=0.02, unanswered_s=0.1))
    (kubelet_dir / "plugins_registry").mkdir()
    agent.plugin.update(make_inventory())
    with StubKubelet(kubelet_dir, looks=False) as kubelet:
        agent.start()
        try:
            eventually("refused", lambda: len(agent.events("not registered")) == 3)
            assert agent.status(FAST).reason == "the kubelet did not ask for 0.1 s"
            assert kubelet.registrations() == []
        finally:
            agent.stop()


# -- a kubelet that comes, goes and refuses ------------------------------------------------------------


def test_without_a_kubelet_it_waits_in_silence(agent: Agent, kubelet_dir: Path) -> None:
    agent.plugin.update(make_inventory())
    agent.start()
    eventually("waiting", lambda: agent.events("waiting for the kubelet"))
    agent.stopping.wait(0.1)
    assert len(agent.events("waiting for the kubelet")) == 1
    assert not any(one.registered for one in agent.plugin.registered())
    with StubKubelet(kubelet_dir) as kubelet:
        wait_all(agent, kubelet)


def test_a_kubelet_that_restarts_knows_us_again(running: Agent, kubelet: StubKubelet) -> None:
    held = kubelet.allocate("default", "pod", FAST)
    for _ in range(3):
        kubelet.restart()
        wait_all(running, kubelet)
    assert kubelet.allocate("default", "other", FAST).ids != held.ids


def test_a_hundred_restarts_leave_nothing_behind(running: Agent, kubelet: StubKubelet) -> None:
    before = open_fds(), threading.active_count()
    for _ in range(100):
        kubelet.restart()
        wait_all(running, kubelet)
    # Not to the last one: pools of threads grow by as many as were busy at once.
    eventually("no more threads", lambda: threading.active_count() < before[1] + 20)
    eventually("no more descriptors", lambda: open_fds() < before[0] + 20)
    services = [one.service for one in running.plugin._resources.values()]
    eventually("one stream for each", lambda: [one.stream_count() for one in services] == [1, 1, 1])
    assert len(kubelet.registrations()) >= 303


def test_a_kubelet_that_leaves_is_seen(running: Agent, kubelet: StubKubelet) -> None:
    kubelet.stop()
    eventually("not registered", lambda: not any(one.registered for one in running.plugin.registered()))
    assert all(one.reason for one in running.plugin.registered())
    kubelet.start()
    wait_all(running, kubelet)


def test_a_refused_registration_is_tried_again(agent: Agent, kubelet: StubKubelet) -> None:
    kubelet.refuse_next(6, "not today")
    begin(agent, kubelet)
    assert sorted(kubelet.registrations()) == sorted(ALL)
    refusals = agent.events("not registered")
    assert {entry["resource"] for entry in refusals} <= set(ALL)
    assert len(refusals) <= 3  # once each
    assert all("not today" in entry["reason"] for entry in refusals)


def test_a_vanished_socket_is_made_anew(running: Agent, kubelet: StubKubelet) -> None:
    (path,) = (path for path in running.sockets() if path.name == f"{PREFIX}_fast.sock")
    path.unlink()
    kubelet.wait_for("another registration", lambda: kubelet.registrations().count(FAST) == 2)
    wait_all(running, kubelet)
    assert kubelet.allocate("default", "pod", FAST).ids
    assert kubelet.registrations().count(SLOW) == 1


def test_another_file_in_the_place_of_a_socket(running: Agent, kubelet: StubKubelet) -> None:
    """What is in the way is named, and once it is gone the pool is back."""
    path = running.sockets()[0]
    path.unlink()
    path.mkdir()
    eventually("refused", lambda: f"serve {path}" in str(running.status(FAST).reason))
    path.rmdir()
    wait_all(running, kubelet)


def test_a_kubelet_that_stops_listening_is_told_again(running: Agent, kubelet: StubKubelet) -> None:
    kubelet.drop(FAST)
    wait_all(running, kubelet)
    assert kubelet.registrations().count(FAST) == 2
    (entry,) = running.events("not registered")
    assert entry["reason"] == "the kubelet stopped listening"


def test_a_kubelet_that_never_listened_is_told_again(
    kubelet_dir: Path, kubelet: StubKubelet, way: Way
) -> None:
    agent = Agent(kubelet_dir, way, Timing(interval_s=0.01, unwatched_s=0.05))
    agent.plugin._resources["fast"].service.stream_count = lambda: 0  # type: ignore[method-assign]
    agent.plugin.update(make_inventory())
    agent.start()
    try:
        kubelet.wait_for("another registration", lambda: kubelet.registrations().count(FAST) > 1)
    finally:
        agent.stop()


def test_a_kubelet_that_hangs_over_one_pool_takes_the_others(agent: Agent, kubelet: StubKubelet) -> None:
    kubelet.mute(FAST)
    agent.plugin.update(make_inventory())
    agent.start()
    kubelet.wait_devices(SLOW, 2, timeout_s=2)
    eventually("registered", lambda: agent.status(SLOW).registered and agent.status(NONE).registered)
    assert not agent.status(FAST).registered
    kubelet.speak()
    wait_all(agent, kubelet)


def test_a_kubelet_that_never_answers_is_asked_again(
    kubelet_dir: Path, kubelet: StubKubelet, way: Way
) -> None:
    agent = Agent(kubelet_dir, way, Timing(interval_s=0.01, register_s=0.1, unanswered_s=0.1))
    kubelet.mute(FAST)
    agent.plugin.update(make_inventory())
    agent.start()
    try:
        eventually("given up", lambda: agent.events("not registered"))
        reason = agent.events("not registered")[0]["reason"]
        assert "DEADLINE_EXCEEDED" in reason or "asked and then was silent" in reason
        kubelet.speak()
        wait_all(agent, kubelet)
    finally:
        agent.stop()


def test_a_kubelet_that_never_answers_does_not_hold_up_the_stop(kubelet_dir: Path) -> None:
    agent = Agent(kubelet_dir, Way.LEGACY)
    (kubelet_dir / "device-plugins").mkdir()
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(kubelet_dir / KUBELET))
        mute.listen()
        agent.plugin.update(make_inventory())
        agent.start()
        connection, _ = mute.accept()
        with connection:
            started = time.monotonic()
            agent.stop()
            assert time.monotonic() - started < 0.5
    assert agent.events("not registered") == []


@pytest.mark.parametrize("what", ["socket", "stream", "kubelet"])
def test_what_is_lost_is_there_again_within_a_second(
    kubelet_dir: Path, kubelet: StubKubelet, way: Way, what: str
) -> None:
    """With the intervals that a node has."""
    agent = Agent(kubelet_dir, way, Timing())
    begin(agent, kubelet)
    try:
        before = kubelet.registrations().count(FAST)
        began = time.monotonic()
        match what:
            case "socket":
                agent.sockets()[0].unlink()
            case "stream":
                kubelet.drop(FAST)
            case _:
                kubelet.restart()
        kubelet.wait_for("registration", lambda: kubelet.registrations().count(FAST) > before)
        assert time.monotonic() - began < 1
    finally:
        agent.stop()


# -- pools that come and go ----------------------------------------------------------------------------


def test_a_removed_pool_has_no_device_and_then_no_socket(running: Agent, kubelet: StubKubelet) -> None:
    path = running.sockets()[0]
    running.plugin.reconfigure(POOLS[1:], PREFIX)
    kubelet.wait_for("empty list", lambda: kubelet.devices(FAST) == {})
    eventually("its socket is gone", lambda: not path.exists())
    assert [one.resource for one in running.plugin.registered()] == [SLOW, NONE]
    assert kubelet.wait_devices(SLOW, 2)
    assert [kubelet.registrations().count(one) for one in ALL] == [1, 1, 1]


def test_an_added_pool_is_registered_and_nobody_else_again(running: Agent, kubelet: StubKubelet) -> None:
    others = POOLS[0], Pool(name="new", select=(Selector(pf_names=("ens1f1",)),)), *POOLS[1:]
    running.plugin.reconfigure(others, PREFIX)
    kubelet.wait_devices(f"{PREFIX}/new", 2)
    kubelet.wait_devices(SLOW, 0)
    assert [kubelet.registrations().count(one) for one in ALL] == [1, 1, 1]


def test_a_pool_that_comes_back_at_once(running: Agent, kubelet: StubKubelet) -> None:
    running.plugin.reconfigure(POOLS[1:], PREFIX)
    running.plugin.reconfigure(POOLS, PREFIX)
    kubelet.wait_for("registration", lambda: kubelet.registrations().count(FAST) == 2)
    wait_all(running, kubelet)


def test_a_pool_of_other_vfs_keeps_its_stream(running: Agent, kubelet: StubKubelet) -> None:
    changed = Pool(name="fast", select=(Selector(pf_names=("ens1f0#1-2",)),)), *POOLS[1:]
    running.plugin.reconfigure(changed, PREFIX)
    assert list(kubelet.wait_devices(FAST, 2)) == [vf_id(1, 1), vf_id(1, 2)]
    assert kubelet.registrations().count(FAST) == 1


def test_a_pool_that_is_served_otherwise_is_registered_again(running: Agent, kubelet: StubKubelet) -> None:
    changed = Pool(name="fast", select=POOLS[0].select, vhost_net=True), *POOLS[1:]
    running.plugin.reconfigure(changed, PREFIX)
    kubelet.wait_for("registration", lambda: kubelet.registrations().count(FAST) == 2)
    wait_all(running, kubelet)
    assert kubelet.registrations().count(SLOW) == 1


def test_another_prefix_is_another_resource(running: Agent, kubelet: StubKubelet) -> None:
    running.plugin.reconfigure(POOLS, "example.com")
    kubelet.wait_devices("example.com/fast", 3)
    kubelet.wait_for("empty list", lambda: kubelet.devices(FAST) == {})


def test_pools_that_cannot_be_change_nothing(running: Agent, kubelet: StubKubelet) -> None:
    with pytest.raises(InvalidInput):
        running.plugin.reconfigure([*POOLS, Pool(name="not a name", select=(Selector(),))], PREFIX)
    wait_all(running, kubelet)
    assert [kubelet.registrations().count(one) for one in ALL] == [1, 1, 1]


def test_pools_before_the_first_inventory(agent: Agent, kubelet: StubKubelet) -> None:
    agent.start()
    agent.plugin.reconfigure(POOLS[:1], PREFIX)
    assert kubelet.registrations() == []
    agent.plugin.update(make_inventory())
    kubelet.wait_devices(FAST, 3)


def test_a_pool_that_is_held_is_registered_when_it_is_released(agent: Agent, kubelet: StubKubelet) -> None:
    agent.plugin.hold({"fast"})
    agent.plugin.update(make_inventory())
    agent.start()
    kubelet.wait_devices(SLOW, 2)
    eventually("registered", lambda: agent.status(NONE).registered)
    assert agent.status(FAST).reason == "its VFs are not ready"
    assert FAST not in kubelet.registrations()
    agent.plugin.hold(())
    wait_all(agent, kubelet)


def test_a_registered_pool_is_not_held(running: Agent, kubelet: StubKubelet) -> None:
    running.plugin.hold({"fast"})
    kubelet.restart()
    wait_all(running, kubelet)


# -- start and stop ------------------------------------------------------------------------------------


def test_stop_leaves_nothing_behind(
    running: Agent, kubelet: StubKubelet, kubelet_dir: Path, way: Way
) -> None:
    running.stop()
    assert set(found_in(kubelet_dir / way.folder)) <= {"kubelet.sock"}
    kubelet.wait_devices(FAST, 0)
    assert {device.health for device in kubelet.devices(FAST).values()} == {"Unhealthy"}
    running.plugin.stop()  # twice does no harm


def test_an_agent_that_restarts_takes_over(
    running: Agent, kubelet: StubKubelet, kubelet_dir: Path, way: Way
) -> None:
    running.stop()
    successor = Agent(kubelet_dir, way)
    try:
        successor.start()
        successor.plugin.update(make_inventory(fast=2))
        assert list(kubelet.wait_devices(FAST, 2)) == [vf_id(1, 0), vf_id(1, 1)]
    finally:
        successor.stop()


def test_an_agent_that_takes_the_other_way_takes_over(
    running: Agent, kubelet: StubKubelet, kubelet_dir: Path, way: Way
) -> None:
    running.stop()
    (other,) = (one for one in Way if one is not way)
    successor = Agent(kubelet_dir, other)
    try:
        begin(successor, kubelet)
    finally:
        successor.stop()


def test_start_serves_what_is_ready(agent: Agent, kubelet_dir: Path, way: Way) -> None:
    stale = kubelet_dir / way.folder / f"{PREFIX}_fast.sock"
    stale.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    agent.plugin.update(make_inventory())
    agent.plugin.start()
    with client(stale) as stub:
        assert stub.GetDevicePluginOptions(pb.Empty(), timeout=5).preferred_allocation_available


def test_start_says_what_is_in_the_way(agent: Agent, kubelet_dir: Path, way: Way) -> None:
    path = kubelet_dir / way.folder / f"{PREFIX}_fast.sock"
    path.mkdir(parents=True)
    agent.plugin.update(make_inventory())
    with pytest.raises(SriovError, match=f"serve {path}: "):
        agent.plugin.start()


def test_a_socket_path_that_is_too_long(kubelet_dir: Path) -> None:
    with pytest.raises(InvalidInput, match=r"socket path: .* at most 107 bytes"):
        Agent(kubelet_dir / ("x" * 60))


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))
