"""Other people's plugins, as the distribution ships them: a fallback chain of bridge and portmap, addresses
by its DHCP daemon and a real DHCP server, and its host-local on one directory with ours.

Everything, the bridge and the packet filter's rules too, is in namespaces of the test: the `stage` of this
folder stands for the host.
"""

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from sriov_cni.chain import FallbackChain
from sriov_cni.chain_cache import ChainRecord
from sriov_cni.chain_conflist import parse_conflist
from sriov_cni.environment import Command, Environment
from sriov_cni.exec import PluginRunner
from sriov_cni.executor import Checkpoint, no_checkpoint
from sriov_cni.fields import Fields
from sriov_cni.ipam.config import DelegateConf, IpRequest, parse_ipam
from sriov_cni.ipam.delegate import Delegate
from sriov_cni.ipam.engine import make_ipam
from sriov_cni.ipam.lease_dir import OwnerCache
from sriov_cni.netconf import CniCall, NetConf
from sriov_cni.spec import NotReady, PluginError
from tests.cni_world import Died
from tests.kernel_contract import Space
from tests.netns.conftest import assert_soon
from tests.netns.namespaces import LinuxWorld, add_veth, ip
from vf_manager.errors import Busy, Exhausted
from vf_manager.kernel.netns import Netns
from vf_manager.model import IfName
from vf_manager.records import RecordStore

PLUGINS = Path("/usr/lib/cni")
DNSMASQ = Path("/usr/sbin/dnsmasq")
PACKAGES = {
    PLUGINS / "portmap": "containernetworking-plugins",
    DNSMASQ: "dnsmasq-base",
    Path("/usr/sbin/iptables"): "iptables",
}
DEADLINE_S = 10.0
PORT_MAPPINGS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}


@pytest.fixture(autouse=True)
def packages(stage: None) -> None:
    """A test that could not run must not pass."""
    if missing := [package for program, package in PACKAGES.items() if not program.exists()]:
        pytest.fail(f"install the packages {' '.join(missing)}", pytrace=False)


def said(*words: str, space: Space | None = None) -> str:
    enter = ["nsenter", f"--net={space.path}"] if space else []
    return subprocess.run([*enter, *words], check=True, capture_output=True, text=True).stdout


# --- the fallback chain ---


class Chain:
    """bridge with host-local, then portmap; one pod."""

    def __init__(self, world: LinuxWorld, root: Path, version: str = "1.0.0") -> None:
        self.root = root
        self.pod = world.new_space()
        self.path = self.pod.path
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": "10.88.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(root / "leases"),
        }
        bridge = {"type": "bridge", "bridge": "br-test", "isGateway": True, "ipam": ipam}
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        self.list: dict[str, Any] = {"cniVersion": version, "name": "fallback", "plugins": [bridge, portmap]}
        self.restart()

    def restart(self, checkpoint: Checkpoint = no_checkpoint) -> None:
        self.records = RecordStore(self.root / "records", ChainRecord)
        self.chain = FallbackChain(
            lambda: parse_conflist(json.dumps(self.list).encode()),
            self.records,
            structlog.get_logger(),
            checkpoint=checkpoint,
        )

    def call(self, command: Command) -> CniCall:
        env = Environment(
            command=command,
            container_id="c1",
            ifname=IfName("eth0"),
            netns=self.path,
            path=(str(PLUGINS),),
            args={"IgnoreUnknown": "1", "K8S_POD_NAME": "p"},
        )
        return CniCall(env=env, conf=NetConf(cni_version="1.1.0", name="underlay"))

    def add(self, runtime_config: dict[str, Any] = PORT_MAPPINGS) -> dict[str, Any]:
        return self.chain.add(self.call(Command.ADD), runtime_config, self.pod.fd)

    def delete(self, *, with_netns: bool = True) -> bool:
        return self.chain.delete(self.call(Command.DEL), self.pod.fd if with_netns else None)

    def left(self) -> list[str]:
        """What the chain has on the host: ports of the bridge, rules of the pod, leases, records."""
        ports = [link["ifname"] for link in json.loads(said("ip", "-j", "link", "show", "type", "veth"))]
        rules = [line for line in said("iptables", "-t", "nat", "-S").splitlines() if "10.88.0." in line]
        leases = sorted(path.name for path in (self.root / "leases/fallback").glob("10.*"))
        return ports + rules + leases + self.records.list_keys()


