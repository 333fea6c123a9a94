"""What the agent tells by HTTP: of itself, of its VFs, and of the pods that have them."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from node_agent.api_server import ApiServer
from node_agent.events_poster import EventPoster
from node_agent.kube.kinds import Kind
from node_agent.kube.store import WatchState
from node_agent.metrics_api import ApiState
from tests.agent_node import (
    CONFIG,
    DEADLINE_S,
    FAST,
    PF0,
    Node,
    Running,
    eventually,
    get,
    new_node,
    running,
)
from tests.api_double import api_double
from tests.monitored_node import ONE_ADDRESS, Monitored, monitored_node

DOCS = Path(__file__).parent.parent / "docs" / "observability.md"
_ROW = re.compile(r"^\| `(sriov_underlay_\w+)` \| (\w+) \| (.*?) \|", re.MULTILINE)


@pytest.fixture
def monitored() -> Iterator[Monitored]:
    with monitored_node() as monitored:
        yield monitored


@pytest.fixture
def node() -> Iterator[Node]:
    with new_node() as node:
        yield node


class Scrape:
    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        samples = [sample for family in self.families.values() for sample in family.samples]
        self.samples = {(s.name, tuple(sorted(s.labels.items()))): s.value for s in samples}

    def value(self, name: str, **labels: str) -> float | None:
        """Of the one sample that has these labels; of several, their sum."""
        found = [
            value
            for (sample, its), value in self.samples.items()
            if sample == f"sriov_underlay_{name}" and labels.items() <= dict(its).items()
        ]
        return sum(found) if found else None

    def labels(self, name: str) -> list[dict[str, str]]:
        return [dict(its) for sample, its in self.samples if sample == f"sriov_underlay_{name}"]


def scrape(monitored: Monitored) -> Scrape:
    status, text = get(monitored.running, "/metrics")
    assert status == 200
    return Scrape(text)


def test_vfs_by_pool_and_state(monitored: Monitored) -> None:
    now = scrape(monitored)
    assert now.value("vfs", pool="fast") == 3
    assert now.value("vfs", pool="fast", health="healthy", use="attached") == 1
    assert now.value("vfs", pool="slow", health="unhealthy", use="free") == 2
    assert now.value("vfs", pool="slow", health="healthy", use="free") == 0
    transitions = {"pool": "slow", "reason": "pf-down", "to": "unhealthy"}
    assert now.value("health_transitions_total", **transitions) == 2
    assert now.value("health_transitions_total", pool="fast") == 0


def test_a_vf_by_the_attributes_of_dra(monitored: Monitored) -> None:
    (info,) = [one for one in scrape(monitored).labels("vf_info") if one["vf"] == monitored.attached]
    assert info == {
        "vf": monitored.attached,
        "pools": "fast",
        "driver": "igbvf",
        "resource_kubernetes_io_pcieRoot": "pci0000:00",
        "resource_kubernetes_io_pciBusID": monitored.attached,
        "numaNode": "0",
        "pfName": "ens1",
        "vfID": "0",
        "vendor": "8086",
        "deviceID": "10ca",
        "linkType": "ether",
        "rdmaCapable": "false",
    }


def test_calls_steps_and_attachments(monitored: Monitored) -> None:
    now = scrape(monitored)
    assert now.value("cni_call_duration_seconds_count", command="ADD", result="success") == 2
    assert now.value("cni_call_duration_seconds_count", command="ADD", result="error") == 1
    assert now.value("cni_errors_total", command="ADD", code="11") == 1
    assert now.value("step_duration_seconds_count", step="TakeAddresses", way="apply", result="error") == 1
    assert now.value("step_duration_seconds_count", step="MoveToPod", way="apply", result="success") == 2
    assert now.value("step_duration_seconds_count", step="MoveToPod", way="undo") == 2
    assert now.value("attachments", network="underlay", state="attached") == 1
    assert now.value("ipam_addresses", network="underlay") == 1
    assert now.value("ipam_exhaustions_total", network="underlay") == 1
    assert now.labels("attachment_info") == [
        {
            "vf": monitored.attached,
            "pod_namespace": "ml",
            "pod_name": "trainer",
            "interface": "net1",
            "network": "underlay",
        }
    ]


def test_how_full_the_ranges_of_a_network_are(monitored: Monitored) -> None:
    """Of 10.56.0.0/30 the gateway leaves one for pods."""
    now = scrape(monitored)
    ranges = {"network": "underlay", "ranges": "10.56.0.1-10.56.0.2"}
    assert now.value("ipam_range_addresses", **ranges) == 1
    assert now.value("ipam_range_leases", **ranges) == 1
    monitored.node.call("DEL", {"ipam": ONE_ADDRESS}, monitored.node.root / "trainer")
    assert scrape(monitored).value("ipam_range_leases", **ranges) == 0


def test_the_api_server(monitored: Monitored) -> None:
    now = scrape(monitored)
    assert now.value("api_server_reachable") == 1
    since = now.value("api_server_reachable_since_timestamp_seconds")
    assert since is not None
    assert 0 <= time.time() - since < DEADLINE_S * 10
    successes = now.value("api_server_requests_total", result="success")
    assert successes is not None
    assert successes >= 2
    assert now.value("api_server_requests_total", result="unreachable") == 0


def test_events(monitored: Monitored) -> None:
    def posted() -> bool:
        now = scrape(monitored)
        count = now.value("events_posted_total")
        assert now.value("events_dropped_total") == 0
        return now.value("events_queued") == 0 and count is not None and count >= 2

    eventually(posted, "all are posted")


def test_without_an_api_server_there_is_nothing_to_tell_of_it(node: Node) -> None:
    with running(node) as agent:
        told = Scrape(get(agent, "/metrics")[1]).families
        assert not [name for name in told if "api_server" in name or "_events_" in name]


def test_a_watch_tells_of_itself(node: Node) -> None:
    """Each family has only what is known of it."""
    with api_double() as double:
        api = ApiServer(double.kubeconfig(node.root))
        watches = [
            WatchState(kind=Kind.SERVICES, synced=True, last_event_unix=17.5, relists=2, objects=40),
            WatchState(kind=Kind.PODS, failures=3),
        ]
        registry = CollectorRegistry()
        registry.register(ApiState(lambda: api, EventPoster(lambda: None, "", node.log), lambda: watches))
        now = Scrape(generate_latest(registry).decode())
    assert now.value("watch_synced", resource="services") == 1
    assert now.value("watch_synced", resource="pods") == 0
    assert now.value("watch_last_event_timestamp_seconds", resource="services") == 17.5
    assert now.value("watch_last_event_timestamp_seconds", resource="pods") is None
    assert now.value("watch_relists_total", resource="services") == 2
    assert now.value("watch_objects", resource="services") == 40
    assert now.value("watch_failures_total", resource="pods") == 3


def test_rules_inside_of_pods(monitored: Monitored) -> None:
    """Its network asks for them, so the cluster is followed; no pod has any yet."""
    eventually(
        lambda: scrape(monitored).value("watch_synced", resource="slices") == 1, "the cluster is known"
    )
    now = scrape(monitored)
    assert now.value("rules_pods") == 0
    assert now.value("rules_late_pods") == 0


def test_what_the_kubelet_has_and_what_the_config_wants(monitored: Monitored) -> None:
    now = scrape(monitored)
    assert now.value("resource_registered", resource=FAST) == 1
    assert now.value("allocations_total", resource=FAST, result="success") == 1
    assert now.value("provisioning_unfinished", state="refused") == 1
    assert now.value("config_refused") == 0
    assert now.value("ready") == 1
    looks = now.value("inventory_look_duration_seconds_count")
    assert looks is not None
    assert looks >= 1


def test_traffic_of_a_vf_wherever_it_is(monitored: Monitored) -> None:
    now = scrape(monitored)
    pod = {"pod_namespace": "ml", "pod_name": "trainer", "interface": "net1"}
    assert now.value("vf_receive_bytes_total", vf=monitored.attached, **pod) == 100
    assert now.value("vf_transmit_packets_total", vf=monitored.free, pod_name="") == 100
    assert now.value("vf_receive_errors_total", vf=monitored.attached) == 0


def test_traffic_is_read_once_for_scrapes_that_come_together(monitored: Monitored) -> None:
    before = scrape(monitored).value("vf_receive_bytes_total", vf=monitored.attached)
    monitored.churn()
    assert scrape(monitored).value("vf_receive_bytes_total", vf=monitored.attached) == before


def test_readiness_says_what_is_missing(node: Node) -> None:
    node.set_link("ens2", up=False)
    config = "pools: [{name: slow, select: {pfNames: [ens2]}}]"
    with running(node, config) as agent:
        assert get(agent, "/healthz") == (200, "ok\n")
        why = "all VFs of this node's pools are Unhealthy: "
        eventually(lambda: get(agent, "/readyz")[0] == 503, "it is not ready")
        assert get(agent, "/readyz")[1].startswith(why)
        assert Scrape(get(agent, "/metrics")[1]).value("ready") == 0
        node.set_link("ens2", up=True)
        agent.agent._keeper.mark_dirty()
        eventually(lambda: get(agent, "/readyz") == (200, "ok\n"), "it is ready")


def test_while_vfs_are_made_it_lives_and_is_not_ready(node: Node) -> None:
    """And tells so: neither a probe nor a scrape waits for the kernel."""
    made = threading.Event()

    def make(_: str) -> None:
        made.wait(DEADLINE_S)

    node.kernel.on_change = make
    agent = Running(node, CONFIG)
    try:
        eventually(lambda: node.events("serving metrics"), "it listens")
        assert get(agent, "/healthz") == (200, "ok\n")
        assert get(agent, "/readyz") == (503, "the VFs are still being set up\n")
        assert Scrape(get(agent, "/metrics")[1]).value("ready") == 0
        made.set()
        agent.wait_ready()
        assert get(agent, "/readyz") == (200, "ok\n")
    finally:
        made.set()
        assert agent.stop() is None


def test_a_node_whose_vfs_all_have_work_is_ready(node: Node) -> None:
    """An update of a DaemonSet would wait for ever for it; STATUS says all the same that no VF is left."""
    with running(node, "pools: [{name: fast, select: {pfNames: [ens1]}, vfs: {count: 1}}]") as agent:
        (vf,) = node.vfs(PF0)
        node.kernel.new_pod(node.root / "a")
        assert node.call("ADD", {"deviceID": vf}, node.root / "a").exit_code == 0
        assert node.status() == (50, "all 1 VFs of this node's pools are attached")
        assert get(agent, "/readyz") == (200, "ok\n")


def test_every_line_of_a_call_names_it(monitored: Monitored) -> None:
    (attached,) = [line for line in monitored.node.events("attached") if line["container"] == "trainer"]
    assert (attached["command"], attached["pod"], attached["vf"]) == ("ADD", "ml/trainer", monitored.attached)
    steps = [s for s in monitored.node.events("step") if s.get("request") == attached["request"]]
    assert {step["container"] for step in steps} == {"trainer"}
    assert len(steps) >= 4
    failed = monitored.node.events("call failed")[0]
    assert (failed["container"], failed["ifname"], failed["code"]) == ("p0-without", "net1", 11)
    requests = {line["request"] for line in monitored.node.events("call")}
    assert len(requests) == len(monitored.node.events("call"))


def test_the_table_has_every_metric_and_no_other(monitored: Monitored) -> None:
    """Name, type and labels. Names in the table are those of a query."""
    rows = _ROW.findall(DOCS.read_text())
    shown = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(shown) == len(rows)
    told = {}
    for family in scrape(monitored).families.values():
        if family.name.startswith("sriov_underlay_") and not family.name.endswith("_created"):
            name = family.name + ("_total" if family.type == "counter" else "")
            told[name] = (family.type, family.samples[0].labels.keys() - {"le"})
    assert shown == told


def test_what_is_gone_with_its_pod_is_left_out(node: Node) -> None:
    with running(node) as agent:
        scene = Monitored(node, agent)
        node.kernel.destroy_netns(node.kernel.paths[str(node.root / "trainer")])
        lines = Scrape(get(agent, "/metrics")[1]).labels("vf_receive_bytes_total")
        assert not [line for line in lines if line["pod_name"]]
        assert [line for line in lines if line["vf"] == scene.free]
