"""A node in memory for tests of the whole agent: a kernel with two PFs, a kubelet and a CNI socket that are
real, and the folders of an agent."""

import contextlib
import http.client
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from device_plugin.allocator import Places
from node_agent.agent import SOCKET_NAME, Agent, Presence, Roots
from node_agent.config import AgentConfig, parse_config
from node_agent.config_file import ConfigFile
from node_agent.http_endpoint import Address
from sriov_cni import wire
from sriov_cni.messages import CniReply, CniRequest
from tests.fake_kernel import FakeKernel
from tests.stub_kubelet import StubKubelet
from vf_manager.health_keeper import HealthKeeper
from vf_manager.kernel.api import NetnsHandle
from vf_manager.model import PciAddress

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
DEADLINE_S = 10.0


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
        self.set_link("ens2", up=True)
        self.kubelet = StubKubelet(root / "kubelet")
        self.logged = structlog.testing.LogCapture()

    @property
    def log(self) -> FilteringBoundLogger:
        log: FilteringBoundLogger = structlog.wrap_logger(
            None,
            [structlog.contextvars.merge_contextvars, self.logged],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )
        return log

    def agent(self, config: str = CONFIG, config_file: ConfigFile | None = None) -> Agent:
        return self.agent_of(parse_config(config), config_file)

    def agent_of(
        self,
        config: AgentConfig,
        config_file: ConfigFile | None = None,
        *,
        on_ready: Callable[[], None] = lambda: None,
    ) -> Agent:
        return Agent(
            config,
            self.kernel,
            self.log,
            roots=Roots(
                run_dir=self.run_dir,
                kubelet_dir=self.root / "kubelet",
                lease_dir=self.root / "leases",
                places=Places(*(self.root / name for name in ("dev", "sys", "cdi", "device-info"))),
            ),
            config_file=config_file,
            health=HealthKeeper(hold_s=0.05),
            presence=Presence(node_name="node-1", http=Address("127.0.0.1", 0)),
            on_ready=on_ready,
        )

    def set_link(self, name: str, *, up: bool, carrier: bool | None = None) -> None:
        """A link that is up has a carrier if not said otherwise."""
        link = self.kernel.find(name)
        assert link is not None
        carrier = up if carrier is None else carrier
        link.netdev = msgspec.structs.replace(link.netdev, up=up, carrier=carrier)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [dict(entry) for entry in self.logged.entries if entry["event"] == name]

    def vfs(self, pf: PciAddress) -> list[PciAddress]:
        return [address for _, address in self.kernel.functions[pf].function.virtfns]

    def call(self, command: str, conf: dict[str, Any], pod: Path | None = None, **env: str) -> CniReply:
        """As the executable does it."""
        variables = {"CNI_COMMAND": command, "CNI_PATH": "/opt/cni/bin"}
        if pod is not None:
            variables |= {"CNI_NETNS": str(pod), "CNI_CONTAINERID": pod.name, "CNI_IFNAME": "net1"}
        variables |= env
        stdin = json.dumps({"cniVersion": "1.1.0", "name": "underlay", "type": "sriov-underlay"} | conf)
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.settimeout(DEADLINE_S)
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

    def __init__(self, node: Node, config: str, config_file: ConfigFile | None = None) -> None:
        self._node = node
        self._before = len(node.events("ready"))
        self.agent = node.agent(config, config_file)
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
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        (result,) = self.results
        if isinstance(result, BaseException):
            raise result
        return result

    def stop(self) -> str | None:
        self.agent.stop()
        return self.ended()


def get(running: Running, path: str) -> tuple[int, str]:
    """What the agent answers by HTTP."""
    assert running.agent.http is not None
    address = running.agent.http.address
    connection = http.client.HTTPConnection(address.host, address.port, timeout=DEADLINE_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.002)


def open_fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@contextlib.contextmanager
def new_node() -> Iterator[Node]:
    """Not in tmp_path: the path of a socket may have 107 bytes only. No thread may be left at the end."""
    before = set(threading.enumerate())
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        node = Node(Path(folder))
        with node.kubelet:
            yield node
    eventually(lambda: set(threading.enumerate()) <= before, "every thread has ended")


@contextlib.contextmanager
def running(
    node: Node, config: str = CONFIG, config_file: ConfigFile | None = None, *, registered: bool = True
) -> Iterator[Running]:
    """It is ready, and ends when it is told."""
    agent = Running(node, config, config_file)
    try:
        agent.wait_ready(registered=registered)
        yield agent
    finally:
        assert agent.stop() is None
