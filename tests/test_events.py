"""Events in words and as objects, and the queue that brings them to an API server over real HTTP."""

import datetime
import errno
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from node_agent.api_errors import ApiServerError
from node_agent.api_server import ApiServer
from node_agent.backoff import Backoff
from node_agent.events import (
    BYPASSED,
    Event,
    HealthChange,
    Reason,
    event_of_config,
    event_of_health,
    event_of_unknown,
    events_of_attachments,
    events_of_outcome,
    micro_time,
    render_event,
)
from node_agent.events_poster import MAX_AGE_S, MOST_QUEUED, PAUSE_S, Dropped, EventPoster, EventsApi
from sriov_cni.attachment import Attachment, Original, Sandbox
from sriov_cni.environment import Pod
from sriov_cni.in_pod.options import InPod, Ruled, Unsynced
from sriov_cni.spec import Interface, Result, Route
from tests.api_double import ApiDouble, api_double, wrong_with
from tests.cni_world import quiet_log
from tests.fake_clock import FakeClock
from vf_manager.apply import Failure
from vf_manager.errors import CorruptRecord
from vf_manager.health import HealthReason
from vf_manager.kernel.api import NetnsId
from vf_manager.model import IfName, Inventory, Mac, Netdev, PciAddress, Pf
from vf_manager.provision import Refusal, RefusalKind
from vf_manager.provisioner import Outcome
from vf_manager.vf_attributes import VfPort

PF, VF0, VF1 = (PciAddress(f"0000:01:{end}") for end in ("00.0", "10.0", "10.1"))
POD = Pod(namespace="ml", name="trainer", uid="u1")
DEFAULT = (Route(dst="0.0.0.0/0"),)


def netdev(name: str) -> Netdev:
    return Netdev(ifindex=1, name=IfName(name), mac=Mac("02:00:00:00:00:01"), mtu=1500)


NODE = Inventory(pfs=(Pf(pci=PF, vendor="8086", device="10c9", total_vfs=7, netdev=netdev("ens1")),))


def attachment(vf: PciAddress = VF0, ifname: str = "eth0", routes: tuple[Route, ...] = DEFAULT) -> Attachment:
    return Attachment(
        config="pods",
        network="training",
        primary=IfName(ifname),
        container_id="c1",
        ifname=IfName(ifname),
        sandbox=Sandbox(path="/run/netns/a", id=NetnsId(4, 5)),
        pod=POD,
        port=VfPort(pci=vf, pf=PF),
        original=Original(driver="igbvf", netdev=netdev("ens1v0")),
        result=Result(interfaces=(Interface(name=ifname),), routes=routes),
    )


def reasons(*attachments: Attachment) -> list[Reason]:
    return [event.reason for event in events_of_attachments(attachments, NODE, 0.031)]


# -- words


def test_what_a_pod_is_told() -> None:
    second = msgspec.structs.replace(attachment(VF1), ifname=IfName("net1"), network="storage")
    attached, bypassed = events_of_attachments([attachment(), second], NODE, 0.0314)
    assert attached.note == (
        "VF 0000:01:10.0 of PF ens1 attached as eth0 to network training; "
        "VF 0000:01:10.1 of PF ens1 attached as net1 to network storage, in 31 ms"
    )
    assert bypassed == Event(reason=Reason.KUBE_PROXY_BYPASSED, pod=POD, note=BYPASSED)


def test_only_a_vf_that_is_the_only_way_out_bypasses() -> None:
    both = [Reason.VF_ATTACHED, Reason.KUBE_PROXY_BYPASSED]
    assert reasons(attachment()) == both
    assert reasons(attachment(routes=(Route(dst="10.0.0.0/8"), Route(dst="::/0")))) == both
    assert reasons(attachment(routes=())) == [Reason.VF_ATTACHED]
    assert reasons(attachment(ifname="net1")) == [Reason.VF_ATTACHED], "eth0 is another plugin's"
    vfio = msgspec.structs.replace(attachment(), original=Original(driver="vfio-pci"))
    assert reasons(vfio) == [Reason.VF_ATTACHED], "nothing in the pod sends by it but the application"
    assert "attached as vfio-pci device" in next(events_of_attachments([vfio], NODE, 0)).note


def test_a_pod_with_services_in_it_is_not_bypassed() -> None:
    for options, told in ((InPod(services=True), []), (InPod(policy=True), [Reason.KUBE_PROXY_BYPASSED])):
        one = attachment()
        asked = msgspec.structs.replace(one.asked, in_pod=options)
        assert reasons(msgspec.structs.replace(one, asked=asked)) == [Reason.VF_ATTACHED, *told]


