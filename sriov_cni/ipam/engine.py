"""Pure: the one interface to every kind of IPAM, and the choice among them."""

from collections.abc import Set
from pathlib import Path
from typing import Protocol, assert_never

from sriov_cni.ipam.config import HostLocalConf, IpamConf, IpamResult, StaticConf
from sriov_cni.ipam.host_local import HostLocal
from sriov_cni.ipam.lease_dir import LeaseDir, OwnerCache
from sriov_cni.ipam.static import Static

DATA_DIR = Path("/var/lib/cni/networks")  # of the reference host-local plugin


class Ipam(Protocol):
    """All three may be called again with the same container and interface, and `delete` without an `add`."""

    def add(self, container_id: str, ifname: str) -> IpamResult: ...

    def delete(self, container_id: str, ifname: str) -> None: ...

    def check(self, container_id: str, ifname: str) -> None: ...

    def keep_only(self, valid: Set[tuple[str, str]]) -> None:
        """GC: release what is held by any other than these (container id, ifname)."""


def make_ipam(
    conf: IpamConf | None,
    *,
    network: str,
    boot_id: str,
    data_dir: Path = DATA_DIR,
    owners: OwnerCache | None = None,
) -> Ipam | None:
    """`network`: the validated name of the network; `data_dir`: where the config does not say.

    Keep one `owners` per process: without it every call reads every lease file.
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
        case _:
            assert_never(conf)
