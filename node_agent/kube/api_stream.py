"""Adapter: raw lists and watches of the API server, by the official client.

The client has what is hard to get right (how to reach it, TLS, credentials, tokens that are renewed); what it
would make of the answers takes ten times their size, so they come out as the bytes that they are.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, assert_never

import kubernetes
import urllib3

from node_agent.api_server import answered, connection_of
from node_agent.config import KubernetesConfig
from node_agent.kube.decode import join_chunks, split_lines
from node_agent.kube.kinds import Kind, selectors_of

MOST_LINE = 8 << 20  # etcd takes objects of 1.5 MiB; as JSON they are longer
MOST_PAGE = 32 << 20
_CHUNK = 64 << 10
_CONNECT_S = 3.0
_ANSWER_S = 30.0  # until an answer begins, and between the parts of a list
_KEEPALIVE = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


class ApiStreams:
    """One API server, for the kinds that are followed."""

    def __init__(self, config: KubernetesConfig, node: str, slack_s: float = 30.0) -> None:
        """`node`: the one whose object is followed. `slack_s`: for how long after its time a watch may be
        silent. Raises Refused if there are no credentials."""
        self._settings = connection_of(config)
        self._settings.socket_options = _KEEPALIVE  # a peer that went without a word is noticed in a minute
        self._node = node
        self._slack_s = slack_s

    def open(self, kind: Kind) -> "ApiStream":
        """Nobody is asked anything yet."""
        return ApiStream(self._settings, kind, self._node, self._slack_s)


class ApiStream:
    """One kind, for one thread; another may `close` it at any time. All but that raises ApiServerError."""

    def __init__(self, settings: Any, kind: Kind, node: str, slack_s: float) -> None:
        self._slack_s = slack_s
        self._kind = kind
        self._socket = _Socket()
        client = kubernetes.client.ApiClient(settings)
        self._connections: urllib3.PoolManager = client.rest_client.pool_manager
        _tap(self._connections, self._socket.opened)
        selectors = selectors_of(kind, node)
        self._ask: Callable[..., urllib3.BaseHTTPResponse] = partial(
            _lister(client, kind),
            label_selector=selectors.label,
            field_selector=selectors.field,
            _preload_content=False,
            _request_timeout=(_CONNECT_S, _ANSWER_S),
        )

    def list_page(self, limit: int, token: str) -> bytearray:
        """`token`: "" for the first page, then what the page before says.

        Without a resourceVersion: not older than anything that was seen before, which policy depends on. API
        servers since 1.31 answer that from memory; "0" would spare older ones a question to etcd, but they
        send everything at once then, and may send what they knew before a partition.
        """
        with answered(f"list {self._kind}"):
            response = self._ask(limit=limit, _continue=token or None)
            with contextlib.closing(response):
                return join_chunks(response.stream(_CHUNK), MOST_PAGE)

    @contextlib.contextmanager
    def watch(self, version: str, timeout_s: int) -> Iterator[Iterator[bytes]]:
        """What happens after `version`, a line of JSON each, for `timeout_s` at most."""
        with answered(f"watch {self._kind}"):
            response = self._ask(
                watch=True,
                allow_watch_bookmarks=True,
                resource_version=version,
                timeout_seconds=timeout_s,
            )
        with contextlib.closing(response):
            self._socket.allow(timeout_s + self._slack_s)
            yield self._lines(response)

    def close(self) -> None:
        """End what is under way, at once, and everything that is asked afterwards."""
        self._socket.close()
        self._connections.clear()

    def _lines(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        with answered(f"watch {self._kind}"):
            yield from split_lines(response.stream(_CHUNK), MOST_LINE)


class _Socket:
    """The one that the answer under way comes by. A thread that reads from it cannot be woken otherwise."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_closed = False

    def opened(self, connected: socket.socket) -> None:
        with self._guard:
            self._socket = connected
            if self._is_closed:
                _shut_down(connected)

    def allow(self, silence_s: float) -> None:
        with self._guard:
            if self._socket is not None and self._socket.fileno() >= 0:
                self._socket.settimeout(silence_s)

    def close(self) -> None:
        with self._guard:
            self._is_closed = True
            if self._socket is not None:
                _shut_down(self._socket)


def _shut_down(connected: socket.socket) -> None:
    """By a descriptor of its own: the ssl module's objects must not be touched while another thread reads."""
    with (
        contextlib.suppress(OSError),  # it is not connected any more
        socket.socket(fileno=os.dup(connected.fileno())) as same,
    ):
        same.shutdown(socket.SHUT_RDWR)


def _tap(manager: urllib3.PoolManager, opened: Callable[[socket.socket], None]) -> None:
    """Have every connection tell its socket. By classes made from those that are there: the ways through
    proxies have their own."""
    pools = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {scheme: _tapped(pool, opened) for scheme, pool in pools.items()}


def _tapped(pool: Any, opened: Callable[[socket.socket], None]) -> Any:
    plain = pool.ConnectionCls

    def connect(self: Any) -> None:
        plain.connect(self)
        opened(self.sock)

    connection = type(plain.__name__, (plain,), {"connect": connect})
    return type(pool.__name__, (pool,), {"ConnectionCls": connection})


def _lister(client: Any, kind: Kind) -> Callable[..., Any]:
    core = kubernetes.client.CoreV1Api(client)
    match kind:
        case Kind.SERVICES:
            return core.list_service_for_all_namespaces
        case Kind.SLICES:
            return kubernetes.client.DiscoveryV1Api(client).list_endpoint_slice_for_all_namespaces
        case Kind.POLICIES:
            return kubernetes.client.NetworkingV1Api(client).list_network_policy_for_all_namespaces
        case Kind.PODS:
            return core.list_pod_for_all_namespaces
        case Kind.NAMESPACES:
            return core.list_namespace
        case Kind.NODE:
            return core.list_node
        case _:
            assert_never(kind)
