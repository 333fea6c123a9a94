"""By which way the kubelet comes to know the pools."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from device_plugin.announcement import Timing
from device_plugin.registration import Way
from tests.kubelet.steps import ALL, documented, found_in, shape, wait_all
from tests.plugin_world import FAST, PREFIX, Agent, eventually, make_inventory
from tests.stub_kubelet import StubKubelet


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
        assert shape(entry) == shape(documented(entry["event"]))


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
