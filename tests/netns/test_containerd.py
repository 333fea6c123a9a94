"""Pods without VFs by containerd and runc over the CRI, on the running kernel: the agent is their only CNI
plugin, behind it the bridge, portmap and host-local of the distribution."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from hw_tests.cluster import chain_conflist, pods_conflist
from hw_tests.containerd import REFERENCE_PLUGINS, Containerd, running_containerd
from hw_tests.cri.api import cri_runtime_v1_pb2 as pb
from hw_tests.cri.client import Cri
from hw_tests.cri.pause_image import PAUSE
from hw_tests.cri.pods import PodRunner, SandboxPod
from hw_tests.node import Node
from node_agent.agent import CHAIN, SOCKET_NAME
from tests.kernel_contract import Space
from tests.netns.namespaces import ip
from tests.netns.test_real_plugins import assert_reachable, said

PORTS = (pb.PortMapping(protocol=pb.TCP, container_port=80, host_port=8080),)
# What it mounts and writes at fixed places goes with its mount namespace.
_OWN_MOUNTS = """
for folder in /run/netns /var/lib/cni; do mkdir -p "$folder" && mount -t tmpfs tmpfs "$folder"; done
exec "$@"
"""


@dataclass
class Scene:
    node: Node
    containerd: Containerd
    cri: Cri

    @property
    def runner(self) -> PodRunner:
        return PodRunner(self.cri)

    @contextlib.contextmanager
    def inside(self, pod: SandboxPod) -> Iterator[Space]:
        """The pod's namespace, whose path is containerd's alone."""
        path = f"/proc/{self.containerd.pid}/root{pod.path}"
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield Space(fd, path)
        finally:
            os.close(fd)

    def left(self) -> list[str]:
        """What there is of pods."""
        chain, leases = self.node.run_dir / CHAIN, self.node.folder / "chain-leases"
        return [
            *(one.metadata.name for one in self.cri.sandboxes()),
            *(path.name for path in (*chain.iterdir(), *leases.glob("plain/10.*"))),
            *(line for line in said("ip", "-brief", "link", "show", "type", "veth").splitlines()),
            *(line for line in said("iptables-save", "-t", "nat").splitlines() if "10.88." in line),
        ]


@pytest.fixture
def scene(stage: None, tmp_path: Path) -> Iterator[Scene]:
    if missing := [name for name in ("containerd", "ctr", "runc") if shutil.which(name) is None]:
        pytest.fail(f"{' '.join(missing)}: not there; run `.ci/host-setup netns`", pytrace=False)
    assert PAUSE.exists(), "run `make setup`"
    ip("link", "set", "lo", "up")
    node = Node(tmp_path / "node", (), plugin_dirs=(str(REFERENCE_PLUGINS),))
    fallback = node.folder / "fallback.conflist"
    fallback.write_text(chain_conflist(node.folder / "chain-leases"))
    node.config.write_text(yaml.safe_dump({"pools": [], "fallback": str(fallback)}))
    enter = ("unshare", "--mount", "--", "sh", "-c", _OWN_MOUNTS, "sh")
    containerd = Containerd(tmp_path / "c", pods_conflist(), node.run_dir / SOCKET_NAME, enter)
    with node.kubelet:
        try:
            node.start()
            with running_containerd(containerd) as cri:
                yield Scene(node, containerd, cri)
        finally:
            assert node.stop() == 0, node.log_text()


def test_a_pod_without_a_vf(scene: Scene) -> None:
    pod = scene.runner.run("plain", PORTS)
    (address,) = pod.addresses_told
    assert scene.cri.is_ready(pod.sandbox)
    with scene.inside(pod) as inside:
        assert address in said("ip", "-4", "address", "show", "dev", "eth0", space=inside)
        assert_reachable(inside)
    scene.runner.stop("plain")
    assert not scene.cri.is_ready(pod.sandbox)
    scene.runner.stop("plain")
    scene.runner.remove("plain")
    assert scene.left() == []


def test_a_pod_is_made_while_the_agent_starts(scene: Scene) -> None:
    """Nothing fails: the executable waits for an agent that will soon be there."""
    runner = scene.runner
    scene.node.kill()
    with ThreadPoolExecutor(1) as pool:
        pod = pool.submit(runner.run, "early")
        scene.node.start()
        assert pod.result().addresses_told[0].startswith("10.88.0.")
    scene.node.kill()
    with ThreadPoolExecutor(1) as pool:
        gone = pool.submit(runner.remove, "early")
        scene.node.start()
        gone.result()
    assert runner.retried == []
    assert scene.left() == []
