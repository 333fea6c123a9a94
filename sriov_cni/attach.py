"""Orchestrator: ADD and DEL of one VF, the records that own it, and what a killed process left half-done."""

import threading
from collections import Counter
from collections.abc import Callable, Set
from pathlib import Path

import msgspec
from structlog.typing import FilteringBoundLogger

from sriov_cni.attachment import Attachment, State, Wanted, attachment_key
from sriov_cni.check import find_drift, given_by
from sriov_cni.exec import PluginRunner
from sriov_cni.executor import (
    Checkpoint,
    StepObserver,
    apply_steps,
    no_checkpoint,
    undo_steps,
    unobserved,
)
from sriov_cni.ground import Ground, Rules, open_ground, opened_sandbox, wait_until
from sriov_cni.host_link.plan import linked_of
from sriov_cni.host_link.step import find_link_drift, make_link
from sriov_cni.in_pod.step import missing_rules
from sriov_cni.intent import make_intent
from sriov_cni.ipam.config import HostLocalConf, IpamConf
from sriov_cni.ipam.delegate import reachable, refuse_missing
from sriov_cni.ipam.engine import DATA_DIR, Ipam, make_ipam
from sriov_cni.ipam.lease_dir import OwnerCache, sweep_all
from sriov_cni.spec import Dns, Interface, Result
from sriov_cni.steps import RETURN_TIMEOUT_S, plan_steps, refuse_taken_name
from vf_manager.discovery import find_pf_of, read_vf, why_unusable
from vf_manager.errors import Busy, Exhausted, NotFound, Refused, SriovError
from vf_manager.kernel.api import Kernel, NetnsHandle
from vf_manager.locks import DeviceLocks
from vf_manager.model import ZERO_MAC, PciAddress
from vf_manager.records import RecordStore
from vf_manager.vf_attributes import set_vf_attributes

_LOCK_TIMEOUT_S = 30.0


