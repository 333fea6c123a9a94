"""A pod chooses among the networks of its pool by an annotation, read from an API server over real HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.api_errors import ApiServerError
from node_agent.api_server import ApiServer
from node_agent.config import KubernetesConfig
from node_agent.pod_annotations import ANNOTATION, PodAnnotations, parse_choice
from sriov_cni.environment import Command, Environment
from sriov_cni.netconf import CniCall, NetConf
from sriov_cni.network import Network
from tests.api_double import ApiDouble, api_double
from vf_manager.errors import Busy, Refused

BLUE, RED = (Network(name=name, pools=("fast",), key="networks[0].") for name in ("blue", "red"))


@pytest.fixture
def server() -> Iterator[ApiDouble]:
    with api_double() as server:
        yield server


@pytest.fixture
def annotations(server: ApiDouble, tmp_path: Path) -> Iterator[PodAnnotations]:
    api = ApiServer(server.kubeconfig(tmp_path))
    yield PodAnnotations(api)
    api.close()


def call_of(name: str, uid: str = "u1") -> CniCall:
    args = {"K8S_POD_NAMESPACE": "ml", "K8S_POD_NAME": name, "K8S_POD_UID": uid}
    env = Environment(command=Command.ADD, container_id="c1", args=args)
    return CniCall(env=env, conf=NetConf(cni_version="1.1.0", name="pods"))


@pytest.mark.parametrize(
    ("annotation", "network"),
    [(None, "blue"), ("", "blue"), ("red", "red"), ("fast=red", "red"), ("slow=x, fast = red", "red")],
)
def test_what_a_pod_says(
    server: ApiDouble, annotations: PodAnnotations, annotation: str | None, network: str
) -> None:
    server.pods["ml/p"] = None if annotation is None else {ANNOTATION: annotation}
    assert annotations.choose(call_of("p"), "fast", [BLUE, RED]).name == network
    assert annotations.choose(call_of("p"), "fast", [BLUE, RED]).name == network
    assert server.requests == ["GET /api/v1/namespaces/ml/pods/p"], "one question for all calls about a pod"


def test_without_a_choice_nobody_is_asked(server: ApiDouble, annotations: PodAnnotations) -> None:
    assert annotations.choose(call_of("p"), "fast", [RED]) is RED
    assert server.requests == []


def test_a_network_that_the_administrator_does_not_allow(
    server: ApiDouble, annotations: PodAnnotations
) -> None:
    server.pods["ml/p"] = {ANNOTATION: "fast=green"}
    words = "annotation sriov-underlay.io/networks: 'fast=green'; pool fast .* networks blue, red here"
    with pytest.raises(Refused, match=words):
        annotations.choose(call_of("p"), "fast", [BLUE, RED])


def test_a_pod_made_anew_under_the_same_name(server: ApiDouble, annotations: PodAnnotations) -> None:
    server.pods["ml/p"] = {ANNOTATION: "red"}
    with pytest.raises(Busy, match="another pod of this name"):
        annotations.choose(call_of("p", uid="u0"), "fast", [BLUE, RED])


def test_no_answer_is_no_guess(server: ApiDouble, annotations: PodAnnotations) -> None:
    with pytest.raises(ApiServerError, match="read pod ml/p: the API server says 404") as caught:
        annotations.choose(call_of("p"), "fast", [BLUE, RED])
    assert caught.value.transient


def test_an_api_server_that_is_away(tmp_path: Path) -> None:
    with api_double() as server:
        api = ApiServer(server.kubeconfig(tmp_path))
    annotations = PodAnnotations(api)
    with pytest.raises(ApiServerError, match="read pod ml/p: the API server cannot be reached"):
        annotations.choose(call_of("p"), "fast", [BLUE, RED])
    api.close()


def test_no_credentials(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"kubernetes\.kubeconfig: /nowhere gives no way to the API server"):
        ApiServer(KubernetesConfig(kubeconfig="/nowhere"))
    with pytest.raises(Refused, match=r"kubernetes: \{\} gives no way"):
        ApiServer(KubernetesConfig())


def test_choices() -> None:
    assert parse_choice("a=b,c") == {"a": "b", "": "c"}
    assert parse_choice(" , ") == {}
