"""Every file of manifests/examples is run: its pods by containerd, with what device plugins answered, under
the agent that the config there makes. What it promises is what the pods end with.

Not run: what needs an API server (controllers, scheduling, a ClusterIP in front of the pods), and programs
of images that are not here. Members that are to be on nodes of their own are all on this one.
"""

import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hw_tests.cri.pods import SandboxPod
from hw_tests.kustomize import MANIFESTS, Object, read_objects
from hw_tests.nics import Nic, ip, ip_json, wait_until
from hw_tests.playground.node import PF_NAMES, Playground, playground
from hw_tests.playground.pods import Phase
from hw_tests.playground.workloads import NAMESPACE, pods_of
from hw_tests.runtime import wait_for_ping

pytestmark = pytest.mark.skipif(
    os.environ.get("RIG") != "emulated", reason="this fills the folders of the node: not those of a real one"
)

EXAMPLES = MANIFESTS / "examples"
NODE = "gpu-0"  # has the pools of the rails, too
# In the place of six NICs: VFs of two, all of one number. dpdk and storage share one in the example, too.
SELECT = {
    "fast": f"{PF_NAMES[0]}#0-2",
    "rail0": f"{PF_NAMES[0]}#3-3",
    "rail1": f"{PF_NAMES[0]}#4-4",
    "rail2": f"{PF_NAMES[0]}#5-5",
    "rail3": f"{PF_NAMES[0]}#6-6",
    "dpdk": f"{PF_NAMES[1]}#0-1",
    "storage": f"{PF_NAMES[1]}#2-6",
}
VFS = 7
NOT_ON_THIS_NODE = ("nvidia.com/gpu",)
READY_S = 60.0


def config_here() -> str:
    """That of the examples, with VFs that this machine can have; all else is as it stands there."""
    (configmap,) = read_objects(EXAMPLES / "config.yaml")
    config: dict[str, Any] = yaml.safe_load(configmap["data"]["config.yaml"])
    for pool in (*config["pools"], *(pool for entry in config["nodes"] for pool in entry["pools"])):
        pool["select"] = {"pfNames": [SELECT[pool["name"]]]}
        pool["vfs"]["count"] = VFS
    return yaml.safe_dump(config, sort_keys=False)


@pytest.fixture(scope="module")
def module_ground(nics: tuple[Nic, ...]) -> Iterator[Playground]:
    with playground(nics) as ground:
        config = yaml.safe_load(config_here())
        Path(config["fallback"]).write_text((MANIFESTS / "fallback.conflist").read_text())
        Path("/etc/sriov-underlay/config.yaml").write_text(config_here())
        ground.run("cp manifests/00-sriov-underlay.conflist /etc/cni/net.d/")
        ground.run("systemctl start sriov-agent", NODE_NAME=NODE)
        wait_until(lambda: healthy(ground) == 2 * VFS, "healthy VFs", READY_S)
        neighbour_in(ground, 100, "10.56.0.1/24")
        neighbour_in(ground, 101, "10.57.0.254/24")
        yield ground


def healthy(ground: Playground) -> int:
    _, allocatable = ground.run("kubectl get nodes -o jsonpath='{.items[*].status.allocatable}'")
    return sum(int(count) for count in json.loads(allocatable).values())


def neighbour_in(ground: Playground, vlan: int, address: str) -> None:
    netns, name = ground.neighbour.netns, f"vlan{vlan}"
    ip("-n", netns, "link", "add", "link", "eth0", "name", name, "type", "vlan", "id", str(vlan))
    ip("-n", netns, "address", "add", address, "dev", name)
    ip("-n", netns, "link", "set", name, "up")


@pytest.fixture
def ground(module_ground: Playground) -> Iterator[Playground]:
    yield module_ground
    for name in list(module_ground.pods.by_name):
        module_ground.pods.remove(name)


def apply(ground: Playground, example: str, tmp_path: Path) -> dict[str, SandboxPod]:
    """The pods that run now, by name."""
    objects = [without_other_devices(one) for one in read_objects(EXAMPLES / example)]
    (tmp_path / example).write_text(yaml.safe_dump_all(objects))
    code, said = ground.run(f"kubectl apply -f {tmp_path / example}")
    assert code == 0, said
    running = [pod for pod in ground.pods.by_name.values() if pod.phase is Phase.RUNNING]
    assert running, [(pod.name, pod.reason) for pod in ground.pods.by_name.values()]
    cri = ground.pods.cri
    return {
        pod.name: SandboxPod(
            pod.name,
            NAMESPACE,
            pod.spec.uid,
            sandbox=pod.sandbox,
            netns_name=cri.netns(pod.sandbox).name,
            addresses_told=pod.addresses,
        )
        for pod in running
    }


def without_other_devices(one: Object) -> Object:
    for pod in pods_of(one):
        for container in pod.containers:
            for name in NOT_ON_THIS_NODE:
                container["resources"]["limits"].pop(name, None)
    return one


def interfaces(pod: SandboxPod) -> dict[str, str]:
    """The first address of each interface but lo, by name. Their indexes are those of the VFs on the node."""
    links = ip_json("-n", pod.netns, "-4", "address", "show", "scope", "global")
    return dict(sorted((link["ifname"], link["addr_info"][0]["local"]) for link in links))


def mtus(pod: SandboxPod) -> dict[str, int]:
    return {name: link["mtu"] for name, link in pod.links().items() if name != "lo"}


