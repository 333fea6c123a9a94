"""Addresses that are in use are found on a real wire: the far end of a veth pair has them."""

import threading
from collections.abc import Iterator

import pytest

from tests.netns.namespaces import LinuxWorld, ip
from vf_manager.errors import KernelError
from vf_manager.kernel.api import LinkChange
from vf_manager.kernel.netns import Netns
from vf_manager.model import Mac, Netdev

FREE = ["192.0.2.7/24", "fd00:99::7/64"]
TAKEN = ["192.0.2.9/24", "fd00:99::9/64"]
PEER = Mac("02:00:00:00:00:99")
_TIMEOUT_S = 1.0  # an answer ends the wait; only silence takes as long as this


@pytest.fixture
def pod(world: LinuxWorld) -> Iterator[Netns]:
    """`net1` is up without an address; the other end of its wire has those of TAKEN."""
    ip("link", "set", "peer0", "address", PEER, "up")
    for address in TAKEN:
        ip("address", "add", address, "dev", "peer0", *(["nodad"] if ":" in address else []))
    space = world.new_space()
    ip("link", "set", "spare0", "netns", space.path, "name", "net1")
    ip("link", "set", "net1", "up", space=space)
    netns = Netns(space.fd)
    yield netns
    netns.close()


def net1(world: LinuxWorld, pod: Netns) -> Netdev:
    with world.kernel.links(pod) as links:
        found = links.read(name="net1")
    assert found is not None
    return found.netdev


@pytest.mark.parametrize("address", TAKEN)
def test_one_that_is_in_use(world: LinuxWorld, pod: Netns, address: str) -> None:
    found = world.kernel.find_holders(pod, net1(world, pod), [address], _TIMEOUT_S)
    assert found == {address: PEER}


def test_all_at_once(world: LinuxWorld, pod: Netns) -> None:
    assert world.kernel.find_holders(pod, net1(world, pod), [*TAKEN, *FREE], 0.3) == dict.fromkeys(
        TAKEN, PEER
    )


@pytest.mark.parametrize("address", FREE)
def test_one_that_is_free(world: LinuxWorld, pod: Netns, address: str) -> None:
    assert world.kernel.find_holders(pod, net1(world, pod), [address], 0.1) == {}


def test_two_that_ask_at_the_same_moment(world: LinuxWorld, pod: Netns) -> None:
    """A probe for the same address counts as a claim (RFC 5227 2.1.1): the other end asks meanwhile."""
    answers: dict[str, dict[str, Mac]] = {}
    host = world.kernel.host_netns()
    try:
        with world.kernel.links() as links:
            found = links.read(name="peer0")
        assert found is not None
        peer = found.netdev

        def ask(name: str, netns: Netns, netdev: Netdev) -> None:
            answers[name] = world.kernel.find_holders(netns, netdev, FREE[:1], _TIMEOUT_S)

        assert isinstance(host, Netns)
        threads = [
            threading.Thread(target=ask, args=("pod", pod, net1(world, pod))),
            threading.Thread(target=ask, args=("host", host, peer)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        host.close()
    assert answers["host"] or answers["pod"]


def test_an_interface_that_is_down(world: LinuxWorld, pod: Netns) -> None:
    netdev = net1(world, pod)
    with world.kernel.links(pod) as links:
        links.set_link(netdev.ifindex, LinkChange(up=False))
    with pytest.raises(KernelError, match="look for duplicate addresses on net1: ENETDOWN"):
        world.kernel.find_holders(pod, netdev, FREE, _TIMEOUT_S)
