"""Adapter: a node with pods on one segment, a server beside them, and what the neighbours do instead.

In the caller's namespaces, which nobody else may use: they stand for the host's.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from hw_tests.bench.agent import VethsFile
from hw_tests.bench.contenders import Slot
from hw_tests.bench.in_pod_cluster import BY_VETH, HOME, PORT
from hw_tests.bench.veths import Veth, make_tree
from hw_tests.nics import ip
from hw_tests.runtime import PROJECT, Conf, Pod, network
from vf_manager.model import Mac, PciAddress

PF, POOL = "pf0", "fast"
IFNAME = "eth0"
SERVER = "198.18.20.250"
_WIRE, _GATEWAY = "wire0", "198.18.20.1"
_RANGE = {"subnet": "198.18.20.0/24", "gateway": _GATEWAY, "rangeEnd": "198.18.20.240"}
_PF_PCI = "0000:01:00.0"
_HOST_END, _POD_END = "198.18.21.1", "198.18.21.2"

# What kube-proxy has for a service with one endpoint, and the masquerade without which its answer would go
# another way.
_HOST_RULES = f"""
table ip proxy {{
    map services {{
        type inet_proto . ipv4_addr . inet_service : verdict
    }}
    chain target {{
        meta mark set 0x4000
        meta l4proto tcp dnat to {SERVER}:{PORT}
    }}
    chain incoming {{
        type nat hook prerouting priority dstnat
        meta l4proto . ip daddr . th dport vmap @services
    }}
    chain outgoing {{
        type nat hook postrouting priority srcnat
        meta mark 0x4000 masquerade
    }}
}}
add element ip proxy services {{ tcp . {BY_VETH} . {PORT} : goto target }}
"""


def conf(leases: Path, **options: object) -> Conf:
    ipam = {
        "type": "host-local",
        "ranges": [[_RANGE]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(leases),
    }
    return network("bench", ipam=ipam, **options)


@contextmanager
def segment(folder: Path, vfs: int) -> Iterator[list[Slot]]:
    """A pod for each VF, not attached; and the file for the agent that says which veths are VFs."""
    ip("link", "set", "lo", "up")
    ip("link", "add", _WIRE, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
    ip("address", "add", f"{_GATEWAY}/24", "dev", _WIRE)
    ip("link", "set", _WIRE, "up")
    veths = tuple(_veth(number) for number in range(vfs))
    _plug({PF: f"{PF}wire", **{veth.name: f"{veth.name}wire" for veth in veths}})
    ip("link", "set", PF, "up")
    for veth in veths:
        ip("link", "set", veth.name, "address", veth.mac)
    make_tree(folder / "sys", {_PF_PCI: PF}, {_PF_PCI: veths})
    veths_file(folder).write_bytes(msgspec.json.encode(VethsFile(str(folder / "sys"), veths)))
    with ExitStack() as stack:
        yield [
            Slot(number, veth.pci, veth.name, _new_pod(f"vf-{number}", stack))
            for number, veth in enumerate(veths)
        ]


def veths_file(folder: Path) -> Path:
    return folder / "veths.json"


@contextmanager
def server() -> Iterator[None]:
    """Another host of the segment."""
    with ExitStack() as stack:
        host = _new_pod("server", stack)
        _plug({"far0": "far0wire"})
        ip("link", "set", "far0", "netns", host.netns)
        ip("-n", host.netns, "address", "add", f"{SERVER}/24", "dev", "far0")
        ip("-n", host.netns, "link", "set", "far0", "up")
        command = host.command(sys.executable, "-m", "hw_tests.bench.pump", "serve", SERVER, str(PORT))
        process = stack.enter_context(subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE))
        stack.callback(process.kill)
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("the server of the benchmark did not start; its last words are above")
        yield


def add_way_by_host(pod: Pod) -> None:
    """A veth from the pod to the host, the route to cluster IPs by it, and a proxy on the host."""
    ip("link", "add", "by-host", "type", "veth", "peer", "name", "to-host", "netns", pod.netns)
    ip("address", "add", f"{_HOST_END}/30", "dev", "by-host")
    ip("link", "set", "by-host", "up")
    ip("-n", pod.netns, "address", "add", f"{_POD_END}/30", "dev", "to-host")
    ip("-n", pod.netns, "link", "set", "to-host", "up")
    ip("-n", pod.netns, "route", "add", f"{BY_VETH}/32", "via", _HOST_END)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    subprocess.run(["nft", "-f", "-"], input=_HOST_RULES, text=True, check=True)


def _new_pod(name: str, stack: ExitStack) -> Pod:
    pod = Pod(name, HOME, f"uid-{HOME}-{name}").create()
    stack.callback(pod.destroy)
    return pod


def _veth(number: int) -> Veth:
    pci = PciAddress(f"0000:01:{0x10 + number // 8:02x}.{number % 8}")
    return Veth(pci, f"{PF}v{number}", Mac(f"02:00:00:00:01:{number:02x}"))


def _plug(pairs: dict[str, str]) -> None:
    """The other end of each is on the wire and up."""
    for name, other in pairs.items():
        ip("link", "add", name, "type", "veth", "peer", "name", other)
        ip("link", "set", other, "master", _WIRE, "up")
