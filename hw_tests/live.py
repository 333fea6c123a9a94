"""Orchestrator: changes under an agent that runs, and how long the kubelet is wrong about them."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hw_tests.nics import Nic, wait_until
from hw_tests.node import Node, resource_of
from tests.stub_kubelet import StubKubelet

TOLD_WITHIN_S = 5.0  # one second is the aim; the emulated CPU is ten times slower than a real one
_LONGEST_S = 60.0


@contextlib.contextmanager
def edited(node: Node, pools: Mapping[Nic, Mapping[str, Any]]) -> Iterator[None]:
    """Settings of these NICs' pools in the config file, which the agent is to read by itself; None takes one
    away. In the end the file is as it was."""
    usual = node.config.read_text()
    config = yaml.safe_load(usual)
    for nic, settings in pools.items():
        pool = config["pools"][node.nics.index(nic)]
        pool.update(settings)
        for key in [key for key, value in settings.items() if value is None]:
            del pool[key]
    _put(node.config, yaml.safe_dump(config, sort_keys=False))
    try:
        yield
    finally:
        _put(node.config, usual)


def _put(path: Path, text: str) -> None:
    """As editors do: a whole new file takes the old one's name."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


@contextlib.contextmanager
def other_kubelet(node: Node, **habits: Any) -> Iterator[None]:
    """One with these habits is there when the agent starts; in the end all is as usual again."""
    usual = node.kubelet
    _start_with(node, StubKubelet(node.kubelet_dir, **habits))
    try:
        yield
    finally:
        _start_with(node, usual)


def _start_with(node: Node, kubelet: StubKubelet) -> None:
    node.stop()
    node.kubelet.stop()
    node.kubelet = kubelet
    kubelet.start()
    node.start()
    node.wait_registered()


def healthy(node: Node, nic: Nic) -> set[str]:
    """The VFs of this NIC that the kubelet would give to a pod."""
    devices = node.kubelet.devices(resource_of(nic)).values()
    return {device.id for device in devices if device.health == "Healthy"}


@dataclass
class Looks:
    """When each VF was first seen to be bad, and first not counted by the kubelet; by time.monotonic."""

    bad: dict[str, float] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)

    def longest_s(self) -> float:
        """For one VF."""
        return max(self.told[vf] - bad for vf, bad in self.bad.items())

    def after_s(self, kernel_done: float) -> float:
        """From when the kernel was through with all of them: before, it often lets nobody read how it is."""
        return max(0.0, max(self.told.values()) - max(kernel_done, *self.bad.values()))


def look_until_told(node: Node, nic: Nic, vfs: list[str], is_bad: Callable[[str], bool]) -> Looks:
    """Until the kubelet counts none of these VFs. To be started before they become bad, on a thread of its
    own; looks every 10 ms."""
    looks = Looks()

    def look() -> bool:
        now, counted = time.monotonic(), healthy(node, nic)
        for vf in vfs:
            if is_bad(vf):
                looks.bad.setdefault(vf, now)
            if vf not in counted:
                looks.told.setdefault(vf, now)
        return len(looks.bad) == len(looks.told) == len(vfs)

    wait_until(look, f"word to the kubelet of {', '.join(vfs)}", _LONGEST_S, poll_s=0.01)
    return looks


def wait_said(node: Node, start: int, *words: str) -> None:
    """Until one line of the agent's log since `start` has all of these."""
    wait_until(
        lambda: any(all(word in line for word in words) for line in node.log_text(start).splitlines()),
        f"line of the agent's log with {', '.join(words)}",
        20.0,
    )