class Attacher:
    """All attachments of the node. Thread-safe; the records are the truth, `_owners` an index of them."""

    def __init__(  # noqa: PLR0913 - all that the attachments of a node are made with
        self,
        kernel: Kernel,
        records: RecordStore[Attachment],
        locks: DeviceLocks,
        pools_of: Callable[[PciAddress], tuple[str, ...]],
        log: FilteringBoundLogger,
        *,
        boot_id: str,
        lease_dir: Path = DATA_DIR,
        plugins: PluginRunner | None = None,
        rules: Rules | None = None,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> None:
        self.kernel = kernel
        self._records = records
        self._locks = locks
        self._pools_of = pools_of
        self._log = log
        self._boot_id = boot_id
        self._lease_dir = lease_dir
        self._lease_owners = OwnerCache()
        self._plugins = plugins or PluginRunner(log)
        self._rules = rules
        self._host_lock = threading.Lock()
        self._checkpoint = checkpoint
        self._observe: StepObserver = unobserved
        self._exhausted: Counter[str] = Counter()
        self._guard = threading.Lock()
        self._owners: dict[PciAddress, str] = {}
        for key in records.list_keys():
            if record := records.read(key):
                self._owners[record.port.pci] = key

    def held_vfs(self) -> set[PciAddress]:
        """VFs that an attachment owns, be it half-done."""
        with self._guard:
            return set(self._owners)

    def observe_steps(self, observer: StepObserver) -> None:
        """From now on, in place of whoever did before."""
        self._observe = observer

    def exhaustions(self) -> dict[str, int]:
        """How many attachments failed since the start because their network had no free address."""
        with self._guard:
            return dict(self._exhausted)

    def add(self, wanted: Wanted, netns_fd: int) -> Result:
        """Attach a VF. Raises SriovError with everything as it was before."""
        sandbox = self.kernel.netns(netns_fd)
        try:
            pf = self.refuse_unusable(wanted.device)
            with self._locks.vf(pf, wanted.device, _LOCK_TIMEOUT_S):
                return self._add(wanted, netns_fd, sandbox)
        finally:
            sandbox.close()

    def refuse_unusable(self, device: PciAddress) -> PciAddress | None:
        """The PF of a VF that may be attached, if it has one here. Raises NotFound and Refused."""
        try:
            pf = find_pf_of(self.kernel, device)
        except (NotFound, Refused) as e:
            raise type(e)(f"deviceID: {e}") from e
        if not self._pools_of(device):
            what = f"VF {device}" if pf else self._describe_lone(device)
            raise Refused(f"deviceID: {what} is in no pool of this node's configuration")
        return pf

    def _describe_lone(self, device: PciAddress) -> str:
        with self.kernel.links() as host:
            reason = why_unusable(self.kernel, host, read_vf(self.kernel, host, device))
        aside = f" ({reason})" if reason else ""
        return f"{device} is not an SR-IOV virtual function of a PF of this node{aside}, and"

    def attachments_of(self, container_id: str, primary: str) -> list[Attachment]:
        """The records of all VFs that a container was given for one interface name, that one first."""
        keys = [key for key in self._records.list_keys() if key.startswith(attachment_key(container_id, ""))]
        found = [record for key in keys if (record := self._records.read(key)) and record.primary == primary]
        return sorted(found, key=lambda record: (record.asked.secondary, record.asked.table or 0))

    def delete(self, container_id: str, ifname: str, netns_fd: int | None) -> None:
        """Take the attachment back. One that is unknown was never ours or is gone already: success."""
        key = attachment_key(container_id, ifname)
        record = self._records.read(key)
        if record is None:
            self._log.info("nothing to detach", container=container_id, ifname=ifname)
            return
        with self._locks.vf(record.port.pf, record.port.pci, _LOCK_TIMEOUT_S):
            record = self._records.read(key)
            if record is not None:
                self._take_back(record, netns_fd)

    def release_leases(self, network: str, ipam: IpamConf | None, container_id: str, ifname: str) -> None:
        """For a DEL without a record: the addresses may still be held, by the reference plugin even."""
        engine = self._ipam(reachable(ipam, None, None), network)
        if engine is not None and self._records.read(attachment_key(container_id, ifname)) is None:
            engine.delete(container_id, ifname)

    def find_drift(self, record: Attachment, prev: Result, netns_fd: int) -> list[str]:
        """CHECK of one VF: a line for everything that is not as ADD left it."""
        with (
            self._locks.vf(record.port.pf, record.port.pci, _LOCK_TIMEOUT_S),
            opened_sandbox(self.kernel, netns_fd, record.sandbox) as sandbox,
            open_ground(self.kernel, sandbox, None) as ground,
        ):
            return find_drift(record, prev, ground)

    def check_ipam(self, record: Attachment, conf: IpamConf | None, netns_fd: int) -> None:
        """CHECK of one VF's addresses at their IPAM. Raises what that has to say."""
        ipam = self._ipam(reachable(conf, netns_fd, record.sandbox.id), record.network)
        if ipam is not None:
            ipam.check(record.container_id, record.ifname)

    def ask_ipam(self, network: str, ipam: IpamConf | None) -> None:
        """STATUS of the IPAM alone. Raises NotReady, or what a delegate answers."""
        if (engine := self._ipam(ipam, network)) is not None:
            engine.status()

    def collect(self, config: str, ipam: IpamConf | None, valid: Set[tuple[str, str]]) -> None:
        """GC: take back every attachment that the CNI configuration of this name made and that is not valid,
        past errors; raises the first."""
        failures: list[SriovError] = []
        for record in self.attachments():
            if record.config != config or (record.container_id, record.primary) in valid:
                continue
            try:
                self.delete(record.container_id, record.ifname, None)
            except SriovError as e:
                failures.append(e)
        engine = self._ipam(ipam, config)
        if engine is not None and not failures:
            engine.keep_only(lambda: valid | self._lease_owners_of(config))
        if failures:
            raise failures[0]

    def _lease_owners_of(self, network: str) -> set[tuple[str, str]]:
        """Who may hold an address of a network. The record is there before the lease, and goes after it."""
        return {(r.container_id, r.ifname) for r in self.attachments() if r.network == network}

    def attachments(self) -> list[Attachment]:
        """Every record, those of attachments that are half-done included."""
        return [record for key in self._records.list_keys() if (record := self._records.read(key))]

    def take_back_if(self, record: Attachment, lost: Callable[[Attachment], bool]) -> bool:
        """Take an attachment back that nobody will send a DEL for, if `lost` says so of what is on record
        once no call works on it. Raises SriovError; the record then stays."""
        with self._locks.vf(record.port.pf, record.port.pci, _LOCK_TIMEOUT_S):
            now = self._records.read(record.key)
            if now is None or not lost(now):
                return False
            self._take_back(now, None)
            return True

    def program_again(self, record: Attachment) -> None:
        """Give an attached VF the attributes that were asked for. Raises KernelError."""
        with (
            self._locks.vf(record.port.pf, record.port.pci, _LOCK_TIMEOUT_S),
            self.kernel.links() as host,
        ):
            if self._records.read(record.key) == record:
                set_vf_attributes(self.kernel, host, record.port, record.asked.change)

    def renew_host_link(self, record: Attachment) -> list[str]:
        """Put right what is not as it should be between the node and an attached VF's pod; a line for each
        such thing. Raises SriovError."""
        linked = linked_of(record)
        if linked is None or record.result is None:
            return []
        given = given_by(record.result)
        with (
            self._locks.vf(record.port.pf, record.port.pci, _LOCK_TIMEOUT_S),
            opened_sandbox(self.kernel, None, record.sandbox) as sandbox,
            open_ground(self.kernel, sandbox, None) as ground,
            self._host_lock,
        ):
            if self._records.read(record.key) != record or ground.in_pod(record.port.pci) is None:
                return []
            if drift := find_link_drift(ground, linked, given):
                make_link(ground, linked, given)
            return drift

    def recover(self) -> None:
        """At start: take back what an earlier process left half-done, and what a reboot left of leases. What
        cannot be undone yet stays on record, for the runtime's DEL or the next start."""
        try:
            sweep_all(self._lease_dir, boot_id=self._boot_id)
        except SriovError as e:
            self._log.warning("leases of earlier boots stay", error=str(e))
        for record in self.attachments():
            if record.state is not State.INTENT:
                continue
            self._log.info("taking back a half-done attachment", **_fields(record))
            try:
                self._take_back(record, None)
            except SriovError as e:
                self._log.warning("half-done attachment stays on record", error=str(e), **_fields(record))

    def _add(self, wanted: Wanted, netns_fd: int, sandbox: NetnsHandle) -> Result:
        ipam = self._ipam(reachable(wanted.ipam, netns_fd, sandbox.id), wanted.network)
        with open_ground(self.kernel, sandbox, ipam, self._rules, self._host_lock) as ground:
            standing = self._records.read(wanted.key)
            if standing is not None:
                if (result := _replayed(standing, wanted.device, sandbox, ground)) is not None:
                    if (missing := missing_rules(standing, ground)) is not None:
                        missing.apply(ground)
                    return result
                self._take_back(standing, netns_fd)
            self._refuse_owned(wanted.device, ground)
            refuse_missing(wanted.ipam, self._plugins)
            record = make_intent(wanted, sandbox, ground)
            if ground.pod is not None and record.original.netdev is not None:
                refuse_taken_name(ground.pod, wanted.ifname)
            self._own(record)
            return self._attach(record, wanted.dns, ground)

    def _attach(self, record: Attachment, dns: Dns, ground: Ground) -> Result:
        steps = plan_steps(record)
        log = self._log.bind(**_fields(record))
        try:
            apply_steps(steps, ground, log, self._checkpoint, self._observe)
            result = _result(record, dns, ground)
            self._records.write(
                record.key, msgspec.structs.replace(record, state=State.ATTACHED, result=result)
            )
        except Exception as e:
            log.warning("attachment failed", error=str(e))
            if isinstance(e, Exhausted):
                with self._guard:
                    self._exhausted[record.network] += 1
            if not undo_steps(steps, ground, log, self._checkpoint, self._observe):
                self._disown(record)
            raise
        self._checkpoint("attached")
        log.info("attached")
        return result

    def _take_back(self, record: Attachment, netns_fd: int | None) -> None:
        """Undo every step of a record and remove it. Raises the first failure; the record then stays."""
        log = self._log.bind(**_fields(record))
        ipam = self._ipam_of(record, netns_fd)
        with (
            opened_sandbox(self.kernel, netns_fd, record.sandbox) as sandbox,
            open_ground(self.kernel, sandbox, ipam, self._rules, self._host_lock) as ground,
        ):
            failures = undo_steps(plan_steps(record), ground, log, self._checkpoint, self._observe)
        if failures:
            raise failures[0]
        self._disown(record)
        log.info("detached")

    def _refuse_owned(self, vf: PciAddress, ground: Ground) -> None:
        """One owner per VF. One whose namespace is gone is none any more: the kernel gave the VF back."""
        with self._guard:
            owner = self._owners.get(vf)
        record = self._records.read(owner) if owner else None
        if record is None:
            return
        if record.original.netdev is not None and self._came_home(record, ground):
            self._log.warning("the pod of this attachment is gone without a DEL", **_fields(record))
            self._take_back(record, None)
            return
        raise Busy(f"deviceID: VF {vf} is attached to another pod; try again when that pod is gone")

    def _came_home(self, record: Attachment, ground: Ground) -> bool:
        """A namespace that nobody can name any more is dying: the kernel is about to give the VF back."""
        with opened_sandbox(self.kernel, None, record.sandbox) as sandbox:
            patience_s = 0.0 if sandbox else RETURN_TIMEOUT_S
        return wait_until(lambda: ground.in_host(record.port.pci) is not None, patience_s)

    def _own(self, record: Attachment) -> None:
        self._records.write(record.key, record)
        with self._guard:
            self._owners[record.port.pci] = record.key
        self._checkpoint("intent")

    def _disown(self, record: Attachment) -> None:
        self._records.remove(record.key)
        with self._guard:
            if self._owners.get(record.port.pci) == record.key:
                del self._owners[record.port.pci]
        self._checkpoint("gone")

    def _ipam(self, conf: IpamConf | None, network: str) -> Ipam | None:
        return make_ipam(
            conf,
            network=network,
            boot_id=self._boot_id,
            data_dir=self._lease_dir,
            owners=self._lease_owners,
            runner=self._plugins,
        )

    def _ipam_of(self, record: Attachment, netns_fd: int | None) -> Ipam | None:
        """For release alone: ranges play no part in it."""
        if record.lease is not None and record.lease.delegate is not None:
            return self._ipam(reachable(record.lease.delegate, netns_fd, record.sandbox.id), record.network)
        if record.lease is None or record.lease.kind != "host-local":
            return None
        return self._ipam(HostLocalConf(range_sets=(), data_dir=record.lease.data_dir), record.network)


def _replayed(record: Attachment, vf: PciAddress, sandbox: NetnsHandle, ground: Ground) -> Result | None:
    """The recorded result, if this very attachment stands (a runtime may call ADD again); None if it is
    half-done or its pod is another one now."""
    if record.port.pci != vf:
        raise Refused(
            f"CNI_IFNAME: {record.ifname!r} of this container is VF {record.port.pci} already, not {vf}"
        )
    stands = record.state is State.ATTACHED and record.sandbox.id == sandbox.id
    return record.result if stands and _is_there(record, ground) else None


def _is_there(record: Attachment, ground: Ground) -> bool:
    """Its interface in the pod, or the driver that makes none."""
    if record.original.netdev is None:
        function = ground.kernel.read_function(record.port.pci)
        return function is not None and function.driver == record.original.driver
    there = ground.in_pod(record.port.pci)
    return there is not None and there.name == record.ifname


def _result(record: Attachment, dns: Dns, ground: Ground) -> Result:
    if record.original.netdev is None:
        # A userspace driver has the VF: the application in the pod sets up MAC and addresses by itself.
        given = record.original.attributes.mac if record.original.attributes else ZERO_MAC
        mac, mtu = record.asked.mac or (given if given != ZERO_MAC else ""), None
    else:
        netdev = ground.pod_side(record.port.pci)[2]
        mac, mtu = netdev.mac, netdev.mtu
    interface = Interface(
        name=record.ifname, mac=mac, mtu=mtu, sandbox=record.sandbox.path, pci_id=record.port.pci
    )
    ips = tuple(msgspec.structs.replace(ip, interface=0) for ip in ground.addresses.ips)
    return Result(
        interfaces=(interface,),
        ips=ips,
        routes=ground.addresses.routes,
        dns=ground.addresses.dns if dns == Dns() else dns,
    )


def _fields(record: Attachment) -> dict[str, object]:
    pod = f"{record.pod.namespace}/{record.pod.name}" if record.pod else None
    return {
        **({"pod": pod} if pod else {}),
        "container": record.container_id,
        "ifname": record.ifname,
        "network": record.network,
        "vf": record.port.pci,
    }
