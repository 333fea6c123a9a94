"""What a cluster administrator applies: valid to Kubernetes, and true to the code."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from device_plugin.allocator import PLACES
from device_plugin.pools import env_name
from device_plugin.registration import Way
from hw_tests.kustomize import MANIFESTS, Object, apply_patch, install_text, read_objects, render
from node_agent.agent import KUBELET_DIR, POD_RESOURCES, RUN_DIR, SOCKET_NAME
from node_agent.config import AgentConfig, parse_config
from node_agent.config_source import CONFIG
from node_agent.install import Placement, check_conflist
from node_agent.options import parse_options, presence_of, source_of
from sriov_cni.device_info import DIRECTORIES
from sriov_cni.ipam.engine import DATA_DIR
from sriov_cni.netconf import parse_call
from vf_manager.kernel.netns import PROC_SYS

PROJECT = MANIFESTS.parent
BASE = MANIFESTS / "base"
OVERLAYS = sorted((MANIFESTS / "overlays").iterdir())
EXAMPLES = sorted((MANIFESTS / "examples").glob("*.yaml"))
OLDEST, NEWEST = "1.31", "1.37"
NODE = "gpu-7"

each_rendering = pytest.mark.parametrize("folder", [BASE, *OVERLAYS], ids=lambda path: path.name)
each_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def one(objects: list[Object], kind: str) -> Object:
    (found,) = (candidate for candidate in objects if candidate["kind"] == kind)
    return found


def pod_of(objects: list[Object]) -> Object:
    spec: Object = one(objects, "DaemonSet")["spec"]["template"]["spec"]
    return spec


def container_of(objects: list[Object]) -> Object:
    (container,) = pod_of(objects)["containers"]
    found: Object = container
    return found


def mounts_of(objects: list[Object]) -> dict[str, str]:
    """Place in the container -> folder of the node, or name of the ConfigMap."""
    sources = {
        volume["name"]: volume["hostPath"]["path"] if "hostPath" in volume else volume["configMap"]["name"]
        for volume in pod_of(objects)["volumes"]
    }
    mounts = container_of(objects)["volumeMounts"]
    assert sources.keys() == {mount["name"] for mount in mounts}, "every volume is mounted"
    return {mount["mountPath"]: sources[mount["name"]] for mount in mounts}


def options_of(objects: list[Object]) -> Any:
    args = [word.replace("$(NODE_NAME)", NODE) for word in container_of(objects)["args"]]
    return parse_options(args)


# -- rendering


def test_install_yaml_is_the_rendered_base() -> None:
    assert (MANIFESTS / "install.yaml").read_text() == install_text(), "run `make manifests`"
    assert read_objects(MANIFESTS / "install.yaml") == render(BASE)


@each_rendering
def test_kustomize_makes_the_same_of_it(folder: Path) -> None:
    """Where it is installed. Everywhere: no object comes twice."""
    objects = render(folder)
    assert len(by_name(objects)) == len(objects)
    compare_with_kustomize(folder)


def compare_with_kustomize(folder: Path) -> None:
    if shutil.which("kubectl"):
        done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
        assert by_name(list(yaml.safe_load_all(done.stdout))) == by_name(render(folder))


def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
    return {(candidate["kind"], candidate["metadata"]["name"]): candidate for candidate in objects}


# -- validity


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@each_rendering
def test_kubernetes_takes_it(folder: Path, version: str) -> None:
    for candidate in render(folder):
        validate(candidate, version)
    validate(leaving(one(render(folder), "DaemonSet")), version)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@each_example
def test_kubernetes_takes_the_example(path: Path, version: str) -> None:
    for candidate in read_objects(path):
        validate(candidate, version)


def validate(candidate: Object, version: str) -> None:
    if candidate["kind"] == "NetworkAttachmentDefinition":  # Multus has brought this kind
        parse_nad(candidate)
    else:
        kubernetes_validate.validate(candidate, version, strict=True)


def parse_nad(candidate: Object) -> None:
    assert candidate["apiVersion"] == "k8s.cni.cncf.io/v1"
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "a", "CNI_NETNS": "/n", "CNI_IFNAME": "net1"}
    conf = json.loads(candidate["spec"]["config"]) | {"deviceID": "0000:01:10.0"}
    parse_call(env, json.dumps(conf).encode())


def leaving(daemonset: Object) -> Object:
    return apply_patch(daemonset, yaml.safe_load((MANIFESTS / "uninstall.yaml").read_text()))


# -- the words of docs/install.md


def test_the_page_names_files_and_options_that_are_there() -> None:
    page = (PROJECT / "docs/install.md").read_text()
    commands = "".join(re.findall(r"^```console\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    named = set(re.findall(r"manifests/[\w./-]+", commands))
    assert len(named) >= 5
    for name in named:
        assert (PROJECT / name).exists(), name
    assert {f"overlays/{path.name}" for path in OVERLAYS} <= set(re.findall(r"`([\w/-]+)`", page))


def test_the_page_lists_what_the_agent_may() -> None:
    table = (PROJECT / "docs/install.md").read_text().partition("## What the agent may")[2]
    context = container_of(render(BASE))["securityContext"]
    for capability in context["capabilities"]["add"]:
        assert f"| `{capability}` |" in table


# -- the code's own names


@each_rendering
def test_the_agent_takes_its_arguments_and_its_config(folder: Path, tmp_path: Path) -> None:
    objects = render(folder)
    options = options_of(objects)
    data = one(objects, "ConfigMap")["data"]
    assert isinstance(parse_config(data["config.yaml"], NODE), AgentConfig)
    for placement in options.install_when_ready:
        assert placement.source.parent == CONFIG.parent
        kept = tmp_path / placement.source.name
        kept.write_text(data[kept.name])
        check_conflist(Placement(kept, placement.target))
    assert not options.uninstall
    assert parse_options(container_of([leaving(one(objects, "DaemonSet"))])["args"]).uninstall


@each_rendering
def test_every_path_of_the_code_is_mounted(folder: Path) -> None:
    mounts = mounts_of(render(folder))
    options = options_of(render(folder))
    assert (source_of(options).path, options.run_dir, options.kubelet_dir, options.lease_dir) == (
        CONFIG,
        RUN_DIR,
        KUBELET_DIR,
        DATA_DIR,
    )
    assert mounts[str(CONFIG.parent)] == one(render(folder), "ConfigMap")["metadata"]["name"]
    places = [RUN_DIR, DATA_DIR, (KUBELET_DIR / POD_RESOURCES).parent]
    places += [KUBELET_DIR / way.folder for way in Way]
    places += [Path(DIRECTORIES[1]).parent, Path("/run/netns"), Path("/sys/devices"), Path("/sys/bus/pci")]
    places += [placement.target.parent for placement in (*options.install, *options.install_when_ready)]
    for place in map(str, places):
        assert mounts[place] == place
    for place in (options.cdi_dir, options.device_info_dir):
        assert place.is_relative_to("/var/run"), "a link to /run on every node, and in the image"
        below_run = Path("/run") / place.relative_to("/var/run")
        assert any(below_run.is_relative_to(mounted) for mounted in mounts)
    assert options.host_root == Path("/host")
    assert mounts[f"/host{PROC_SYS}/net"] == f"{PROC_SYS}/net"
    assert mounts[f"/host{PLACES.dev}"] == str(PLACES.dev)


@each_rendering
def test_a_path_means_the_same_inside_and_outside(folder: Path) -> None:
    below_host = {place: source for place, source in mounts_of(render(folder)).items() if "/" in source}
    for place, source in below_host.items():
        assert place in (source, f"/host{source}".rstrip("/"))


@each_rendering
def test_what_is_installed_is_in_the_image(folder: Path) -> None:
    containerfile = (MANIFESTS / "image/Containerfile").read_text()
    (libexec,) = re.findall(r"^COPY --from=shim \S+ /out(\S+)$", containerfile, re.MULTILINE)
    executable = Path("/opt/sriov-underlay" + libexec)
    assert {placement.source for placement in options_of(render(folder)).install} == {executable}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = container_of(render(folder))[probe]["exec"]["command"]
        assert str(executable) in command[-1]
        (config,) = re.findall(r"echo '(.+)'", command[-1])
        parse_call({"CNI_COMMAND": "GC", "CNI_PATH": "/opt/cni/bin"}, config.encode())


def test_uninstalled_is_when_the_executable_is_gone() -> None:
    (placement,) = options_of(render(BASE)).install
    (container,) = leaving(one(render(BASE), "DaemonSet"))["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["exec"]["command"] == ["test", "!", "-e", str(placement.target)]


def test_the_executable_looks_for_the_agents_socket() -> None:
    source = (PROJECT / "sriov_cni/shim/shim.c").read_text()
    assert f'#define SOCKET_PATH "{RUN_DIR / SOCKET_NAME}"' in source


def test_the_image_is_of_this_release() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    assert container_of(render(BASE))["image"] == f"sriov-underlay:{version}"


def test_what_the_image_is_built_with_is_locked() -> None:
    locked = (PROJECT / "requirements-build.txt").read_text()
    for name in tomllib.loads((PROJECT / "pyproject.toml").read_text())["build-system"]["requires"]:
        assert re.search(rf"^{name}==\S+ \\$", locked, re.MULTILINE)


# -- metrics


@pytest.fixture
def with_metrics(tmp_path: Path) -> list[Object]:
    base, component = (
        os.path.relpath(path, tmp_path.resolve()) for path in (BASE, MANIFESTS / "components/metrics")
    )
    words = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump(words | {"resources": [base], "components": [component]})
    )
    compare_with_kustomize(tmp_path)
    return render(tmp_path)


def test_the_metrics_component_serves_on_the_nodes_address(with_metrics: list[Object]) -> None:
    words = [word.replace("$(HOST_IP)", "192.0.2.7") for word in container_of(with_metrics)["args"]]
    address = presence_of(parse_options(words)).http
    assert address is not None
    assert address.host == "192.0.2.7"
    (port,) = container_of(with_metrics)["ports"]
    assert {port["containerPort"], port["hostPort"]} == {address.port}
    env = {variable["name"]: variable["valueFrom"] for variable in container_of(with_metrics)["env"]}
    assert env["HOST_IP"] == {"fieldRef": {"fieldPath": "status.hostIP"}}
    assert pod_of(with_metrics)["hostNetwork"] is True, "else the node's address is not the pod's"


@each_rendering
def test_nothing_listens_without_the_component(folder: Path) -> None:
    assert presence_of(options_of(render(folder))).http is None
    assert "ports" not in container_of(render(folder))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_takes_the_metrics_component(with_metrics: list[Object], version: str) -> None:
    validate(one(with_metrics, "DaemonSet"), version)
    validate(leaving(one(with_metrics, "DaemonSet")), version)


def test_prometheus_finds_the_agents(with_metrics: list[Object]) -> None:
    """By what their pods have. That Prometheus takes the job is in tests/monitoring."""
    daemonset = one(with_metrics, "DaemonSet")
    namespace, labels = (
        daemonset["metadata"]["namespace"],
        daemonset["spec"]["template"]["metadata"]["labels"],
    )
    port = container_of(with_metrics)["ports"][0]["name"]
    (monitor,) = read_objects(MANIFESTS / "monitoring/podmonitor.yaml")
    assert monitor["metadata"]["namespace"] == namespace
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["spec"]["jobLabel"]] == "sriov-underlay"
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == [port]
    (job,) = read_objects(MANIFESTS / "monitoring/scrape.yaml")[0]["scrape_configs"]
    (discovery,), (kept, _) = job["kubernetes_sd_configs"], job["relabel_configs"]
    assert discovery["namespaces"]["names"] == [namespace]
    assert kept["regex"] == f"{labels['app.kubernetes.io/name']};{port}"


# -- what it may


@each_rendering
def test_it_is_given_no_more_than_it_says(folder: Path) -> None:
    pod, container = pod_of(render(folder)), container_of(render(folder))
    context = container["securityContext"]
    with_host_root = "/host" in mounts_of(render(folder))
    assert context["readOnlyRootFilesystem"] is True
    assert "privileged" not in context
    assert context["capabilities"]["drop"] == ["ALL"]
    needed = {"NET_ADMIN", "NET_RAW", "SYS_ADMIN", "DAC_OVERRIDE"}
    assert set(context["capabilities"]["add"]) == needed | ({"SYS_CHROOT"} if with_host_root else set())
    assert pod.get("hostPID", False) is with_host_root


def test_the_rights_are_the_agents() -> None:
    """That each rule is needed, and no other, is in tests/test_kubernetes.py."""
    objects = render(BASE)
    assert (
        one(objects, "ClusterRoleBinding")["roleRef"]["name"]
        == one(objects, "ClusterRole")["metadata"]["name"]
    )
    account = one(objects, "ServiceAccount")["metadata"]
    (subject,) = one(objects, "ClusterRoleBinding")["subjects"]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
    assert pod_of(objects)["serviceAccountName"] == account["name"]
    assert one(objects, "DaemonSet")["metadata"]["namespace"] == account["namespace"]


def test_in_pod_adds_rights_for_the_same_agent() -> None:
    """That each is needed, and no other, is in tests/test_cluster_watch.py."""
    folder = MANIFESTS / "components/in-pod"
    (kustomization,) = read_objects(folder / "kustomization.yaml")
    objects = [found for name in kustomization["resources"] for found in read_objects(folder / name)]
    for version in (OLDEST, NEWEST):
        for candidate in objects:
            validate(candidate, version)
    base, binding = one(render(BASE), "ClusterRoleBinding"), one(objects, "ClusterRoleBinding")
    assert binding["subjects"] == base["subjects"]
    assert binding["roleRef"] == base["roleRef"] | {"name": one(objects, "ClusterRole")["metadata"]["name"]}
    assert len(by_name([*render(BASE), *objects])) == len(render(BASE)) + len(objects)


# -- examples


def config_of_examples(node: str) -> AgentConfig:
    (configmap,) = read_objects(MANIFESTS / "examples/config.yaml")
    assert configmap["metadata"] == one(render(BASE), "ConfigMap")["metadata"]
    return parse_config(configmap["data"]["config.yaml"], node)


@each_example
def test_an_example_requests_what_the_config_has(path: Path) -> None:
    config = config_of_examples(NODE)
    pools = {f"{config.resource_prefix}/{pool.name}" for pool in config.pools}
    for candidate in read_objects(path):
        for container in containers_of(candidate):
            asked = {
                name for name in container["resources"]["limits"] if name.startswith("sriov-underlay.io/")
            }
            assert asked
            assert asked <= pools


def containers_of(candidate: Object) -> list[Object]:
    spec = candidate.get("spec", {})
    template = spec if candidate["kind"] == "Pod" else spec.get("template", {}).get("spec", {})
    found: list[Object] = template.get("containers", [])
    return found


def test_only_gpu_nodes_have_rails() -> None:
    assert "rail0" in {pool.name for pool in config_of_examples("gpu-7").pools}
    assert "rail0" not in {pool.name for pool in config_of_examples("web-7").pools}


def test_an_example_names_its_variable_as_the_device_plugin_does() -> None:
    assert f"${env_name('sriov-underlay.io', 'dpdk')}" in (MANIFESTS / "examples/dpdk.yaml").read_text()
