"""A kubelet that comes, goes, refuses, forgets and is silent."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from device_plugin.announcement import Timing
from device_plugin.registration import Way
from tests.kubelet.steps import ALL, DOCS, begin, documented, open_fds, shape, wait_all
from tests.plugin_world import FAST, NONE, PREFIX, SLOW, Agent, eventually, make_inventory
from tests.stub_kubelet import StubKubelet

KUBELET = "device-plugins/kubelet.sock"


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


def registered_times(kubelet: StubKubelet, count: int) -> bool:
    return kubelet.registrations().count(FAST) == count


@contextmanager
def nothing_grows() -> Iterator[None]:
    """But for a few: pools of threads grow by as many as were busy at once."""
    before = open_fds(), threading.active_count()
    yield
    eventually("no more threads", lambda: threading.active_count() < before[1] + 20)
    eventually("no more descriptors", lambda: open_fds() < before[0] + 20)


def test_a_hundred_restarts_leave_nothing_behind(running: Agent, kubelet: StubKubelet) -> None:
    with nothing_grows():
        for _ in range(100):
            kubelet.restart()
            wait_all(running, kubelet)
    services = [one.service for one in running.plugin._resources.values()]
    eventually("one stream for each", lambda: [one.stream_count() for one in services] == [1, 1, 1])
    assert len(kubelet.registrations()) >= 303


def test_lost_sockets_leave_nothing_behind(running: Agent, kubelet: StubKubelet) -> None:
    path = running.sockets()[0]
    with nothing_grows():
        for count in range(2, 32):
            path.unlink()
            kubelet.wait_for("registration", partial(registered_times, kubelet, count))
            wait_all(running, kubelet)
    assert running.plugin._resources["fast"].service.stream_count() == 1


def test_calls_without_an_answer_leave_nothing_behind(kubelet_dir: Path) -> None:
    timing = Timing(interval_s=0.01, register_s=0.02, max_backoff_s=0.01)
    agent = Agent(kubelet_dir, Way.LEGACY, timing)
    agent.plugin.update(make_inventory())
    with mute_kubelet(kubelet_dir) as listener:
        agent.start()
        try:
            with nothing_grows():
                for _ in range(90):
                    listener.accept()[0].close()
            assert len(agent.events("not registered")) >= 3
        finally:
            agent.stop()


def test_a_kubelet_that_leaves_is_seen(running: Agent, kubelet: StubKubelet) -> None:
    kubelet.stop()
    eventually("not registered", lambda: not any(one.registered for one in running.plugin.registered()))
    assert all(one.reason for one in running.plugin.registered())
    kubelet.start()
    wait_all(running, kubelet)


def test_a_refused_registration_is_tried_again(agent: Agent, kubelet: StubKubelet, way: Way) -> None:
    kubelet.refuse_next(6, "not today")
    begin(agent, kubelet)
    assert sorted(kubelet.registrations()) == sorted(ALL)
    refusals = agent.events("not registered")
    assert {entry["resource"] for entry in refusals} <= set(ALL)
    assert len(refusals) <= 3  # once each
    assert all("not today" in entry["reason"] for entry in refusals)
    if way is Way.WATCHER:
        shown = documented("not registered")
        assert refusals[0]["reason"].startswith(shown["reason"].removesuffix("..."))
        assert shape(refusals[0]) == shape(shown)
    assert shape(agent.events("registered")[0]) == shape(documented("registered"))


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


@contextmanager
def mute_kubelet(kubelet_dir: Path) -> Iterator[socket.socket]:
    """Its socket is there, and nobody answers."""
    (kubelet_dir / "device-plugins").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(kubelet_dir / KUBELET))
        listener.listen()
        listener.settimeout(5)
        yield listener


def test_a_kubelet_that_never_answers_does_not_hold_up_the_stop(kubelet_dir: Path) -> None:
    agent = Agent(kubelet_dir, Way.LEGACY)
    with mute_kubelet(kubelet_dir) as listener:
        agent.plugin.update(make_inventory())
        agent.start()
        connection, _ = listener.accept()
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


def test_the_documented_seconds_are_those_of_a_node() -> None:
    timing = Timing()
    text = DOCS.read_text()
    for words in (
        f"asks for no socket within {timing.fallback_s:g} seconds",
        f"| our socket is removed | {timing.interval_s:g} s |",
        f"anew after {timing.regain_s:g} s",
        f"opens no stream | {timing.unwatched_s:g} s |",
        f"up to every {timing.max_backoff_s:g} s",
        f"answer Register | {timing.register_s:g} s |",
        f"is silent | {timing.unanswered_s:g} s |",
    ):
        assert words in text
    assert (timing.interval_s, timing.farewell_s) == (0.1, 0.5)  # "0.1, 0.2, 0.4 s", "half a second later"
