"""A node in memory for tests of provisioning: PFs, VFs, pods, and the agent's knowledge of them."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from tests.fake_kernel import FakeKernel
from vf_manager.apply import CreatedVfs, created_pfs
from vf_manager.discovery import read_pfs
from vf_manager.kernel.api import LinkChange
from vf_manager.locks import DeviceLocks
from vf_manager.model import IfName, Inventory, Mac, PciAddress
from vf_manager.provision import MacKind, PfPolicy, Plan, VfPolicy
from vf_manager.provision_steps import DriverKind
from vf_manager.provisioner import Outcome, Pace, Provisioner, plan_now
from vf_manager.records import RecordStore

PF0, PF1 = PciAddress("0000:01:00.0"), PciAddress("0000:02:00.0")
KERNEL, VFIO = DriverKind.KERNEL, DriverKind.VFIO_PCI
# One worker: the order of the steps of all VFs is then that of the plan.
ONE_AT_A_TIME = Pace(workers=1, lock_timeout_s=0.01, netdev_timeout_s=0.01)


def quiet_log() -> FilteringBoundLogger:
    log: FilteringBoundLogger = structlog.wrap_logger(
        structlog.testing.CapturingLogger(), wrapper_class=structlog.make_filtering_bound_logger("critical")
    )
    return log


class HookedRecords(RecordStore[CreatedVfs]):
    """Each change on disk is one of the kernel's changes for a test: a place to fail or die at."""

    def __init__(self, directory: Path, kernel: FakeKernel) -> None:
        super().__init__(directory, CreatedVfs)
        self._kernel = kernel

    def write(self, key: str, record: CreatedVfs) -> None:
        self._kernel.on_change("write record")
        super().write(key, record)
        self._kernel.on_change("record written")

    def remove(self, key: str) -> None:
        self._kernel.on_change("remove record")
        super().remove(key)
        self._kernel.on_change("record removed")


class Node:
    """A kernel with two PFs, and the agent's knowledge of it. `held`: VFs that somebody has, and who."""

    def __init__(self, folder: Path, driver: str = "igb") -> None:
        self.kernel = FakeKernel()
        for number, pf in enumerate((PF0, PF1)):
            self.kernel.add_pf(pf, f"ens{number}", driver=driver)
        self.records = HookedRecords(folder, self.kernel)
        self.locks = DeviceLocks()
        self.held: dict[PciAddress, str] = {}
        self.now_s = 0.0
        self.start_agent()

    def start_agent(self, pace: Pace = ONE_AT_A_TIME, log: FilteringBoundLogger | None = None) -> None:
        """Again stands for a restart: only the kernel and the records stay."""
        self.provisioner = Provisioner(
            self.kernel,
            self.locks,
            self.records,
            log or quiet_log(),
            holders=self.holders,
            pace=pace,
            clock=lambda: self.now_s,
        )

    def holders(self) -> Mapping[PciAddress, str]:
        return self.held

    def inventory(self) -> Inventory:
        return Inventory(pfs=read_pfs(self.kernel))

    def vf(self, pf: PciAddress, index: int) -> PciAddress:
        return self.kernel.functions[pf].function.virtfns[index][1]

    def vfs(self, pf: PciAddress) -> list[PciAddress]:
        return [address for _, address in self.kernel.functions[pf].function.virtfns]

    def plan(self, *policies: PfPolicy) -> Plan:
        created = created_pfs(self.records)
        return plan_now(policies, self.inventory(), self.kernel, self.holders, created)

    def reconcile(self, *policies: PfPolicy) -> Outcome:
        return self.provisioner.reconcile(policies, self.inventory())

    def provision(self, *policies: PfPolicy) -> Plan:
        """Everything the plan says succeeds."""
        made = self.plan(*policies)
        outcome = self.reconcile(*policies)
        assert outcome.failed == ()
        assert outcome.applied == made.steps
        assert set(outcome.pending + outcome.refused) == set(made.refusals)
        return made

    def set_pf(self, name: str, change: LinkChange) -> None:
        link = self.kernel.find(name)
        assert link is not None
        with self.kernel.links() as host:
            host.set_link(link.netdev.ifindex, change)

    def move_to_pod(self, vf: PciAddress) -> None:
        path = f"/run/netns/{vf}"
        self.kernel.new_netns(path)
        pod = self.kernel.netns_at(path)
        assert pod is not None
        with self.kernel.links() as host:
            link = next(link for link in host.dump() if link.parent == vf)
            host.move(link.netdev.ifindex, pod, IfName("net1"))

    def end_pod(self, vf: PciAddress) -> None:
        self.kernel.destroy_netns(self.kernel.paths[f"/run/netns/{vf}"])

    def state_of(self, vf: PciAddress) -> object:
        """All there is of one VF."""
        function = self.kernel.functions[vf].function
        owner = self.kernel.functions[function.physfn or vf]
        index = next(i for i, address in owner.function.virtfns if address == vf)
        links = [
            (number, link.netdev, link.addresses)
            for number, links in self.kernel.namespaces.items()
            for link in links
            if link.parent == vf
        ]
        return function.driver, owner.attributes[index], links

    def state_of_pf(self, pf: PciAddress) -> object:
        function = self.kernel.functions[pf]
        links = [link.netdev for link in self.kernel.namespaces[1] if link.parent == pf]
        vfs = [self.state_of(vf) for vf in self.vfs(pf)]
        return function.function, links, vfs, self.kernel.eswitch.get(pf)

    def outline_of_pf(self, pf: PciAddress) -> object:
        """As far as VFs that were made anew can be as they were: not their interfaces' indexes and MACs."""
        now = self.inventory().find_pf(pf)
        assert now is not None
        assert now.netdev is not None
        vfs = [(vf.pci, vf.driver, vf.netdev.mtu if vf.netdev else None) for vf in now.vfs]
        return now.netdev.up, now.netdev.mtu, now.autoprobe, now.eswitch_mode, vfs

    def macs_of(self, pf: PciAddress) -> list[Mac]:
        """Of each VF, if its administrative MAC and its interface's are one."""
        found = self.inventory().find_pf(pf)
        assert found is not None
        macs = []
        for vf in found.vfs:
            assert vf.attributes is not None
            assert vf.netdev is None or vf.netdev.mac == vf.attributes.mac
            macs.append(vf.attributes.mac)
        return macs


def wants(count: int, *vfs: VfPolicy, pf: PciAddress = PF0, adopt: bool = False) -> PfPolicy:
    return PfPolicy(pf=pf, count=count, vfs=vfs, adopt=adopt)


def all_of(
    count: int, mtu: int | None = None, driver: DriverKind = KERNEL, mac: MacKind | None = None
) -> VfPolicy:
    return VfPolicy(first=0, last=count - 1, mtu=mtu, driver=driver, mac=mac)


def replaced(policy: PfPolicy, **fields: object) -> PfPolicy:
    return msgspec.structs.replace(policy, **fields)
