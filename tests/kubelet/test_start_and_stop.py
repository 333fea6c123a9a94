"""What a device plugin does first and leaves last."""

import socket
from pathlib import Path

import pytest

from device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from device_plugin.registration import Way
from tests.kubelet.steps import begin, found_in
from tests.plugin_world import FAST, PREFIX, Agent, client, make_inventory, vf_id
from tests.stub_kubelet import StubKubelet
from vf_manager.errors import InvalidInput, SriovError


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


def test_what_a_killed_agent_left_in_the_other_folder_is_removed(
    agent: Agent, kubelet_dir: Path, way: Way
) -> None:
    (other,) = (one for one in Way if one is not way)
    left, foreign = (kubelet_dir / other.folder / f"{name}.sock" for name in (f"{PREFIX}_fast", "others"))
    left.parent.mkdir()
    for path in (left, foreign):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    agent.plugin.update(make_inventory())
    agent.plugin.start()
    assert found_in(left.parent) == ["others.sock"]


def test_start_says_what_is_in_the_way(agent: Agent, kubelet_dir: Path, way: Way) -> None:
    path = kubelet_dir / way.folder / f"{PREFIX}_fast.sock"
    path.mkdir(parents=True)
    agent.plugin.update(make_inventory())
    with pytest.raises(SriovError, match=f"serve {path}: "):
        agent.plugin.start()


def test_a_socket_path_that_is_too_long(kubelet_dir: Path) -> None:
    with pytest.raises(InvalidInput, match=r"socket path: .* at most 107 bytes"):
        Agent(kubelet_dir / ("x" * 60))
