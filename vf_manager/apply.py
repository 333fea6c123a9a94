"""Orchestrator: carries out the steps of one PF, one after the other, and those of its VFs side by side.

What concerns the PF is done as a whole or taken back: a PF on which making VFs failed is as it was before, or
the error says how it is. Each VF stands by itself: one that fails does not hold up the others.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from itertools import groupby
from typing import assert_never

import msgspec
from structlog.typing import FilteringBoundLogger

from vf_manager.discovery import host_link, pf_link, read_pfs
from vf_manager.errors import NotFound, SriovError
from vf_manager.kernel.api import Kernel, LinkChange, Links
from vf_manager.model import Netdev, PciAddress, Pf
from vf_manager.pf_state import differences, steps_back
from vf_manager.provision_steps import (
    BindVf,
    DriverKind,
    PfStep,
    SetAutoprobe,
    SetEswitchMode,
    SetNumVfs,
    SetPfMtu,
    SetPfUp,
    SetVfMac,
    SetVfMtu,
    Step,
    VfStep,
    describe,
)
from vf_manager.records import RecordStore
from vf_manager.vf_attributes import VfPort, assign_mac

_POLL_S = 0.02


class CreatedVfs(msgspec.Struct, frozen=True, kw_only=True):
    """The record that the VFs of a PF are this project's: written before they are made."""

    pf: PciAddress
    count: int


class Failure(msgspec.Struct, frozen=True):
    """What went wrong at one PF, and how it is now."""

    pf: PciAddress
    error: str


