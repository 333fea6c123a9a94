"""Adapter: what a pod says of its networks in the annotation `sriov-underlay.io/networks`, by the API server.

Only where the agent's config has `kubernetes`, and only for pods with a choice: a pool that several networks
name. A pod without the annotation gets the first of them.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import kubernetes
import urllib3
from structlog.typing import FilteringBoundLogger

from node_agent.config import KubernetesConfig
from sriov_cni.environment import Pod
from sriov_cni.netconf import CniCall
from sriov_cni.network import Network
from vf_manager.errors import Busy, Refused, SriovError, shorten

ANNOTATION = "sriov-underlay.io/networks"
_TIMEOUT_S = (1.0, 2.0)  # to connect, to read
_CACHED_S = 10.0


class ApiServerAway(SriovError):
    """The API server does not answer. It may soon."""

    transient = True


class PodAnnotations:
    """Thread-safe; the answer for a pod holds for a few seconds, for its other calls."""

    def __init__(
        self,
        config: KubernetesConfig,
        log: FilteringBoundLogger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises Refused if there are no credentials."""
        self._api = _connect(config)
        self._log = log
        self._clock = clock
        self._guard = threading.Lock()
        self._known: dict[Pod, tuple[float, str]] = {}

    def choose(self, call: CniCall, pool: str, networks: Sequence[Network]) -> Network:
        """Which of the networks of a pool this pod gets. Raises ApiServerAway, Busy and Refused."""
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

    def close(self) -> None:
        """Let go of the connections."""
        self._api.api_client.rest_client.pool_manager.clear()

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
        what = f"read pod {pod.namespace}/{pod.name}"
        try:
            found: Any = self._api.read_namespaced_pod(pod.name, pod.namespace, _request_timeout=_TIMEOUT_S)
        except kubernetes.client.ApiException as e:
            raise ApiServerAway(f"{what}: the API server says {e.status} {e.reason}") from e
        except (urllib3.exceptions.HTTPError, OSError) as e:
            raise ApiServerAway(f"{what}: the API server cannot be reached: {e}") from e
        if pod.uid and found.metadata.uid != pod.uid:
            raise Busy(f"{what}: that is another pod of this name by now; try again")
        return str((found.metadata.annotations or {}).get(ANNOTATION, ""))


def parse_choice(text: str) -> dict[str, str]:
    """`fast=blue,slow=red` to networks by pool; one alone, `blue`, is for every pool that has it ("")."""
    chosen = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        pool, equals, network = part.partition("=")
        chosen[pool.strip() if equals else ""] = (network if equals else pool).strip()
    return chosen


def _connect(config: KubernetesConfig) -> Any:
    settings = kubernetes.client.Configuration()
    inside, outside = kubernetes.config.load_incluster_config, kubernetes.config.load_kube_config
    load: Callable[..., None] = inside if config.kubeconfig is None else outside
    try:
        if config.kubeconfig is None:
            load(client_configuration=settings)
        else:
            load(config.kubeconfig, client_configuration=settings)
    except (kubernetes.config.ConfigException, OSError) as e:
        where = "kubernetes.kubeconfig" if config.kubeconfig else "kubernetes"
        raise Refused(f"{where}: {config.kubeconfig or '{}'} gives no way to the API server: {e}") from e
    settings.retries = False
    return kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(settings))
