"""Pure: the one interface to every kind of IPAM, and the choice among them."""

from pathlib import Path
from typing import Protocol, assert_never

import structlog

from sriov_cni.exec import PluginRunner
from sriov_cni.ipam.config import DelegateConf, HostLocalConf, IpamConf, IpamResult, StaticConf, Valid
from sriov_cni.ipam.delegate import Delegate
from sriov_cni.ipam.host_local import HostLocal
from sriov_cni.ipam.lease_dir import LeaseDir, OwnerCache
from sriov_cni.ipam.static import Static

DATA_DIR = Path("/var/lib/cni/networks")  # of the reference host-local plugin


class Ipam(Protocol):
    """`delete` and `check` may be called again with the same container and interface, `delete` without an
    `add`, and after one that failed."""

    def add(self, container_id: str, ifname: str) -> IpamResult: ...

    def delete(self, container_id: str, ifname: str) -> None: ...

    def check(self, container_id: str, ifname: str) -> None: ...

    def keep_only(self, valid: Valid) -> None:
        """GC: release what is held by any other than these. `valid` is asked once nothing can be leased
        meanwhile: an attachment that is being made is on record before it has a lease."""

    def status(self) -> None:
        """Raises NotReady if an `add` could not succeed now, or what a delegate answers to STATUS."""


def make_ipam(
    conf: IpamConf | None,
    *,
    network: str,
    boot_id: str,
    data_dir: Path = DATA_DIR,
    owners: OwnerCache | None = None,
    runner: PluginRunner | None = None,
) -> Ipam | None:
    """`network`: the validated name of the network; `data_dir`: where the config does not say.

    Keep one `owners` per process: without it every call reads every lease file. `runner`: for delegates.
    """
    match conf:
        case None:
            return None
        case StaticConf():
            return Static(conf)
        case HostLocalConf():
            path = Path(conf.data_dir or data_dir) / network
            directory = LeaseDir(path, boot_id=boot_id, owners=owners)
            return HostLocal(conf, network=network, directory=directory)
        case DelegateConf():
            return Delegate(conf, runner or PluginRunner(structlog.get_logger()))
        case _:
            assert_never(conf)
