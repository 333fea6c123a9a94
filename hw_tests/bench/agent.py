"""Orchestrator: `sriov-agent` for the benchmark: the same program, over a kernel where veths are VFs.

SRIOV_BENCH_VETHS names a file that says which; without it this is `sriov-agent` itself.
"""

import os
from pathlib import Path

import msgspec

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when gRPC is loaded, which the imports below do

from hw_tests.bench.veths import Veth, VethKernel
from node_agent.main import run
from vf_manager.kernel.linux import LinuxKernel


class VethsFile(msgspec.Struct, frozen=True):
    """`tree`: what plays /sys."""

    tree: str
    veths: tuple[Veth, ...]


def make_kernel() -> LinuxKernel:
    path = os.environ.get("SRIOV_BENCH_VETHS")
    if path is None:
        return LinuxKernel()
    described = msgspec.json.decode(Path(path).read_bytes(), type=VethsFile)
    return VethKernel(Path(described.tree), described.veths)


if __name__ == "__main__":
    run(make_kernel())
