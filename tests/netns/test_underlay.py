"""The stand-in for VFs itself: pods of the real agent and hosts of their segment reach each other."""

import pytest

from tests.netns.namespaces import LinuxWorld
from tests.netns.talk import Reply, Server, ask
from tests.netns.underlay import running_underlay


@pytest.mark.parametrize("proto", ["TCP", "UDP"])
def test_pods_and_hosts_of_a_segment(world: LinuxWorld, proto: str) -> None:
    with running_underlay(world, {}) as underlay:
        one, two = (underlay.attach(underlay.new_pod(name)) for name in ("one", "two"))
        host = underlay.new_host("10.56.0.9", "fd56::9")
        with Server(two.space, "two", 80), Server(host, "far", 80):
            for here, there in zip(one.addresses_given, two.addresses_given, strict=True):
                assert ask(one.space, there, 80, proto) == Reply("two", here)
            assert ask(one.space, "10.56.0.9", 80, proto) == Reply("far", one.address)
        with pytest.raises(ConnectionRefusedError):
            ask(one.space, two.address, 80, proto)
        for pod in (one, two):
            underlay.detach(pod)
        assert underlay.node.records() == underlay.node.leases() == []