@pytest.fixture
def world(stage: None) -> Iterator[LinuxWorld]:
    ip("link", "set", "lo", "up")
    with LinuxWorld() as world:
        yield world


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
@pytest.mark.parametrize("seen_here", [True, False])
def test_add_and_del(world: LinuxWorld, tmp_path: Path, version: str, seen_here: bool) -> None:
    """`seen_here`: whether the path that the runtime names is a path of ours too."""
    chain = Chain(world, tmp_path, version)
    if not seen_here:
        chain.path = "/run/netns/of-the-runtime"
    result = chain.add()

    assert result["cniVersion"] == "1.1.0"
    inside = next(entry for entry in result["interfaces"] if entry.get("sandbox"))
    assert (inside["name"], inside["sandbox"]) == ("eth0", chain.path)
    assert result["ips"] == [
        {"address": "10.88.0.2/24", "gateway": "10.88.0.1", "interface": result["interfaces"].index(inside)}
    ]
    assert "10.88.0.2/24" in said("ip", "-4", "addr", "show", "eth0", space=chain.pod)
    assert_reachable(chain.pod)

    assert chain.delete()
    assert chain.left() == []
    assert not json.loads(said("ip", "-j", "link", "show", "type", "veth", space=chain.pod))
    assert not chain.delete()


def assert_reachable(pod: Space) -> None:
    """By the host's port, which portmap leads into the pod."""
    netns = Netns(pod.fd)
    server = netns.run(lambda: socket.create_server(("0.0.0.0", 80)))
    netns.close()
    with server, socket.create_connection(("10.88.0.1", 8080), timeout=DEADLINE_S) as client:
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"from the pod")
        assert client.recv(100) == b"from the pod"


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
@pytest.mark.parametrize("seen_here", [True, False])
def test_check(world: LinuxWorld, tmp_path: Path, version: str, seen_here: bool) -> None:
    """Without port mappings: portmap's CHECK of those fails in its version 1.1.1 (plugins#819)."""
    chain = Chain(world, tmp_path, version)
    if not seen_here:
        chain.path = "/run/netns/of-the-runtime"
    result = chain.add({})
    chain.chain.check(chain.call(Command.CHECK), chain.pod.fd)
    assert chain.add({}) == result, "an ADD that is repeated changes nothing"
    ip("addr", "del", "10.88.0.2/24", "dev", "eth0", space=chain.pod)
    with pytest.raises(PluginError, match=r"plugin bridge: .*10\.88\.0\.2"):
        chain.chain.check(chain.call(Command.CHECK), chain.pod.fd)
    assert chain.delete()
    assert chain.left() == []


def test_del_when_the_namespace_is_gone(world: LinuxWorld, tmp_path: Path) -> None:
    chain = Chain(world, tmp_path)
    chain.add()
    world.delete_space(chain.pod)
    assert chain.delete(with_netns=False)
    assert_soon(lambda: chain.left() == [], "the kernel has removed the veth with its namespace")


@pytest.mark.parametrize("at", ["intent", "add 0", "added 0", "add 1", "added 1", "deleted 1", "deleted 0"])
def test_a_crash_in_the_middle_leaves_nothing(world: LinuxWorld, tmp_path: Path, at: str) -> None:
    def die(name: str) -> None:
        if name == at:
            raise Died(name)

    chain = Chain(world, tmp_path)
    chain.restart(die)
    with contextlib.suppress(Died):
        chain.add()
        chain.delete()
    assert chain.records.list_keys() == ["c1@eth0"]
    chain.restart()
    chain.chain.recover()
    assert chain.left() == []
    assert len(chain.add()["ips"]) == 1
    assert chain.delete()
    assert chain.left() == []


