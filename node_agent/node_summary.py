"""Orchestrator: an annotation of the node says how many VFs of each pool are free, for people who look for a
node. The scheduler needs no annotation: it goes by the resources that the kubelet reports."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from node_agent.api_errors import ApiServerError
from node_agent.backoff import Backoff
from vf_manager.errors import SriovError
from vf_manager.model import PciAddress, Vf

ANNOTATION = "sriov-underlay.io/pools"
LOOK_S = 15.0
_AGAIN_S = 600.0  # a node may be made anew, or somebody remove the annotation


class NodesApi(Protocol):
    def annotate_node(self, name: str, annotations: Mapping[str, str]) -> None:
        """Raises ApiServerError."""


class NodeSummary:
    """`look`: the summary as it is now; raises SriovError or OSError if it cannot be told. A change
    is written at the next look, so no more often than every few seconds. `api` None: it is not asked for."""

    def __init__(
        self,
        api: Callable[[], NodesApi | None],
        node: str,
        look: Callable[[], str],
        log: FilteringBoundLogger,
        *,
        clock: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
    ) -> None:
        self._api = api
        self._node = node
        self._look = look
        self._log = log
        self._clock = clock
        self._backoff = backoff or Backoff(LOOK_S, _AGAIN_S)
        self._written: tuple[float, str] | None = None  # when, what
        self._said: int | None = 0  # the status of the failure that was logged; 0: none

    def watch(self, stop: threading.Event) -> None:
        while not stop.is_set():
            stop.wait(self.step())

    def step(self) -> float:
        """Returns the seconds until the next look."""
        api = self._api()
        try:
            summary = self._look() if api is not None else None
        except (SriovError, OSError) as e:  # the kubelet does not say who has which VF; no descriptor is left
            self._log.debug("no summary of the pools now", error=str(e))
            return LOOK_S
        if api is None or summary is None:
            self._written = None
            return LOOK_S
        if self._is_due(summary):
            try:
                api.annotate_node(self._node, {ANNOTATION: summary})
            except ApiServerError as e:
                return self._fail(e)
            self._written = (self._clock(), summary)
        self._backoff.worked()
        self._said = 0
        return LOOK_S

    def _is_due(self, summary: str) -> bool:
        if self._written is None:
            return True
        when, written = self._written
        return written != summary or self._clock() - when >= _AGAIN_S

    def _fail(self, e: ApiServerError) -> float:
        if e.status != self._said:
            self._log.warning("the node's annotation cannot be written now", error=str(e))
        self._said = e.status
        return self._backoff.failed()


def render_summary(
    members: Mapping[str, Sequence[Vf]],
    taken: Set[PciAddress],
    unhealthy: Mapping[str, Mapping[PciAddress, str]],
) -> str:
    """`fast=5/7,dpdk=0/4`: of each pool how many VFs are Healthy and nobody's, and how many there are."""
    return ",".join(
        f"{pool}={sum(_is_free(vf, taken, unhealthy.get(pool, {})) for vf in vfs)}/{len(vfs)}"
        for pool, vfs in members.items()
    )


def _is_free(vf: Vf, taken: Set[PciAddress], unhealthy: Mapping[PciAddress, str]) -> bool:
    return vf.pci not in taken and vf.pci not in unhealthy
