"""Orchestrator: what a look of the inventory costs: python -m hw_tests.bench.looks --place native --out DIR

Natively sysfs is a tree of files and veths stand for the interfaces of VFs: links and routes are those of the
running kernel. What a PF tells of its VFs there is in the rig alone, with real PFs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec

from hw_tests.bench.results import Look, Looks
from hw_tests.nics import as_found, find_nics, ip, settle, wait_for_carrier
from tests.sysfs_tree import SysfsTree
from vf_manager.discovery import read_inventory
from vf_manager.kernel.linux import LinuxKernel
from vf_manager.kernel.meter import Meter
from vf_manager.kernel.sysfs import Sysfs

SIZES = (1, 16, 256)
_PF = "0000:01:00.0"
_ROUNDS = {"native": 40, "rig": 12}


def native(folder: Path) -> Iterator[Path]:
    """One PF with 1, 16, 256 VFs. In the caller's namespace, which nobody else may use."""
    tree = SysfsTree(folder)
    ip("link", "set", "lo", "up")
    _add_interfaces(tree, ["pf0"])
    tree.add_pf(_PF, total_vfs=max(SIZES), name="pf0")
    there = 0
    for size in SIZES:
        _add_interfaces(tree, [f"pf0v{index}" for index in range(there, size)])
        for index in range(there, size):
            tree.add_vf(_PF, index, f"0000:01:{2 + index // 8:02x}.{index % 8}", net=(f"pf0v{index}",))
        there = size
        yield folder


def rig(_: Path) -> Iterator[Path]:
    """Every SR-IOV NIC there is: without VFs, with one, and all with as many as they can have."""
    with ExitStack() as stack:
        nics = tuple(stack.enter_context(as_found(nic)) for nic in find_nics())
        for nic in nics:
            ip("link", "set", nic.name, "up")
        wait_for_carrier(nics)
        yield Path("/sys")
        for counts in ((1, *(0 for _ in nics[1:])), tuple(nic.vfs_used for nic in nics)):
            for nic, count in zip(nics, counts, strict=True):
                nic.set_num_vfs(0)
                nic.set_num_vfs(count)
            settle()
            yield Path("/sys")


PLACES: dict[str, Callable[[Path], Iterator[Path]]] = {"native": native, "rig": rig}


def measure(root: Path, rounds: int) -> Look:
    """`root`: what plays /sys. The first look of a kernel is not counted: it loads what it needs."""
    meter = Meter()
    kernel = LinuxKernel(Sysfs(root, meter), meter)
    found = read_inventory(kernel)
    ms = []
    for _ in range(rounds):
        meter.netlink_requests = meter.sysfs_reads = 0
        began = time.perf_counter()
        read_inventory(kernel)
        ms.append((time.perf_counter() - began) * 1000)
    return Look(
        pfs=len(found.pfs),
        vfs=sum(len(pf.vfs) for pf in found.pfs),
        ms=ms,
        netlink_requests=meter.netlink_requests,
        sysfs_reads=meter.sysfs_reads,
    )


def _add_interfaces(tree: SysfsTree, names: list[str]) -> None:
    lines = (f"link add {name} type veth peer name {name}wire\n" for name in names)
    subprocess.run(["ip", "-batch", "-"], input="".join(lines), text=True, check=True)
    for name in names:
        (tree.root / "class/net" / name).mkdir(parents=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m hw_tests.bench.looks")
    parser.add_argument("--place", choices=PLACES, required=True)
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("RIG_OUT", ".")), help="folder for looks-<place>.json"
    )
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/run") as name:
        roots = PLACES[options.place](Path(name))
        looks = [measure(root, _ROUNDS[options.place]) for root in roots]
    found = Looks(
        place=options.place, kernel=os.uname().release, cpus=os.cpu_count() or 1, load=load, looks=looks
    )
    (options.out / f"looks-{options.place}.json").write_bytes(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
