"""Orchestrator: the node agent: one inventory, the device plugin and the CNI server over it."""

import fcntl
import os
import threading
from contextlib import ExitStack
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from device_plugin.plugin import DevicePlugin
from device_plugin.podresources import PodResources
from device_plugin.pools import assign, held_back, resource_name
from device_plugin.registration import Way
from node_agent.config import AgentConfig, pf_policies
from node_agent.supervisor import Supervisor
from sriov_cni.attach import Attacher
from sriov_cni.attachment import Attachment
from sriov_cni.chain import FallbackChain
from sriov_cni.chain_cache import ChainRecord, read_conflist
from sriov_cni.handler import CniHandler
from sriov_cni.ipam.engine import DATA_DIR
from sriov_cni.pod_attach import ChooseNetwork, PodAttacher, first_network
from sriov_cni.pod_vfs import PodVfs
from sriov_cni.reconcile import Reconciler
from sriov_cni.server import CniServer
from sriov_cni.spec import LimitedConnectivity, NotReady
from vf_manager.apply import CreatedVfs, apply_plan, created_pfs
from vf_manager.errors import Busy
from vf_manager.inventory import InventoryKeeper
from vf_manager.kernel.api import Kernel
from vf_manager.locks import DeviceLocks
from vf_manager.model import Inventory, PciAddress
from vf_manager.provision import plan
from vf_manager.records import RecordStore

RUN_DIR = Path("/run/sriov-underlay")
KUBELET_DIR = Path("/var/lib/kubelet")
SOCKET_NAME = "cni.sock"
ATTACHMENTS = "attachments"
CHAIN = "chain"
POD_RESOURCES = "pod-resources/kubelet.sock"
_JOIN_S = 15.0


