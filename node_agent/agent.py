"""Orchestrator: the node agent: one inventory, the device plugin and the CNI server over it."""

import fcntl
import functools
import os
import threading
import time
from collections.abc import Callable, Set
from contextlib import ExitStack
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry
from structlog.typing import FilteringBoundLogger

from device_plugin.allocator import PLACES, Allocator, Places, Users
from device_plugin.plugin import DevicePlugin
from device_plugin.podresources import PodResources
from device_plugin.registration import Way
from node_agent.advertiser import Advertiser
from node_agent.cluster_rules import ClusterRules
from node_agent.config import AgentConfig, pf_policies
from node_agent.config_file import ConfigFile
from node_agent.events_poster import EventPoster
from node_agent.events_recorder import EventRecorder
from node_agent.http_endpoint import Address, HttpEndpoint
from node_agent.metrics import Metrics
from node_agent.metrics_api import ApiState
from node_agent.metrics_ipam import AddressState
from node_agent.metrics_rules import RulesState
from node_agent.metrics_state import ConfigState, NodeState
from node_agent.node_summary import NodeSummary, render_summary
from node_agent.pages import make_pages
from node_agent.provisioning import Provisioning
from node_agent.settings import Node, Settings, close_api, make_settings
from node_agent.status_file import STATUS_FILE, AgentStatus, StatusFile, pool_states, provisioned
from node_agent.supervisor import Supervisor
from node_agent.trace import TRACE, Tracer
from node_agent.vf_holders import vf_holders
from node_agent.vf_traffic import VfTraffic
from sriov_cni.attach import Attacher
from sriov_cni.attachment import Attachment
from sriov_cni.chain import FallbackChain
from sriov_cni.chain_cache import ChainRecord
from sriov_cni.environment import Command
from sriov_cni.exec import PluginRunner
from sriov_cni.in_pod.options import Ruled
from sriov_cni.ipam.engine import DATA_DIR
from sriov_cni.messages import CniReply, CniRequest
from sriov_cni.reconcile import Reconciler
from sriov_cni.server import CniServer
from vf_manager.apply import CreatedVfs
from vf_manager.errors import Busy, SriovError
from vf_manager.health_keeper import HealthKeeper
from vf_manager.inventory import InventoryKeeper
from vf_manager.kernel.api import Kernel
from vf_manager.kernel.device_nodes import DeviceNodes
from vf_manager.locks import DeviceLocks
from vf_manager.model import Inventory, PciAddress
from vf_manager.provisioner import Outcome, Provisioner
from vf_manager.records import RecordStore

RUN_DIR = Path("/run/sriov-underlay")
KUBELET_DIR = Path("/var/lib/kubelet")
SOCKET_NAME = "cni.sock"
ATTACHMENTS = "attachments"
CHAIN = "chain"
PFS = "pfs"
POD_RESOURCES = "pod-resources/kubelet.sock"
_JOIN_S = 15.0


class Roots(msgspec.Struct, frozen=True, kw_only=True):
    """The folders of the host that the agent works in. `host_root`: where its own file system is seen."""

    run_dir: Path = RUN_DIR
    kubelet_dir: Path = KUBELET_DIR
    lease_dir: Path = DATA_DIR
    places: Places = PLACES
    host_root: Path = Path("/")


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """How others find the agent. `registration`: how the kubelet is told of pools; None: the plugin chooses.
    `node_name`: as the API server knows this node. `http`: where probes and metrics are served, if so."""

    registration: Way | None = None
    node_name: str = ""
    http: Address | None = None


