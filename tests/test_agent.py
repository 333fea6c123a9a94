"""The whole agent over the in-memory kernel, with a kubelet and the CNI socket that are real."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from node_agent.agent import SOCKET_NAME
from node_agent.config import ConfigError
from node_agent.main import main, stopped_by_signals
from sriov_cni import wire
from sriov_cni.messages import CniRequest
from tests.agent_node import (
    CONFIG,
    DEADLINE_S,
    FAST,
    NONE,
    PF0,
    PF1,
    SLOW,
    Node,
    Running,
    eventually,
    new_node,
    open_fds,
    running,
)
from vf_manager.discovery import read_pfs
from vf_manager.errors import Busy, CorruptRecord, KernelError
from vf_manager.model import IfName, PciAddress


@pytest.fixture
def node() -> Iterator[Node]:
    with new_node() as node:
        yield node


# -- life


def test_it_makes_vfs_by_config_and_counts_pools_before_it_is_ready(node: Node) -> None:
    with running(node):
        assert node.events("ready")[0]["pools"] == {"fast": 3, "slow": 2, "none": 0}
        assert sorted(node.kubelet.wait_devices(FAST, 3)) == node.vfs(PF0)
        assert sorted(node.kubelet.wait_devices(SLOW, 2)) == node.vfs(PF1)
        assert node.kubelet.wait_devices(NONE, 0) == {}
        assert node.status() == (0, "")
    made, adopted = read_pfs(node.kernel)
    assert made.netdev is not None
    assert (made.netdev.up, made.netdev.mtu) == (True, 9000)
    assert [vf.netdev.mtu for vf in made.vfs if vf.netdev] == [9000, 9000, 9000]
    assert [vf.netdev.mtu for vf in adopted.vfs if vf.netdev] == [1500, 1500]


def test_stopped_it_leaves_no_socket_and_the_vfs(node: Node) -> None:
    with running(node):
        assert (node.run_dir / SOCKET_NAME).is_socket()
    assert not (node.run_dir / SOCKET_NAME).exists()
    assert [p.name for p in (node.root / "kubelet/device-plugins").iterdir()] == ["kubelet.sock"]
    assert node.events("stopped")[0]["reason"] == "asked to"
    assert len(node.vfs(PF0)) == 3


def test_coming_and_going_leaks_no_descriptor(node: Node) -> None:
    """The kubelet keeps its ends of the first time until the next."""
    with running(node):
        pass
    fds = open_fds()
    for _ in range(3):
        with running(node):
            assert node.status() == (0, "")
    eventually(lambda: open_fds() <= fds, f"no more than {fds} descriptors are open")


def test_without_a_kubelet_it_serves_all_the_same(node: Node) -> None:
    node.kubelet.stop()
    (node.root / "kubelet/device-plugins").rename(node.root / "gone")
    with running(node, registered=False) as agent:
        assert node.status() == (0, "")
        (node.root / "gone").rename(node.root / "kubelet/device-plugins")
        node.kubelet.start()
        node.kubelet.wait_devices(FAST, 3)
        agent.wait_ready()


def test_only_one_runs_on_a_folder(node: Node) -> None:
    with running(node):
        with pytest.raises(Busy, match="another sriov-agent runs with"):
            node.agent()
        assert node.status() == (0, "")
    with running(node):
        assert node.status() == (0, "")


def test_restarted_it_finds_what_it_made(node: Node) -> None:
    with running(node):
        before = node.kernel.snapshot()
    changes: list[str] = []
    node.kernel.on_change = changes.append
    with running(node):
        node.kubelet.wait_devices(FAST, 3)
    assert changes == []
    assert node.kernel.snapshot() == before


def test_a_thread_that_fails_ends_it_with_the_reason(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Running(node, CONFIG)
    agent.wait_ready()
    monkeypatch.setattr(node.kernel, "read_functions", lambda: 1 / 0)
    agent.agent._keeper.mark_dirty()
    assert agent.ended() == "thread inventory failed: division by zero"
    assert not (node.run_dir / SOCKET_NAME).exists()


# -- attachments


def test_status_says_when_every_vf_is_attached(node: Node) -> None:
    one_pool = "pools: [{name: slow, select: {pfNames: [ens2]}}]"
    pods = [node.root / name for name in ("pod-a", "pod-b")]
    before = node.kernel.snapshot()
    with running(node, one_pool) as agent:
        for pod, vf in zip(pods, node.vfs(PF1), strict=True):
            assert node.status() == (0, "")
            node.kernel.new_pod(pod)
            assert node.call("ADD", {"deviceID": vf}, pod).exit_code == 0
        all_attached = "all 2 VFs of this node's pools are attached"
        assert node.status() == (50, all_attached)
        node.set_link("ens2", up=False)
        agent.agent._keeper.mark_dirty()
        cut_off = f"{all_attached}; the PF of {', '.join(node.vfs(PF1))} is down or gone"
        eventually(lambda: node.status() == (51, cut_off), "the PF is seen to be down")
        assert node.kubelet.wait_devices(SLOW, 0) == {}
        node.set_link("ens2", up=True)
        agent.agent._keeper.mark_dirty()
        assert len(node.kubelet.wait_devices(SLOW, 2)) == 2
        assert node.call("DEL", {"deviceID": node.vfs(PF1)[0]}, pods[0]).exit_code == 0
        assert node.status() == (0, "")
        assert node.call("DEL", {"deviceID": node.vfs(PF1)[1]}, pods[1]).exit_code == 0
    for pod in pods:
        node.kernel.destroy_netns(node.kernel.paths[str(pod)])
    assert node.kernel.snapshot() == before


def test_restarted_it_still_knows_and_counts_what_is_attached(node: Node) -> None:
    pod = node.root / "pod-a"
    node.kernel.new_pod(pod)
    with running(node):
        vf = node.vfs(PF0)[1]
        assert node.call("ADD", {"deviceID": vf}, pod).exit_code == 0
    with running(node, CONFIG.replace("count: 3", "count: 4")):
        (waiting,) = node.events("provisioning pending")
        assert waiting["reason"].endswith(f"of which are in use: {vf} (container pod-a)")
        assert vf in node.kubelet.wait_devices(FAST, 3)
        assert node.call("DEL", {"deviceID": vf}, pod).exit_code == 0
        node.kubelet.wait_devices(FAST, 4)


def test_device_information_stays_while_a_pod_has_the_device(node: Node) -> None:
    def devices() -> set[str]:
        names = [path.name for path in (node.root / "device-info").iterdir()]
        return {name.removeprefix("sriov-underlay.io-slow-").removesuffix("-device.json") for name in names}

    with running(node):
        held = {*node.kubelet.allocate("default", "one", SLOW).ids}
        gone = {*node.kubelet.allocate("default", "other", SLOW).ids}
        assert devices() == held | gone
        node.kubelet.free("default", "other")
    node.kernel.set_num_vfs(PF1, 0)
    with running(node):
        assert devices() == held
        node.kubelet.free("default", "one")
    with running(node):
        assert devices() == set()


def test_a_vfio_vf_is_reset_and_given_as_a_cdi_device(node: Node) -> None:
    for vf in node.vfs(PF1):
        node.kernel.bind_driver(vf, "vfio-pci")
    vfio = node.root / "dev/vfio"
    vfio.mkdir(parents=True)
    for group in ("10", "11"):
        (vfio / group).touch()
    config = """
