"""The whole agent over the in-memory kernel, with a kubelet and the CNI socket that are real."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.typing import FilteringBoundLogger

from node_agent.agent import SOCKET_NAME, Agent
from node_agent.config import ConfigError, parse_config
from node_agent.main import call_at_signals, main
from sriov_cni import wire
from sriov_cni.messages import CniReply, CniRequest
from tests.fake_kernel import FakeKernel
from tests.stub_kubelet import StubKubelet
from vf_manager.discovery import read_pfs
from vf_manager.errors import Busy, CorruptRecord, KernelError
from vf_manager.kernel.api import NetnsHandle
from vf_manager.model import IfName, PciAddress

PF0, PF1 = PciAddress("0000:01:00.0"), PciAddress("0000:02:00.0")
FAST, SLOW, NONE = (f"sriov-underlay.io/{name}" for name in ("fast", "slow", "none"))
CONFIG = """
pools:
- name: fast
  select: {pfNames: [ens1]}
  vfs: {count: 3, mtu: 9000}
- name: slow
  select: {pfNames: [ens2]}
- name: none
  select: {drivers: [nobody]}
"""
_DEADLINE_S = 10.0


class PodKernel(FakeKernel):
    """A namespace is a file here, so that a descriptor of it can be sent over a real socket."""

    def __init__(self) -> None:
        super().__init__()
        self._number_by_inode: dict[int, int] = {}

    def new_pod(self, path: Path) -> None:
        path.touch()
        self._number_by_inode[path.stat().st_ino] = self.new_netns(str(path))

    def netns(self, fd: int) -> NetnsHandle:
        return super().netns(self._number_by_inode.get(os.fstat(fd).st_ino, 0))


class Node:
    """A kernel with two PFs, a kubelet, and the folders of an agent."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run_dir = root / "run"
        self.kernel = PodKernel()
        self.kernel.add_pf(PF0, "ens1")
        self.kernel.add_pf(PF1, "ens2")
        self.kernel.set_num_vfs(PF1, 2)
        self.kubelet = StubKubelet(root / "kubelet")
        self.logged = structlog.testing.LogCapture()

    def agent(self, config: str = CONFIG) -> Agent:
        log: FilteringBoundLogger = structlog.wrap_logger(
            None, [self.logged], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        return Agent(
            parse_config(config),
            self.kernel,
            log,
            run_dir=self.run_dir,
            kubelet_dir=self.root / "kubelet",
            lease_dir=self.root / "leases",
        )

    def events(self, name: str) -> list[dict[str, Any]]:
        return [dict(entry) for entry in self.logged.entries if entry["event"] == name]

    def vfs(self, pf: PciAddress) -> list[PciAddress]:
        return [address for _, address in self.kernel.functions[pf].function.virtfns]

    def call(self, command: str, conf: dict[str, Any], pod: Path | None = None, **env: str) -> CniReply:
        """As the executable does it."""
        variables = {"CNI_COMMAND": command, "CNI_PATH": "/opt/cni/bin"} | env
        if pod is not None:
            variables |= {"CNI_NETNS": str(pod), "CNI_CONTAINERID": pod.name, "CNI_IFNAME": "net1"}
        stdin = json.dumps({"cniVersion": "1.1.0", "name": "underlay", "type": "sriov-underlay"} | conf)
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.settimeout(_DEADLINE_S)
            client.connect(str(self.run_dir / SOCKET_NAME))
            fds = []
            if pod is not None:
                fds.append(os.open(pod, os.O_RDONLY))
                stack.callback(os.close, fds[0])
            frame = wire.encode_request(CniRequest(variables, stdin.encode(), fds[0] if fds else None))
            socket.send_fds(client, [frame], fds)
            reply = b""
            while part := client.recv(4096):
                reply += part
        return wire.decode_reply(reply)

    def status(self) -> tuple[int, str]:
        """(0, "") if an ADD could succeed now, else the CNI code and message."""
        reply = self.call("STATUS", {})
        if reply.exit_code == 0:
            return 0, ""
        error = json.loads(reply.stdout)
        return error["code"], error["msg"]


class Running:
    """An agent in a thread, as `main` runs it."""

    def __init__(self, node: Node, config: str) -> None:
        self._node = node
        self._before = len(node.events("ready"))
        self.agent = node.agent(config)
        self.results: list[str | BaseException | None] = []
        self._thread = threading.Thread(target=self._run, name="agent")
        self._thread.start()

    def _run(self) -> None:
        try:
            self.results.append(self.agent.run())
        except BaseException as e:  # noqa: BLE001 - `ended` shows it
            self.results.append(e)

    def wait_ready(self, *, registered: bool = True) -> None:
        """And known to the kubelet, which does not like it if a plugin goes while it registers."""
        eventually(lambda: len(self._node.events("ready")) > self._before or self.results, "it is ready")
        if registered:
            pools = self.agent._plugin.registered
            eventually(lambda: all(pool.registered for pool in pools()) or self.results, "it is registered")

    def ended(self) -> str | None:
        """The reason, once it has ended."""
        self._thread.join(_DEADLINE_S)
        assert not self._thread.is_alive()
        (result,) = self.results
        if isinstance(result, BaseException):
            raise result
        return result

    def stop(self) -> str | None:
        self.agent.stop()
        return self.ended()


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.002)


