"""Orchestrator: how many addresses a `host-local` network has on this node, and how many are leased."""

from pathlib import Path

import msgspec

from sriov_cni.ipam.config import HostLocalConf
from sriov_cni.ipam.lease_dir import LeaseDir
from sriov_cni.ipam.ranges import parse_address


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """Of one range set; a pod takes an address of each. `leased`: also by the reference plugin."""

    ranges: str
    addresses: int
    leased: int


def read_capacity(conf: HostLocalConf, network: str, data_dir: Path) -> list[Capacity]:
    """`data_dir`: where the config does not say. Takes no lock, and changes nothing. Raises KernelError."""
    names = LeaseDir(Path(conf.data_dir or data_dir) / network, boot_id="").names()
    leased = [address for name in names if (address := parse_address(name)) is not None]
    return [
        Capacity(
            ranges=str(range_set),
            addresses=range_set.size,
            leased=range_set.count(leased),
        )
        for range_set in conf.range_sets
    ]