pools:
- {name: slow, select: {pfNames: [ens2]}, allocation: {cdi: true, resetVfio: true}}
"""
    with running(node, config):
        node.kubelet.wait_devices(SLOW, 2)
        with pytest.raises(grpc.RpcError, match=r"allocate VF .*: /dev/vfio/vfio is not there"):
            node.kubelet.allocate("default", "pod", SLOW)
        assert node.kernel.resets == []
        (vfio / "vfio").touch()
        given = node.kubelet.allocate("default", "pod", SLOW)
        assert node.kernel.resets == list(given.ids)
        names = [device.name for device in given.response.cdi_devices]
        assert names == [f"sriov-underlay.io/vf-slow={given.ids[0]}"]
        [spec] = (node.root / "cdi").iterdir()
        assert given.ids[0] in spec.read_text()


def test_vfs_that_went_are_made_again(node: Node) -> None:
    """A NIC that was plugged out and in again has none."""
    with running(node) as agent:
        node.kubelet.wait_devices(FAST, 3)
        node.kernel.set_num_vfs(PF0, 0)
        agent.agent._keeper.mark_dirty()
        eventually(lambda: len(node.vfs(PF0)) == 3, "there are VFs again")
        eventually(lambda: agent.agent._keeper.current.find_vf(node.vfs(PF0)[2]), "and they are seen")


def test_a_vf_that_only_the_kubelet_knows_to_be_in_use_is_safe(node: Node) -> None:
    """A pod that drives its VF by vfio-pci needs no network of the CNI plugin."""
    with running(node):
        vf = next(iter(node.kubelet.wait_devices(FAST, 3)))
    node.kubelet.give("ml", "dpdk", FAST, vf)
    with running(node, CONFIG.replace("count: 3", "count: 2")):
        (waiting,) = node.events("provisioning pending")
        assert waiting["reason"].endswith(f"in use: {vf} (ml/dpdk)")
        assert len(node.vfs(PF0)) == 3


def test_a_vf_that_is_in_no_pool_is_refused(node: Node) -> None:
    pod = node.root / "pod-a"
    node.kernel.new_pod(pod)
    with running(node, "pools: [{name: fast, select: {pfNames: [ens1]}}]"):
        reply = node.call("ADD", {"deviceID": node.vfs(PF1)[0]}, pod)
        assert reply.exit_code == 1
        assert "is in no pool of this node's configuration" in json.loads(reply.stdout)["msg"]


def test_a_vf_that_came_since_the_last_look_is_found(node: Node) -> None:
    pod = node.root / "pod-a"
    node.kernel.new_pod(pod)
    with running(node, "pools: [{name: fast, select: {pfNames: [ens1]}}]"):
        assert node.status()[0] == 50
        node.kernel.set_num_vfs(PF0, 1)
        assert node.call("ADD", {"deviceID": node.vfs(PF0)[0]}, pod).exit_code == 0


LONE = PciAddress("0000:05:00.0")
LONE_CONFIG = """
pools:
- name: fast
  withoutPf: true
  select: {vendors: ["8086"], devices: ["10d3"]}
