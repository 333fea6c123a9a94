"""What a person is told of a destination, and that it is what the table says."""

import pytest
from hypothesis import given, settings

from sriov_cni.in_pod.objects import EndpointSlice, Proto, Service
from sriov_cni.in_pod.services import ServiceCompiler
from sriov_cni.in_pod.trace import Fate, trace_service
from tests.service_world import (
    DNS,
    HERE,
    WEB,
    clusters,
    compile_here,
    endpoint,
    make_service,
    make_slice,
)

TABLE = compile_here(
    make_service("dns", clusterIPs=["10.96.0.10", "fd00:96::a"], ports=[DNS, WEB]),
    make_slice(
        endpoint("10.1.0.1", hints={"forZones": [{"name": "zone-a"}]}),
        endpoint("10.1.0.2", hints={"forZones": [{"name": "zone-b"}]}),
        service="dns",
        ports=[{"name": "dns", "protocol": "UDP", "port": 5353}],
    ),
    make_slice(
        "fd00:1::1",
        "fd00:1::2",
        service="dns",
        kind="IPv6",
        name="6",
        ports=[{"name": "dns", "protocol": "UDP", "port": 5353}],
    ),
    make_service("local", clusterIP="10.96.0.11", internalTrafficPolicy="Local"),
    make_slice("10.1.0.3", service="local"),
    make_service(
        "balanced",
        clusterIP="10.96.0.12",
        sessionAffinity="ClientIP",
        ports=[{"port": 80}],
        loadBalancerSourceRanges=["10.1.0.0/16", "192.0.2.0/24"],
        status={"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}},
    ),
    make_slice("10.1.0.4", service="balanced", ports=[{"port": 8080}]),
)


@pytest.mark.parametrize(
    ("proto", "address", "port", "expected"),
    [
        (
            Proto.UDP,
            "10.96.0.10",
            53,
            [
                "UDP 10.96.0.10:53 is the ClusterIP of service shop/dns port dns",
                "translated: those with a hint for zone zone-a",
                "  to 10.1.0.1:5353",
            ],
        ),
        (
            Proto.UDP,
            "fd00:96:0::a",
            53,
            [
                "UDP [fd00:96::a]:53 is the ClusterIP of service shop/dns port dns",
                "translated: all endpoints that are ready",
                "  to [fd00:1::1]:5353",
                "  to [fd00:1::2]:5353",
            ],
        ),
        (
            Proto.TCP,
            "10.96.0.10",
            80,
            [
                "TCP 10.96.0.10:80 is the ClusterIP of service shop/dns port web",
                "rejected: no endpoint is ready",
            ],
        ),
        (
            Proto.TCP,
            "10.96.0.11",
            80,
            [
                "TCP 10.96.0.11:80 is the ClusterIP of service shop/local port web",
                "dropped: traffic policy Local: there are endpoints, but none on this node",
            ],
        ),
        (
            Proto.TCP,
            "203.0.113.1",
            80,
            [
                "TCP 203.0.113.1:80 is the load balancer of service shop/balanced",
                "translated: all endpoints that are ready",
                "open to 10.1.0.0/16, 192.0.2.0/24 alone",
                "once chosen, an endpoint is kept for 10800 s after the last connection",
                "  to 10.1.0.4:8080",
            ],
        ),
        (Proto.TCP, "10.96.0.10", 53, ["rejected: a cluster IP that has other ports: TCP 80, UDP 53"]),
        (Proto.TCP, "203.0.113.1", 81, ["untouched: no service has this address and port"]),
        (Proto.TCP, "example.org", 80, ["untouched: no service has this address and port"]),
    ],
)
def test_lines(proto: Proto, address: str, port: int, expected: list[str]) -> None:
    (trace,) = trace_service(TABLE, proto, address, port)
    assert list(trace.lines()) == expected


def test_any_port_and_protocol() -> None:
    found = trace_service(TABLE, None, "10.96.0.10", None)
    assert [(one.frontend.proto, one.frontend.port) for one in found if one.frontend] == [
        (Proto.TCP, 80),
        (Proto.UDP, 53),
    ]
    assert [one.fate for one in trace_service(TABLE, None, "10.96.0.10", 53)] == [Fate.TRANSLATED]
    assert [one.fate for one in trace_service(TABLE, Proto.TCP, "10.96.0.10", None)] == [Fate.REJECTED]


@pytest.mark.parametrize(
    ("addresses", "fate"),
    [
        ([], Fate.TRANSLATED),
        (["fd00:1::9"], Fate.TRANSLATED),  # the destination is not of this family
        (["10.1.7.7"], Fate.TRANSLATED),
        (["10.2.0.1", "fd00:1::9"], Fate.DROPPED),
    ],
)
def test_source_ranges_and_the_pods_addresses(addresses: list[str], fate: Fate) -> None:
    (trace,) = trace_service(TABLE, Proto.TCP, "203.0.113.1", 80, addresses)
    assert trace.fate is fate
    (inside,) = trace_service(TABLE, Proto.TCP, "10.96.0.12", 80, addresses)
    assert inside.fate is Fate.TRANSLATED


@settings(max_examples=50)
@given(clusters())
def test_every_frontend_is_found(objects: tuple[dict[str, Service], dict[str, EndpointSlice]]) -> None:
    table = ServiceCompiler().compile(*objects, HERE)
    for frontend, target in table.targets.items():
        (trace,) = trace_service(table, frontend.proto, frontend.address, frontend.port)
        assert trace.target is target
        assert (trace.fate is Fate.TRANSLATED) == bool(target.endpoints)
        assert all(trace.lines())
