"""Orchestrator: carries out a provisioning plan, step by step, each PF alone behind its lock."""

import time
from typing import assert_never

import msgspec
from structlog.typing import FilteringBoundLogger

from vf_manager.discovery import host_link, pf_link
from vf_manager.errors import NotFound, SriovError
from vf_manager.kernel.api import Kernel, LinkChange, Links
from vf_manager.locks import DeviceLocks
from vf_manager.model import Netdev, PciAddress
from vf_manager.provision import (
    BindVf,
    DriverKind,
    Plan,
    SetAutoprobe,
    SetNumVfs,
    SetPfMtu,
    SetPfUp,
    SetVfMtu,
    Step,
    describe,
)
from vf_manager.records import RecordStore

_LOCK_TIMEOUT_S = 30.0
_NETDEV_TIMEOUT_S = 15.0
_POLL_S = 0.02


class CreatedVfs(msgspec.Struct, frozen=True, kw_only=True):
    """The record that the VFs of a PF are this project's: written before they are made."""

    pf: PciAddress
    count: int


def created_pfs(records: RecordStore[CreatedVfs]) -> set[PciAddress]:
    found = (records.read(key) for key in records.list_keys())
    return {record.pf for record in found if record is not None}


def apply_plan(
    plan: Plan,
    kernel: Kernel,
    locks: DeviceLocks,
    records: RecordStore[CreatedVfs],
    log: FilteringBoundLogger,
) -> list[SriovError]:
    """Do every step. A PF whose step fails is left at that step, the others go on; returns the failures."""
    failures: list[SriovError] = []
    for refusal in plan.refusals:
        log.warning("provisioning refused", pf=refusal.pf, reason=refusal.reason)
    for pf in dict.fromkeys(step.pf for step in plan.steps):
        steps = [step for step in plan.steps if step.pf == pf]
        try:
            with locks.pf(pf, _LOCK_TIMEOUT_S), kernel.links() as host:
                for step in steps:
                    log.info("provisioning", step=describe(step))
                    _apply(step, kernel, host, records)
                _wait_for_netdevs(steps, kernel, host)
        except SriovError as e:
            log.error("provisioning failed", pf=pf, error=str(e))
            failures.append(e)
    return failures


def _apply(step: Step, kernel: Kernel, host: Links, records: RecordStore[CreatedVfs]) -> None:
    match step:
        case SetPfUp():
            host.set_link(pf_link(kernel, host, step.pf).netdev.ifindex, LinkChange(up=True))
        case SetPfMtu():
            host.set_link(pf_link(kernel, host, step.pf).netdev.ifindex, LinkChange(mtu=step.mtu))
        case SetAutoprobe():
            kernel.set_autoprobe(step.pf, step.enabled)
        case SetNumVfs():
            _set_num_vfs(step, kernel, records)
        case BindVf():
            driver = None if step.driver is DriverKind.KERNEL else step.driver.value
            kernel.bind_driver(_vf_address(kernel, step.pf, step.index), driver)
        case SetVfMtu():
            netdev = _wait_for_netdev(kernel, host, _vf_address(kernel, step.pf, step.index))
            if netdev.mtu != step.mtu:
                host.set_link(netdev.ifindex, LinkChange(mtu=step.mtu))
        case _:
            assert_never(step)


def _set_num_vfs(step: SetNumVfs, kernel: Kernel, records: RecordStore[CreatedVfs]) -> None:
    if step.count:
        records.write(step.pf, CreatedVfs(pf=step.pf, count=step.count))
    kernel.set_num_vfs(step.pf, step.count)
    if not step.count:
        records.remove(step.pf)


def _vf_address(kernel: Kernel, pf: PciAddress, index: int) -> PciAddress:
    function = kernel.read_function(pf)
    address = dict(function.virtfns).get(index) if function else None
    if address is None:
        raise NotFound(f"PF {pf} has no VF {index}")
    return address


def _wait_for_netdevs(steps: list[Step], kernel: Kernel, host: Links) -> None:
    """VFs count as provisioned when their interfaces are there."""
    for step in steps:
        if isinstance(step, BindVf) and step.driver is DriverKind.KERNEL:
            _wait_for_netdev(kernel, host, _vf_address(kernel, step.pf, step.index))


def _wait_for_netdev(kernel: Kernel, host: Links, pci: PciAddress) -> Netdev:
    deadline = time.monotonic() + _NETDEV_TIMEOUT_S
    while (netdev := host_link(kernel, host, pci)) is None:
        if time.monotonic() > deadline:
            raise NotFound(f"VF {pci} got no network interface within {_NETDEV_TIMEOUT_S:g} s of its driver")
        time.sleep(_POLL_S)
    return netdev
