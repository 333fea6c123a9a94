"""Which UDP flows are cut when services change, and which are let live."""

import pytest

from sriov_cni.in_pod.stale_flows import stale_flows
from tests.service_world import DNS, compile_here, ending, make_service, make_slice, unready
from vf_manager.kernel.api import Flow, FlowSide

PORTS = [{"name": "dns", "protocol": "UDP", "port": 5353}]
TABLE = compile_here(
    make_service(
        "dns", clusterIPs=["10.96.0.10", "fd00:96::a"], ports=[DNS | {"nodePort": 30053}, DNS | {"port": 54}]
    ),
    make_slice("10.1.0.1", ending("10.1.0.2"), unready("10.1.0.3"), service="dns", ports=PORTS),
    make_slice("fd00:1::1", service="dns", ports=PORTS, name="6", kind="IPv6"),
    make_service("empty", clusterIP="10.96.0.11", ports=[DNS]),
    make_service("web", clusterIP="10.96.0.12"),
)


def flow(to: tuple[str, int], answers: tuple[str, int], translated: bool = True) -> Flow:
    pod = ("fd56::7" if ":" in to[0] else "10.56.0.7", 40000)
    return Flow(17, FlowSide(*pod, *to), FlowSide(*answers, *pod), dnat=translated)


CLUSTER_IP = ("10.96.0.10", 53)
ELSEWHERE = ("198.51.100.53", 53)
LIVE = {
    "to an endpoint": flow(CLUSTER_IP, ("10.1.0.1", 5353)),
    "to one that is not chosen any more and still answers": flow(CLUSTER_IP, ("10.1.0.2", 5353)),
    "of IPv6": flow(("fd00:96::a", 53), ("fd00:1::1", 5353)),
    "by the node port": flow(("192.0.2.7", 30053), ("10.1.0.1", 5353)),
    "to nothing of ours": flow(ELSEWHERE, ELSEWHERE, translated=False),
    "to an endpoint directly": flow(("10.1.0.3", 5353), ("10.1.0.3", 5353), translated=False),
    "to a proxy in the pod": flow(CLUSTER_IP, ("127.0.0.1", 15053)),
    "to a proxy in the pod, by IPv6": flow(("fd00:96::a", 53), ("::1", 15053)),
    "from elsewhere to a proxy in the pod": flow(ELSEWHERE, ("127.0.0.1", 15053)),
}
STALE = {
    "to an endpoint that does not answer": flow(CLUSTER_IP, ("10.1.0.3", 5353)),
    "to one that is gone": flow(CLUSTER_IP, ("10.1.0.9", 5353)),
    "to an endpoint's former port": flow(CLUSTER_IP, ("10.1.0.1", 53)),
    "of IPv6": flow(("fd00:96::a", 53), ("fd00:1::2", 5353)),
    "by the node port": flow(("192.0.2.7", 30053), ("10.1.0.9", 5353)),
    "of a service without endpoints": flow(("10.96.0.11", 53), ("10.1.0.1", 5353)),
    "older than the service": flow(CLUSTER_IP, CLUSTER_IP, translated=False),
    "of a service that is gone": flow(("10.96.0.99", 53), ("10.1.0.1", 5353)),
    "of a port that is gone": flow(("10.96.0.10", 55), ("10.1.0.1", 5353)),
    "of a service that is of TCP now": flow(("10.96.0.12", 80), ("10.1.0.1", 5353)),
}


@pytest.mark.parametrize("what", LIVE)
def test_lives_on(what: str) -> None:
    assert stale_flows([LIVE[what]], TABLE) == []


@pytest.mark.parametrize("what", STALE)
def test_is_stale(what: str) -> None:
    assert stale_flows([STALE[what]], TABLE) == [STALE[what]]


def test_of_many() -> None:
    assert stale_flows([*LIVE.values(), *STALE.values()], TABLE) == list(STALE.values())
