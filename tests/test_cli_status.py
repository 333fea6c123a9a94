"""`sriovctl status`, `pfs`, `attachments` and `gc`: what people and programs see of an agent and its pods."""

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from typer.testing import CliRunner, Result

from node_agent import cli
from node_agent.cli_place import age_word
from node_agent.config_file import ConfigFile
from node_agent.provisioning import Provisioning
from node_agent.status_file import (
    AgentStatus,
    InPodState,
    PoolState,
    StatusFile,
    Watched,
    provisioned,
    read_status,
)
from sriov_cni.attachment import Attachment, State
from sriov_cni.in_pod.options import InPod
from tests.agent_node import CONFIG, PF0, Node, eventually, new_node, running
from tests.cni_world import PF0 as WORLD_PF0
from tests.cni_world import World, conf_of
from tests.fake_kernel import FakeKernel
from tests.test_events import attachment
from vf_manager.apply import CreatedVfs
from vf_manager.errors import CorruptRecord, NotFound
from vf_manager.inventory import InventoryKeeper
from vf_manager.locks import DeviceLocks
from vf_manager.model import IfName, Inventory
from vf_manager.provision import PfPolicy
from vf_manager.provisioner import Provisioner
from vf_manager.records import RecordStore


def sriovctl(kernel: FakeKernel, run_dir: Path, command: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli.app, [command, "--run-dir", str(run_dir), *arguments], obj=kernel)


def document(done: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def cells(done: Result) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines() if line.strip()]


@pytest.fixture
def node() -> Iterator[Node]:
    with new_node() as made:
        made.set_link("ens1", up=True)
        yield made


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def attach(world: World, container: str = "c1", **conf: Any) -> int:
    pod = world.new_pod(container)
    args = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0"
    vf = world.vfs(WORLD_PF0)[2]
    assert world.call("ADD", container, pod, conf_of(vf, **conf), CNI_ARGS=args).exit_code == 0
    return pod


# -- status


def settled(node: Node) -> Result:
    """Once the agent has written what is so."""

    def is_settled() -> bool:
        found = read_status(node.run_dir / "status.json")
        return found is not None and all(pool.registered for pool in found.status.pools)

    eventually(is_settled, "the status file has every pool")
    return sriovctl(node.kernel, node.run_dir, "status")


def test_an_agent_that_is_well(node: Node) -> None:
    with running(node):
        done = settled(node)
    assert done.exit_code == 0, done.output
    assert cells(done) == [
        ["agent", "answers, ready for pods"],
        ["config", "as given is in force"],
        ["attached", "0 VFs"],
        ["pool", "resource", "VFs", "healthy", "attached", "kubelet"],
        ["fast", "sriov-underlay.io/fast", "3", "3", "0", "registered"],
        ["slow", "sriov-underlay.io/slow", "2", "2", "0", "registered"],
        ["none", "sriov-underlay.io/none", "0", "0", "0", "registered"],
    ]


def test_what_is_unhealthy_is_shown_with_its_reason(node: Node) -> None:
    with running(node):
        settled(node)
        node.set_link("ens2", up=True, carrier=False)
        node.kernel.tell()
        eventually(lambda: sriovctl(node.kernel, node.run_dir, "status").exit_code == 3, "it is told")
        done = sriovctl(node.kernel, node.run_dir, "status")
    assert ["slow", "sriov-underlay.io/slow", "2", "0", "0", "registered"] in cells(done)
    assert done.stdout.count("has no carrier") == 2


def test_a_config_that_was_refused_is_shown(node: Node) -> None:
    path = node.root / "config.yaml"
    path.write_text(CONFIG)
    file = ConfigFile(path, look_s=0.01)
    file.read()
    with running(node, config_file=file):
        settled(node)
        path.write_text("pools: 3")
        eventually(lambda: sriovctl(node.kernel, node.run_dir, "status").exit_code == 4, "it is told")
        done = sriovctl(node.kernel, node.run_dir, "status")
        assert "refused, the one before is in force: pools: " in done.stdout
        path.write_text(CONFIG)
        eventually(lambda: sriovctl(node.kernel, node.run_dir, "status").exit_code == 0, "it is in force")
        assert f"{path} is in force" in sriovctl(node.kernel, node.run_dir, "status").stdout


def test_what_waits_is_shown(node: Node) -> None:
    """A VF of the PF is in another namespace, so their number cannot change."""
    node.kernel.set_num_vfs(PF0, 2)
    link = node.kernel.find("ens1v0")
    assert link is not None
    node.kernel.new_netns("/run/netns/a")
    pod = node.kernel.netns_at("/run/netns/a")
    assert pod is not None
    with node.kernel.links() as host:
        host.move(link.netdev.ifindex, pod, IfName("eth0"))
    with running(node):
        done = settled(node)
        found = document(sriovctl(node.kernel, node.run_dir, "status", "--json"))
    assert done.exit_code in (3, 4)
    work = found["status"]["provisioning"]
    (refusal,) = work["pending"] + work["refused"]
    assert refusal["reason"] in done.stdout


