"""Pools that come, go, change and wait while the others are served."""

import pytest
from msgspec.structs import replace

from tests.kubelet.steps import ALL, wait_all
from tests.plugin_world import FAST, NONE, POOLS, PREFIX, SLOW, Agent, eventually, make_inventory, vf_id
from tests.stub_kubelet import StubKubelet
from vf_manager.errors import InvalidInput


def test_a_removed_pool_has_no_device_and_then_no_socket(running: Agent, kubelet: StubKubelet) -> None:
    path = running.sockets()[0]
    running.plugin.reconfigure(POOLS[1:], PREFIX)
    kubelet.wait_for("empty list", lambda: kubelet.devices(FAST) == {})
    eventually("its socket is gone", lambda: not path.exists())
    assert [one.resource for one in running.plugin.registered()] == [SLOW, NONE]
    assert kubelet.wait_devices(SLOW, 2)
    assert [kubelet.registrations().count(one) for one in ALL] == [1, 1, 1]


def test_an_added_pool_is_registered_and_nobody_else_again(running: Agent, kubelet: StubKubelet) -> None:
    others = POOLS[0], replace(POOLS[1], name="new"), *POOLS[1:]
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
    changed = replace(POOLS[0], select=POOLS[1].select), *POOLS[1:]
    running.plugin.reconfigure(changed, PREFIX)
    assert list(kubelet.wait_devices(FAST, 2)) == [vf_id(2, 0), vf_id(2, 1)]
    assert kubelet.registrations().count(FAST) == 1


def test_a_pool_that_is_served_otherwise_is_registered_again(running: Agent, kubelet: StubKubelet) -> None:
    changed = replace(POOLS[0], vhost_net=True), *POOLS[1:]
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
        running.plugin.reconfigure([*POOLS, replace(POOLS[0], name="not a name")], PREFIX)
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
