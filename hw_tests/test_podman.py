"""Containers by podman with its CNI backend: no Kubernetes, the VF is named in the network."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hw_tests.conftest import need_programs
from hw_tests.cri.pause_image import IMAGE, write_pause_image
from hw_tests.nics import Nic, wait_for_carrier
from hw_tests.node import Node
from hw_tests.runtime import EXECUTABLE, NETNS_DIR, Conf, Pod, host_local, network, wait_for_ping
from hw_tests.snapshot import Snapshot
from node_agent.agent import SOCKET_NAME

_CONTAINERS_CONF = """\
[containers]
log_driver = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{folder}/bin"]
network_config_dir = "{folder}/net.d"
"""
_STORAGE_CONF = """\
[storage]
driver = "vfs"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""


class Podman:
    """With folders of its own. A script tells the CNI executable where the agent is: what podman
    starts when a container ends by itself does not get podman's environment."""

    def __init__(self, folder: Path, agent: Path) -> None:
        self.folder = folder
        for name in ("bin", "net.d"):
            (folder / name).mkdir(parents=True)
        script = folder / "bin" / EXECUTABLE.name
        script.write_text(f"#!/bin/sh\nSRIOV_UNDERLAY_SOCKET={agent} exec {EXECUTABLE}\n")
        script.chmod(0o755)
        (folder / "containers.conf").write_text(_CONTAINERS_CONF.format(folder=folder))
        (folder / "storage.conf").write_text(_STORAGE_CONF.format(folder=folder))
        write_pause_image(folder / "pause.tar")

    def __call__(self, *words: str) -> str:
        settings = {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
        }
        done = subprocess.run(
            ["podman", *words],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"podman {' '.join(words)}: {done.stderr}"
        return done.stdout

    def define(self, name: str, plugin: Conf) -> None:
        """A network of one plugin."""
        conflist = {"cniVersion": "1.0.0", "name": name, "plugins": [plugin]}
        (self.folder / "net.d" / f"{name}.conflist").write_text(json.dumps(conflist))

    def container(self, name: str) -> "Container":
        (found,) = json.loads(self("container", "inspect", name))
        return Container(Path(found["NetworkSettings"]["SandboxKey"]).name)


class Container(Pod):
    """Its name is that of its network namespace."""

    @property
    def netns(self) -> str:
        return self.name


@pytest.fixture
def podman(request: pytest.FixtureRequest, node: Node, before: Snapshot, tmp_path: Path) -> Iterator[Podman]:
    need_programs(request.config, "podman", "runc")
    podman = Podman(tmp_path / "podman", node.run_dir / SOCKET_NAME)
    found = sorted(path.name for path in NETNS_DIR.iterdir())
    podman("load", "--input", str(podman.folder / "pause.tar"))
    yield podman
    podman("rm", "--all", "--force", "--time", "0")
    assert sorted(path.name for path in NETNS_DIR.iterdir()) == found


def test_containers_with_a_vf_each(podman: Podman, node: Node, two_nics: tuple[Nic, Nic]) -> None:
    """On two PFs: they reach each other, and their VFs come back when they are removed (see `before`)."""
    wait_for_carrier(node.nics)
    pods = {}
    for number, nic in enumerate(two_nics):
        name = f"underlay-{number}"
        ipam = host_local({"subnet": "198.18.40.0/24", "rangeStart": f"198.18.40.{number + 10}"})
        plugin = network(name, deviceID=nic.vf_address(0), vlan=40, ipam=ipam)
        podman.define(name, plugin)
        podman("run", "--detach", "--name", name, "--network", name, IMAGE)
        pods[name] = podman.container(name)
    first, second = pods.values()
    assert [pod.addresses("eth0") for pod in (first, second)] == [["198.18.40.10/24"], ["198.18.40.11/24"]]
    wait_for_ping(first, "198.18.40.11")
    assert len(node.records()) == 2
    podman("restart", "--time", "0", "underlay-0")
    wait_for_ping(podman.container("underlay-0"), "198.18.40.11")
    podman("rm", "--force", "--time", "0", *pods)
    assert (node.records(), node.leases()) == ([], [])