class PfWork:
    """For one PF, whose lock the caller holds. `vf_workers` do the VFs; `netdev_timeout_s`: how long a driver
    may take to make an interface."""

    def __init__(
        self,
        kernel: Kernel,
        records: RecordStore[CreatedVfs],
        vf_workers: Executor,
        log: FilteringBoundLogger,
        *,
        netdev_timeout_s: float,
    ) -> None:
        self._kernel = kernel
        self._records = records
        self._vf_workers = vf_workers
        self._log = log
        self._netdev_timeout_s = netdev_timeout_s

    def apply(self, before: Pf, steps: Sequence[Step]) -> list[Failure]:
        """Do every step of one PF; returns what failed."""
        try:
            with self._kernel.links() as host:
                for step in steps:
                    if isinstance(step, PfStep):
                        self._log.info("provisioning", step=describe(step))
                        self._apply_to_pf(step, host)
        except (SriovError, OSError) as e:
            failure = Failure(before.pci, f"{e}; {self._take_back(before)}")
            self._log.error("provisioning failed", pf=before.pci, error=failure.error)
            return [failure]
        return self._apply_to_vfs(before, [step for step in steps if isinstance(step, VfStep)])

    # -- the PF

    def _apply_to_pf(self, step: PfStep, host: Links) -> None:
        match step:
            case SetPfUp():
                self._set_pf(step.pf, host, LinkChange(up=step.up))
            case SetPfMtu():
                self._set_pf(step.pf, host, LinkChange(mtu=step.mtu))
            case SetEswitchMode():
                self._kernel.set_eswitch_mode(step.pf, step.mode.value)
            case SetAutoprobe():
                self._kernel.set_autoprobe(step.pf, step.enabled)
            case SetNumVfs():
                self._set_num_vfs(step)
            case _:
                assert_never(step)

    def _set_pf(self, pf: PciAddress, host: Links, change: LinkChange) -> None:
        host.set_link(pf_link(self._kernel, host, pf).netdev.ifindex, change)

    def _set_num_vfs(self, step: SetNumVfs) -> None:
        if step.count:
            self._records.write(step.pf, CreatedVfs(pf=step.pf, count=step.count))
        self._kernel.set_num_vfs(step.pf, step.count)
        if not step.count:
            self._records.remove(step.pf)

    def _take_back(self, before: Pf) -> str:
        """Past errors. Returns how the PF is then, for people."""
        try:
            now = self._read(before.pci)
            steps = steps_back(before, now) if now is not None else ()
            for step in steps:
                self._take_step_back(step)
            after = self._read(before.pci)
            if after is not None and after.num_vfs == 0:
                self._records.remove(before.pci)
        except (SriovError, OSError) as e:
            return f"how {before.label} is now cannot be told: {e}"
        if found := differences(before, after):
            return f"{before.label} could not be put back as it was: {', '.join(found)}"
        made_anew = any(isinstance(step, SetNumVfs) and step.count for step in steps)
        return f"{before.label} is as it was before" + (", with its VFs made anew" if made_anew else "")

    def _take_step_back(self, step: Step) -> None:
        self._log.info("taking back", step=describe(step))
        try:
            with self._kernel.links() as host:
                if isinstance(step, PfStep):
                    self._apply_to_pf(step, host)
                else:
                    self._apply_to_vf(step, host)
        except (SriovError, OSError) as e:
            self._log.warning("a step back failed", step=describe(step), error=str(e))

    def _read(self, pci: PciAddress) -> Pf | None:
        return next((pf for pf in read_pfs(self._kernel) if pf.pci == pci), None)

    # -- its VFs

    def _apply_to_vfs(self, pf: Pf, steps: Sequence[VfStep]) -> list[Failure]:
        """An rtnetlink socket is for one thread: each VF has one of its own."""
        groups = [list(group) for _, group in groupby(steps, key=lambda step: step.index)]
        errors = list(self._vf_workers.map(self._set_up_vf, groups))
        failed = [(group[0].index, error) for group, error in zip(groups, errors, strict=True) if error]
        if not failed:
            return []
        said = "; ".join(f"VF {index}: {error}" for index, error in failed)
        rest = f"the other {len(groups) - len(failed)} VFs are set up" if len(failed) < len(groups) else ""
        failure = Failure(pf.pci, "; ".join(filter(None, (f"{pf.label}: {said}", rest))))
        self._log.error("provisioning failed", pf=pf.pci, error=failure.error)
        return [failure]

    def _set_up_vf(self, steps: Sequence[VfStep]) -> str | None:
        """The error, if there was one; the VF is left at that step."""
        try:
            with self._kernel.links() as host:
                for step in steps:
                    self._log.info("provisioning", step=describe(step))
                    self._apply_to_vf(step, host)
                self._confirm(steps, host)
        except (SriovError, OSError) as e:
            return str(e)
        return None

    def _apply_to_vf(self, step: VfStep, host: Links) -> None:
        pci = self._vf_address(step.pf, step.index)
        match step:
            case SetVfMac():
                assign_mac(self._kernel, host, VfPort(pci=pci, pf=step.pf, index=step.index), step.mac)
            case BindVf():
                driver = None if step.driver is DriverKind.KERNEL else step.driver.value
                self._kernel.bind_driver(pci, driver)
            case SetVfMtu():
                netdev = self._wait_for_netdev(host, pci)
                if netdev.mtu != step.mtu:
                    host.set_link(netdev.ifindex, LinkChange(mtu=step.mtu))
            case _:
                assert_never(step)

    def _confirm(self, steps: Sequence[VfStep], host: Links) -> None:
        """A VF counts as set up when its interface is there and has the MAC. Not every driver takes the
        administrative MAC over when it makes the interface."""
        pci = self._vf_address(steps[0].pf, steps[0].index)
        if any(isinstance(step, BindVf) and step.driver is DriverKind.KERNEL for step in steps):
            self._wait_for_netdev(host, pci)
        for step in steps:
            netdev = host_link(self._kernel, host, pci) if isinstance(step, SetVfMac) else None
            if isinstance(step, SetVfMac) and netdev is not None and netdev.mac != step.mac:
                self._apply_to_vf(step, host)

    def _vf_address(self, pf: PciAddress, index: int) -> PciAddress:
        function = self._kernel.read_function(pf)
        address = dict(function.virtfns).get(index) if function else None
        if address is None:
            raise NotFound(f"PF {pf} has no VF {index}")
        return address

    def _wait_for_netdev(self, host: Links, pci: PciAddress) -> Netdev:
        deadline = time.monotonic() + self._netdev_timeout_s
        while (netdev := host_link(self._kernel, host, pci)) is None:
            if time.monotonic() > deadline:
                raise NotFound(
                    f"VF {pci} got no network interface within {self._netdev_timeout_s:g} s of its driver"
                )
            time.sleep(_POLL_S)
        return netdev


def created_pfs(records: RecordStore[CreatedVfs]) -> dict[PciAddress, int]:
    """How many VFs this project made, by PF."""
    return {record.pf: record.count for record in records.read_all()}