@pytest.mark.parametrize(
    ("options", "failed", "words"),
    [
        (InPod(services=True), True, "services: in-pod for eth0: deaf; the pod is not started"),
        (InPod(services=True, unsynced=Unsynced.START), False, "deaf; started with what was known last"),
        (InPod(policy=True, unsynced=Unsynced.START), False, "while that is nothing, nothing is let through"),
        (
            InPod(policy=True, unsynced=Unsynced.OPEN),
            False,
            "while that is nothing, everything is let through",
        ),
    ],
)
def test_a_pod_whose_rules_are_not_known(options: InPod, failed: bool, words: str) -> None:
    ruled = Ruled(ifname=IfName("eth0"), pod="ml/trainer", uid="u1", options=options)
    (event,) = event_of_unknown(ruled, "deaf", failed=failed)
    assert words in event.note
    assert event.pod == Pod(namespace="ml", name="trainer", uid="u1")
    assert list(event_of_unknown(msgspec.structs.replace(ruled, pod=""), "deaf", failed=failed)) == []


def test_without_records_or_a_pod_there_is_nothing_to_tell() -> None:
    assert reasons() == []
    assert reasons(msgspec.structs.replace(attachment(), pod=None)) == []


def test_provisioning_in_trouble_is_told_by_pf_and_kind() -> None:
    refusals = [
        Refusal(pf=PF, kind=kind, reason=text)
        for kind, text in ((RefusalKind.PENDING, "busy"), (RefusalKind.REFUSED, "too many"))
    ]
    outcome = Outcome(
        pending=(refusals[0],), refused=(refusals[1],), failed=(Failure(PF, "a"), Failure(PF, "b"))
    )
    assert [(e.reason.value, e.note) for e in events_of_outcome(outcome, NODE)] == [
        ("VfProvisioningPending", "PF ens1 (0000:01:00.0): busy"),
        ("VfProvisioningRefused", "PF ens1 (0000:01:00.0): too many"),
        ("VfProvisioningFailed", "PF ens1 (0000:01:00.0): a; b"),
    ]


def test_health_is_told_by_pool() -> None:
    many = [PciAddress(f"0000:01:{i:02x}.0") for i in range(200)]
    change = HealthChange("fast", False, HealthReason.NO_CARRIER)
    event = event_of_health(change, many, {"its PF ens1 has no carrier"})
    assert event.note.startswith("200 VFs of pool fast unhealthy: its PF ens1 has no carrier (0000:01:00.0; ")
    assert event.note.endswith("; and 192 more)")
    well = event_of_health(msgspec.structs.replace(change, healthy=True), many[:1], {"gone"})
    assert well.note == "1 VF of pool fast healthy again: 0000:01:00.0 (was: gone)"


def test_what_is_too_long_is_cut_in_whole_characters() -> None:
    note = render_event(event_of_config("ü" * 1000), "node-1", 1.0)[1]["note"]
    assert len(note.encode()) in (1023, 1024)
    assert note.endswith("ü...")


def test_a_whole_second_has_its_fraction_too() -> None:
    assert micro_time(5.0) == datetime.datetime(1970, 1, 1, 0, 0, 5, 1, datetime.UTC)


@given(
    name=st.from_regex(
        r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,240}[a-z0-9])?)?", fullmatch=True
    ),
    note=st.text(st.characters(), max_size=2000),
    when=st.floats(0, 1e10),
    of_node=st.booleans(),
)
@example(name="a" * 219 + "-b", note="\udc80", when=1.0, of_node=False)
def test_the_api_server_takes_whatever_there_is_to_tell(
    name: str, note: str, when: float, of_node: bool
) -> None:
    pod = None if of_node else Pod(namespace="ml", name=name[:253], uid="u1")
    event = Event(reason=Reason.VF_ATTACHED, pod=pod, note=note)
    namespace, body = render_event(event, name[:253], when)
    sent = json.loads(json.dumps(body, default=datetime.datetime.isoformat))
    assert json.dumps(sent, ensure_ascii=False).encode()
    assert wrong_with(sent, namespace) is None


# -- the queue


class Post:
    """A poster and the API server that it knows; `is_there` False: none is configured."""

    def __init__(self, double: ApiDouble, api: EventsApi) -> None:
        self.double = double
        self.clock = FakeClock()
        self.is_there = True
        self.poster = EventPoster(
            lambda: api if self.is_there else None,
            "node-1",
            quiet_log(),
            clock=self.clock,
            wall=lambda: 1e9 + self.clock.now,
            backoff=Backoff(1.0, 60.0, lambda: 0.0),
        )

    def tell(self, *events: Event) -> None:
        self.poster.put(lambda: events)

    def drain(self) -> None:
        """Until there is nothing left."""
        while (pause_s := self.poster.step()) is not None:
            self.clock.pass_by(pause_s)

    def counts(self, reason: Reason) -> list[int]:
        return [event.get("series", {}).get("count", 1) for event in self.double.told(reason)]


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Post]:
    with api_double() as double:
        api = ApiServer(double.kubeconfig(tmp_path))
        yield Post(double, api)
        api.close()


ATTACHED = Event(reason=Reason.VF_ATTACHED, pod=POD, note="VF", about="vf")
REFUSED = event_of_config("pools: missing")


