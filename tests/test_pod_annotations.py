"""A pod chooses among the networks of its pool by an annotation, read from an API server over real HTTP."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from node_agent.config import KubernetesConfig
from node_agent.pod_annotations import ANNOTATION, ApiServerAway, PodAnnotations, parse_choice
from sriov_cni.environment import Command, Environment
from sriov_cni.netconf import CniCall, NetConf
from sriov_cni.network import Network
from tests.cni_world import quiet_log
from vf_manager.errors import Busy, Refused

BLUE, RED = (Network(name=name, pools=("fast",), key="networks[0].") for name in ("blue", "red"))


class ApiServer:
    """Pods by `namespace/name`; whoever asks for another is told 404."""

    def __init__(self) -> None:
        self.annotations: dict[str, dict[str, str] | None] = {}
        self.requests: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                namespace, name = self.path.removeprefix("/api/v1/namespaces/").split("/pods/")
                key = f"{namespace}/{name}"
                found = key in server.annotations
                metadata: dict[str, Any] = {"namespace": namespace, "name": name, "uid": "u1"}
                metadata |= {"annotations": server.annotations.get(key)}
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
                body = json.dumps(pod if found else {"kind": "Status", "code": 404}).encode()
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing on stderr."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def kubeconfig(self, folder: Path) -> KubernetesConfig:
        url = f"http://127.0.0.1:{self._http.server_port}"
        cluster = {"name": "c", "cluster": {"server": url}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        config = {"clusters": [cluster], "users": [{"name": "u", "user": {}}], "contexts": [context]}
        path = folder / "kubeconfig"
        path.write_text(
            yaml.safe_dump(config | {"current-context": "x", "apiVersion": "v1", "kind": "Config"})
        )
        return KubernetesConfig(kubeconfig=str(path))

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[ApiServer]:
    server = ApiServer()
    yield server
    server.stop()


@pytest.fixture
def annotations(server: ApiServer, tmp_path: Path) -> Iterator[PodAnnotations]:
    found = PodAnnotations(server.kubeconfig(tmp_path), quiet_log())
    yield found
    found.close()


def call_of(name: str, uid: str = "u1") -> CniCall:
    args = {"K8S_POD_NAMESPACE": "ml", "K8S_POD_NAME": name, "K8S_POD_UID": uid}
    env = Environment(command=Command.ADD, container_id="c1", args=args)
    return CniCall(env=env, conf=NetConf(cni_version="1.1.0", name="pods"))


@pytest.mark.parametrize(
    ("annotation", "network"),
    [(None, "blue"), ("", "blue"), ("red", "red"), ("fast=red", "red"), ("slow=x, fast = red", "red")],
)
def test_what_a_pod_says(
    server: ApiServer, annotations: PodAnnotations, annotation: str | None, network: str
) -> None:
    server.annotations["ml/p"] = None if annotation is None else {ANNOTATION: annotation}
    assert annotations.choose(call_of("p"), "fast", [BLUE, RED]).name == network
    assert annotations.choose(call_of("p"), "fast", [BLUE, RED]).name == network
    assert server.requests == ["/api/v1/namespaces/ml/pods/p"], "one question for all calls about a pod"


def test_without_a_choice_nobody_is_asked(server: ApiServer, annotations: PodAnnotations) -> None:
    assert annotations.choose(call_of("p"), "fast", [RED]) is RED
    assert server.requests == []


def test_a_network_that_the_administrator_does_not_allow(
    server: ApiServer, annotations: PodAnnotations
) -> None:
    server.annotations["ml/p"] = {ANNOTATION: "fast=green"}
    words = "annotation sriov-underlay.io/networks: 'fast=green'; pool fast .* networks blue, red here"
    with pytest.raises(Refused, match=words):
        annotations.choose(call_of("p"), "fast", [BLUE, RED])


def test_a_pod_made_anew_under_the_same_name(server: ApiServer, annotations: PodAnnotations) -> None:
    server.annotations["ml/p"] = {ANNOTATION: "red"}
    with pytest.raises(Busy, match="another pod of this name"):
        annotations.choose(call_of("p", uid="u0"), "fast", [BLUE, RED])


def test_no_answer_is_no_guess(server: ApiServer, annotations: PodAnnotations) -> None:
    with pytest.raises(ApiServerAway, match="read pod ml/p: the API server says 404") as caught:
        annotations.choose(call_of("p"), "fast", [BLUE, RED])
    assert caught.value.transient


def test_an_api_server_that_is_away(tmp_path: Path) -> None:
    server = ApiServer()
    config = server.kubeconfig(tmp_path)
    server.stop()
    annotations = PodAnnotations(config, quiet_log())
    with pytest.raises(ApiServerAway, match="read pod ml/p: the API server cannot be reached"):
        annotations.choose(call_of("p"), "fast", [BLUE, RED])
    annotations.close()


def test_no_credentials(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"kubernetes\.kubeconfig: /nowhere gives no way to the API server"):
        PodAnnotations(KubernetesConfig(kubeconfig="/nowhere"), quiet_log())
    with pytest.raises(Refused, match=r"kubernetes: \{\} gives no way"):
        PodAnnotations(KubernetesConfig(), quiet_log())


def test_choices() -> None:
    assert parse_choice("a=b,c") == {"a": "b", "": "c"}
    assert parse_choice(" , ") == {}
