"""Orchestrator: what a pod says of its networks in the annotation `sriov-underlay.io/networks`.

Only where the agent's config has `kubernetes`, and only for pods with a choice: a pool that several networks
name. A pod without the annotation gets the first of them.
"""

import threading
import time
from collections.abc import Callable, Sequence

from node_agent.api_server import ApiServer
from sriov_cni.environment import Pod
from sriov_cni.netconf import CniCall
from sriov_cni.network import Network
from vf_manager.errors import Busy, Refused, shorten

ANNOTATION = "sriov-underlay.io/networks"
_CACHED_S = 10.0


class PodAnnotations:
    """Thread-safe; the answer for a pod holds for a few seconds, for its other calls."""

    def __init__(self, api: ApiServer, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._guard = threading.Lock()
        self._known: dict[Pod, tuple[float, str]] = {}

    def choose(self, call: CniCall, pool: str, networks: Sequence[Network]) -> Network:
        """Which of the networks of a pool this pod gets. Raises ApiServerError, Busy and Refused."""
        if len(networks) == 1 or call.pod is None:
            return networks[0]
        text = self._annotation_of(call.pod)
        wanted = parse_choice(text).get(pool) or parse_choice(text).get("")
        if wanted is None:
            return networks[0]
        found = next((network for network in networks if network.name == wanted), None)
        if found is None:
            allowed = ", ".join(network.name for network in networks)
            raise Refused(
                f"annotation {ANNOTATION}: {shorten(text)}; pool {pool} has the networks {allowed} here"
            )
        return found

    def _annotation_of(self, pod: Pod) -> str:
        now = self._clock()
        with self._guard:
            self._known = {p: entry for p, entry in self._known.items() if entry[0] > now}
            if pod in self._known:
                return self._known[pod][1]
        text = self._read(pod)
        with self._guard:
            self._known[pod] = (now + _CACHED_S, text)
        return text

    def _read(self, pod: Pod) -> str:
        found = self._api.read_pod(pod.namespace, pod.name)
        if pod.uid and found.uid != pod.uid:
            what = f"read pod {pod.namespace}/{pod.name}"
            raise Busy(f"{what}: that is another pod of this name by now; try again")
        return found.annotations.get(ANNOTATION, "")


def parse_choice(text: str) -> dict[str, str]:
    """`fast=blue,slow=red` to networks by pool; one alone, `blue`, is for every pool that has it ("")."""
    chosen = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        pool, equals, network = part.partition("=")
        chosen[pool.strip() if equals else ""] = (network if equals else pool).strip()
    return chosen