def test_why_nothing_can_be_provisioned_now_is_kept_until_it_can(node: Node) -> None:
    wrong = [NotFound("the kubelet does not say who has which VF")]

    def wanted(_: Inventory) -> tuple[tuple[PfPolicy, ...], tuple[str, ...]]:
        if wrong:
            raise wrong[0]
        return (), ()

    log, stop = structlog.get_logger(), threading.Event()
    records = RecordStore(node.run_dir / "pfs", CreatedVfs)
    provisioner = Provisioner(node.kernel, DeviceLocks(), records, log, holders=dict)
    provisioning = Provisioning(
        wanted, InventoryKeeper(node.kernel, log), provisioner, log, lambda outcome: None
    )
    thread = threading.Thread(target=provisioning.watch, args=[stop])
    thread.start()
    provisioning.mark_dirty()
    eventually(lambda: provisioning.trouble, "it is kept")
    status = AgentStatus(pid=1, provisioning=provisioned(provisioning.last, (), provisioning.trouble))
    StatusFile(node.run_dir / "status.json", lambda: status, log).write()
    shown = sriovctl(node.kernel, node.run_dir, "status").stdout
    assert "-   waits  the kubelet does not say who has which VF" in shown
    wrong.clear()
    provisioning.mark_dirty()
    eventually(lambda: provisioning.trouble is None, "it is forgotten")
    stop.set()
    provisioning.mark_dirty()
    thread.join()


def test_rules_inside_of_pods(tmp_path: Path) -> None:
    watched = (Watched(kind="pods", known=True, trouble="connection refused"), Watched(kind="services"))
    late = {"/run/netns/a": "ENOMEM"}
    status = AgentStatus(pid=1, in_pod=InPodState(pods=2, late=late, watched=watched))
    StatusFile(tmp_path / "status.json", lambda: status, structlog.get_logger()).write()
    shown = cells(sriovctl(FakeKernel(), tmp_path, "status"))
    assert ["in-pod", "services or policy in 2 pods, not up to date"] in shown
    assert ["pods are not heard: connection refused"] in shown
    assert ["rules in /run/netns/a are not up to date: ENOMEM"] in shown


def test_a_pod_that_bypasses_kube_proxy_is_noted(tmp_path: Path) -> None:
    records = RecordStore(tmp_path / "attachments", Attachment)
    for name, options in (("one", None), ("two", InPod(services=True))):
        bare = msgspec.structs.replace(attachment(), container_id=name, state=State.ATTACHED)
        record = msgspec.structs.replace(bare, asked=msgspec.structs.replace(bare.asked, in_pod=options))
        records.write(record.key, record)
    shown = cells(sriovctl(FakeKernel(), tmp_path, "status"))
    (note,) = [words for key, words in (line for line in shown if len(line) == 2) if key == "note"]
    assert note.startswith("1 pod has no way out but a VF")


def test_without_an_agent(tmp_path: Path) -> None:
    done = sriovctl(FakeKernel(), tmp_path / "run", "status")
    assert done.exit_code == 4
    assert cells(done) == [
        ["agent", f"does not answer: {tmp_path}/run/cni.sock is not there"],
        ["attached", "0 VFs"],
    ]


def test_an_agent_that_ended_takes_its_status_along(node: Node) -> None:
    with running(node):
        settled(node)
    assert not (node.run_dir / "status.json").exists()
    assert sriovctl(node.kernel, node.run_dir, "status").exit_code == 4


def test_what_a_killed_agent_left_is_told_to_be_old(tmp_path: Path) -> None:
    status = AgentStatus(pid=1, pools=(PoolState(name="fast", resource="a/fast"),))
    quiet = structlog.get_logger()
    StatusFile(tmp_path / "status.json", lambda: status, quiet, lambda: time.monotonic() - 300).write()
    done = sriovctl(FakeKernel(), tmp_path, "status")
    assert done.exit_code == 4
    assert "what follows was written 5m ago, by an agent that ended since" in done.stdout
    assert document(sriovctl(FakeKernel(), tmp_path, "status", "--json"))["stale"] is True


# -- the status file


