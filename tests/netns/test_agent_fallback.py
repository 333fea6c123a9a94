"""The agent as a node's only CNI plugin, as a process, called through the executable: a pod that requested no
VF gets its interface from the distribution's bridge, portmap and host-local."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from hw_tests.node import Node
from hw_tests.runtime import CNI_VERSION, EXECUTABLE, CniError, Conf, Pod, network
from node_agent.agent import CHAIN
from tests.kernel_contract import Space
from tests.netns.namespaces import LinuxWorld
from tests.netns.test_real_plugins import PLUGINS, PORT_MAPPINGS, said

IFNAME = "eth0"


@dataclass
class SpacePod(Pod):
    """A pod in a namespace of the test."""

    space: Space = field(default_factory=lambda: Space(-1, ""))

    @property
    def path(self) -> Path:
        return Path(self.space.path)


class Scene:
    def __init__(self, folder: Path, world: LinuxWorld) -> None:
        self.node = Node(folder, (), plugin_dirs=(str(PLUGINS),))
        self.lease_dir = folder / "chain-leases"
        self.list = folder / "fallback.conflist"
        self.list.write_text(json.dumps(self.conflist()))
        config = {"pools": [], "fallback": str(self.list)}
        self.node.config.write_text(yaml.safe_dump(config))
        self.pod = SpacePod("plain", space=world.new_space())
        self.conf = network("pods", capabilities={"portMappings": True}, runtimeConfig=PORT_MAPPINGS)

    def conflist(self) -> Conf:
        ranges = [[{"subnet": "10.88.0.0/24"}]]
        ipam = {"type": "host-local", "dataDir": str(self.lease_dir), "ranges": ranges}
        bridge = {"type": "bridge", "bridge": "br-test", "isGateway": True, "ipam": ipam}
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "1.0.0", "name": "plain", "disableCheck": True, "plugins": [bridge, portmap]}

    def call(self, command: str, **more: Any) -> dict[str, Any]:
        return self.node.runtime.call(command, self.pod, self.conf | more, IFNAME).result

    def records(self) -> list[str]:
        return sorted(path.name for path in (self.node.run_dir / CHAIN).iterdir())

    def leases(self) -> list[str]:
        return [path.name for path in self.lease_dir.glob("plain/10.*")]


@pytest.fixture
def scene(tmp_path: Path, world: LinuxWorld) -> Iterator[Scene]:
    assert EXECUTABLE.exists(), "run `make shim`"
    scene = Scene(tmp_path / "node", world)
    with scene.node.kubelet:
        try:
            scene.node.start()
            yield scene
        finally:
            assert scene.node.stop() == 0, scene.node.log_text()


def test_a_pod_without_a_vf(scene: Scene) -> None:
    result = scene.call("ADD")
    address = result["ips"][0]["address"]
    assert result["cniVersion"] == CNI_VERSION
    assert address in said("ip", "address", "show", "dev", IFNAME, space=scene.pod.space)
    assert "dport 8080" in said("iptables-save", "-t", "nat")
    scene.call("CHECK", prevResult=result)
    assert scene.call("ADD")["ips"] == result["ips"]
    scene.call("DEL")
    assert (scene.records(), scene.leases()) == ([], [])
    assert "8080" not in said("iptables-save", "-t", "nat")
    scene.call("DEL")
    scene.list.write_text("{")
    scene.call("DEL")  # the second one of a runtime needs no plugin
    scene.pod.name = "unknown"
    with pytest.raises(CniError, match=r"fallback\.conflist"):
        scene.call("DEL")


def test_an_agent_that_was_killed_meanwhile_knows_what_the_chain_made(scene: Scene) -> None:
    result = scene.call("ADD")
    scene.node.kill()
    with pytest.raises(CniError) as caught:
        scene.call("DEL")
    assert caught.value.code == 11
    scene.node.start()
    scene.call("CHECK", prevResult=result)
    scene.call("DEL")
    assert (scene.records(), scene.leases()) == ([], [])


def test_a_chain_that_cannot_be_read(scene: Scene) -> None:
    scene.list.write_text("{")
    with pytest.raises(CniError, match=r"fallback\.conflist") as caught:
        scene.node.runtime.status()
    assert caught.value.code == 50
    with pytest.raises(CniError, match=r"fallback\.conflist"):
        scene.call("ADD")
    assert scene.records() == []
    scene.list.write_text(json.dumps(scene.conflist()))
    scene.call("ADD")
    scene.call("DEL")
