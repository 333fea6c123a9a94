"""A kubelet, and a device plugin that is registered with it by either way."""

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_plugin.registration import Way
from tests.kubelet.steps import begin
from tests.plugin_world import Agent, eventually
from tests.stub_kubelet import StubKubelet


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
