"""Services as nftables sets and chains: whole tables to read, and what holds for all of them."""

import re
from collections import Counter
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from sriov_cni.in_pod.model import Endpoint, Frontend, ServiceTable, Target
from sriov_cni.in_pod.objects import EndpointSlice, Proto, Service
from sriov_cni.in_pod.render_services import Rendered, ServiceRenderer, render_services
from sriov_cni.in_pod.service_chains import SERVICE_IFS
from sriov_cni.in_pod.service_endpoints import Place
from sriov_cni.in_pod.services import ServiceCompiler
from tests.golden_files import assert_golden
from tests.nft_text import as_text, decode_value
from tests.service_world import DNS, HERE, WEB, clusters, compile_here, endpoint, make_service, make_slice
from vf_manager.kernel.nft import Dnat, DnatRemembered, In, Random, Table, Verdict, VerdictMap

Objects = tuple[dict[str, Service], dict[str, EndpointSlice]]
DNS_PORTS = [{"name": "dns", "protocol": "UDP", "port": 5353}]


def test_a_table_to_read() -> None:
    """Dual stack, affinity, nothing ready, nothing on this node, ranges of a load balancer, a node port."""
    table = compile_here(
        make_service("dns", clusterIPs=["10.96.0.10", "fd00:96::a"], ports=[DNS]),
        make_slice("10.1.0.1", "10.1.0.2", service="dns", ports=DNS_PORTS),
        make_slice("fd00:1::1", service="dns", ports=DNS_PORTS, name="6", kind="IPv6"),
        make_service(
            "sticky", clusterIP="10.96.0.11", sessionAffinity="ClientIP", ports=[WEB | {"nodePort": 30080}]
        ),
        make_slice("10.1.0.3", "10.1.0.4", service="sticky"),
        make_service("empty", clusterIP="10.96.0.12"),
        make_service("local", clusterIP="10.96.0.13", internalTrafficPolicy="Local"),
        make_slice("10.1.0.5", service="local"),
        make_service(
            "balanced",
            clusterIP="10.96.0.14",
            loadBalancerSourceRanges=["10.0.0.0/9", "10.128.0.0/9", "192.0.2.1/32"],
            status={"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}},
        ),
        make_slice("10.1.0.6", service="balanced", ports=[{"name": "web", "protocol": "TCP", "port": 443}]),
    )
    assert_golden("services.nft", text(render_services(table)))


def test_no_services() -> None:
    """The layout is there all the same: later changes are changes of elements."""
    assert_golden("no_services.nft", text(render_services(ServiceTable())))


def text(rendered: Rendered) -> str:
    return as_text(Table("sriov_underlay", *rendered))


def test_what_did_not_change_is_the_same_object() -> None:
    renderer, compiler = ServiceRenderer(), ServiceCompiler()
    services = {
        one.metadata.key: one for one in (make_service(), make_service("other", clusterIP="10.96.0.11"))
    }
    before = renderer.render(compiler.compile(services, {"shop/web-1": make_slice("10.1.0.1")}, HERE))
    after = renderer.render(compiler.compile(services, {"shop/web-1": make_slice("10.1.0.2")}, HERE))
    assert {name for name in before[0] if after[0][name] is not before[0][name]} == {"endpoints4"}
    assert all(after[1][name] is before[1][name] for name in before[1])


def test_what_was_rendered_before_does_not_change() -> None:
    renderer = ServiceRenderer()
    first = renderer.render(compile_here(make_service(), make_slice("10.1.0.1")))
    before = text(first)
    renderer.render(compile_here(make_service(clusterIP="10.96.0.99"), make_slice("10.1.0.2", "10.1.0.3")))
    assert text(first) == before


def test_a_reason_alone_is_no_change_of_the_rules() -> None:
    frontend, endpoints = Frontend(Proto.TCP, "10.96.0.10", 80), (Endpoint("10.1.0.1", 80),)
    renderer = ServiceRenderer()
    before, after = (
        renderer.render(ServiceTable(targets={frontend: Target(service="a/b", endpoints=endpoints, why=why)}))
        for why in ("", "those with a hint for zone a")
    )
    assert all(after[0][name] is before[0][name] for name in before[0])


few = settings(max_examples=50)  # drawing a cluster takes some 10 ms


# --- properties -------------------------------------------------------------------------------------------


@few
@given(clusters(), clusters())
def test_what_is_remembered_changes_nothing(first: Objects, second: Objects) -> None:
    renderer = ServiceRenderer()
    for services, slices in (first, second, first):
        table = ServiceCompiler().compile(services, slices, HERE)
        assert renderer.render(table) == render_services(table)


@given(st.text() | st.from_regex(r"\A[0-9a-f.:/%\x00]*\Z"))
def test_whatever_is_written_where_an_address_belongs_can_be_rendered(written: str) -> None:
    service = make_service(
        clusterIPs=["10.96.0.10", written],
        externalIPs=[written],
        loadBalancerSourceRanges=[written],
        status={"loadBalancer": {"ingress": [{"ip": written}, {"ip": "203.0.113.1"}]}},
    )
    slice_ = make_slice(endpoint(written), "10.1.0.1")
    sets, _ = render_services(compile_here(service, slice_, place=Place("here", None, (written,))))
    assert len(sets["services4"].entries) >= 2


@few
@given(clusters())
def test_the_order_of_services_does_not_matter(objects: Objects) -> None:
    table = ServiceCompiler().compile(*objects, HERE)
    turned = ServiceTable(targets=dict(reversed(list(table.targets.items()))), addresses=table.addresses)
    assert text(render_services(turned)) == text(render_services(table))


@few
@given(clusters())
def test_a_frontend_has_endpoints_or_is_refused(objects: Objects) -> None:
    table = ServiceCompiler().compile(*objects, HERE)
    sets, _ = render_services(table)
    served = [*sets["services4"].entries, *sets["services6"].entries]
    unserved = [*sets["unserved4"].entries, *sets["unserved6"].entries]
    assert len(served) + len(unserved) == len(set(served + unserved)) == len(table.targets)


@few
@given(clusters())
def test_there_are_as_many_endpoints_as_a_chain_picks_from(objects: Objects) -> None:
    """Fewer, and some packets would go nowhere; more, and some endpoints would get none. A second rule has
    the first of them, for a packet that draws one that is just gone."""
    sets, chains = render_services(ServiceCompiler().compile(*objects, HERE))
    for digit in "46":
        indices: dict[bytes, set[str]] = {}
        endpoints = sets[f"endpoints{digit}"]
        for key in endpoints.entries:
            indices.setdefault(key[:-4], set()).add(decode_value(endpoints.key[-1:], key[-4:]))
        services = sets[f"services{digit}"].entries
        assert indices.keys() == services.keys()
        for key, verdict in services.items():
            assert isinstance(verdict, Verdict)
            moduli = {one.key[-1] for one in dnats(verdict.chain, chains)}
            assert moduli == {Random(len(indices[key])), Random(1)}
            assert indices[key] == {str(number) for number in range(len(indices[key]))}


def dnats(chain: str, chains: object) -> Iterator[Dnat]:
    assert isinstance(chains, dict)
    for rule in chains[chain].rules:
        yield from (statement for statement in rule if isinstance(statement, Dnat))


@few
@given(clusters())
def test_to_an_endpoint_of_an_affine_service_one_may_come_back(objects: Objects) -> None:
    sets, chains = render_services(ServiceCompiler().compile(*objects, HERE))
    for digit in "46":
        sticky = {
            key
            for key, verdict in sets[f"services{digit}"].entries.items()
            if isinstance(verdict, Verdict) and verdict.chain.startswith("sticky")
        }
        choices = Counter(
            (key[:-4] + value)
            for key, value in sets[f"endpoints{digit}"].entries.items()
            if isinstance(value, bytes) and key[:-4] in sticky
        )
        assert sets[f"sticky_live{digit}"].entries.keys() == choices.keys()
    for name, chain in chains.items():
        if match := re.fullmatch(r"sticky\d-\d+-(\d+)", name):
            times = {
                one.timeout_s
                for rule in chain.rules
                for one in rule
                if isinstance(one, DnatRemembered) or (isinstance(one, Dnat) and one.remember)
            }
            assert times == {int(match[1])}


@few
@given(clusters())
def test_all_that_is_named_is_there(objects: Objects) -> None:
    sets, chains = render_services(ServiceCompiler().compile(*objects, HERE))
    statements = [one for chain in chains.values() for rule in chain.rules for one in rule]
    entries = [value for elements in sets.values() for value in elements.entries.values()]
    targets = {one.chain for one in statements + entries if isinstance(one, Verdict)} - {""}
    assert targets <= chains.keys()
    assert chains.keys() - targets == {"service-guards", "services", "service-leftovers"}
    named = {one.set for one in statements if isinstance(one, In)}
    named |= {one.map for one in statements if isinstance(one, VerdictMap | Dnat)}
    assert named - {SERVICE_IFS} <= sets.keys()


@few
@given(clusters())
def test_keys_and_values_are_as_long_as_their_types(objects: Objects) -> None:
    sets, _ = render_services(ServiceCompiler().compile(*objects, HERE))
    lengths = {"ipv6_addr": 16}
    for elements in sets.values():
        for key, value in elements.entries.items():
            assert len(key) == sum(lengths.get(one, 4) for one in elements.key)
            if isinstance(value, bytes):
                types = elements.key if elements.interval else elements.value
                assert len(value) == sum(lengths.get(one, 4) for one in types)
