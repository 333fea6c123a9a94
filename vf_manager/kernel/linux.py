"""Adapter: the running kernel, as `vf_manager.kernel.api.Kernel`."""

import errno
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from vf_manager.errors import InvalidInput, KernelError
from vf_manager.kernel.announce import send_announcements
from vf_manager.kernel.api import Flow, KernelEvents, Links, NetnsHandle, PciFunction
from vf_manager.kernel.conntrack import delete_flows, read_flows
from vf_manager.kernel.devlink import read_eswitch_modes, read_sick_reporters, set_eswitch_mode
from vf_manager.kernel.events import listening
from vf_manager.kernel.meter import Meter
from vf_manager.kernel.netns import PROC_SYS, Netns, own, write_sysctls
from vf_manager.kernel.nft import Table
from vf_manager.kernel.nft_messages import Memo
from vf_manager.kernel.nft_socket import apply_table, delete_table, read_tables
from vf_manager.kernel.probe import find_holders
from vf_manager.kernel.rtnl import Rtnl
from vf_manager.kernel.sysfs import Sysfs
from vf_manager.model import IfName, Mac, Netdev, PciAddress


class LinuxKernel:
    """See `Kernel` for what each method does. `meter` counts what is asked; give it to `sysfs`, too.
    `proc_sys`: a container's own /proc/sys is read-only."""

    def __init__(
        self, sysfs: Sysfs | None = None, meter: Meter | None = None, *, proc_sys: Path = PROC_SYS
    ) -> None:
        self._proc_sys = proc_sys
        self._meter = meter or Meter()
        self._sysfs = sysfs or Sysfs(meter=self._meter)
        self._nft_memo = Memo()

    def read_functions(self) -> list[PciFunction]:
        return self._sysfs.read_functions()

    def read_function(self, pci: str) -> PciFunction | None:
        return self._sysfs.read_function(pci)

    def set_num_vfs(self, pf: PciAddress, count: int) -> None:
        self._sysfs.set_num_vfs(pf, count)

    def set_autoprobe(self, pf: PciAddress, enabled: bool) -> None:
        self._sysfs.set_autoprobe(pf, enabled)

    def bind_driver(self, pci: PciAddress, driver: str | None) -> None:
        self._sysfs.bind_driver(pci, driver)

    def reset_function(self, pci: PciAddress) -> None:
        self._sysfs.reset_function(pci)

    def uppers(self, name: IfName) -> tuple[str, ...]:
        return self._sysfs.uppers(name)

    def eswitch_modes(self) -> dict[PciAddress, str]:
        return read_eswitch_modes(lambda pci: not self._sysfs.is_vf(pci), self._meter)

    def sick_reporters(self) -> dict[PciAddress, tuple[str, ...]]:
        return read_sick_reporters(self._meter)

    def events(self) -> AbstractContextManager[KernelEvents]:
        return listening()

    def set_eswitch_mode(self, pf: PciAddress, mode: str) -> None:
        set_eswitch_mode(pf, mode, self._meter)

    def netns(self, fd: int) -> NetnsHandle:
        return Netns(fd)

    def netns_at(self, path: str) -> NetnsHandle | None:
        try:
            return Netns.open(Path(path))
        except (OSError, InvalidInput):
            return None

    def host_netns(self) -> NetnsHandle:
        return Netns.open(Path("/proc/thread-self/ns/net"))

    def links(self, netns: NetnsHandle | None = None) -> AbstractContextManager[Links]:
        return Rtnl(own(netns) if netns else None, self._meter)

    def write_sysctls(self, netns: NetnsHandle, values: Sequence[tuple[str, str]]) -> None:
        own(netns).run(lambda: write_sysctls(values, self._proc_sys))

    def announce(self, netns: NetnsHandle, netdev: Netdev, addresses: Sequence[str]) -> None:
        try:
            own(netns).run(lambda: send_announcements(netdev, addresses), afterwards=socket.socket.close)
        except OSError as e:
            raise KernelError(f"announce addresses on {netdev.name}", e.errno or errno.EIO) from e

    def find_holders(
        self, netns: NetnsHandle, netdev: Netdev, addresses: Sequence[str], timeout_s: float
    ) -> dict[str, Mac]:
        try:
            return own(netns).run(lambda: find_holders(netdev, addresses, timeout_s))
        except OSError as e:
            raise KernelError(f"look for duplicate addresses on {netdev.name}", e.errno or errno.EIO) from e

    def apply_nft(self, netns: NetnsHandle, before: Table | None, after: Table) -> None:
        apply_table(own(netns), before, after, self._nft_memo, self._meter)

    def delete_nft_table(self, netns: NetnsHandle, name: str) -> None:
        delete_table(own(netns), name, self._meter)

    def nft_tables(self, netns: NetnsHandle) -> tuple[str, ...]:
        return read_tables(own(netns), self._meter)

    def udp_flows(self, netns: NetnsHandle) -> tuple[Flow, ...]:
        return read_flows(own(netns), socket.IPPROTO_UDP, self._meter)

    def delete_flows(self, netns: NetnsHandle, flows: Sequence[Flow]) -> None:
        delete_flows(own(netns), flows, self._meter)