def test_status_of_plugins_that_are_too_old_to_be_asked(world: LinuxWorld, tmp_path: Path) -> None:
    """They serve 1.0.0 at most: there they are ready, and with a list of 1.1.0 no ADD could succeed."""
    chain = Chain(world, tmp_path)
    chain.chain.status(chain.call(Command.STATUS))
    served = json.loads(_version_of("bridge"))["supportedVersions"]
    chain.list["cniVersion"] = "1.1.0"
    if "1.1.0" in served:
        chain.chain.status(chain.call(Command.STATUS))
    else:
        with pytest.raises(NotReady, match=r"plugin bridge does not serve cniVersion 1\.1\.0"):
            chain.chain.status(chain.call(Command.STATUS))


def _version_of(plugin: str) -> bytes:
    return subprocess.run(
        [PLUGINS / plugin], env={"CNI_COMMAND": "VERSION"}, input=b"{}", check=True, capture_output=True
    ).stdout


# --- DHCP ---


class Dhcp:
    """A pod with an interface `net1`, a server on the other end of its wire, and the daemon of the plugin."""

    def __init__(self, world: LinuxWorld, root: Path) -> None:
        self.pod, self.network = world.new_space(), world.new_space()
        self.leases = root / "dnsmasq.leases"
        self.socket = root / "dhcp.sock"
        self.config = {
            "cniVersion": "1.0.0",
            "name": "lan",
            "type": "sriov-underlay",
            "ipam": {"type": "dhcp", "daemonSocketPath": str(self.socket)},
        }
        add_veth("net1", "srv0")
        ip("link", "set", "net1", "netns", self.pod.path)
        ip("link", "set", "srv0", "netns", self.network.path)
        ip("addr", "add", "10.77.0.1/24", "dev", "srv0", space=self.network)
        ip("link", "set", "srv0", "up", space=self.network)

    def engine(self) -> Delegate:
        env = Environment(command=Command.ADD, netns=self.pod.path, path=(str(PLUGINS),))
        conf = DelegateConf(kind="dhcp", config=json.dumps(self.config), env=env)
        return Delegate(conf, PluginRunner(structlog.get_logger()))

    def server(self) -> list[str]:
        return [
            *("nsenter", f"--net={self.network.path}", str(DNSMASQ), "--keep-in-foreground"),
            *("--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--port=0", "--user=root", "--no-ping"),
            *("--interface=srv0", "--bind-interfaces", f"--dhcp-leasefile={self.leases}", "--pid-file="),
            *(
                "--dhcp-range=10.77.0.50,10.77.0.60,255.255.255.0,10m",
                "--dhcp-option=option:router,10.77.0.1",
            ),
            *("--dhcp-authoritative", "--log-facility=/dev/null"),
        ]

    def daemon(self) -> list[str]:
        return [str(PLUGINS / "dhcp"), "daemon", "-socketpath", str(self.socket), "-timeout", "5s"]

    def leased(self) -> list[str]:
        return (
            [line.split()[2] for line in self.leases.read_text().splitlines()] if self.leases.exists() else []
        )


@contextlib.contextmanager
def running(words: list[str]) -> Iterator[None]:
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


@pytest.fixture
def dhcp(world: LinuxWorld, tmp_path: Path) -> Dhcp:
    return Dhcp(world, tmp_path)


def test_an_address_by_dhcp_and_its_return(dhcp: Dhcp) -> None:
    with running(dhcp.server()), running(dhcp.daemon()):
        assert_soon(lambda: dhcp.socket.exists() and dhcp.leases.exists(), "daemon and server are there")
        engine = dhcp.engine()
        given = engine.add("c1", "net1")
        address = given.ips[0].address
        assert address.startswith("10.77.0.")
        assert address.endswith("/24")
        assert given.ips[0].gateway == "10.77.0.1"
        assert [(route.dst, route.gw) for route in given.routes] == [("0.0.0.0/0", "10.77.0.1")]
        assert dhcp.leased() == [address.partition("/")[0]]
        engine.check("c1", "net1")
        engine.delete("c1", "net1")
        assert_soon(lambda: dhcp.leased() == [], "the server has the address back")
        engine.delete("c1", "net1")
        engine.delete("never", "net1")


def test_a_dhcp_daemon_that_is_not_there(dhcp: Dhcp) -> None:
    with pytest.raises(PluginError, match=r"plugin dhcp: .*dhcp\.sock"):
        dhcp.engine().add("c1", "net1")
    with pytest.raises(PluginError, match=r"plugin dhcp: .*dhcp\.sock"):
        dhcp.engine().delete("c1", "net1")


