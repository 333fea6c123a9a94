"""`sriovctl top`: traffic of VFs in pods."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from node_agent import cli
from node_agent.cli_place import read_held
from node_agent.vf_rates import Rates, Sample, rates_between, take_sample
from tests.cni_world import PF0, World, conf_of
from vf_manager.kernel.api import LinkTraffic
from vf_manager.model import IfName, PciAddress

VF = PciAddress("0000:01:10.0")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def attach(world: World) -> int:
    pod = world.new_pod("a")
    names = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0"
    conf = conf_of(world.vfs(PF0)[2])
    assert world.call("ADD", "c1", pod, conf, CNI_ARGS=names).exit_code == 0
    return pod


def top(world: World, *arguments: str) -> Result:
    words = ["top", "--run-dir", str(world.root), "--interval", "0.01", *arguments]
    return CliRunner().invoke(cli.app, words, obj=world.kernel)


def sample(at_s: float, **counted: int) -> Sample:
    return Sample(at_s=at_s, traffic={VF: LinkTraffic(ifindex=3, name=IfName("net1"), **counted)})


def test_rates_are_per_second() -> None:
    before = sample(10.0, rx_bytes=1000, tx_packets=5, rx_dropped=1)
    after = sample(
        12.0, rx_bytes=251_000, tx_bytes=50, tx_packets=105, tx_dropped=3, rx_dropped=1, rx_errors=4
    )
    assert rates_between(before, after) == {
        VF: Rates(rx_bits=1_000_000.0, tx_bits=200.0, tx_packets=50.0, dropped=1.5, errors=2.0)
    }


def test_a_counter_that_began_anew_is_no_negative_rate() -> None:
    assert rates_between(sample(1.0, rx_bytes=1000), sample(2.0, rx_bytes=10)) == {VF: Rates()}


def test_a_vf_that_just_came_has_no_rates_yet() -> None:
    assert rates_between(Sample(at_s=1.0, traffic={}), sample(2.0)) == {}
    assert rates_between(sample(1.0), sample(1.0)) == {}


def test_counters_are_those_of_the_interface_in_the_pod(world: World) -> None:
    pod = attach(world)
    link = world.kernel.find("net1", pod)
    assert link is not None
    attachments = [held.attachment for held in read_held(world.root)]
    link.counted = {"rx_bytes": 7}
    (counted,) = take_sample(world.kernel, attachments).traffic.values()
    assert counted.rx_bytes == 7
    world.kernel.destroy_netns(pod)
    assert take_sample(world.kernel, attachments).traffic == {}


def test_once(world: World) -> None:
    attach(world)
    done = top(world, "--once")
    assert done.exit_code == 0, done.output
    head, row = done.stdout.splitlines()
    assert head.split()[:4] == ["pod", "ifname", "VF", "rx"]
    assert row.split() == ["default/web-0", "net1", world.vfs(PF0)[2], "0.00", "0.00", "0", "0", "0", "0"]


def test_json(world: World) -> None:
    attach(world)
    document: dict[str, Any] = json.loads(top(world, "--json").stdout)
    (one,) = document["vfs"]
    assert (one["pod"]["name"], one["vf"]) == ("web-0", world.vfs(PF0)[2])
    assert one["perSecond"]["rx_bits"] == 0.0


def test_what_cannot_be_read_is_a_dash(world: World) -> None:
    world.kernel.destroy_netns(attach(world))
    assert top(world, "--once").stdout.splitlines()[1].split()[3:] == ["-"] * 6
    assert json.loads(top(world, "--json").stdout)["vfs"][0]["perSecond"] is None


def test_nothing_is_attached(world: World) -> None:
    assert top(world, "--once").stdout == "No VF of this node is attached to a pod.\n"


def test_live_goes_on_until_it_is_interrupted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    attach(world)
    looks = []

    def interrupt_the_third(path: str) -> None:
        looks.append(path)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(world.kernel, "netns_at", interrupt_the_third)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes what it writes to for a terminal
    done = top(world)
    assert (done.exit_code, len(looks)) == (0, 3)
    assert "rx Mbit/s" in done.stdout