class Agent:
    """`run` until `stop`. Everything it must remember is in `run_dir`; it may be killed at any moment."""

    def __init__(
        self,
        config: AgentConfig,
        kernel: Kernel,
        log: FilteringBoundLogger,
        *,
        run_dir: Path = RUN_DIR,
        kubelet_dir: Path = KUBELET_DIR,
        lease_dir: Path = DATA_DIR,
        registration: Way | None = None,
    ) -> None:
        """`registration` None: the plugin chooses. Raises SriovError: another agent runs, or a record cannot
        be read."""
        self._config = config
        self._kernel = kernel
        self._log = log
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._alone = _lock_alone(run_dir / "lock")
        with ExitStack() as undo:
            undo.callback(os.close, self._alone)
            self._locks = DeviceLocks()
            self._created = RecordStore(run_dir / "pfs", CreatedVfs)
            self._keeper = InventoryKeeper(kernel, log)
            self._keeper.subscribe(self._on_inventory)
            self._pool_by_vf: dict[PciAddress, str] = {}
            self._held_back: tuple[str, ...] = ()
            self._attacher = Attacher(
                kernel,
                RecordStore(run_dir / ATTACHMENTS, Attachment),
                self._locks,
                self._pool_of,
                log,
                boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
                lease_dir=lease_dir,
            )
            self._provisioned = threading.Event()
            self._fallback = self._make_fallback(run_dir)
            kubelet = PodResources(kubelet_dir / POD_RESOURCES)
            handler = CniHandler(
                self._pods(kubelet), self._attacher, self._fallback, self._refuse_unready, log
            )
            self._reconciler = Reconciler(
                self._attacher,
                kubelet,
                lambda: self._keeper.current,
                log,
                fallback=self._fallback,
                repair=config.repair_drift,
            )
            self._server = CniServer(run_dir / SOCKET_NAME, handler, log=log)
            self._plugin = DevicePlugin(
                config.resources(), config.resource_prefix, kubelet_dir, log, way=registration
            )
            self._supervisor = Supervisor(log)
            undo.pop_all()

    def run(self) -> str | None:
        """Serve until told to stop; the reason if it ended by itself. CNI calls that come while VFs are
        still being made wait; the kubelet hears of pools when their VFs are there."""
        try:
            self._server.listen()
            self._attacher.recover()
            if self._fallback is not None:
                self._fallback.recover()
            self._provision()
            self._plugin.update(self._keeper.current)
            self._plugin.start()
            self._supervisor.start("cni", self._server.serve)
            self._supervisor.start("kubelet", lambda: self._plugin.watch(self._supervisor.stop))
            self._supervisor.start("inventory", lambda: self._keeper.watch(self._supervisor.stop))
            self._supervisor.start("reconcile", lambda: self._reconciler.watch(self._supervisor.stop))
            self._log.info("ready", pools={p.name: self._count(p.name) for p in self._config.pools})
            self._supervisor.stop.wait()
        finally:
            self._supervisor.stop.set()
            self._keeper.mark_dirty()
            self._server.stop()
            self._plugin.stop()
            self._supervisor.join(_JOIN_S)
            self._server.close()
            os.close(self._alone)
        self._log.info("stopped", reason=self._supervisor.failure or "asked to")
        return self._supervisor.failure

    def stop(self) -> None:
        """From a signal handler or another thread."""
        self._supervisor.stop.set()

    def _pods(self, kubelet: PodResources) -> PodAttacher:
        config = self._config
        resources = {resource_name(config.resource_prefix, pool.name): pool.name for pool in config.pools}
        given = PodVfs(kubelet, resources, self._pool_of)
        return PodAttacher(
            self._attacher, given, self._pool_of, config.pool_networks(), config.limits(), self._chooser()
        )

    def _chooser(self) -> ChooseNetwork:
        if self._config.kubernetes is None:
            return first_network
        # The client's package takes 0.3 s and tens of MiB to load: for those who use it.
        from node_agent.pod_annotations import PodAnnotations

        return PodAnnotations(self._config.kubernetes, self._log).choose

    def _make_fallback(self, run_dir: Path) -> FallbackChain | None:
        if self._config.fallback is None:
            return None
        path = Path(self._config.fallback)
        return FallbackChain(
            lambda: read_conflist(path), RecordStore(run_dir / CHAIN, ChainRecord), self._log
        )

    def _provision(self) -> None:
        inventory = self._keeper.refresh()
        policies, missing = pf_policies(self._config, inventory)
        for line in missing:
            self._log.warning("nothing to provision", reason=line)
        made = created_pfs(self._created)
        steps = plan(policies, inventory, self._attacher.held_vfs(), made)
        apply_plan(steps, self._kernel, self._locks, self._created, self._log)
        self._keeper.refresh()
        self._provisioned.set()

    def _on_inventory(self, inventory: Inventory) -> None:
        pools = assign(self._config.resources(), inventory)
        self._pool_by_vf = {vf.pci: name for name, vfs in pools.items() for vf in vfs}
        before, self._held_back = self._held_back, held_back(self._config.resources(), inventory)
        for line in self._held_back:
            if line not in before:
                self._log.warning("a device stays out of its pool", reason=line)
        if self._provisioned.is_set():
            self._plugin.update(inventory)

    def _pool_of(self, vf: PciAddress) -> str | None:
        """A VF that is in no pool may have come since the last look."""
        if vf not in self._pool_by_vf:
            self._keeper.refresh()
        return self._pool_by_vf.get(vf)

    def _count(self, pool: str) -> int:
        return sum(1 for name in self._pool_by_vf.values() if name == pool)

    def _refuse_unready(self) -> None:
        """Raises NotReady if an ADD of a pod with VFs could not succeed now. Where other pods have a chain
        of their own, a node without a free VF still has work to do."""
        reason = self._not_ready()
        if reason is None:
            return
        cut_off = self._attacher.held_vfs() - self._vfs_of_pfs_that_are_up()
        if cut_off:
            raise LimitedConnectivity(f"{reason}; the PF of {', '.join(sorted(cut_off))} is down or gone")
        raise NotReady(reason)

    def _not_ready(self) -> str | None:
        if not self._provisioned.is_set():
            return "the VFs are still being set up"
        if self._fallback is not None:
            return None
        total = len(self._pool_by_vf)
        if total == 0:
            return "no pool has a VF; see the agent's log and `sriovctl vfs`"
        free = self._pool_by_vf.keys() - self._attacher.held_vfs()
        return None if free else f"all {total} VFs of this node's pools are attached"

    def _vfs_of_pfs_that_are_up(self) -> set[PciAddress]:
        """With those whose PF cannot be seen from here."""
        now = self._keeper.current
        lone = {vf.pci for vf in now.lone}
        return lone | {vf.pci for pf in now.pfs if pf.netdev and pf.netdev.up for vf in pf.vfs}


def _lock_alone(path: Path) -> int:
    """Two agents on one folder would take each other's sockets. The lock goes with the process."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Busy(f"another sriov-agent runs with {path.parent} already") from None
    return fd
