"""Orchestrator: what nobody sends a DEL for: records against the kernel and against what the kubelet says.

Level-triggered: each look takes in everything. A finding counts when two looks in a row, at least the grace
time apart, agree on it: calls that are under way, and pods that were just made, are left alone.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from enum import StrEnum

from structlog.typing import FilteringBoundLogger

from sriov_cni.attach import Attacher
from sriov_cni.attachment import Attachment, State
from sriov_cni.chain import FallbackChain
from sriov_cni.lost import why_lost
from sriov_cni.pod_vfs import Kubelet
from vf_manager.errors import SriovError
from vf_manager.model import Inventory
from vf_manager.vf_attributes import difference

_PERIOD_S = 30.0
_GRACE_S = 20.0


class Finding(StrEnum):
    """What a look made sure of. Each is counted when it is dealt with or said, not at every look."""

    TAKEN_BACK = "taken-back"  # an attachment without a pod
    STUCK = "stuck"  # one that could not be taken back yet; at every attempt
    DRIFT = "drift"  # attributes that somebody else changed


class Reconciler:
    """`inventory`: the node's, as it was seen last. `repair`: whether a VF is given the attributes back that
    somebody else changed; else that is only said."""

    def __init__(
        self,
        attacher: Attacher,
        kubelet: Kubelet,
        inventory: Callable[[], Inventory],
        log: FilteringBoundLogger,
        *,
        fallback: FallbackChain | None = None,
        repair: Callable[[], bool] = lambda: False,
        grace_s: float = _GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._attacher = attacher
        self._fallback = fallback
        self._kernel = attacher.kernel
        self._kubelet = kubelet
        self._inventory = inventory
        self._log = log
        self._repair = repair
        self._grace_s = grace_s
        self._clock = clock
        self._since: dict[str, float] = {}  # when what is wrong was seen first, by what it is
        self._told: dict[str, str] = {}
        self._found: Counter[Finding] = Counter()

    def findings(self) -> dict[Finding, int]:
        """How many there were since the start, of every kind."""
        return {kind: self._found[kind] for kind in Finding}

    def watch(self, stop: threading.Event, period_s: float = _PERIOD_S) -> None:
        """Look now and every `period_s`. For a thread of its own."""
        while True:
            try:
                self.look()
            except SriovError as e:
                self._log.warning("attachments could not be looked at", error=str(e))
            if stop.wait(period_s):
                return

    def look(self) -> None:
        records = self._attacher.attachments()
        self._take_back_lost(records)
        attached = [record for record in records if record.state is State.ATTACHED]
        self._tell_drift(attached)
        for record in attached:
            self._renew_host_link(record)
        if self._fallback is not None:
            self._fallback.recover()

    def _take_back_lost(self, records: list[Attachment]) -> None:
        lost = [record for record in records if self._is_lost(record)]
        for record in self._confirmed("lost", lost):
            log = self._log.bind(container=record.container_id, ifname=record.ifname, vf=record.port.pci)
            try:
                if self._attacher.take_back_if(record, self._is_lost):
                    self._found[Finding.TAKEN_BACK] += 1
                    log.warning("an attachment without a pod was taken back")
            except SriovError as e:
                self._found[Finding.STUCK] += 1
                log.warning("an attachment without a pod cannot be taken back yet", error=str(e))

    def _confirmed(self, what: str, found: list[Attachment]) -> list[Attachment]:
        """Those that were found before, long enough ago."""
        now, names = self._clock(), {f"{what} {record.key}" for record in found}
        self._since = {
            name: since for name, since in self._since.items() if name in names or not name.startswith(what)
        }
        for name in names:
            self._since.setdefault(name, now)
        return [r for r in found if now - self._since[f"{what} {r.key}"] >= self._grace_s]

    def _is_lost(self, record: Attachment) -> bool:
        return why_lost(record, self._kernel, self._kubelet) is not None

    def _tell_drift(self, records: list[Attachment]) -> None:
        """Each drift once, and its end."""
        drifted = [record for record in records if self._drift_of(record)]
        confirmed = self._confirmed("drift", drifted)
        for record in confirmed:
            what = self._drift_of(record)
            log = self._log.bind(container=record.container_id, ifname=record.ifname, vf=record.port.pci)
            if self._told.get(record.key) != what:
                log.warning("attributes of an attached VF were changed by somebody else", found=what)
                self._told[record.key] = what
                self._found[Finding.DRIFT] += 1
            if self._repair():
                self._give_back(record)
        keys = {record.key for record in drifted}
        self._told = {key: what for key, what in self._told.items() if key in keys}

    def _drift_of(self, record: Attachment) -> str:
        vf = self._inventory().find_vf(record.port.pci)
        if vf is None or vf.attributes is None:
            return ""
        now, wrong = vf.attributes, difference(vf.attributes, record.asked.change)
        return ", ".join(
            f"{key} {getattr(now, key)} instead of {value}"
            for key, value in record.asked.change.items()
            if getattr(wrong, key) is not None and getattr(now, key) != value
        )

    def _renew_host_link(self, record: Attachment) -> None:
        """At once, and whoever changed it: the addresses of the node are its own to change."""
        log = self._log.bind(container=record.container_id, ifname=record.ifname, vf=record.port.pci)
        try:
            if drift := self._attacher.renew_host_link(record):
                log.warning("a host link was put right", found="; ".join(drift))
        except SriovError as e:
            log.warning("a host link cannot be put right", error=str(e))

    def _give_back(self, record: Attachment) -> None:
        try:
            self._attacher.program_again(record)
            self._log.info("attributes were given back", vf=record.port.pci)
        except SriovError as e:
            self._log.warning("attributes could not be given back", vf=record.port.pci, error=str(e))