"""


def test_vfs_without_a_pf(node: Node) -> None:
    """A VF in a pod is no sign of a broken PF; one that the host needs stays out, and that is said once."""
    node.kernel.add_lone(LONE, "ens5")
    node.kernel.add_lone("0000:06:00.0", "ens6")
    node.kernel.uppers_of["ens6"] = ("br0",)
    pod = node.root / "pod-a"
    node.kernel.new_pod(pod)
    before = node.kernel.snapshot()
    with running(node, LONE_CONFIG):
        assert set(node.kubelet.wait_devices(FAST, 1)) == {LONE}
        assert node.call("ADD", {"deviceID": LONE}, pod).exit_code == 0
        assert node.status() == (50, "all 1 VFs of this node's pools are attached")
        assert node.call("DEL", {"deviceID": LONE}, pod).exit_code == 0
        assert node.status() == (0, "")
        (line,) = node.events("a device stays out of its pool")
        assert line["reason"] == (
            "pool fast does not get 0000:06:00.0: br0 of the host stands on its interface ens6"
        )
        reply = node.call("ADD", {"deviceID": "0000:06:00.0"}, pod)
        assert "(br0 of the host stands on its interface ens6)" in json.loads(reply.stdout)["msg"]
    assert node.kernel.snapshot() == before


def test_a_nic_that_the_host_comes_to_need_leaves_its_pool(node: Node) -> None:
    node.kernel.add_lone(LONE, "ens5")
    with running(node, LONE_CONFIG):
        node.kubelet.wait_devices(FAST, 1)
        node.kernel.uppers_of["ens5"] = ("bond0",)
        node.kernel.tell()
        node.kubelet.wait_devices(FAST, 0)


# -- what is wrong from the start


def test_without_any_vf_it_is_not_ready(node: Node) -> None:
    def refuse(what: str) -> None:
        raise KernelError(what, 5)

    node.kernel.on_change = refuse
    with running(node, "pools: [{name: fast, select: {pfNames: [ens1]}, vfs: {count: 3}}]"):
        assert node.status() == (50, "no pool has a VF; see the agent's log and `sriovctl vfs`")
        assert "EIO" in node.events("provisioning failed")[0]["error"]
        node.kubelet.wait_devices(FAST, 0)


def test_a_pf_that_nobody_has_is_logged(node: Node) -> None:
    with running(node, "pools: [{name: fast, select: {pfNames: [ens9]}, vfs: {count: 3}}]"):
        (entry,) = node.events("nothing to provision")
        assert "no SR-IOV PF is called 'ens9' on this node" in entry["reason"]


def test_a_config_that_does_not_fit_the_node_ends_it(node: Node) -> None:
    """That two names are one PF shows only where the PF is."""
    link = node.kernel.find("ens1")
    assert link is not None
    with node.kernel.links() as host:
        host.add_altnames(link.netdev.ifindex, [IfName("enp1s0")])
    config = """