class Agent:
    """`run` until `stop`. Everything it must remember is in `run_dir`; it may be killed at any moment.

    `config_file`: where `config` was read, to follow its changes. None: it stays as it is.
    """

    def __init__(
        self,
        config: AgentConfig,
        kernel: Kernel,
        log: FilteringBoundLogger,
        *,
        roots: Roots | None = None,
        config_file: ConfigFile | None = None,
        health: HealthKeeper | None = None,
        presence: Presence | None = None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_ready`: called once CNI calls are served. Raises SriovError: another agent runs, or a record
        cannot be read."""
        self._config_file = config_file
        self._on_ready = on_ready
        self._log = log
        self.health = health or HealthKeeper()
        self.refusal: str | None = None  # why the config file, as it is now, is not in force
        self._config_since = time.time()
        self._provisioned = threading.Event()
        self._supervisor = Supervisor(log)
        roots, presence = roots or Roots(), presence or Presence()
        roots.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._alone = lock_alone(roots.run_dir / "lock")
        with ExitStack() as undo:
            undo.callback(os.close, self._alone)
            self._keeper = InventoryKeeper(kernel, log)
            self._keeper.subscribe(self._on_inventory)
            self._kubelet = PodResources(roots.kubelet_dir / POD_RESOURCES)
            self._locks = DeviceLocks()
            self._make_attaching(kernel, roots, presence.node_name)
            self._make_provisioning(kernel, roots)
            self._node = Node(
                name=presence.node_name,
                keeper=self._keeper,
                attacher=self._attacher,
                chain=self._chain,
                kubelet=self._kubelet,
                log=log,
                unhealthy=lambda: self._advertiser.unhealthy(),
                is_provisioned=self._provisioned.is_set,
            )
            self._settings = make_settings(config, self._node)
            self._make_devices(config, kernel, roots, presence)
            self._make_outlook(kernel, roots, presence)
            undo.pop_all()

    def _make_attaching(self, kernel: Kernel, roots: Roots, node: str) -> None:
        """What serves CNI calls, and tells of them."""
        self.rules = ClusterRules(kernel, node, self._supervisor, self._log, self._on_unknown)
        plugins = PluginRunner(self._log, roots.host_root)
        self._attacher = Attacher(
            kernel,
            RecordStore(roots.run_dir / ATTACHMENTS, Attachment),
            self._locks,
            self._pools_of,
            self._log,
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            lease_dir=roots.lease_dir,
            plugins=plugins,
            rules=self.rules.keeper,
        )
        chained = RecordStore(roots.run_dir / CHAIN, ChainRecord)
        self._chain = FallbackChain(None, chained, self._log, plugins=plugins)
        self._server = CniServer(roots.run_dir / SOCKET_NAME, self._serve, log=self._log)
        self._tracer = Tracer(kernel, self.rules.keeper, self._attacher.attachments)
        self.events = EventPoster(lambda: self._settings.api, node, self._log)
        self._recorder = EventRecorder(
            self.events, self._attacher.attachments_of, lambda: self._keeper.current
        )

    def _make_provisioning(self, kernel: Kernel, roots: Roots) -> None:
        """What makes VFs."""
        created = RecordStore(roots.run_dir / PFS, CreatedVfs)
        provisioner = Provisioner(kernel, self._locks, created, self._log, holders=self._holders)
        self._provisioning = Provisioning(
            lambda inventory: pf_policies(self._settings.config, inventory),
            self._keeper,
            provisioner,
            self._log,
            self._on_provisioned,
        )

    def _make_devices(self, config: AgentConfig, kernel: Kernel, roots: Roots, presence: Presence) -> None:
        """What offers them to the kubelet."""
        held = self._attacher.held_vfs
        users = Users(held, lambda: self._kubelet.holders().keys() | held())
        self._allocator = Allocator(users, kernel.reset_function, self._log, roots.places)
        self._plugin = DevicePlugin(
            config.resources(),
            config.resource_prefix,
            roots.kubelet_dir,
            self._log,
            self._allocator,
            way=presence.registration,
        )
        self._advertiser = Advertiser(
            self._settings,
            self._plugin,
            held,
            self._log,
            self.health,
            DeviceNodes(roots.places.dev, roots.places.sys),
            self._recorder.on_health,
        )

    def _make_outlook(self, kernel: Kernel, roots: Roots, presence: Presence) -> None:
        """What looks at all of it, and tells."""
        self._summary = NodeSummary(
            lambda: self._settings.api,
            presence.node_name,
            lambda: self._summarize(self._holders().keys()),
            self._log,
        )
        self._reconciler = Reconciler(
            self._attacher,
            self._kubelet,
            lambda: self._keeper.current,
            self._log,
            fallback=self._chain,
            repair=lambda: self._settings.config.repair_drift,
        )
        self._status_file = StatusFile(roots.run_dir / STATUS_FILE, self._status, self._log)
        self._metrics = Metrics(
            CollectorRegistry(),
            self._node_state(kernel),
            ApiState(lambda: self._settings.api, self.events, self.rules.store.states),
            RulesState(self.rules.keeper),
            AddressState(lambda: self._settings.config.pool_networks(), roots.lease_dir),
        )
        self._attacher.observe_steps(self._metrics.observe_step)
        pages = make_pages(self._metrics, self._supervisor.why_unwell, self._why_unready)
        self.http = HttpEndpoint(presence.http, pages, self._log) if presence.http else None

    def _holders(self) -> dict[PciAddress, str]:
        return vf_holders(self._attacher.attachments(), self._kubelet)

    def _node_state(self, kernel: Kernel) -> NodeState:
        """Where a scrape looks."""
        return NodeState(
            pools=lambda: self._settings.pools.look(),
            unhealthy=self._advertiser.unhealthy,
            config=lambda: ConfigState(self._config_since, self.refusal),
            why_unready=self._why_unready,
            provisioning=lambda: self._provisioning.last,
            keeper=self._keeper,
            attacher=self._attacher,
            plugin=self._plugin,
            allocator=self._allocator,
            health=self.health,
            reconciler=self._reconciler,
            traffic=VfTraffic(kernel),
        )

    def run(self) -> str | None:
        """Serve until told to stop; the reason if it ended by itself. CNI calls that come while VFs are
        still being made wait; the kubelet hears of pools when their VFs are there."""
        try:
            self._server.listen()
            if self.http is not None:  # a probe hears "not yet" while VFs are being made
                self._supervisor.start("http", self.http.serve)
                self._log.info("serving metrics", address=str(self.http.address))
            self.rules.recover(self._attacher.attachments())
            self._connect_rules()
            self._attacher.recover()
            self._chain.recover()
            self._keeper.refresh()
            self._provisioning.reconcile()
            self._provisioned.set()
            self._advertiser.publish()
            self._plugin.start()
            self._start_threads()
            members = self._settings.pools.look().members
            self._log.info("ready", pools={pool: len(vfs) for pool, vfs in members.items()})
            self._on_ready()
            self._supervisor.stop.wait()
        finally:
            self._supervisor.stop.set()
            self._keeper.mark_dirty()
            self._advertiser.mark()
            self._provisioning.mark_dirty()
            self.events.wake()
            self.rules.wake()
            self._server.stop()
            if self.http is not None:
                self.http.stop()
            self._plugin.stop()
            self._supervisor.join(_JOIN_S)
            self._server.close()
            close_api(self._settings)
            if self.http is not None:
                self.http.close()
            os.close(self._alone)
        self._log.info("stopped", reason=self._supervisor.failure or "asked to")
        return self._supervisor.failure

    def stop(self) -> None:
        """From another thread."""
        self._supervisor.stop.set()

    def take_back_lost(self) -> None:
        """What the chain attached and nobody will send a DEL for; at other times `reconcile` looks."""
        self._chain.recover()

    def has_settled(self) -> bool:
        """Whether VFs are as the config wants them, as far as can be; then no file tells of a former one."""
        if self._provisioning.trouble or not self._provisioning.last.is_settled:
            return False
        self._advertiser.publish()
        return True

    def _start_threads(self) -> None:
        stop = self._supervisor.stop
        self._supervisor.start("cni", self._server.serve)
        self._supervisor.start("kubelet", lambda: self._plugin.watch(stop))
        self._supervisor.start("inventory", lambda: self._keeper.watch(stop))
        self._supervisor.start("health", lambda: self._advertiser.watch(stop))
        self._supervisor.start("provision", lambda: self._provisioning.watch(stop))
        if self._config_file is not None:
            self._supervisor.start("config", functools.partial(self._follow, self._config_file))
        self._supervisor.start("rules", lambda: self.rules.watch(stop))
        self._supervisor.start("reconcile", lambda: self._reconciler.watch(stop))
        self._supervisor.start("events", lambda: self.events.watch(stop))
        self._supervisor.start("summary", lambda: self._summary.watch(stop))
        self._supervisor.start("status", lambda: self._status_file.watch(stop))

    def _follow(self, file: ConfigFile) -> None:
        while not self._supervisor.stop.wait(file.look_s):
            try:
                config = file.poll()
                if config is None:
                    continue
                if config != self._settings.config:
                    self._adopt(config)
                self.refusal = None
                self._log.info("config in force", pools=[pool.name for pool in config.pools])
            except SriovError as e:
                self.refusal = str(e)
                self._log.error("config refused, the one before stays in force", reason=self.refusal)
                self._recorder.on_config_refused(self.refusal)

    def _adopt(self, config: AgentConfig) -> None:
        """Raises SriovError if it cannot be put in force; then nothing has changed."""
        pf_policies(config, self._keeper.current)
        before = self._settings
        settings = make_settings(config, self._node, before)
        with ExitStack() as useless:
            useless.callback(close_api, settings, unless_of=before)
            self._advertiser.adopt(settings)
            useless.pop_all()
        self._settings, self._config_since = settings, time.time()
        self._connect_rules()
        close_api(before, unless_of=settings)
        self._say_removed(before, settings)
        self._provisioning.mark_dirty()

    def _connect_rules(self) -> None:
        asked = (network.asked.in_pod for network in self._settings.config.pool_networks())
        self.rules.connect(self._settings.streams, [options for options in asked if options is not None])

    def _say_removed(self, before: Settings, now: Settings) -> None:
        """Whoever has a VF of a pool keeps it."""
        held = self._attacher.held_vfs()
        for pool, vfs in before.pools.look().members.items():
            if pool not in now.expected:
                attached = [vf.pci for vf in vfs if vf.pci in held]
                self._log.info("pool removed, its VFs stay as they are", pool=pool, attached=attached)

    def _status(self) -> AgentStatus:
        members, work = self._settings.pools.look().members, self._provisioning
        return AgentStatus(
            pid=os.getpid(),
            config=str(self._config_file.path) if self._config_file else None,
            config_refused=self.refusal,
            pools=pool_states(members, self._advertiser.unhealthy(), self._plugin.registered()),
            provisioning=provisioned(work.last, work.missing, work.trouble),
            in_pod=self.rules.state(),
        )

    def _serve(self, request: CniRequest) -> CniReply:
        """The whole call by the settings that are in force at its beginning."""
        if request.env.get("CNI_COMMAND") == TRACE:
            return self._tracer.serve(request)
        began = time.monotonic()
        reply = self._metrics.serve(self._settings.handler, request)
        if request.env.get("CNI_COMMAND") == Command.ADD and reply.exit_code == 0:
            self._recorder.on_attached(request.env, time.monotonic() - began)
        if request.env.get("CNI_COMMAND") in (Command.DEL, Command.GC):
            self._keeper.mark_dirty()
            self._provisioning.mark_dirty()  # what waited for a VF may go through now
        return reply

    def _on_provisioned(self, outcome: Outcome) -> None:
        self._plugin.hold(())  # what can be done for new pools is done
        self._recorder.on_provisioned(outcome)

    def _why_unready(self) -> str | None:
        return self._settings.readiness.why_unready()

    def _on_unknown(self, ruled: Ruled, why: str, *, failed: bool) -> None:
        self._recorder.on_unknown(ruled, why, failed=failed)

    def _on_inventory(self, _: Inventory) -> None:
        if self._provisioned.is_set():
            self._advertiser.mark()
            self._provisioning.mark_dirty()

    def _summarize(self, taken: Set[PciAddress]) -> str:
        return render_summary(self._settings.pools.look().members, taken, self._advertiser.unhealthy())

    def _pools_of(self, vf: PciAddress) -> tuple[str, ...]:
        return self._settings.pools.pools_of(vf)


def lock_alone(path: Path) -> int:
    """Two agents on one folder would take each other's sockets. The lock goes with the process."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Busy(f"another sriov-agent runs with {path.parent} already") from None
    return fd
