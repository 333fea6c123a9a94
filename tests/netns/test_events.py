"""What the running kernel tells, and that nothing of it is lost without a look."""

import threading
import time
from pathlib import Path

import pytest

from tests.kernel_contract import become_quiet
from tests.netns.conftest import open_fds
from tests.netns.namespaces import LinuxWorld, add_veth, ip
from vf_manager.kernel.api import LinkChange
from vf_manager.kernel.events import SOURCES, RtnetlinkGroups, Source, listening

_DEADLINE_S = 5.0


@pytest.mark.parametrize("name", SOURCES)
def test_each_source_hears_an_interface_by_itself(world: LinuxWorld, name: str) -> None:
    with listening({name: SOURCES[name]}) as events:
        become_quiet(events)
        add_veth("other0", "far0")
        assert events.wait(_DEADLINE_S)
        become_quiet(events)
        ip("link", "set", "other0", "name", "renamed0")
        assert events.wait(_DEADLINE_S)
        become_quiet(events)
        ip("link", "delete", "renamed0")
        assert events.wait(_DEADLINE_S)


def test_a_carrier_that_comes_and_goes_is_heard(world: LinuxWorld) -> None:
    ip("link", "set", "spare0", "up")
    with world.kernel.events() as events:
        for state in ("up", "down"):
            become_quiet(events)
            ip("link", "set", "peer0", state)
            assert events.wait(_DEADLINE_S)


def test_a_default_route_that_goes_is_heard_and_any_other_is_not(world: LinuxWorld) -> None:
    ip("address", "add", "192.0.2.1/24", "dev", "spare0")
    ip("link", "set", "spare0", "up")
    ip("link", "set", "peer0", "up")
    ip("route", "add", "default", "via", "192.0.2.2")
    with world.kernel.events() as events:
        become_quiet(events)
        ip("route", "add", "198.51.100.0/24", "via", "192.0.2.2")
        assert not events.wait(0.05)
        ip("route", "delete", "default")
        assert events.wait(_DEADLINE_S)


def test_a_nexthop_that_moves_to_another_link_is_heard(world: LinuxWorld) -> None:
    """The route that goes by it stays as it is."""
    add_veth("other0", "far0")
    for name in ("spare0", "peer0", "other0", "far0"):
        ip("link", "set", name, "up")
    ip("nexthop", "add", "id", "7", "dev", "spare0")
    ip("route", "add", "default", "nhid", "7")
    with world.kernel.events() as events:
        become_quiet(events)
        ip("nexthop", "replace", "id", "7", "dev", "other0")
        assert events.wait(_DEADLINE_S)


def test_more_than_the_socket_holds_is_heard_too(world: LinuxWorld) -> None:
    with world.kernel.links() as host, world.kernel.events() as events:
        become_quiet(events)
        spare = host.read(name="spare0")
        assert spare is not None
        for number in range(400):
            host.set_link(spare.netdev.ifindex, LinkChange(mtu=1400 + number))
        overrun = Path("/proc/net/netlink").read_text().splitlines()[1:]
        assert any(int(line.split()[8]) for line in overrun), "the test did not fill the socket"
        assert events.wait(0)
        become_quiet(events)
        host.set_link(spare.netdev.ifindex, LinkChange(mtu=1300))
        assert events.wait(_DEADLINE_S)


def test_a_source_that_cannot_be_opened_is_named_and_the_other_heard(world: LinuxWorld) -> None:
    def refuse() -> Source:
        raise PermissionError(1, "Operation not permitted")

    with listening({"uevents": refuse, "rtnetlink": RtnetlinkGroups}) as events:
        assert events.unheard == ("uevents: [Errno 1] Operation not permitted",)
        become_quiet(events)
        ip("link", "set", "spare0", "mtu", "1400")
        assert events.wait(_DEADLINE_S)


def test_without_any_source_a_wait_lasts_until_it_is_ended() -> None:
    with listening({}) as events:
        assert not events.wait(0.01)
        threading.Timer(0.01, events.wake).start()
        assert events.wait(_DEADLINE_S)


def test_listening_leaks_nothing(world: LinuxWorld) -> None:
    before = open_fds()
    for _ in range(50):
        with world.kernel.events() as events:
            events.wait(0)
    assert open_fds() == before


def test_a_flood_of_what_does_not_matter_does_not_keep_it(world: LinuxWorld) -> None:
    class Chatter(RtnetlinkGroups):
        """Something of no matter is always there."""

        def drain(self) -> bool:
            return False

    with listening({"rtnetlink": Chatter}) as events:
        ip("link", "set", "spare0", "mtu", "1400")
        began = time.monotonic()
        assert not events.wait(0.02)
        assert time.monotonic() - began < _DEADLINE_S
