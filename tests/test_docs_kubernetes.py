"""docs/events.md and docs/kube-proxy.md say what the agent does, and the picture is one."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from node_agent.events import (
    Event,
    HealthChange,
    Reason,
    event_of_config,
    event_of_health,
    event_of_unknown,
    events_of_attachments,
    events_of_outcome,
)
from node_agent.node_summary import ANNOTATION
from sriov_cni.in_pod.options import InPod, Ruled
from tests.api_double import rights_of
from tests.test_events import NODE, PF, VF0, VF1, attachment
from vf_manager.apply import Failure
from vf_manager.health import HealthReason
from vf_manager.model import IfName
from vf_manager.provision import Refusal, RefusalKind
from vf_manager.provisioner import Outcome

DOCS = Path(__file__).parent.parent / "docs"
_ROW = re.compile(r"^\| `(\w+)` \| (pod|node) \| (Normal|Warning) \| [^|]+ \| `([^|]+)` \|$", re.MULTILINE)
_RIGHT = re.compile(r"^\| ((?:`\w+`,? )+)`(\w+)`(?: in `([\w.]+)`)? \|", re.MULTILINE)
RULED = Ruled(ifname=IfName("eth0"), pod="ml/trainer", options=InPod(services=True, policy=True))


def all_events() -> list[Event]:
    carrier = {"its PF ens1 has no carrier"}
    pending = Refusal(pf=PF, kind=RefusalKind.PENDING, reason="busy")
    refused = Refusal(pf=PF, kind=RefusalKind.REFUSED, reason="too many")
    outcome = Outcome(pending=(pending,), refused=(refused,), failed=(Failure(PF, "broken"),))
    return [
        *events_of_attachments([attachment()], NODE, 0.031),
        *event_of_unknown(RULED, "nothing was heard of the cluster yet", failed=True),
        *events_of_outcome(outcome, NODE),
        event_of_config("pools: missing"),
        event_of_health(HealthChange("fast", False, HealthReason.NO_CARRIER), [VF0, VF1], carrier),
        event_of_health(HealthChange("fast", True, HealthReason.NO_CARRIER), [VF0, VF1], carrier),
    ]


def test_every_event_is_in_the_documentation() -> None:
    told = all_events()
    assert [event.reason for event in told] == list(Reason)
    assert _ROW.findall((DOCS / "events.md").read_text()) == [
        (
            event.reason,
            "pod" if event.pod else "node",
            "Normal" if event.reason.is_normal else "Warning",
            event.note,
        )
        for event in told
    ]


def test_every_right_is_in_the_documentation() -> None:
    rows = _RIGHT.findall((DOCS / "events.md").read_text())
    told = {(group, resource, verb) for verbs, resource, group in rows for verb in re.findall(r"\w+", verbs)}
    assert told == rights_of()
    assert f"`{ANNOTATION}: " in (DOCS / "events.md").read_text()


@pytest.mark.parametrize("page", ["events.md", "kube-proxy.md"])
def test_links(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#([^)]+))?\)", (DOCS / page).read_text())
    for path, anchor in targets:
        text = (DOCS / path).read_text()
        headings = [
            re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)
        ]
        assert not anchor or anchor in headings, (path, anchor)


def test_the_picture_says_what_it_shows() -> None:
    root = ET.fromstring((DOCS / "img/kube-proxy.svg").read_text())
    title = root.findtext("{http://www.w3.org/2000/svg}title")
    assert f"![{title}](img/kube-proxy.svg)" in (DOCS / "kube-proxy.md").read_text()
