"""A node in memory for tests of ADD and DEL: two PFs of seven VFs each, pods, and the CNI handler."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger

from sriov_cni.attach import Attacher
from sriov_cni.attachment import Attachment
from sriov_cni.chain import FallbackChain
from sriov_cni.executor import Checkpoint, no_checkpoint
from sriov_cni.handler import CniHandler
from sriov_cni.in_pod.keeper import RuleKeeper
from sriov_cni.in_pod.rule_book import RuleBooks
from sriov_cni.limits import Limits
from sriov_cni.messages import CniReply, CniRequest
from sriov_cni.network import parse_networks
from sriov_cni.pod_attach import PodAttacher
from sriov_cni.pod_vfs import PodVfs
from sriov_cni.spec import NotReady
from tests.cluster_objects import endpoints, service
from tests.fake_cluster import FakeCluster
from tests.fake_kernel import FakeKernel
from vf_manager.locks import DeviceLocks
from vf_manager.model import PciAddress
from vf_manager.records import RecordStore

PF0 = PciAddress("0000:01:00.0")
PF1 = PciAddress("0000:02:00.0")
IPAM = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.56.0.0/24", "gateway": "10.56.0.1"}], [{"subnet": "fd00:56::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.99.0.0/16", "gw": "10.56.0.2", "priority": 50}],
}


def quiet_log() -> FilteringBoundLogger:
    log: FilteringBoundLogger = structlog.get_logger()
    return log


class Died(BaseException):
    """The process ends here: nothing after this point runs in it."""


class HookedStore(RecordStore[Attachment]):
    """Counts as a place to fail or die, before and after each change on disk."""

    def __init__(self, directory: Path, on_change: Callable[[str], None]) -> None:
        super().__init__(directory, Attachment)
        self._on_change = on_change

    def write(self, key: str, record: Attachment) -> None:
        self._on_change("write record")
        super().write(key, record)
        self._on_change("record written")

    def remove(self, key: str) -> None:
        self._on_change("remove record")
        super().remove(key)
        self._on_change("record removed")


@dataclasses.dataclass
class State:
    """Kernel, leases and records, comparable. `links`: by namespace."""

    functions: dict[PciAddress, object]
    links: dict[int, list[tuple[object, ...]]]
    leases: list[str]
    records: list[str]
    tables: dict[int, list[str]]  # of nftables, by namespace

    def without(self, netns: int) -> "State":
        """The same, after that namespace is gone."""
        links = {number: found for number, found in self.links.items() if number != netns}
        tables = {number: found for number, found in self.tables.items() if number != netns}
        return dataclasses.replace(self, links=links, tables=tables)


@dataclasses.dataclass
class FakeKubelet:
    """`given`: device ids by pod. Not `there`: the node has none, as if no Kubernetes ran on it."""

    there: bool = False
    given: dict[tuple[str, str], list[str]] = dataclasses.field(default_factory=dict)
    questions: int = 0

    def is_there(self) -> bool:
        return self.there

    def devices_of(self, namespace: str, name: str) -> dict[str, list[str]]:
        self.questions += 1
        return {"x/pool": self.given.get((namespace, name), [])}

    def holder_of(self, device: str) -> tuple[str, str] | None:
        self.questions += 1
        return next((pod for pod, ids in self.given.items() if device in ids), None)


def new_kernel() -> FakeKernel:
    kernel = FakeKernel()
    for number, pf in enumerate((PF0, PF1)):
        kernel.add_pf(pf, f"ens{number}")
        kernel.set_num_vfs(pf, 7)
    return kernel


class World:
    """`start_agent` again stands for a restart of the agent: only the kernel and the files stay."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kernel = new_kernel()
        self.not_ready: Callable[[], str | None] = lambda: None
        self.pooled = {vf for pf in (PF0, PF1) for vf in self.vfs(pf)}
        self.shared_pools: dict[PciAddress, tuple[str, ...]] = {}  # of those in other pools than "pool" alone
        self.kubelet = FakeKubelet()
        self.networks: list[dict[str, Any]] = []
        self.limits: dict[str, Limits] = {}
        self.fallback: FallbackChain | None = None
        self.boot_id = "boot-1"
        self.cluster = FakeCluster(service("web", "10.96.0.10"), endpoints("web", "10.56.0.7"))
        self.start_agent()

    def start_agent(self, checkpoint: Checkpoint = no_checkpoint) -> None:
        log = quiet_log()
        books = RuleBooks("node-1")
        self.rules = RuleKeeper(
            self.kernel,
            self.cluster,
            lambda cluster: books.read(cluster, ()),
            log,
            lambda ruled, why, *, failed: None,
        )
        self.records = HookedStore(self.root / "attachments", checkpoint)
        self.attacher = Attacher(
            self.kernel,
            self.records,
            DeviceLocks(),
            self.pools_of,
            log,
            boot_id=self.boot_id,
            lease_dir=self.root / "leases",
            rules=self.rules,
            checkpoint=checkpoint,
        )
        self.rules.recover(self.attacher.attachments())
        pods = PodAttacher(
            self.attacher,
            PodVfs(self.kubelet, {"x/pool": "pool"}, self.pools_of),
            self.pools_of,
            parse_networks(self.networks, ["pool"]),
            self.limits,
        )
        self.handler = CniHandler(pods, self.attacher, self.fallback, self._refuse_unready, log)

    def pools_of(self, pci: PciAddress) -> tuple[str, ...]:
        return self.shared_pools.get(pci, ("pool",) if pci in self.pooled else ())

    def _refuse_unready(self) -> None:
        if (reason := self.not_ready()) is not None:
            raise NotReady(reason)

    def reboot(self) -> None:
        """The kernel and what is on /run are new; what is on disk stays."""
        shutil.rmtree(self.root / "attachments")
        self.kernel = new_kernel()
        self.boot_id += "-next"
        self.start_agent()
        self.attacher.recover()

    def vfs(self, pf: PciAddress) -> list[PciAddress]:
        function = self.kernel.read_function(pf)
        assert function is not None
        return [address for _, address in function.virtfns]

    def new_pod(self, name: str) -> int:
        return self.kernel.new_netns(f"/run/netns/{name}")

    def call(self, command: str, container: str, netns: int | None, conf: object, **env: str) -> CniReply:
        path = next((p for p, n in self.kernel.paths.items() if n == netns), "/run/netns/gone")
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": path,
            "CNI_IFNAME": "net1",
            "CNI_PATH": "/opt/cni/bin",
        } | env
        stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
        return self.handler(CniRequest(variables, stdin, netns_fd=netns, netns_errno=0 if netns else 2))

    def leases(self) -> list[str]:
        """Addresses that are held, as files of the reference plugin."""
        found = (self.root / "leases").glob("*/*")
        return sorted(p.name for p in found if p.name[0] in "0123456789f")

    def state(self) -> "State":
        """What must be as before once an attachment is gone."""
        functions, links = self.kernel.snapshot()
        tables = {number: sorted(found) for number, found in self.kernel.nft.items() if found}
        return State(functions, links, self.leases(), self.records.list_keys(), tables)


def conf_of(device: str, **options: Any) -> dict[str, Any]:
    base = {"cniVersion": "1.1.0", "name": "underlay", "type": "sriov-underlay", "deviceID": device}
    return base | {"ipam": IPAM} | options


def error_of(reply: CniReply) -> tuple[int, str]:
    assert reply.exit_code == 1, reply
    error = json.loads(reply.stdout)
    return error["code"], error["msg"]


def result_of(reply: CniReply) -> dict[str, Any]:
    assert reply.exit_code == 0, reply
    result: dict[str, Any] = json.loads(reply.stdout)
    return result