def open_fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    eventually(lambda: set(threading.enumerate()) <= before, "every thread has ended")


@pytest.fixture
def node() -> Iterator[Node]:
    """Not tmp_path: the path of a socket may have 107 bytes only."""
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        node = Node(Path(folder))
        with node.kubelet:
            yield node


@contextlib.contextmanager
def running(node: Node, config: str = CONFIG, *, registered: bool = True) -> Iterator[Running]:
    """It is ready, and ends when it is told."""
    agent = Running(node, config)
    try:
        agent.wait_ready(registered=registered)
        yield agent
    finally:
        assert agent.stop() is None


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
    monkeypatch.setattr(node.kernel, "pf_addresses", lambda: 1 / 0)
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
        assert node.status() == (51, f"{all_attached}; the PF of {', '.join(node.vfs(PF1))} is down or gone")
        node.kernel.set_up("ens2", True)
        agent.agent._keeper.mark_dirty()
        eventually(lambda: node.status() == (50, all_attached), "the PF is seen to be up")
        node.kernel.set_up("ens2", False)
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
        (refused,) = node.events("provisioning refused")
        assert f"1 of them are in use ({vf})" in refused["reason"]
        assert vf in node.kubelet.wait_devices(FAST, 3)
        assert node.call("DEL", {"deviceID": vf}, pod).exit_code == 0
    with running(node, CONFIG.replace("count: 3", "count: 4")):
        node.kubelet.wait_devices(FAST, 4)


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
        node.call("ADD", {"deviceID": "0000:09:00.0"}, None)
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
    assert open_fds() == fds
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


@pytest.fixture
def own_logging() -> Iterator[None]:
    """`main` sets up the logging of its process."""
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("own_logging")
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


@pytest.mark.usefixtures("own_logging")
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
def agent_process(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """On whatever this machine has: without a pool it touches no NIC."""
    (folder / "config.yaml").write_text("pools: []")
    options = {
        "--config": "config.yaml",
        "--run-dir": "run",
        "--kubelet-dir": "kubelet",
        "--lease-dir": "leases",
    }
    arguments = [word for key, name in options.items() for word in (key, str(folder / name))]
    process = subprocess.Popen(
        [sys.executable, "-m", "node_agent.main", *arguments],
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
            assert process.wait(_DEADLINE_S) == 1
            assert process.stderr is not None
            assert process.stderr.read() == f"sriov-agent: [Errno 17] File exists: '{folder}/run'\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_may_come_while_the_main_thread_holds_a_lock(number: signal.Signals) -> None:
    lock, stopped = threading.Lock(), threading.Event()

    def stop() -> None:
        if lock.acquire(timeout=1):
            stopped.set()

    before = signal.getsignal(number)
    with call_at_signals(stop):
        with lock:
            os.kill(os.getpid(), number)
        assert stopped.wait(_DEADLINE_S)
    assert signal.getsignal(number) is before


def test_a_signal_that_another_thread_gets_is_heard_at_once() -> None:
    """A handler alone would run when the main thread comes back from its wait."""
    asleep, stopped = threading.Event(), threading.Event()

    def kill_oneself() -> None:
        asleep.wait(0.1)  # until the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        asleep.wait(1)

    with call_at_signals(stopped.set):
        thread = threading.Thread(target=kill_oneself)
        thread.start()
        assert stopped.wait(0.8)
        asleep.set()
        thread.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_cleanly(number: signal.Signals) -> None:
    with tempfile.TemporaryDirectory(prefix="agent-") as folder, agent_process(Path(folder)) as process:
        path = Path(folder) / "run" / SOCKET_NAME
        assert process.stderr is not None
        ready = next(line for line in process.stderr if json.loads(line)["event"] == "ready")
        assert json.loads(ready)["pools"] == {}
        assert is_served(path)
        process.send_signal(number)
        assert process.wait(_DEADLINE_S) == 0
        assert json.loads(process.stderr.read().splitlines()[-1])["event"] == "stopped"
        assert not path.exists()
