"""Orchestrator: the rules inside of pods: put there by ADD, renewed when the cluster changes, taken away by
DEL.

Level-triggered: a change of the cluster only marks, and one thread compares what each pod has with what it
should have. What a pod has is remembered, not read; after a restart nothing is, and the first comparison
replaces the table in one transaction. Until what it needs of the cluster is known, a pod keeps the rules that
it has.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from sriov_cni.attachment import Attachment, Sandbox
from sriov_cni.ground import opened_sandbox, wait_until
from sriov_cni.in_pod.model import Frontend, Target
from sriov_cni.in_pod.objects import Cluster, Pod
from sriov_cni.in_pod.options import InPod, Ruled, Unsynced
from sriov_cni.in_pod.policy_steps import table_between
from sriov_cni.in_pod.rule_book import Ask, RuleBook
from sriov_cni.in_pod.stale_flows import stale_flows
from sriov_cni.in_pod.step import ruled_of
from sriov_cni.in_pod.table import TABLE
from vf_manager.errors import Busy, KernelError, Refused, SriovError
from vf_manager.kernel.api import Kernel, NetnsHandle, NetnsId
from vf_manager.kernel.nft import Table
from vf_manager.model import IfName

_COALESCE_S = 0.1
_LOOK_S = 30.0
_POLICY = InPod(policy=True)


class Knowledge(IntEnum):
    """Of what services or policies depend on."""

    NOTHING = 0
    LAST = 1  # what was known when the API server was heard last
    FRESH = 2


class ClusterSource(Protocol):
    """What is known of the cluster. Thread-safe."""

    def want(self, options: InPod) -> None:
        """From now on, besides what was wanted before. Raises Refused: there is no way to the API server."""

    def known(self, options: InPod) -> Knowledge: ...
    def snapshot(self) -> Cluster: ...


class Unknown(Protocol):
    """Told of an ADD that had to do without knowing the cluster: whether it failed or went on."""

    def __call__(self, ruled: Ruled, why: str, *, failed: bool) -> None: ...


@dataclass
class _PodRules:
    """`applied` None: it is not known what is there, if anything. `pod`: as it was known last. `book`: the
    number of the one that `applied` is by. `flushed`: where UDP went when its flows were looked through."""

    sandbox: Sandbox
    guard: threading.Lock = field(default_factory=threading.Lock)
    interfaces: dict[IfName, Ruled] = field(default_factory=dict)
    pod: Pod | None = None
    applied: Table | None = None
    book: int = 0
    flushed: Mapping[Frontend, Target] | None = None
    is_there: bool = False
    trouble: str = ""


class RuleKeeper:
    """Thread-safe. `read`: what follows from a snapshot; it is called by one thread at a time."""

    def __init__(
        self,
        kernel: Kernel,
        source: ClusterSource,
        read: Callable[[Cluster], RuleBook],
        log: FilteringBoundLogger,
        on_unknown: Unknown,
    ) -> None:
        self._kernel = kernel
        self._source = source
        self._read = read
        self._log = log
        self._on_unknown = on_unknown
        self._guard = threading.Lock()
        self._reading = threading.Lock()
        self._marked = threading.Event()
        self._pods: dict[NetnsId, _PodRules] = {}
        self._book: RuleBook | None = None

    def recover(self, records: Iterable[Attachment]) -> None:
        """At start: whoever may have rules, by the records. Half-done ones are about to be taken back."""
        for record in records:
            if (ruled := ruled_of(record)) is not None:
                self.adopt(record.sandbox, ruled)
        self._marked.set()

    def adopt(self, sandbox: Sandbox, ruled: Ruled) -> None:
        """An interface that has rules already."""
        with self._locked(sandbox) as rules:
            rules.interfaces[ruled.ifname] = ruled
            rules.is_there = True

    def options(self) -> list[InPod]:
        """What the pods ask for that have rules."""
        with self._guard:
            everybody = list(self._pods.values())
        return [ruled.options for rules in everybody for ruled in list(rules.interfaces.values())]

    def put(self, netns: NetnsHandle, sandbox: Sandbox, ruled: Ruled) -> None:
        """Rules for one interface more, in force on return. Raises Busy, Refused and KernelError."""
        options = ruled.options
        if options.policy and not ruled.pod:
            raise Refused("policy: in-pod: the container runtime did not say which pod this is")
        self._source.want(options)
        wait_until(lambda: self._is_enough(ruled), options.wait_s)
        if why := self._why_unknown(ruled):
            failed = options.unsynced is Unsynced.FAIL
            self._on_unknown(ruled, why, failed=failed)
            if failed:
                raise Busy(f"{options.describe()}: in-pod: {why}; try again (unsynced: {options.unsynced})")
        with self._locked(sandbox) as rules:
            rules.interfaces[ruled.ifname] = ruled
            self._look(rules, netns)
            self._bring_up_to_date(rules, netns, self._book_for(options))

    def remove(self, netns: NetnsHandle | None, sandbox: Sandbox, ifname: IfName) -> None:
        """The rules for one interface; with the last of a pod its table. Nothing of it may be there."""
        with self._locked(sandbox) as rules:
            gone = rules.interfaces.pop(ifname, None)
            try:
                if netns is not None:
                    self._take_away(rules, netns)
            except KernelError:
                if gone is not None:  # for the DEL that comes again
                    rules.interfaces[ifname] = gone
                raise

    def _take_away(self, rules: _PodRules, netns: NetnsHandle) -> None:
        """What is for no interface any more."""
        if not rules.interfaces and rules.is_there:
            self._kernel.delete_nft_table(netns, TABLE)
            rules.applied, rules.is_there = None, False
        elif rules.interfaces and self._may_renew(rules):
            self._bring_up_to_date(rules, netns, self._current())

    def mark(self) -> None:
        """The cluster may have changed."""
        self._marked.set()

    def watch(self, stop: threading.Event, look_s: float = _LOOK_S) -> None:
        """For a thread of its own. After `stop` is set, `mark`. `look_s`: how often it looks what is there,
        however often the cluster changes."""
        next_look = time.monotonic() + look_s
        while not stop.is_set():
            self._marked.wait(max(0.0, next_look - time.monotonic()))
            if stop.wait(_COALESCE_S):
                return
            self._marked.clear()
            if look := time.monotonic() >= next_look:
                next_look = time.monotonic() + look_s
            self.renew(look=look)

    def renew(self, *, look: bool = False) -> None:
        """Bring every pod's rules up to date, past errors. `look`: put back what somebody removed, too."""
        with self._guard:
            everybody = list(self._pods.values())
        if not everybody:
            return
        book = self._current()
        for rules in everybody:
            try:
                self._renew(rules, book, look=look)
                trouble = ""
            except (SriovError, OSError) as e:
                trouble = str(e)
                rules.applied = None
            if trouble and trouble != rules.trouble:
                self._log.warning(
                    "rules of a pod are not up to date", netns=rules.sandbox.path, error=trouble
                )
            rules.trouble = trouble

    def troubles(self) -> dict[str, str]:
        """Why rules are not up to date, by the path of the pod's namespace."""
        with self._guard:
            return {rules.sandbox.path: rules.trouble for rules in self._pods.values() if rules.trouble}

    def count(self) -> int:
        """Pods with rules."""
        with self._guard:
            return len(self._pods)

    def book(self) -> RuleBook:
        return self._current()

    def ask_of(self, pod: str) -> Ask | None:
        """What the rules of a pod were made of; None: it has none."""
        with self._guard:
            found = [r for r in self._pods.values() if any(i.pod == pod for i in r.interfaces.values())]
        return self._ask(found[0]) if found else None

    def _renew(self, rules: _PodRules, book: RuleBook, *, look: bool) -> None:
        with rules.guard:
            if not rules.interfaces or not self._may_renew(rules) or book.number < rules.book:
                return  # an ADD meanwhile may have seen more of the cluster
            with opened_sandbox(self._kernel, None, rules.sandbox) as netns:
                if netns is None:
                    return  # dying, or not to be seen from here; DEL or the reconciler comes
                if look:
                    self._look(rules, netns)
                self._bring_up_to_date(rules, netns, book)

    def _look(self, rules: _PodRules, netns: NetnsHandle) -> None:
        if rules.is_there and TABLE not in self._kernel.nft_tables(netns):
            self._log.warning("somebody removed the rules of a pod", netns=rules.sandbox.path)
            rules.applied = None

    def _may_renew(self, rules: _PodRules) -> bool:
        """Never by a cluster that is not known: a policy that was not heard of lets everything through."""
        return all(self._source.known(r.options) is not Knowledge.NOTHING for r in rules.interfaces.values())

    def _bring_up_to_date(self, rules: _PodRules, netns: NetnsHandle, book: RuleBook) -> None:
        rules.pod, rules.book = self._find_pod(rules, book.cluster) or rules.pod, book.number
        wanted = book.table_for(self._ask(rules))
        if wanted == rules.applied:
            return
        before, was_there = rules.applied, rules.is_there
        rules.applied, rules.is_there = None, True
        if before is None:  # an ADD comes before anything runs in the pod, and so before any flow
            rules.flushed = None if was_there else book.udp_targets
        try:
            self._change(netns, before, wanted)
        except KernelError:
            if before is None:
                raise
            rules.flushed = None
            self._change(netns, None, wanted)  # what is there is not what it was
        rules.applied = wanted
        self._flush(netns, book, rules)

    def _change(self, netns: NetnsHandle, before: Table | None, wanted: Table) -> None:
        if before is not None and (between := table_between(before, wanted)) is not None:
            self._kernel.apply_nft(netns, before, between)
            before = between
        self._kernel.apply_nft(netns, before, wanted)

    def _flush(self, netns: NetnsHandle, book: RuleBook, rules: _PodRules) -> None:
        """UDP has no end of a connection: a flow to an endpoint that is gone would go on for ever. To list
        flows takes the kernel some 10 ms, however few a pod has: it has one table for all namespaces."""
        if rules.flushed == book.udp_targets:
            return
        if any(ruled.options.services for ruled in rules.interfaces.values()):
            stale = stale_flows(self._kernel.udp_flows(netns), book.services)
            if stale:
                self._kernel.delete_flows(netns, stale)
            rules.flushed = book.udp_targets

    def _ask(self, rules: _PodRules) -> Ask:
        ruled = rules.interfaces.values()
        return Ask(
            services=frozenset(
                name for r in ruled if r.options.services for name in (r.ifname, r.beside) if name
            ),
            policy=frozenset(r.ifname for r in ruled if r.options.policy),
            pod=rules.pod,
            is_open=all(r.options.unsynced is Unsynced.OPEN for r in ruled if r.options.policy),
            knows_policy=self._source.known(_POLICY) is not Knowledge.NOTHING,
        )

    def _why_unknown(self, ruled: Ruled) -> str:
        match self._source.known(ruled.options):
            case Knowledge.NOTHING:
                return "nothing was heard of the cluster yet"
            case Knowledge.LAST:
                return "the API server is away, and what is known of the cluster may be old"
        if ruled.options.policy and _find(ruled, self._source.snapshot()) is None:
            return f"the API server says nothing of pod {ruled.pod}, whose labels policies go by"
        return ""

    def _is_enough(self, ruled: Ruled) -> bool:
        return not self._why_unknown(ruled)

    def _find_pod(self, rules: _PodRules, cluster: Cluster) -> Pod | None:
        found = (_find(ruled, cluster) for ruled in rules.interfaces.values())
        return next((pod for pod in found if pod is not None), None)

    @contextmanager
    def _locked(self, sandbox: Sandbox) -> Iterator[_PodRules]:
        """The rules of a pod, to be changed; they are forgotten with their last interface."""
        while True:
            with self._guard:
                rules = self._pods.setdefault(sandbox.id, _PodRules(sandbox))
            with rules.guard:
                if self._pods.get(sandbox.id) is not rules:
                    continue  # forgotten meanwhile
                try:
                    yield rules
                finally:
                    if not rules.interfaces:
                        with self._guard:
                            del self._pods[sandbox.id]
                return

    def _book_for(self, options: InPod) -> RuleBook:
        """For an ADD. What services there are may be what the thread saw last: it is about to look again, for
        this pod as well. No policy may be missed."""
        book = self._book
        return self._current() if options.policy or book is None else book

    def _current(self) -> RuleBook:
        """What follows from what is known now."""
        with self._reading:
            cluster = self._source.snapshot()
            if self._book is None or self._book.cluster is not cluster:
                self._book = self._read(cluster)
            return self._book


def _find(ruled: Ruled, cluster: Cluster) -> Pod | None:
    """A pod of the same name may be another one by now."""
    pod = cluster.pods.get(ruled.pod)
    return pod if pod is not None and ruled.uid in ("", pod.metadata.uid) else None