def test_events_of_pods_and_of_the_node(post: Post) -> None:
    post.tell(ATTACHED, REFUSED)
    post.drain()
    (of_pod,), (of_node,) = post.double.told("VfAttached"), post.double.told("ConfigRefused")
    assert of_pod["regarding"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "trainer",
        "namespace": "ml",
        "uid": "u1",
    }
    assert of_node["regarding"] == {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "node-1"}
    assert (of_pod["type"], of_node["type"]) == ("Normal", "Warning")
    assert of_node["note"] == "config refused, the one before stays in force: pools: missing"
    assert (post.poster.posted, post.poster.dropped) == (2, {})


def test_the_same_again_is_counted_and_written_ever_less_often(post: Post) -> None:
    for _ in range(100):
        post.tell(REFUSED)
    post.drain()
    assert post.counts(Reason.CONFIG_REFUSED) == [64]
    assert len(post.double.requests) == 1 + 6, "2, 4, 8, 16, 32, 64"
    post.clock.pass_by(60)
    post.tell(REFUSED)
    post.drain()
    assert post.counts(Reason.CONFIG_REFUSED) == [101]


def test_what_the_api_server_forgot_is_created_again(post: Post) -> None:
    post.tell(REFUSED)
    post.drain()
    post.double.events.clear()
    post.tell(REFUSED)
    post.drain()
    assert post.counts(Reason.CONFIG_REFUSED) == [1]


def test_what_came_through_without_an_answer_is_not_told_twice(post: Post) -> None:
    namespace, body = render_event(REFUSED, "node-1", 1e9)
    post.double.events[f"{namespace}/{body['metadata']['name']}"] = body
    post.tell(REFUSED)
    post.drain()
    assert post.counts(Reason.CONFIG_REFUSED) == [1]


def test_the_uid_of_a_pod_that_the_runtime_does_not_tell(post: Post) -> None:
    nameless = msgspec.structs.replace(ATTACHED, pod=Pod(namespace="ml", name="trainer"))
    post.tell(nameless)
    post.drain()
    assert post.double.told("VfAttached") == []
    assert post.poster.dropped == {Dropped.REFUSED: 1}, "that pod is gone"
    post.double.pods["ml/trainer"] = None
    post.tell(nameless)
    post.drain()
    assert post.double.told("VfAttached")[0]["regarding"]["uid"] == "u1"


def test_away_it_is_asked_ever_less_often(post: Post) -> None:
    post.double.status = 503
    post.tell(ATTACHED)
    assert [post.poster.step() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    post.double.status = None
    assert post.poster.step() == PAUSE_S
    assert len(post.double.told("VfAttached")) == 1
    post.double.status = 429
    post.tell(ATTACHED)
    assert post.poster.step() == 1


def test_away_events_are_dropped_and_counted(post: Post) -> None:
    post.double.status = 500
    for _ in range(MOST_QUEUED + 3):
        post.tell(ATTACHED)
    assert post.poster.dropped == {Dropped.FULL: 3}
    post.poster.step()
    post.clock.pass_by(MAX_AGE_S + 1)
    post.double.status = None
    post.tell(REFUSED)  # there is room for one again
    post.drain()
    assert post.poster.dropped == {Dropped.FULL: 3, Dropped.LATE: MOST_QUEUED}
    assert post.poster.posted == 1


def test_what_is_not_allowed_holds_up_nothing_else(post: Post) -> None:
    post.double.rights = frozenset()
    post.tell(ATTACHED, ATTACHED)
    post.drain()
    assert post.poster.dropped == {Dropped.REFUSED: 2}


def test_nobody_asks_for_events(post: Post) -> None:
    post.is_there = False
    post.tell(ATTACHED)
    assert post.poster.step() is None
    assert (post.poster.dropped, post.double.requests) == ({}, [])


def test_no_more_asked_for_what_waits_is_dropped(post: Post) -> None:
    post.tell(ATTACHED)
    post.is_there = False
    post.drain()
    assert post.poster.dropped == {Dropped.LATE: 1}


@pytest.mark.parametrize("error", [CorruptRecord("a record"), OSError(errno.EMFILE, "too many open files")])
def test_what_cannot_be_told_any_more(post: Post, error: Exception) -> None:
    def tell() -> list[Event]:
        raise error

    post.poster.put(tell)
    post.tell(REFUSED)
    post.drain()
    assert (post.poster.posted, post.poster.dropped) == (1, {Dropped.REFUSED: 1})


def test_back_off_is_spread() -> None:
    late, early = Backoff(1.0, 4.0, lambda: 0.0), Backoff(1.0, 4.0, lambda: 1.0)
    assert [late.failed() for _ in range(4)] == [1, 2, 4, 4]
    assert [early.failed() for _ in range(4)] == [0.5, 1, 2, 2]
    late.worked()
    assert late.failed() == 1


@pytest.mark.parametrize(
    ("status", "is_away"), [(None, True), (500, True), (429, True), (403, False), (404, False)]
)
def test_away_or_no(status: int | None, is_away: bool) -> None:
    assert ApiServerError("", status).is_away == is_away
