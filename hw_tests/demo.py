"""Orchestrator: the main job on real SR-IOV drivers, told step by step for a person at a terminal.

Run it with `make demo`. Exit code 0 only if every check in it held.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when gRPC is loaded, which the imports below do

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hw_tests.nics import Nic, as_found, find_nics, host_address, settle, wait_for_carrier, wait_until
from hw_tests.node import Node, render_config, resource_of, running_node
from hw_tests.runtime import PROJECT, Answer, CniError, Conf, Pod, host_local, network, none_answers, pings
from hw_tests.snapshot import stable_snapshot, wait_for_same
from hw_tests.stage import Stage

BLUE = network("blue", vlan=100, ipam=host_local({"subnet": "198.18.100.0/24"}))
RED = network("red", vlan=200, ipam=host_local({"subnet": "198.18.100.0/24", "rangeStart": "198.18.100.20"}))
PLAIN = network("plain", ipam=host_local({"subnet": "198.18.0.0/24", "rangeStart": "198.18.0.10"}))
HOST_ADDRESS = "198.18.0.1"
NOTE = (
    "VF traffic goes from the pod straight to the wire: it bypasses the host's kube-proxy, so ClusterIP"
    " Services do not work over it by themselves, and no NetworkPolicy is enforced on it by the host."
)
_PING_TIMEOUT_S = 15.0
_EXPECTED = (CniError, TimeoutError, RuntimeError, OSError, AssertionError, subprocess.SubprocessError)


@dataclass
class Story:
    """What is told, and which checks did not hold."""

    console: Console
    failed: list[str] = field(default_factory=list)

    @contextmanager
    def chapter(self, title: str) -> Iterator[None]:
        self.console.print(f"\n[bold]{escape(title)}[/bold]")
        began = time.monotonic()
        yield
        self.console.print(f"  [dim]{time.monotonic() - began:.1f} s[/dim]")

    def say(self, text: str) -> None:
        self.console.print(f"  {escape(text)}")

    def check(self, what: str, held: bool, why_not: object = "") -> None:
        mark = "[green]✓[/green]" if held else "[red]✗[/red]"
        self.console.print(f"  {mark} {escape(what)}")
        if not held:
            self.failed.append(f"{what}{f': {why_not}' if why_not else ''}")


@dataclass(frozen=True)
class Attached:
    """A pod on its VF."""

    pod: Pod
    nic: Nic
    vf: str
    conf: Conf
    answer: Answer

    @property
    def address(self) -> str:
        return self.answer.address

    @property
    def vlan(self) -> str:
        return str(self.conf.get("vlan", "untagged"))


def main() -> int:
    if os.environ.get("RIG") != "emulated":
        print("hw_tests.demo runs in the emulated machine: use `make demo`", file=sys.stderr)
        return 2
    story = Story(Console(width=110, highlight=False))
    began = time.monotonic()
    try:
        _tell(story)
    except _EXPECTED as e:
        story.check("the story came to its end", False, e)
    story.console.print(f"\n[dim]{time.monotonic() - began:.0f} s in all[/dim]")
    if story.failed:
        story.console.print("[bold red]What did not hold:[/bold red]")
        for line in story.failed:
            story.console.print(f"  ✗ {escape(line)}")
        return 1
    story.console.print("[bold green]Every check held.[/bold green]")
    return 0


def _tell(story: Story) -> None:
    nics = find_nics()
    story.say("SR-IOV virtual functions as pod interfaces, on the real igb and igbvf drivers.")
    with story.chapter("The NICs of this machine"):
        for nic in nics:
            story.say(f"{nic.name} ({nic.pci}), driver {nic.driver}: up to {nic.total_vfs} VFs")
        story.check("two PFs, each with room for 7 VFs", [nic.total_vfs for nic in nics] == [7, 7])
    with ExitStack() as undo:
        for nic in nics:
            undo.enter_context(as_found(nic))
        settle()
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        node = _start_node(story, folder / "node", nics, undo)
        _attach_and_detach(story, node)


def _start_node(story: Story, folder: Path, nics: tuple[Nic, ...], undo: ExitStack) -> Node:
    with story.chapter("The node agent starts, with a pool for each PF in its config"):
        for line in render_config(nics).splitlines():
            story.say(line)
        node = undo.enter_context(running_node(folder, nics))
        for nic in nics:
            story.check(f"7 VFs made on {nic.name}", nic.num_vfs == 7, nic.num_vfs)
            count = len(node.kubelet.devices(resource_of(nic)))
            story.check(f"the kubelet has {resource_of(nic)} with 7 devices", count == 7, count)
        wait_for_carrier(nics)
    return node


def _attach_and_detach(story: Story, node: Node) -> None:
    before = stable_snapshot(node.nics)
    first, second = node.nics
    wanted = (
        ("blue-1", first, BLUE),
        ("blue-2", second, BLUE),
        ("red-1", first, RED),
        ("red-2", second, RED),
        ("plain", second, PLAIN),
    )
    with Stage(node) as stage:
        with story.chapter("Five pods get a VF each: the kubelet allocates, the CNI plugin attaches"):
            pods = {name: _attach(story, stage, name, nic, conf) for name, nic, conf in wanted}
        with story.chapter("What `sriovctl vfs` shows now"):
            story.console.print(_sriovctl(node), soft_wrap=True, markup=False, emoji=False)
        with story.chapter("Who reaches whom"):
            _check_traffic(story, node, pods)
        with story.chapter("The pods go: DEL for each"):
            for one in pods.values():
                seconds = stage.detach(one.pod).seconds
                story.check(f"{one.pod.name}: {one.vf} detached in {seconds * 1000:.0f} ms", True)
    with story.chapter("Everything is as it was before"):
        left = wait_for_same(before, node.nics)
        story.check("name, altnames, MAC, MTU, driver and PF-side attributes of all 14 VFs", not left, left)
        story.check("no record of an attachment is left", node.records() == [], node.records())
        story.check("no address lease is left", node.leases() == [], node.leases())
    _show_table(story, list(pods.values()))


def _attach(story: Story, stage: Stage, name: str, nic: Nic, conf: Conf) -> Attached:
    pod = stage.pod(name)
    vf = stage.allocate(pod, nic)
    one = Attached(pod, nic, vf, conf, stage.attach(pod, conf, vf))
    vlan = f"VLAN {one.vlan}" if "vlan" in conf else one.vlan
    took = f"{one.answer.seconds * 1000:.0f} ms"
    held = pod.addresses() == [one.answer.result["ips"][0]["address"]]
    story.check(f"{name}: VF {vf} of {nic.name}, {vlan}, {one.address}, in {took}", held, pod.addresses())
    return one


def _check_traffic(story: Story, node: Node, pods: dict[str, Attached]) -> None:
    for a, b in (("blue-1", "blue-2"), ("blue-2", "blue-1"), ("red-1", "red-2"), ("red-2", "red-1")):
        what = f"{a} reaches {b}: VLAN {pods[a].vlan}, from {pods[a].nic.name} to {pods[b].nic.name}"
        story.check(what, _hears(pods[a].pod, pods[b].address))
    strangers = [
        (pods[red].pod, pods[blue].address) for red in ("red-1", "red-2") for blue in ("blue-1", "blue-2")
    ]
    story.check("no red pod (VLAN 200) reaches a blue one (VLAN 100)", none_answers(strangers))
    with host_address(node.nics[0], f"{HOST_ADDRESS}/24"):
        plain, pf = pods["plain"], node.nics[0].name
        story.check(
            f"the host reaches the untagged pod from its address on {pf}", _hears(None, plain.address)
        )
        story.check("and the untagged pod reaches the host", _hears(plain.pod, HOST_ADDRESS))


def _hears(source: Pod | None, address: str) -> bool:
    reach = source.pings if source else pings
    try:
        wait_until(lambda: reach(address), "reply", _PING_TIMEOUT_S)
    except TimeoutError:
        return False
    return True


def _sriovctl(node: Node) -> str:
    command = [sys.executable, "-m", "node_agent.cli", "vfs", "--run-dir", str(node.run_dir)]
    return subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout.rstrip()


def _show_table(story: Story, pods: list[Attached]) -> None:
    table = Table(title="What was attached", title_justify="left")
    for title in ("pod", "VF", "PF", "VLAN", "IP"):
        table.add_column(title)
    table.add_column("ADD", justify="right")
    for one in pods:
        took = f"{one.answer.seconds * 1000:.0f} ms"
        table.add_row(one.pod.name, one.vf, one.nic.name, one.vlan, one.address, took)
    story.console.print()
    story.console.print(table)
    story.console.print(f"[yellow]Note:[/yellow] {NOTE}")


if __name__ == "__main__":
    sys.exit(main())
