"""Probes over IPv6, which not every machine has on its loopback interface."""

from node_agent.http_endpoint import Address
from tests.netns.namespaces import ip
from tests.test_http_endpoint import ask, serving


def test_ipv6() -> None:
    ip("link", "set", "lo", "up")
    with serving(Address("::1", 0)) as endpoint:
        assert str(endpoint.address).startswith("[::1]:")
        assert ask(endpoint.address, "GET", "/a") == (200, "yes\n")
