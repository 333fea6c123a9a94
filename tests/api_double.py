"""An API server in memory, over real HTTP: pods, nodes and Events, for whoever the rules of a role allow it.

Lists and watches are in watch_cache.py. Events are checked as Kubernetes does
(pkg/apis/core/validation/events.go).
"""

import contextlib
import json
import re
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import yaml

from node_agent.config import KubernetesConfig
from tests.watch_cache import RESOURCES, Dropped, Lines, Object, Refused, WatchCache

RBAC = Path(__file__).parent.parent / "manifests/base/rbac.yaml"
_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>v\d\w*)(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?"
)
_VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")  # RFC 1123
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")


class Right(NamedTuple):
    """One thing that somebody may do: what remains of a rule if every list has one entry."""

    group: str
    resource: str  # "pods", "pods/status"
    verb: str


EVERYTHING = frozenset({Right("*", "*", "*")})


def rights_of(role: Path = RBAC) -> frozenset[Right]:
    """Of every rule of every Role and ClusterRole in a file. There is no name and no wildcard in them."""
    documents = [d for d in yaml.safe_load_all(role.read_text()) if d["kind"] in ("Role", "ClusterRole")]
    rules = [rule for document in documents for rule in document["rules"]]
    assert rules
    assert all(rule.keys() == {"apiGroups", "resources", "verbs"} for rule in rules)
    assert "*" not in [entry for rule in rules for entries in rule.values() for entry in entries]
    return frozenset(
        Right(group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    )


class ApiDouble:
    """`pods`: annotations by `namespace/name`. `status`: what everybody is told instead of an answer, and
    `retry_after_s`: when to come again. `certificate`: a file with that and its key; None: without TLS.

    `gate`: while it is clear nobody is answered. `cache`: what is listed and watched.
    """

    def __init__(self, rights: Iterable[Right] = EVERYTHING, certificate: Path | None = None) -> None:
        self._certificate = certificate
        self.rights = frozenset(rights)
        self.pods: dict[str, dict[str, str] | None] = {}
        self.nodes: dict[str, dict[str, str]] = {}
        self.events: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.forbidden: list[Right] = []
        self.status: int | None = None
        self.retry_after_s: int | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.cache = WatchCache()
        self._guard = threading.Lock()
        self._port = 0
        self.come_back()

    # -- what is listed and watched; `resource` as in a path, such as "endpointslices"

    def put(self, resource: str, found: Object) -> None:
        self.cache.put(resource, found)

    def delete(self, resource: str, key: str) -> None:
        self.cache.delete(resource, key)

    def forget_history(self) -> None:
        self.cache.forget_history()

    def drop_watches(self, *, in_the_middle: bool = True) -> None:
        self.cache.drop_watches(in_the_middle=in_the_middle)

    def go_away(self) -> None:
        """Refuse connections, and end those that there are."""
        self._http.shutdown()
        self._http.end_connections()
        self._http.server_close()
        self._thread.join()

    def come_back(self) -> None:
        """Where it was before."""
        self._http = _Server(("127.0.0.1", self._port), self._serve)
        if self._certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self._port = self._http.server_port
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def kubeconfig(self, folder: Path) -> KubernetesConfig:
        server = {"server": f"http://127.0.0.1:{self._port}"}
        if self._certificate is not None:
            server = {
                "server": f"https://127.0.0.1:{self._port}",
                "certificate-authority": str(self._certificate),
            }
        cluster = {"name": "c", "cluster": server}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        config = {"clusters": [cluster], "users": [{"name": "u", "user": {}}], "contexts": [context]}
        path = folder / "kubeconfig"
        path.write_text(
            yaml.safe_dump(config | {"current-context": "x", "apiVersion": "v1", "kind": "Config"})
        )
        return KubernetesConfig(kubeconfig=str(path))

    def told(self, reason: str) -> list[dict[str, Any]]:
        """Events with this reason, the oldest first."""
        with self._guard:
            return [event for event in self.events.values() if event["reason"] == reason]

    def stop(self) -> None:
        self.gate.set()
        self.go_away()

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(f"{request.command} {request.path}")
        length = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(length)) if length else None
        self.gate.wait()
        answer: Object | Lines
        try:
            with self._guard:
                status, answer = 200, self._answer(request, body)
        except Refused as e:
            status, answer = e.status, {"kind": "Status", "code": e.status, "message": str(e)}
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        if self.retry_after_s is not None:
            request.send_header("Retry-After", str(self.retry_after_s))
        if isinstance(answer, dict):
            _send(request, json.dumps(answer).encode())
        else:
            with contextlib.closing(answer):
                _send_chunks(request, answer)

    def _answer(self, request: BaseHTTPRequestHandler, body: Any) -> Object | Lines:
        if self.status is not None:
            raise Refused(self.status, "as the test wants it")
        path, query = urlsplit(request.path).path, dict(parse_qsl(urlsplit(request.path).query))
        match = _PATH.fullmatch(path)
        if match is None:
            raise Refused(404, f"no such path: {path}")
        group, resource, name = match["group"] or "", match["resource"], match["name"]
        verb = _VERBS.get(request.command) or _reading(name, query)
        self._refuse_without(Right(group, resource + (f"/{match['sub']}" if match["sub"] else ""), verb))
        if verb == "patch" and request.headers["Content-Type"] != "application/merge-patch+json":
            raise Refused(415, "patches are merged here")
        key = f"{match['namespace']}/{name}"
        match group, resource, verb:
            case "", "pods", "get":
                return self._pod(key)
            case "", "nodes", "patch":
                return self._annotate(name, body)
            case "events.k8s.io", "events", "create":
                return self._create(match["namespace"], body)
            case "events.k8s.io", "events", "patch":
                return self._count(key, body)
            case _, _, "list" if (group, resource) in RESOURCES:
                return self.cache.page(resource, query)
            case _, _, "watch" if (group, resource) in RESOURCES:
                return self.cache.watch(resource, query, lambda: _is_there(request))
        raise Refused(405, f"{verb} {group}/{resource}: nobody needs that here")

    def _refuse_without(self, right: Right) -> None:
        if not self.rights & {right, *EVERYTHING}:
            self.forbidden.append(right)
            raise Refused(403, f"cannot {right.verb} {right.resource} in API group {right.group!r}")

    def _pod(self, key: str) -> dict[str, Any]:
        if key not in self.pods:
            raise Refused(404, f"pod {key} not found")
        namespace, name = key.split("/")
        metadata = {"namespace": namespace, "name": name, "uid": "u1", "annotations": self.pods[key]}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}

    def _annotate(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        if body.keys() != {"metadata"} or body["metadata"].keys() != {"annotations"}:
            raise Refused(422, "only the annotations are the agent's business")
        self.nodes.setdefault(name, {}).update(body["metadata"]["annotations"])
        metadata = {"name": name, "annotations": self.nodes[name]}
        return {"apiVersion": "v1", "kind": "Node", "metadata": metadata}

    def _create(self, namespace: str, event: dict[str, Any]) -> dict[str, Any]:
        key = f"{namespace}/{event['metadata']['name']}"
        if key in self.events:
            raise Refused(409, f"{key} is there already")
        if wrong := wrong_with(event, namespace):
            raise Refused(422, wrong)
        self.events[key] = event
        return event

    def _count(self, key: str, body: dict[str, Any]) -> dict[str, Any]:
        if key not in self.events:
            raise Refused(404, f"{key} not found")
        series = body.get("series", {})
        if body.keys() != {"series"} or series.get("count", 0) < 2:
            raise Refused(422, "everything but the series stays as it is; a series has two at least")
        if not _MICRO_TIME.fullmatch(series["lastObservedTime"]):
            raise Refused(400, "lastObservedTime: not as RFC3339Micro wants it")
        self.events[key] = self.events[key] | body
        return self.events[key]


class _Server(ThreadingHTTPServer):
    """One that knows its connections."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], serve: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self._open: set[Any] = set()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                serve(self)

            do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

            def log_message(self, *_: Any) -> None:
                """Nothing on stderr."""

        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, *_: Any) -> None:
        """The client went before it had its answer."""

    def end_connections(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _reading(name: str | None, query: Mapping[str, str]) -> str:
    return "get" if name else "watch" if query.get("watch") == "true" else "list"


def _is_there(request: BaseHTTPRequestHandler) -> bool:
    """Whoever asked. He has nothing to say while a watch is under way, so anything to read is his end."""
    readable, _, _ = select.select([request.connection], [], [], 0)
    return not readable


def _send(request: BaseHTTPRequestHandler, body: bytes) -> None:
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def _send_chunks(request: BaseHTTPRequestHandler, chunks: Iterator[bytes]) -> None:
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    try:
        for chunk in chunks:
            request.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        request.wfile.write(b"0\r\n\r\n")
    except Dropped:
        request.close_connection = True


def wrong_with(event: Mapping[str, Any], namespace: str) -> str | None:
    regarding = event["regarding"]
    checks = {
        "namespace": event["metadata"]["namespace"] == namespace == regarding.get("namespace", "default"),
        "name": len(event["metadata"]["name"]) <= 253 and _SUBDOMAIN.fullmatch(event["metadata"]["name"]),
        "eventTime": _MICRO_TIME.fullmatch(event["eventTime"]),
        "reportingController": re.fullmatch(r"[a-z0-9.-]+/\w+", event["reportingController"]),
        "reportingInstance": 0 < len(event["reportingInstance"]) <= 128,
        "action": 0 < len(event["action"]) <= 128,
        "reason": 0 < len(event["reason"]) <= 128,
        "type": event["type"] in ("Normal", "Warning"),
        "note": len(event["note"].encode()) <= 1024,
    }
    wrong = [key for key, is_right in checks.items() if not is_right]
    return f"invalid: {', '.join(wrong)}" if wrong else None


@contextlib.contextmanager
def api_double(rights: Iterable[Right] = EVERYTHING, certificate: Path | None = None) -> Iterator[ApiDouble]:
    double = ApiDouble(rights, certificate)
    try:
        yield double
    finally:
        double.stop()
