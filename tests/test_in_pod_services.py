"""What services mean for a pod: a case for each rule of kube-proxy, and properties of all tables."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings

from sriov_cni.in_pod.model import Endpoint, Frontend, Origin
from sriov_cni.in_pod.objects import SERVICE_LABEL, EndpointSlice, Proto, Service, SliceEndpoint
from sriov_cni.in_pod.service_endpoints import Place
from sriov_cni.in_pod.services import ServiceCompiler
from tests.service_world import (
    DNS,
    HERE,
    WEB,
    clusters,
    compile_here,
    ending,
    endpoint,
    make_service,
    make_slice,
    socket_text,
    told,
    unready,
)

TWO = make_slice("10.1.0.1", "10.1.0.2")
BOTH = "10.1.0.1:8080 10.1.0.2:8080"


class Case(NamedTuple):
    what: str
    objects: Iterable[Service | EndpointSlice]
    expected: Mapping[str, str]


def zone(*names: str) -> dict[str, object]:
    return {"forZones": [{"name": name} for name in names]}


def node(*names: str) -> dict[str, object]:
    return {"forNodes": [{"name": name} for name in names]}


def balancer(*ingress: dict[str, str]) -> dict[str, object]:
    return {"loadBalancer": {"ingress": list(ingress)}}


def at_cluster_ip(endpoints: str) -> dict[str, str]:
    return {"TCP 10.96.0.10:80": endpoints}


PORTS = [
    Case("ready endpoints", [make_service(), TWO], at_cluster_ip(BOTH)),
    Case(
        "several ports, a protocol each",
        [
            make_service(ports=[WEB, DNS, {"name": "sig", "protocol": "SCTP", "port": 53}]),
            make_slice(
                "10.1.0.1",
                ports=[
                    {"name": "sig", "protocol": "SCTP", "port": 36412},
                    {"name": "dns", "protocol": "UDP", "port": 5353},
                    {"name": "web", "protocol": "TCP", "port": 8080},
                ],
            ),
        ],
        {
            "TCP 10.96.0.10:80": "10.1.0.1:8080",
            "UDP 10.96.0.10:53": "10.1.0.1:5353",
            "SCTP 10.96.0.10:53": "10.1.0.1:36412",
        },
    ),
    Case(
        "a named target port is another number in each slice",
        [
            make_service(),
            make_slice("10.1.0.1", name="old", ports=[{"name": "web", "protocol": "TCP", "port": 8080}]),
            make_slice("10.1.0.2", name="new", ports=[{"name": "web", "protocol": "TCP", "port": 9090}]),
        ],
        at_cluster_ip("10.1.0.1:8080 10.1.0.2:9090"),
    ),
    Case(
        "a lone port without a name, and without a protocol",
        [make_service(ports=[{"port": 80}]), make_slice("10.1.0.1", ports=[{"port": 8080}])],
        at_cluster_ip("10.1.0.1:8080"),
    ),
    Case(
        "a slice's port of another protocol is not the service's",
        [make_service(), make_slice("10.1.0.1", ports=[{"name": "web", "protocol": "UDP", "port": 80}])],
        at_cluster_ip("rejected"),
    ),
]

FAMILIES = [
    Case(
        "IPv6, in the one form",
        [
            make_service(clusterIP="fd00:96::0a"),
            make_slice("fd00:1:0::1", kind="IPv6"),
        ],
        {"TCP [fd00:96::a]:80": "[fd00:1::1]:8080"},
    ),
    Case(
        "dual stack: each family has its own endpoints",
        [
            make_service(clusterIPs=["10.96.0.10", "fd00:96::a"]),
            make_slice("10.1.0.1"),
            make_slice("fd00:1::1", "fd00:1::2", name="6", kind="IPv6"),
        ],
        {
            "TCP 10.96.0.10:80": "10.1.0.1:8080",
            "TCP [fd00:96::a]:80": "[fd00:1::1]:8080 [fd00:1::2]:8080",
        },
    ),
    Case(
        "slices of a family that the service has not, and of names",
        [
            make_service(),
            make_slice("10.1.0.1"),
            make_slice("fd00:1::1", name="6", kind="IPv6"),
            make_slice("web.example.org", name="fqdn", kind="FQDN"),
        ],
        at_cluster_ip("10.1.0.1:8080"),
    ),
]

CONDITIONS = [
    Case("no endpoint", [make_service()], at_cluster_ip("rejected")),
    Case("none ready", [make_service(), make_slice(unready("10.1.0.1"))], at_cluster_ip("rejected")),
    Case(
        "ready ones alone",
        [make_service(), make_slice(unready("10.1.0.1"), "10.1.0.2", ending("10.1.0.3"))],
        at_cluster_ip("10.1.0.2:8080"),
    ),
    Case(
        "publishNotReadyAddresses: the slice says ready",
        [
            make_service(publishNotReadyAddresses=True),
            make_slice(endpoint("10.1.0.1", ready=True, serving=False, terminating=True)),
        ],
        at_cluster_ip("10.1.0.1:8080"),
    ),
    Case(
        "terminating ones that serve are the last resort",
        [
            make_service(),
            make_slice(unready("10.1.0.1"), ending("10.1.0.2"), ending("10.1.0.3", serving=False)),
        ],
        at_cluster_ip("10.1.0.2:8080"),
    ),
    Case(
        "what is not known is as the API says",
        [make_service(), make_slice({"addresses": ["10.1.0.1"]})],
        at_cluster_ip("10.1.0.1:8080"),
    ),
    Case(
        "an endpoint that moves between slices is one, and ready if either says so",
        [make_service(), make_slice("10.1.0.1"), make_slice(unready("10.1.0.1"), name="2")],
        at_cluster_ip("10.1.0.1:8080"),
    ),
]

LOCAL = make_service(internalTrafficPolicy="Local")
TRAFFIC_POLICY = [
    Case(
        "Local: this node's",
        [LOCAL, make_slice("10.1.0.1", endpoint("10.1.0.2", "here"))],
        at_cluster_ip("10.1.0.2:8080"),
    ),
    Case(
        "Local: this node's that end, though others are ready elsewhere",
        [LOCAL, make_slice("10.1.0.1", ending("10.1.0.2", "here"))],
        at_cluster_ip("10.1.0.2:8080"),
    ),
    Case("Local: none here, some elsewhere", [LOCAL, TWO], at_cluster_ip("dropped")),
    Case(
        "Local: none here, some that end elsewhere",
        [LOCAL, make_slice(ending("10.1.0.1"), unready("10.1.0.2", "here"))],
        at_cluster_ip("dropped"),
    ),
    Case("Local: none anywhere", [LOCAL, make_slice(unready("10.1.0.1"))], at_cluster_ip("rejected")),
    Case(
        "Local: hints do not matter",
        [LOCAL, make_slice("10.1.0.1", endpoint("10.1.0.2", "here", zone("zone-b")))],
        at_cluster_ip("10.1.0.2:8080"),
    ),
    Case(
        "Local inside is not Local outside",
        [make_service(internalTrafficPolicy="Local", externalIPs=["198.51.100.1"]), TWO],
        at_cluster_ip("dropped") | {"TCP 198.51.100.1:80": BOTH},
    ),
    Case(
        "externalTrafficPolicy Local is not for what starts here",
        [
            make_service(
                type="LoadBalancer",
                externalTrafficPolicy="Local",
                externalIPs=["198.51.100.1"],
                ports=[WEB | {"nodePort": 30080}],
                status=balancer({"ip": "203.0.113.1"}),
            ),
            TWO,
        ],
        at_cluster_ip(BOTH)
        | {
            "TCP 198.51.100.1:80": BOTH,
            "TCP 203.0.113.1:80": BOTH,
            "TCP 192.0.2.7:30080": BOTH,
        },
    ),
]

OUTSIDE = [
    Case(
        "external IPs, balancers and node ports, of the service's families",
        [
            make_service(
                type="LoadBalancer",
                externalIPs=["198.51.100.1", "2001:db8:1::1"],
                ports=[WEB | {"nodePort": 30080}],
                status=balancer({"ip": "203.0.113.1"}, {"ip": "2001:db8:2::1"}, {"hostname": "lb.example"}),
            ),
            TWO,
        ],
        at_cluster_ip(BOTH)
        | {
            "TCP 198.51.100.1:80": BOTH,
            "TCP 203.0.113.1:80": BOTH,
            "TCP 192.0.2.7:30080": BOTH,
        },
    ),
    Case(
        "node ports in both families",
        [
            make_service(
                clusterIPs=["10.96.0.10", "fd00:96::a"], type="NodePort", ports=[WEB | {"nodePort": 30080}]
            ),
            make_slice("10.1.0.1"),
        ],
        {
            "TCP 10.96.0.10:80": "10.1.0.1:8080",
            "TCP 192.0.2.7:30080": "10.1.0.1:8080",
            "TCP [fd00:96::a]:80": "rejected",
            "TCP [2001:db8::7]:30080": "rejected",
        },
    ),
    Case(
        "a balancer of mode Proxy sees the traffic itself",
        [make_service(status=balancer({"ip": "203.0.113.1", "ipMode": "Proxy"})), TWO],
        at_cluster_ip(BOTH),
    ),
    Case(
        "no endpoint: rejected there, too",
        [make_service(externalIPs=["198.51.100.1"], externalTrafficPolicy="Local")],
        at_cluster_ip("rejected") | {"TCP 198.51.100.1:80": "rejected"},
    ),
    Case(
        "two claim an external IP: the first by name has it",
        [
            make_service("zoo", clusterIP="10.96.0.11", externalIPs=["198.51.100.1"]),
            make_slice("10.1.0.9", service="zoo"),
            make_service("web", externalIPs=["198.51.100.1"]),
            make_slice("10.1.0.1"),
        ],
        {
            "TCP 10.96.0.10:80": "10.1.0.1:8080",
            "TCP 10.96.0.11:80": "10.1.0.9:8080",
            "TCP 198.51.100.1:80": "10.1.0.1:8080",
        },
    ),
    Case(
        "nobody takes another's cluster IP, nor a port of it",
        [
            make_service("thief", clusterIP="10.96.0.11", externalIPs=["10.96.0.10"], ports=[WEB, DNS]),
            make_slice("10.1.0.9", service="thief"),
            make_service(),
            TWO,
        ],
        at_cluster_ip(BOTH) | {"TCP 10.96.0.11:80": "10.1.0.9:8080", "UDP 10.96.0.11:53": "rejected"},
    ),
]

TOPOLOGY = [
    Case(
        "those for this zone",
        [
            make_service(),
            make_slice(
                endpoint("10.1.0.1", hints=zone("zone-a")),
                endpoint("10.1.0.2", hints=zone("zone-b")),
                endpoint("10.1.0.3", hints=zone("zone-b", "zone-a")),
            ),
        ],
        at_cluster_ip("10.1.0.1:8080 10.1.0.3:8080"),
    ),
    Case(
        "a ready endpoint without a hint: all",
        [make_service(), make_slice(endpoint("10.1.0.1", hints=zone("zone-a")), "10.1.0.2")],
        at_cluster_ip(BOTH),
    ),
    Case(
        "one that is not ready needs no hint",
        [
            make_service(),
            make_slice(
                endpoint("10.1.0.1", hints=zone("zone-a")),
                endpoint("10.1.0.2", hints=zone("zone-b")),
                unready("10.1.0.3"),
            ),
        ],
        at_cluster_ip("10.1.0.1:8080"),
    ),
    Case(
        "no hint for this zone: all",
        [
            make_service(),
            make_slice(
                endpoint("10.1.0.1", hints=zone("zone-b")), endpoint("10.1.0.2", hints=zone("zone-c"))
            ),
        ],
        at_cluster_ip(BOTH),
    ),
    Case(
        "the node before the zone",
        [
            make_service(trafficDistribution="PreferSameNode"),
            make_slice(
                endpoint("10.1.0.1", hints=zone("zone-a") | node("there")),
                endpoint("10.1.0.2", hints=zone("zone-a") | node("here")),
            ),
        ],
        at_cluster_ip("10.1.0.2:8080"),
    ),
    Case(
        "no endpoint for this node: those for the zone",
        [
            make_service(trafficDistribution="PreferSameNode"),
            make_slice(
                endpoint("10.1.0.1", hints=zone("zone-a") | node("there")),
                endpoint("10.1.0.2", hints=zone("zone-b") | node("elsewhere")),
            ),
        ],
        at_cluster_ip("10.1.0.1:8080"),
    ),
    Case(
        "hints of one family say nothing of the other",
        [
            make_service(clusterIPs=["10.96.0.10", "fd00:96::a"]),
            make_slice(
                endpoint("10.1.0.1", hints=zone("zone-a")), endpoint("10.1.0.2", hints=zone("zone-b"))
            ),
            make_slice("fd00:1::1", name="6", kind="IPv6"),
        ],
        at_cluster_ip("10.1.0.1:8080") | {"TCP [fd00:96::a]:80": "[fd00:1::1]:8080"},
    ),
]

NOT_OURS = [
    Case("headless", [make_service(clusterIP="None"), TWO], {}),
    Case("no address yet", [make_service(clusterIP=""), TWO], {}),
    Case("a name elsewhere", [make_service(type="ExternalName", externalName="example.org"), TWO], {}),
    Case(
        "another proxy's",
        [make_service(labels={"service.kubernetes.io/service-proxy-name": "theirs"}), TWO],
        {},
    ),
    Case("labelled headless", [make_service(labels={"service.kubernetes.io/headless": ""}), TWO], {}),
    Case("endpoints of a service that is not there", [TWO], {}),
    Case(
        "a service of that name in another namespace",
        [
            make_service(),
            msgspec.structs.replace(TWO, metadata=msgspec.structs.replace(TWO.metadata, namespace="other")),
        ],
        at_cluster_ip("rejected"),
    ),
]

MALFORMED = [
    Case("a cluster IP that is none", [make_service(clusterIP="10.96.0.256"), TWO], {}),
    Case("a port that is none", [make_service(ports=[{"name": "web", "port": 0}]), TWO], {}),
    Case(
        "endpoints and ports that are none",
        [
            make_service(externalIPs=["", "nonsense", "10.0.0.010"]),
            make_slice(
                "",
                "10.1.0",
                "fd00::1",
                "fe80::1%eth0",
                {"addresses": []},
                "10.1.0.1",
                ports=[
                    {"name": "web", "protocol": "TCP"},
                    {"name": "web", "protocol": "TCP", "port": 0},
                    {"name": "web", "protocol": "TCP", "port": 8080},
                ],
            ),
        ],
        at_cluster_ip("10.1.0.1:8080"),
    ),
    Case(
        "lists that are null",
        [make_service(), msgspec.structs.replace(TWO, endpoints=None, ports=None)],
        at_cluster_ip("rejected"),
    ),
]

CASES = PORTS + FAMILIES + CONDITIONS + TRAFFIC_POLICY + OUTSIDE + TOPOLOGY + NOT_OURS + MALFORMED


@pytest.mark.parametrize("case", CASES, ids=[case.what for case in CASES])
def test_where_a_service_leads(case: Case) -> None:
    assert told(compile_here(*case.objects)) == case.expected


def test_without_a_zone_zone_hints_are_nothing() -> None:
    slice_ = make_slice(endpoint("10.1.0.1", hints=zone("zone-a")), endpoint("10.1.0.2", hints=zone("")))
    assert told(compile_here(make_service(), slice_, place=Place("here"))) == at_cluster_ip(BOTH)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, None),
        ({"sessionAffinity": "ClientIP"}, 10800),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}}}, 7),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}, None),
        ({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}}}, None),
    ],
)
def test_affinity(spec: dict[str, Any], expected: int | None) -> None:
    (target,) = compile_here(make_service(**spec), TWO).targets.values()
    assert target.affinity_s == expected


def test_source_ranges_are_for_balancers_and_of_their_family() -> None:
    service = make_service(
        clusterIPs=["10.96.0.10", "fd00:96::a"],
        externalIPs=["198.51.100.1"],
        ports=[WEB | {"nodePort": 30080}],
        loadBalancerSourceRanges=[" 10.0.0.0/8", "fd00::/8", "10.1.0.1/16", "nonsense"],
        status=balancer({"ip": "203.0.113.1"}, {"ip": "2001:db8:2::1"}, {"ip": "198.51.100.1"}),
    )
    guarded = {
        frontend.address: target.sources
        for frontend, target in compile_here(service).targets.items()
        if target.sources
    }
    assert guarded == {
        "203.0.113.1": ("10.0.0.0/8", "10.1.0.0/16"),
        "198.51.100.1": ("10.0.0.0/8", "10.1.0.0/16"),
        "2001:db8:2::1": ("fd00::/8",),
    }


def test_cluster_ips_are_known_also_where_no_port_leads_anywhere() -> None:
    table = compile_here(
        make_service(clusterIPs=["10.96.0.10", "fd00:96::000a", "nonsense"], ports=[]),
        make_service("none", clusterIP="None"),
    )
    assert table.addresses == {"10.96.0.10", "fd00:96::a"}
    assert not table.targets


def test_what_is_told_of_a_target() -> None:
    table = compile_here(
        make_service(
            ports=[DNS | {"nodePort": 30053}], externalIPs=["198.51.100.1"], internalTrafficPolicy="Local"
        ),
        make_slice(
            endpoint("10.1.0.1", "here"),
            "10.1.0.2",
            ending("10.1.0.3"),
            unready("10.1.0.4"),
            ports=[{"name": "dns", "protocol": "UDP", "port": 53}],
        ),
    )
    target = table.targets[Frontend(Proto.UDP, "10.96.0.10", 53)]
    assert (target.service, target.port_name, target.origin) == ("shop/web", "dns", Origin.CLUSTER_IP)
    assert target.why == "traffic policy Local: those on this node"
    assert target.others == (Endpoint("10.1.0.2", 53), Endpoint("10.1.0.3", 53))
    assert {one.origin for one in table.targets.values()} == {
        Origin.CLUSTER_IP,
        Origin.EXTERNAL_IP,
        Origin.NODE_PORT,
    }


# --- what is remembered -----------------------------------------------------------------------------------


def by_key(*objects: Service) -> dict[str, Service]:
    return {one.metadata.key: one for one in objects}


def test_nothing_changed_is_the_same_table() -> None:
    compiler = ServiceCompiler()
    services, slices = by_key(make_service()), {"shop/web-1": TWO}
    table = compiler.compile(services, slices, HERE)
    again = {"shop/web-1": msgspec.json.decode(msgspec.json.encode(TWO), type=EndpointSlice)}
    assert again["shop/web-1"] is not TWO
    assert compiler.compile(dict(services), again, HERE) is table


def test_a_change_that_means_nothing_is_the_same_table() -> None:
    """A slice has an annotation with the time of its last change."""
    compiler = ServiceCompiler()
    services = by_key(make_service())
    table = compiler.compile(services, {"shop/web-1": TWO}, HERE)
    meta = msgspec.structs.replace(TWO.metadata, resource_version="8", annotations={"any": "thing"})
    again = msgspec.structs.replace(TWO, metadata=meta)
    assert compiler.compile(services, {"shop/web-1": again}, HERE) is table


def test_targets_that_did_not_change_are_the_same_objects() -> None:
    compiler = ServiceCompiler()
    services = by_key(make_service(ports=[WEB, DNS]), make_service("other", clusterIP="10.96.0.11"))
    before = compiler.compile(services, {"shop/web-1": TWO}, HERE).targets
    after = compiler.compile(services, {"shop/web-1": make_slice("10.1.0.1")}, HERE).targets
    changed = {frontend for frontend in before if after[frontend] is not before[frontend]}
    assert changed == {Frontend(Proto.TCP, "10.96.0.10", 80)}


def test_a_service_that_went_leaves_what_it_had_to_the_next() -> None:
    compiler = ServiceCompiler()
    first = make_service("first", externalIPs=["198.51.100.1"])
    second = make_service("second", clusterIP="10.96.0.11", externalIPs=["198.51.100.1"])
    frontend = Frontend(Proto.TCP, "198.51.100.1", 80)
    assert compiler.compile(by_key(second, first), {}, HERE).targets[frontend].service == "shop/first"
    assert compiler.compile(by_key(second), {}, HERE).targets[frontend].service == "shop/second"


def test_another_zone_is_another_table() -> None:
    compiler = ServiceCompiler()
    slice_ = make_slice(
        endpoint("10.1.0.1", hints=zone("zone-a")), endpoint("10.1.0.2", hints=zone("zone-b"))
    )
    for place, expected in ((HERE, "10.1.0.1:8080"), (Place("here", "zone-b"), "10.1.0.2:8080")):
        table = compiler.compile(by_key(make_service()), {"shop/web-1": slice_}, place)
        assert told(table) == at_cluster_ip(expected)


def test_nothing_is_left_where_node_and_services_change_at_once() -> None:
    compiler = ServiceCompiler()
    compiler.compile(by_key(make_service()), {}, HERE)
    assert told(compiler.compile({}, {}, Place("here", "zone-b"))) == {}


# --- properties -------------------------------------------------------------------------------------------

few = settings(max_examples=50)  # drawing a cluster takes some 10 ms
Objects = tuple[dict[str, Service], dict[str, EndpointSlice]]


@few
@given(clusters(), clusters())
def test_what_is_remembered_changes_nothing(first: Objects, second: Objects) -> None:
    compiler = ServiceCompiler()
    for services, slices in (first, second, first):
        assert compiler.compile(services, slices, HERE) == ServiceCompiler().compile(services, slices, HERE)


@given(clusters())
def test_endpoints_are_of_the_family_each_once_and_in_order(objects: Objects) -> None:
    for frontend, target in ServiceCompiler().compile(*objects, HERE).targets.items():
        assert list(target.endpoints) == sorted(set(target.endpoints))
        for one in (*target.endpoints, *target.others):
            assert (":" in one.address) == (":" in frontend.address)
        assert not (target.dropped and target.endpoints)
        assert target.endpoints or target.why


@given(clusters())
def test_the_order_in_which_objects_came_does_not_matter(objects: Objects) -> None:
    services, slices = objects
    turned = dict(reversed(services.items())), dict(reversed(slices.items()))
    assert ServiceCompiler().compile(*objects, HERE) == ServiceCompiler().compile(*turned, HERE)


@given(clusters())
def test_endpoints_are_those_that_an_oracle_chooses(objects: Objects) -> None:
    services, slices = objects
    for frontend, target in ServiceCompiler().compile(services, slices, HERE).targets.items():
        own = [one for one in slices.values() if one.metadata.labels[SERVICE_LABEL] == target.service[5:]]
        states = read_states(own, target.port_name, frontend.proto, ":" in frontend.address)
        local = services[target.service].spec.internal_traffic_policy == "Local"
        local = local and target.origin is Origin.CLUSTER_IP
        expected = oracle(states, "Local" if local else "Cluster")
        assert set(map(socket_text, target.endpoints)) == expected
        anywhere = bool(oracle(states, "Cluster"))
        assert target.dropped == (local and not expected and anywhere)


class State(NamedTuple):
    """All that an endpoint's states and hints are, by the oracle's own reading of the API."""

    ready: bool
    ending: bool  # not ready, but serving
    here: bool
    zones: tuple[str, ...]
    nodes: tuple[str, ...]


def read_states(slices: Iterable[EndpointSlice], port_name: str, proto: Proto, six: bool) -> dict[str, State]:
    """By `address:port`; where two slices differ, what speaks most for the endpoint."""
    found: dict[str, list[State]] = {}
    for slice_ in sorted(slices, key=lambda one: one.metadata.name):
        for port in slice_.ports or ():
            named = (port.name or "", port.protocol or "TCP") == (port_name, proto)
            if not named or not port.port or slice_.address_type != ("IPv6" if six else "IPv4"):
                continue
            for one in slice_.endpoints or ():
                address = one.addresses[0]
                if address != "?" and (":" in address) == six:
                    key = f"[{address}]:{port.port}" if six else f"{address}:{port.port}"
                    found.setdefault(key, []).append(read_state(one))
    return {key: max(some, key=rank) for key, some in found.items()}


def read_state(one: SliceEndpoint) -> State:
    state = msgspec.to_builtins(one)
    ready = state["conditions"]["ready"] in (None, True)
    serving = state["conditions"]["serving"]
    hints = state["hints"] or {"forZones": (), "forNodes": ()}
    return State(
        ready,
        not ready and serving is True and state["conditions"]["terminating"] is True,
        state["nodeName"] == "here",
        tuple(hint["name"] for hint in hints["forZones"]),
        tuple(hint["name"] for hint in hints["forNodes"]),
    )


def rank(state: State) -> tuple[bool, bool, bool]:
    return state.ready, state.ending, state.here


def oracle(states: Mapping[str, State], policy: str) -> set[str]:
    """kube-proxy's rule, by elimination: of the ways of choosing that hold, the first that finds any."""
    ready = {key: one for key, one in states.items() if one.ready}
    ends = {key for key, one in states.items() if one.ending}
    here = {key for key, one in states.items() if one.here}
    if policy == "Local":
        return (set(ready) & here) or (ends & here)
    by_node = {key for key, one in ready.items() if "here" in one.nodes}
    by_zone = {key for key, one in ready.items() if "zone-a" in one.zones}
    if any(not one.nodes for one in ready.values()):
        by_node = set()
    if any(not one.zones for one in ready.values()):
        by_zone = set()
    return by_node or by_zone or set(ready) or ends
