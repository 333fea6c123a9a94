"""Orchestrator: a node with the real agent and executable, whose VFs are veths on one segment, beside other
hosts of that segment; all of it in namespaces of the test.

What the segment is to real VFs, the switch in the NIC and the wire behind it, is a bridge here.
"""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import yaml

from hw_tests.bench.agent import VethsFile
from hw_tests.bench.veths import Veth, make_tree
from hw_tests.node import Node
from hw_tests.runtime import EXECUTABLE, Answer, Pod, network
from tests.kernel_contract import Space
from tests.netns.namespaces import LinuxWorld, add_veth, ip
from vf_manager.model import Mac, PciAddress

WIRE = "wire0"
GATEWAY = ("10.56.0.1", "fd56::1")
CLUSTER_NETWORK = ("10.244.0.1", "10.244.0.2")  # the other end, and the pod
NODE_NAME = "node-1"
POOL = "fast"
RESOURCE = f"sriov-underlay.io/{POOL}"
IFNAME = "eth0"
_PF = "0000:01:00.0"
RANGES = [[{"subnet": "10.56.0.0/24", "gateway": GATEWAY[0], "rangeStart": "10.56.0.100"}]]
RANGES6 = [[{"subnet": "fd56::/64", "gateway": GATEWAY[1], "rangeStart": "fd56::100"}]]


@dataclass
class UnderlayPod(Pod):
    """`answer`: of its ADD."""

    space: Space = field(default_factory=lambda: Space(-1, ""))
    answer: Answer | None = None

    @property
    def path(self) -> Path:
        return Path(self.space.path)

    @property
    def addresses_given(self) -> list[str]:
        assert self.answer is not None
        return [str(one["address"]).split("/")[0] for one in self.answer.result["ips"]]

    @property
    def address(self) -> str:
        return self.addresses_given[0]


class Underlay:
    """`options`: of the one network of its VFs. `config`: further keys of the agent's config."""

    def __init__(self, folder: Path, world: LinuxWorld, options: dict[str, Any], **config: Any) -> None:
        assert EXECUTABLE.exists(), "run `make shim`"
        self.world = world
        self._numbers = itertools.count(1)
        self._make_wire()
        veths = tuple(_add_vf(index) for index in range(16))
        make_tree(folder / "sys", {_PF: "pf0"}, {_PF: veths})
        described = folder / "veths.json"
        described.write_bytes(msgspec.json.encode(VethsFile(str(folder / "sys"), veths)))
        self.node = Node(
            folder / "node",
            (),
            module="hw_tests.bench.agent",
            options=(f"--node-name={NODE_NAME}",),
            env={"SRIOV_BENCH_VETHS": str(described)},
        )
        self.conf = network("pods")
        self.configure(options, **config)

    def configure(self, options: dict[str, Any], **config: Any) -> None:
        """Write the agent's config; one that runs follows it."""
        ipam = {
            "type": "host-local",
            "ranges": RANGES + RANGES6,
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }
        own = {"name": "underlay", "pools": [POOL], "ipam": ipam} | options
        pools = [{"name": POOL, "select": {"pfNames": ["pf0"]}}]
        self.node.config.write_text(yaml.safe_dump({"pools": pools, "networks": [own]} | config))

    def new_pod(self, name: str, namespace: str = "default", uid: str = "") -> UnderlayPod:
        """Not attached yet."""
        space = self.world.new_space()
        ip("link", "set", "lo", "up", space=space)
        return UnderlayPod(name, namespace, uid or f"uid-{namespace}-{name}", space=space)

    def attach(self, pod: UnderlayPod, ifname: str = IFNAME) -> UnderlayPod:
        """Raises CniError."""
        self.node.kubelet.allocate(pod.namespace, pod.name, RESOURCE)
        try:
            pod.answer = self.node.runtime.call("ADD", pod, self.conf, ifname)
        except BaseException:
            self.node.kubelet.free(pod.namespace, pod.name)
            raise
        return pod

    def start_again(self) -> None:
        """The agent, after it was killed."""
        self.node.start()
        self.node.kubelet.wait_devices(RESOURCE, 16)

    def detach(self, pod: UnderlayPod) -> None:
        self.node.runtime.call("DEL", pod, self.conf, IFNAME)
        self.node.kubelet.free(pod.namespace, pod.name)

    def new_host(self, *addresses: str) -> Space:
        """Another host of the segment, with these addresses (without prefix) and no route but to the
        segment."""
        space, name = self.world.new_space(), f"far{next(self._numbers)}"
        add_veth(name, IFNAME, peer_space=space)
        _plug(name)
        ip("link", "set", "lo", "up", space=space)
        ip("link", "set", IFNAME, "up", space=space)
        for address in addresses:
            width = "64" if ":" in address else "24"
            nodad = ["nodad"] if ":" in address else []
            ip("address", "add", f"{address}/{width}", "dev", IFNAME, *nodad, space=space)
        return space

    def _make_wire(self) -> None:
        ip("link", "set", "lo", "up")
        ip("link", "add", WIRE, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        ip("link", "set", WIRE, "up")
        for address, width in zip(GATEWAY, (24, 64), strict=True):
            nodad = ["nodad"] if ":" in address else []
            ip("address", "add", f"{address}/{width}", "dev", WIRE, *nodad)
        add_veth("pf0", "pf0wire")
        _plug("pf0wire")
        ip("link", "set", "pf0", "up")


@contextlib.contextmanager
def running_underlay(world: LinuxWorld, options: dict[str, Any], **config: Any) -> Iterator[Underlay]:
    """Its kubelet and its agent are up; the agent ends well in the end. Not in tmp_path: the path of a socket
    may have 107 bytes only."""
    with (
        tempfile.TemporaryDirectory(prefix="node-") as folder,
        _started(folder, world, options, config) as underlay,
    ):
        yield underlay


@contextlib.contextmanager
def _started(
    folder: str, world: LinuxWorld, options: dict[str, Any], config: dict[str, Any]
) -> Iterator[Underlay]:
    underlay = Underlay(Path(folder), world, options, **config)
    with underlay.node.kubelet as kubelet:
        try:
            underlay.node.start()
            kubelet.wait_devices(RESOURCE, 16)
            yield underlay
        finally:
            assert underlay.node.stop() == 0, underlay.node.log_text()


def add_cluster_network(pod: Space, other: Space) -> None:
    """A network of the pod beside the underlay: its `eth0`, and the other end."""
    add_veth("cluster0", "cluster1")
    for name, space, address in zip(("cluster0", "cluster1"), (other, pod), CLUSTER_NETWORK, strict=True):
        ip("link", "set", name, "netns", space.path, "name", "eth0")
        ip("link", "set", "lo", "up", space=space)
        ip("link", "set", "eth0", "up", space=space)
        ip("address", "add", f"{address}/24", "dev", "eth0", space=space)


def _plug(name: str) -> None:
    ip("link", "set", name, "master", WIRE, "up")


def _add_vf(index: int) -> Veth:
    pci = PciAddress(f"0000:01:{0x10 + index // 8:02x}.{index % 8}")
    veth = Veth(pci, f"pf0v{index}", Mac(f"02:00:00:00:01:{index:02x}"))
    add_veth(veth.name, f"vf{index}wire")
    _plug(f"vf{index}wire")
    ip("link", "set", veth.name, "address", veth.mac)
    return veth