def test_the_file_is_written_at_news_and_now_and_then(tmp_path: Path) -> None:
    path, now, told = tmp_path / "status.json", [100.0], [AgentStatus(pid=1)]
    file = StatusFile(path, lambda: told[0], structlog.get_logger(), lambda: now[0])

    def written() -> float:
        file.write()
        found = read_status(path)
        assert found is not None
        return found.written_s

    assert written() == 100.0
    now[0] = 105.0
    assert written() == 100.0
    told[0] = AgentStatus(pid=1, config_refused="no")
    assert written() == 105.0
    now[0] = 116.0
    assert written() == 116.0
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_of_another_kind_is_told(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{}")
    with pytest.raises(CorruptRecord, match="another release"):
        read_status(tmp_path / "status.json")
    done = sriovctl(FakeKernel(), tmp_path, "status")
    assert done.exit_code == 1
    assert "status.json cannot be read" in done.stderr


def test_a_folder_that_is_full_does_not_end_the_agent(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logged:
        StatusFile(tmp_path / "no/status.json", lambda: AgentStatus(pid=1), structlog.get_logger()).write()
    assert logged[0]["event"] == "the status file could not be written"


# -- pfs


def test_pfs(world: World) -> None:
    attach(world)
    world.kernel.set_up("ens0", up=True)
    world.kernel.eswitch[WORLD_PF0] = "legacy"
    done = sriovctl(world.kernel, world.root, "pfs")
    assert done.exit_code == 0
    head, one, two = cells(done)
    assert head[:5] == ["PF", "pci", "driver", "VFs", "attached"]
    assert one[:5] == ["ens0", WORLD_PF0, "igb", "7 of 7", "1"]
    assert one[6:] == ["1500", "0", "legacy", "no carrier"]
    assert two[9] == "down"
    world.kernel.sick[WORLD_PF0] = ("fw",)
    assert "no carrier, devlink reports an error of fw\n" in sriovctl(world.kernel, world.root, "pfs").stdout
    first = document(sriovctl(world.kernel, world.root, "pfs", "--json"))["pfs"][0]
    assert first["attached"] == [world.vfs(WORLD_PF0)[2]]
    assert first["vfs"] == world.vfs(WORLD_PF0)


def test_a_node_without_pfs(tmp_path: Path) -> None:
    assert sriovctl(FakeKernel(), tmp_path, "pfs").stdout.startswith("This node has no SR-IOV capable NIC")


# -- attachments, gc


def test_attachments(world: World) -> None:
    attach(world, vlan=100)
    done = sriovctl(world.kernel, world.root, "attachments")
    assert done.exit_code == 0
    vf = world.vfs(WORLD_PF0)[2]
    _, row = cells(done)
    assert row[:6] == ["default/web-0", "net1", vf, "ens0", "100", "10.56.0.2/24, fd00:56::2/64"]
    assert (row[6], row[8]) == ("underlay", "attached")
    assert re.fullmatch(r"\d+s", row[7])
    (one,) = document(sriovctl(world.kernel, world.root, "attachments", "--json"))["attachments"]
    assert (one["vf"], one["pfName"], one["vlan"]) == (vf, "ens0", 100)
    assert 0 <= one["sinceSeconds"] < 60


def test_no_attachments(world: World) -> None:
    assert sriovctl(world.kernel, world.root, "attachments").stdout.startswith("No VF of this node")
    assert document(sriovctl(world.kernel, world.root, "attachments", "--json")) == {"attachments": []}


def test_a_record_that_cannot_be_read_is_exit_code_1(world: World) -> None:
    (world.root / "attachments/c0@net1.json").write_text("{")
    for command in (["attachments"], ["gc", "--dry-run"], ["status"], ["pfs"]):
        done = sriovctl(world.kernel, world.root, *command)
        assert done.exit_code == 1
        assert "c0@net1.json cannot be read" in done.stderr


def gc(world: World, *arguments: str) -> Result:
    where = ["--kubelet-dir", str(world.root / "kubelet")]
    return sriovctl(world.kernel, world.root, "gc", "--dry-run", *where, *arguments)


def test_what_would_be_taken_back(world: World) -> None:
    pod = attach(world)
    assert (gc(world).exit_code, gc(world).stdout) == (
        0,
        "Nothing to take back: every attachment has its pod.\n",
    )
    world.kernel.destroy_netns(pod)
    before = world.state()
    done = gc(world)
    assert done.exit_code == 3
    assert "its interface came back to the host" in done.stdout
    (one,) = document(gc(world, "--json"))["takenBack"]
    assert (one["ifname"], one["reason"]) == ("net1", "its interface came back to the host")
    assert world.state() == before


def test_gc_only_looks(world: World) -> None:
    done = sriovctl(world.kernel, world.root, "gc")
    assert done.exit_code == 2
    assert "gc --dry-run" in done.stderr


@pytest.mark.parametrize(
    ("seconds", "word"),
    [(None, "-"), (0.4, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (9 * 86400, "9d")],
)
def test_ages(seconds: float | None, word: str) -> None:
    assert age_word(seconds) == word


def test_shells_can_complete() -> None:
    assert "--install-completion" in CliRunner().invoke(cli.app, ["--help"], terminal_width=200).output


def test_a_status_is_read_as_it_was_written(tmp_path: Path) -> None:
    status = AgentStatus(pid=3, pools=(PoolState(name="a", resource="x/a", registered=True),))
    StatusFile(tmp_path / "status.json", lambda: status, structlog.get_logger()).write()
    found = read_status(tmp_path / "status.json")
    assert found is not None
    assert msgspec.json.encode(found.status) == msgspec.json.encode(status)
