"""The way off a node, over the in-memory kernel."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_plugin.podresources import PodResources
from node_agent.agent import POD_RESOURCES
from node_agent.config import AgentConfig, parse_config
from node_agent.drop_in import parse_drop_in
from node_agent.install import Placement, put
from node_agent.uninstall import Uninstall, without_pools, without_vfs
from tests.agent_node import CONFIG, FAST, PF0, PF1, Node, eventually, new_node, running

WAITS = "uninstalling when the last pod is gone"


@pytest.fixture
def node() -> Iterator[Node]:
    with new_node() as node:
        yield node


class Leaving:
    """An `Uninstall` in a thread, as `main` runs it."""

    def __init__(self, on: Node) -> None:
        files = [
            Placement(on.root / name, on.root / f"node/{name}") for name in ("sriov-underlay", "conflist")
        ]
        for placement in files:
            placement.source.write_text("sriov-underlay")
            placement.target.parent.mkdir(exist_ok=True)
            put(placement)
        self.executable, self.conflist = (placement.target for placement in files)

        kubelet = PodResources(on.root / "kubelet" / POD_RESOURCES, timeout_s=1.0)
        self._uninstall = Uninstall(
            parse_config(CONFIG), on.agent_of, files[:1], files[1:], on.run_dir, kubelet, on.log
        )
        self._thread = threading.Thread(target=self._run, name="uninstall-test")
        self.failures: list[str | None] = []

    def _run(self) -> None:
        self.failures.append(self._uninstall.run())

    def __enter__(self) -> "Leaving":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._uninstall.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()
        assert self.failures == [None]


def test_a_node_without_pods_is_clean_at_once(node: Node) -> None:
    """VFs that somebody else made stay."""
    with running(node):
        assert len(node.vfs(PF0)) == 3
    with Leaving(node) as leaving:
        eventually(lambda: node.events("uninstalled"), "it is uninstalled")
        assert (node.vfs(PF0), len(node.vfs(PF1))) == ([], 2)
        assert not leaving.executable.exists()
        assert not leaving.conflist.exists()
        assert list(node.run_dir.iterdir()) == []


def test_a_pod_keeps_its_vf_until_its_del(node: Node, tmp_path: Path) -> None:
    pod = node.root / "pod-a"
    node.kernel.new_pod(pod)
    with running(node):
        vf = node.vfs(PF0)[0]
        node.kubelet.wait_devices(FAST, 3)
        assert node.call("ADD", {"deviceID": vf}, pod).exit_code == 0
    with Leaving(node) as leaving:
        eventually(lambda: len(node.events("ready")) == 2, "an agent serves")
        assert leaving.executable.exists()
        assert leaving.conflist.exists(), "the DEL comes by what the runtime finds there"
        assert len(node.vfs(PF0)) == 3
        assert node.kubelet.registrations().count(FAST) == 1, "nothing is offered to the kubelet"
        assert node.call("DEL", {"deviceID": vf}, pod).exit_code == 0
        eventually(lambda: node.events("uninstalled"), "it is uninstalled")
        assert node.vfs(PF0) == []
        assert not leaving.executable.exists()
        assert not leaving.conflist.exists()


def test_a_pod_without_an_attachment_keeps_its_vf_until_it_goes(node: Node) -> None:
    """One that has its VF by vfio-pci alone: the kubelet knows, and no CNI call ever came. It is named."""
    with running(node):
        node.kubelet.wait_devices(FAST, 3)
        node.kubelet.allocate("ml", "dpdk", FAST, 1)
    with Leaving(node) as leaving:
        eventually(lambda: node.events(WAITS), "it waits")
        assert node.events(WAITS)[0]["pods"] == ("ml/dpdk",)
        assert node.events("uninstalled") == []
        assert len(node.vfs(PF0)) == 3
        assert leaving.executable.exists()
        assert not leaving.conflist.exists()
        node.kubelet.free("ml", "dpdk")
        eventually(lambda: node.events("uninstalled"), "it is uninstalled")
        assert node.vfs(PF0) == []


def test_a_kubelet_that_does_not_answer_is_waited_for(node: Node) -> None:
    """It may have given a VF to a pod. One that was never there has given none."""
    with running(node):
        assert len(node.vfs(PF0)) == 3
    node.kubelet.stop()
    dead = socket.socket(socket.AF_UNIX)
    path = node.root / "kubelet" / POD_RESOURCES
    path.unlink(missing_ok=True)
    dead.bind(str(path))
    with contextlib.closing(dead), Leaving(node):
        eventually(lambda: node.events(WAITS), "it waits")
        assert node.events(WAITS)[0]["reason"].startswith("ask the kubelet for who holds which device: ")
        assert len(node.vfs(PF0)) == 3
        node.kubelet.start()
        eventually(lambda: node.events("uninstalled"), "it is uninstalled")


def test_devices_of_others_do_not_count(node: Node) -> None:
    with running(node):
        node.kubelet.give("ml", "gpu", "nvidia.com/gpu", "GPU-1")
    with Leaving(node):
        eventually(lambda: node.events("uninstalled"), "it is uninstalled")


def test_stopped_before_the_end_it_goes_on_the_next_time(node: Node) -> None:
    pod = node.root / "pod-a"
    node.kernel.new_pod(pod)
    with running(node):
        vf = node.vfs(PF0)[0]
        assert node.call("ADD", {"deviceID": vf}, pod).exit_code == 0
    with Leaving(node):
        eventually(lambda: len(node.events("ready")) == 2, "an agent serves")
    assert node.events("uninstalled") == []
    with Leaving(node) as leaving:
        eventually(lambda: len(node.events("ready")) == 3, "an agent serves")
        assert node.call("DEL", {"deviceID": vf}, pod).exit_code == 0
        eventually(lambda: not leaving.executable.exists(), "the executable is gone")


def test_pools_of_an_established_config_are_offered_no_more() -> None:
    established = parse_drop_in('{"resourceList": [{"resourceName": "a", "selectors": {}}]}')
    assert established.resources()
    assert without_pools(established).resources() == without_vfs(established).resources() == ()


@pytest.mark.parametrize("change", [without_pools, without_vfs])
def test_no_network_and_no_pool_to_adopt_is_left(change: Callable[[AgentConfig], AgentConfig]) -> None:
    networks = "networks: [{name: blue, pools: [fast]}]\nfallback: /etc/cni/net.d/10-plain.conflist"
    config = change(parse_config(CONFIG + networks))
    assert config.networks == ()
    assert config.fallback == "/etc/cni/net.d/10-plain.conflist"
    assert [(pool.name, pool.vfs and pool.vfs.count) for pool in config.pools] in ([], [("fast", 0)])


def test_a_vf_that_the_kubelet_has_given_away_is_waited_for(node: Node) -> None:
    """Without a record of ours: its pod uses the device node, or the DEL has come and the end has not."""
    files, pod = node.root / "device-info", node.root / "pod-a"
    node.kernel.new_pod(pod)
    with running(node):
        node.kubelet.wait_devices(FAST, 3)
        node.kubelet.allocate("default", "pod-a", FAST)
        assert len(list(files.iterdir())) == 1
    with Leaving(node) as leaving:
        eventually(lambda: len(node.events("ready")) == 2, "an agent is there")
        assert len(node.vfs(PF0)) == 3
        assert leaving.executable.exists()
        node.kubelet.free("default", "pod-a")
        assert node.call("DEL", {}, pod).exit_code == 0  # after each it looks at once, and not 5 s later
        eventually(lambda: node.events("uninstalled"), "it is uninstalled")
        assert node.vfs(PF0) == []
        assert list(files.iterdir()) == []
