"""Adapter: the API server, by the official client.

Imported only where the config has `kubernetes`: the client takes 0.3 s and tens of MiB to load.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import kubernetes
import msgspec
import urllib3

from node_agent.api_contact import ApiContact
from node_agent.api_errors import ApiServerError
from node_agent.config import KubernetesConfig
from vf_manager.errors import Refused

_TIMEOUT_S = (1.0, 2.0)  # to connect, to read
_MERGE = "application/merge-patch+json"


class PodFacts(msgspec.Struct, frozen=True, kw_only=True):
    uid: str
    annotations: dict[str, str]


class ApiServer:
    """Thread-safe. Each question raises ApiServerError."""

    def __init__(self, config: KubernetesConfig) -> None:
        """Raises Refused if there are no credentials. Nobody is asked anything yet."""
        self._client = kubernetes.client.ApiClient(connection_of(config))
        self.contact = ApiContact()
        self._core = kubernetes.client.CoreV1Api(self._client)
        self._events = kubernetes.client.EventsV1Api(self._client)

    def read_pod(self, namespace: str, name: str) -> PodFacts:
        with self._asking(f"read pod {namespace}/{name}"):
            found: Any = self._core.read_namespaced_pod(name, namespace, _request_timeout=_TIMEOUT_S)
            return PodFacts(uid=str(found.metadata.uid), annotations=dict(found.metadata.annotations or {}))

    def pod_uid(self, namespace: str, name: str) -> str:
        return self.read_pod(namespace, name).uid

    def create_event(self, namespace: str, body: Mapping[str, Any]) -> None:
        """`body`: an Event of events.k8s.io/v1."""
        event: Any = dict(body)  # newer clients make their own type of it
        with self._asking(f"create an event in namespace {namespace}"):
            self._events.create_namespaced_event(namespace, event, _request_timeout=_TIMEOUT_S)

    def patch_event(self, namespace: str, name: str, body: Mapping[str, Any]) -> None:
        with self._asking(f"patch event {namespace}/{name}"):
            self._events.patch_namespaced_event(
                name, namespace, dict(body), _content_type=_MERGE, _request_timeout=_TIMEOUT_S
            )

    def annotate_node(self, name: str, annotations: Mapping[str, str]) -> None:
        """Set these; others stay."""
        with self._asking(f"annotate node {name}"):
            self._core.patch_node(
                name,
                {"metadata": {"annotations": dict(annotations)}},
                _content_type=_MERGE,
                _request_timeout=_TIMEOUT_S,
            )

    def close(self) -> None:
        """Let go of the connections. A question under way is answered all the same."""
        self._client.rest_client.pool_manager.clear()

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            with answered(what):
                yield
        except ApiServerError as e:
            self.contact.note(e)
            raise
        self.contact.note(None)


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Whatever the client raises as ApiServerError."""
    try:
        yield
    except kubernetes.client.ApiException as e:
        raise ApiServerError(
            f"{what}: the API server says {e.status} {e.reason}", e.status, _retry_after_s(e)
        ) from e
    except (urllib3.exceptions.HTTPError, OSError) as e:
        raise ApiServerError(f"{what}: the API server cannot be reached: {e}") from e
    except (kubernetes.client.OpenApiException, kubernetes.config.ConfigException, ValueError) as e:
        # A token that cannot be read any more; an answer that is none (a proxy's), which pydantic refuses.
        raise ApiServerError(f"{what}: {e}") from e


def _retry_after_s(e: kubernetes.client.ApiException) -> float:
    """As it asks for when it has too much to do; the other form, a date, is none of its."""
    asked = str((e.headers or {}).get("Retry-After", ""))
    return float(asked) if asked.isdecimal() else 0.0


def connection_of(config: KubernetesConfig) -> Any:
    """The client's Configuration, which renews a token that changes. Raises Refused."""
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
    return settings