def test_one_vf(ground: Playground, tmp_path: Path) -> None:
    """Its default route is that of the network, and its program saw the VF."""
    pod = apply(ground, "one-vf.yaml", tmp_path)["one-vf"]
    assert list(interfaces(pod)) == ["eth0"]
    assert [route["gateway"] for route in pod.routes() if route["dst"] == "default"] == ["10.56.0.1"]
    wait_for_ping(ground.neighbour, interfaces(pod)["eth0"])
    wait_until(lambda: interfaces(pod)["eth0"] in ground.run("kubectl logs one-vf")[1], "its log", READY_S)


def test_several_vfs(ground: Playground, tmp_path: Path) -> None:
    pod = apply(ground, "several-vfs.yaml", tmp_path)["several-vfs"]
    addresses = interfaces(pod)
    assert [(name, address[:6]) for name, address in addresses.items()] == [
        ("eth0", "10.56."),
        ("net1", "10.57."),
        ("net2", "10.57."),
    ]
    assert mtus(pod) == {"eth0": 1500, "net1": 9000, "net2": 9000}
    assert [route["dev"] for route in pod.routes() if route["dst"] == "default"] == ["eth0"]
    for name, address in addresses.items():
        wait_for_ping(ground.neighbour, address)
        heard = ground.neighbour.neighbour(address)
        assert heard == pod.links()[name]["address"], f"{address} was answered by another VF than {name}"


def test_dpdk(ground: Playground, tmp_path: Path) -> None:
    """The device is in the container, and no interface in the pod; it has an address all the same."""
    pod = apply(ground, "dpdk.yaml", tmp_path)["dpdk"]
    assert set(pod.links()) == {"lo"}
    assert pod.addresses_told[0].startswith("10.58.0.")
    (vf,) = ground.pods.by_name["dpdk"].devices[0].ids
    group = Path(f"/sys/bus/pci/devices/{vf}/iommu_group").resolve().name
    wait_until(lambda: f"-a {vf}" in ground.run("kubectl logs dpdk")[1], "its log", READY_S)
    nodes = ground.run(f"kubectl exec dpdk -- ls -l /dev/vfio/{group} /dev/vfio/vfio")[1].splitlines()
    assert [line[0] for line in nodes] == ["c", "c"]


def test_ml_training(ground: Playground, tmp_path: Path) -> None:
    """A worker has a VF of each rail; this node has rails for one of the four."""
    pods = apply(ground, "ml-training.yaml", tmp_path)
    (worker,) = pods.values()
    addresses = interfaces(worker)
    assert [address.rpartition(".")[0][:5] for address in addresses.values()] == [
        "10.60",
        "10.61",
        "10.62",
        "10.63",
    ]
    (job,) = (one for one in read_objects(EXAMPLES / "ml-training.yaml") if one["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert ",".join(addresses) == container["env"][0]["value"], "NCCL is told of these interfaces"
    assert mtus(worker) == dict.fromkeys(addresses, 9000)
    waiting = [pod.reason for pod in ground.pods.by_name.values() if pod.phase is Phase.PENDING]
    assert len(waiting) == 3
    assert all("sriov-underlay.io/rail0" in reason for reason in waiting)


def test_statefulset(ground: Playground, tmp_path: Path) -> None:
    """Each member is told its own address, and reaches the others."""
    pods = apply(ground, "statefulset.yaml", tmp_path)
    assert list(pods) == ["cassandra-0", "cassandra-1", "cassandra-2"]
    for name, pod in pods.items():
        assert interfaces(pod) == {"eth0": pod.addresses_told[0]}
        _, env = ground.run(f"kubectl exec {name} -- printenv CASSANDRA_LISTEN_ADDRESS")
        assert env.strip() == pod.addresses_told[0]
        for other in pods.values():
            if other is not pod:
                wait_for_ping(pod, other.addresses_told[0])


def test_service(ground: Playground, tmp_path: Path) -> None:
    """What an EndpointSlice of it would have are the addresses of the VFs, and they answer at its port."""
    objects = {one["kind"]: one for one in read_objects(EXAMPLES / "service.yaml")}
    selector, (port,) = objects["Service"]["spec"]["selector"], objects["Service"]["spec"]["ports"]
    pods = apply(ground, "service.yaml", tmp_path)
    selected = [pod for pod in ground.pods.by_name.values() if selector.items() <= pod.spec.labels.items()]
    assert [pod.name for pod in selected] == list(pods) == ["web-0", "web-1"]
    for pod in selected:
        (number,) = [
            one["containerPort"]
            for container in pod.spec.containers
            for one in container["ports"]
            if one["name"] == port["targetPort"]
        ]
        assert interfaces(pods[pod.name]) == {"eth0": pod.addresses[0]}
        code, said = ground.run(f"kubectl exec {pod.name} -- busybox httpd -p {number} -h /etc")
        assert code == 0, said
        wait_for_answer(ground, f"{pod.addresses[0]}:{number}/hostname", pod.name)


def wait_for_answer(ground: Playground, url: str, text: str) -> None:
    """To the other machine on the wire."""
    fetch = shlex.join(ground.neighbour.command("busybox", "wget", "-q", "-O", "-", url))
    wait_until(lambda: ground.run(fetch)[1].strip() == text, f"{text} from {url}", READY_S)


def test_every_example_is_run() -> None:
    tested: list[Callable[..., None]] = [
        test_one_vf,
        test_several_vfs,
        test_dpdk,
        test_ml_training,
        test_statefulset,
        test_service,
    ]
    names = {f"{test.__name__.removeprefix('test_').replace('_', '-')}.yaml" for test in tested}
    assert {path.name for path in EXAMPLES.iterdir()} == names | {"config.yaml"}
