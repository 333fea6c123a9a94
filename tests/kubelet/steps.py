"""Adapter: what tests of registration do and look at, again and again."""

import json
import os
from pathlib import Path
from typing import Any

from tests.plugin_world import FAST, NONE, SLOW, Agent, eventually, make_inventory
from tests.stub_kubelet import StubKubelet

ALL = (FAST, SLOW, NONE)
DOCS = Path(__file__).parent.parent.parent / "docs/device-plugin.md"


def begin(agent: Agent, kubelet: StubKubelet) -> None:
    agent.plugin.update(make_inventory())
    agent.start()
    wait_all(agent, kubelet)


def wait_all(agent: Agent, kubelet: StubKubelet) -> None:
    """Both sides agree that every pool is registered, and the agent has seen the kubelet's streams."""
    for resource, count in ((FAST, 3), (SLOW, 2), (NONE, 0)):
        kubelet.wait_devices(resource, count)
    eventually("registered", agent.is_registered)
    announcements = [one.announcement for one in agent.plugin._resources.values()]
    eventually("watched", lambda: all(one is not None and one._watched for one in announcements))


def found_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def documented(event: str) -> dict[str, Any]:
    """The line of the log that docs/device-plugin.md shows."""
    page = DOCS
    lines = (json.loads(line) for line in page.read_text().splitlines() if line.startswith('{"'))
    return next(line for line in lines if line["event"] == event)


def shape(line: dict[str, Any]) -> set[str]:
    """In a test the level has another name."""
    return {"level" if key == "log_level" else key for key in line}


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))