pools:
- {name: a, select: {pfNames: ["ens1#0"]}, vfs: {count: 2}}
- {name: b, select: {pfNames: ["enp1s0#1"]}, vfs: {count: 3}}
"""
    fds = open_fds()
    with pytest.raises(ConfigError, match=r"pools\[1\].vfs.count: 3 VFs are asked of ens1"):
        Running(node, config).ended()
    assert not (node.run_dir / SOCKET_NAME).exists()
    assert open_fds() <= fds  # gRPC may still be closing one of a test before
    with running(node):
        assert node.status() == (0, "")


def test_a_corrupt_record_is_not_passed_over(node: Node) -> None:
    (node.run_dir / "attachments").mkdir(parents=True)
    (node.run_dir / "attachments/c1@net1.json").write_text("{")
    with pytest.raises(CorruptRecord, match=r"c1@net1\.json"):
        node.agent()
    (node.run_dir / "attachments/c1@net1.json").unlink()
    with running(node):
        assert node.status() == (0, "")


# -- the command


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pools:\n- {name: a, select: {vendors: [8086]}}", "pools[0].select.vendors[0]: expected `str`"),
        ("pools: []\nextra: 1", "extra: unknown key"),
        (b"\xff\xfe\xfd", "can't decode"),
    ],
)
def test_a_wrong_config_is_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | bytes, said: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["--config", str(path), "--run-dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith(f"sriov-agent: {path}: ")
    assert main(["--config", str(path), "--run-dir", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_config_that_is_not_there_is_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    assert main(["--config", str(path)]) == 2
    assert capsys.readouterr().err == f"sriov-agent: {path}: No such file or directory\n"


@pytest.mark.parametrize("options", [["--nope"], ["--log-level", "loud"], ["extra"]])
def test_wrong_options_are_exit_code_2(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(options)
    assert caught.value.code == 2
    assert "usage: sriov-agent" in capsys.readouterr().err


@contextlib.contextmanager
def agent_process(folder: Path, *more: str) -> Iterator["subprocess.Popen[str]"]:
    """On whatever this machine has: without a pool it touches no NIC."""
    (folder / "config.yaml").write_text("pools: []")
    options = {
        "--config": "config.yaml",
        "--run-dir": "run",
        "--kubelet-dir": "kubelet",
        "--lease-dir": "leases",
        "--cdi-dir": "cdi",
        "--device-info-dir": "device-info",
    }
    arguments = [word for key, name in options.items() for word in (key, str(folder / name))]
    process = subprocess.Popen(
        [sys.executable, "-m", "node_agent.main", *arguments, *more],
        cwd=Path(__file__).parent.parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def test_a_folder_that_cannot_be_made_is_told_in_a_line() -> None:
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        (Path(folder) / "run").touch()
        with agent_process(Path(folder)) as process:
            assert process.wait(DEADLINE_S) == 1
            assert process.stderr is not None
            assert process.stderr.read() == f"sriov-agent: [Errno 17] File exists: '{folder}/run'\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_may_come_while_the_main_thread_holds_a_lock(number: signal.Signals) -> None:
    lock, stopped = threading.Lock(), threading.Event()

    def stop() -> None:
        if lock.acquire(timeout=1):
            stopped.set()

    before = signal.getsignal(number)
    with stopped_by_signals(stop):
        with lock:
            os.kill(os.getpid(), number)
        assert stopped.wait(DEADLINE_S)
    assert signal.getsignal(number) is before


def test_a_signal_ends_a_wait_of_the_main_thread_at_once() -> None:
    """However close to its beginning the signal comes."""
    for _ in range(200):
        stop = threading.Event()
        with stopped_by_signals(stop.set):
            killer = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGTERM))
            killer.start()
            assert stop.wait(DEADLINE_S)
            killer.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_cleanly(number: signal.Signals) -> None:
    with tempfile.TemporaryDirectory(prefix="agent-") as folder, agent_process(Path(folder)) as process:
        path = Path(folder) / "run" / SOCKET_NAME
        assert process.stderr is not None
        ready = next(line for line in process.stderr if json.loads(line)["event"] == "ready")
        assert json.loads(ready)["pools"] == {}
        assert is_served(path)
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == 0
        assert json.loads(process.stderr.read().splitlines()[-1])["event"] == "stopped"
        assert not path.exists()


def test_metrics_are_served_where_it_is_told() -> None:
    listen = ("--metrics-address", "127.0.0.1:0")
    with (
        tempfile.TemporaryDirectory(prefix="agent-") as folder,
        agent_process(Path(folder), *listen) as process,
    ):
        assert process.stderr is not None
        lines = map(json.loads, process.stderr)
        address = next(line["address"] for line in lines if line["event"] == "serving metrics")
        assert next(line for line in lines if line["event"] == "ready")
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=DEADLINE_S) as response:
            assert response.read() == b"ok\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


def test_a_line_of_a_call_says_which_call_it_was() -> None:
    """As the command logs, not as a test does."""
    with tempfile.TemporaryDirectory(prefix="agent-") as folder, agent_process(Path(folder)) as process:
        assert process.stderr is not None
        lines = map(json.loads, process.stderr)
        assert next(line for line in lines if line["event"] == "ready")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(f"{folder}/run/{SOCKET_NAME}")
            env = {
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": "c7",
                "CNI_ARGS": "K8S_POD_NAMESPACE=ml;K8S_POD_NAME=a",
            }
            client.sendall(wire.encode_request(CniRequest(env, b"{}")))
            assert wire.decode_reply(client.recv(4096)).exit_code == 1
        failed = next(line for line in lines if line["event"] == "call failed")
        assert (failed["command"], failed["container"], failed["pod"]) == ("ADD", "c7", "ml/a")
        assert re.fullmatch("[0-9a-f]{8}", failed["request"])


def test_an_address_that_is_none_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("pools: []")
    assert main(["--config", str(tmp_path / "config.yaml"), "--metrics-address", "9808"]) == 2
    assert capsys.readouterr().err == (
        "sriov-agent: --metrics-address: '9808' is not valid;"
        " expected ADDRESS:PORT, as in 127.0.0.1:9808 or [::1]:9808\n"
    )