# --- host-local, theirs and ours on one directory ---


class Shared:
    """Who holds which address, by what the calls answered; kept by both sides."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ipam = {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/22"}]], "dataDir": str(root)}
        self.guard = threading.Lock()
        self.holders: dict[str, str] = {}
        self.problems: list[str] = []
        self.calls = 0

    def took(self, address: str, holder: str) -> None:
        with self.guard:
            self.calls += 1
            if address in self.holders:
                self.problems.append(f"{address} of {self.holders[address]} was given to {holder}")
            self.holders[address] = holder

    def gives(self, holder: str) -> None:
        """To be said before the DEL: from then on another may get it."""
        with self.guard:
            self.calls += 1
            self.holders = {address: other for address, other in self.holders.items() if other != holder}

    def on_disk(self) -> dict[str, str]:
        leases = (path for path in (self.root / "net").iterdir() if path.name[0].isdigit())
        return {path.name: path.read_bytes().decode().split("\r\n")[0] for path in leases}


def _theirs(shared: Shared, command: str, holder: str) -> str:
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": holder,
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/run/netns/x",
        "CNI_PATH": str(PLUGINS),
    }
    config = json.dumps({"cniVersion": "1.0.0", "name": "net", "type": "x", "ipam": shared.ipam})
    done = subprocess.run(
        [PLUGINS / "host-local"], env=env, input=config.encode(), capture_output=True, check=False
    )
    if done.returncode:
        shared.problems.append(f"host-local {command} {holder}: {done.stdout.decode()}")
        return ""
    return str(json.loads(done.stdout)["ips"][0]["address"]) if command == "ADD" else ""


def _work(shared: Shared, name: str, rounds: int, *, ours: bool) -> None:
    """Each round is two ADDs and a DEL: one of the two stays. Then the half of what stayed goes."""
    conf = parse_ipam(Fields(shared.ipam, "ipam"), IpRequest())
    engine = make_ipam(conf, network="net", boot_id="boot-1", owners=OwnerCache())
    assert engine is not None

    def add(holder: str) -> None:
        address = engine.add(holder, "eth0").ips[0].address if ours else _theirs(shared, "ADD", holder)
        shared.took(address.partition("/")[0], holder)

    def delete(holder: str) -> None:
        shared.gives(holder)
        if ours:
            engine.delete(holder, "eth0")
        else:
            _theirs(shared, "DEL", holder)

    try:
        for number in range(rounds):
            add(f"{name}-{number}-stays")
            add(f"{name}-{number}-goes")
            delete(f"{name}-{number}-goes")
            if number % 2:
                delete(f"{name}-{number}-stays")
    except (Busy, Exhausted) as e:
        shared.problems.append(str(e))


def test_the_reference_host_local_and_ours_share_a_directory(tmp_path: Path) -> None:
    """2 000 calls, as many by each side, all at once. Nobody gets what another has; nothing is lost."""
    shared = Shared(tmp_path)
    rounds = 72  # of 3.5 calls each, by four threads of each side
    threads = [
        threading.Thread(target=_work, args=(shared, f"{side}{i}", rounds), kwargs={"ours": side == "ours"})
        for side in ("ours", "theirs")
        for i in range(4)
    ]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started < 120
    assert shared.problems == []
    assert shared.calls >= 2000
    assert shared.on_disk() == shared.holders
    assert len(shared.holders) == 8 * rounds // 2


def test_each_releases_what_the_other_gave(tmp_path: Path) -> None:
    shared = Shared(tmp_path)
    engine = make_ipam(parse_ipam(Fields(shared.ipam, "ipam"), IpRequest()), network="net", boot_id="boot-1")
    assert engine is not None
    assert engine.add("a", "eth0").ips[0].address == "10.99.0.2/22"
    assert _theirs(shared, "ADD", "b") == "10.99.0.3/22"
    assert _theirs(shared, "DEL", "a") == ""
    engine.check("b", "eth0")
    engine.delete("b", "eth0")
    assert (shared.on_disk(), shared.problems) == ({}, [])
