"""The agent while things change under it: its config file, its PFs, the health of VFs."""

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.config_file import ConfigFile
from sriov_cni.messages import CniReply
from tests.agent_node import (
    CONFIG,
    FAST,
    PF0,
    PF1,
    SLOW,
    Node,
    Running,
    eventually,
    new_node,
    running,
)
from tests.test_config_file import ConfigMap
from vf_manager.errors import KernelError
from vf_manager.health import HealthReason
from vf_manager.model import IfName, PciAddress

ONE = "pools: [{name: fast, select: {pfNames: [ens1]}, vfs: {count: 3}}]"
NEW = "sriov-underlay.io/new"


@pytest.fixture
def node() -> Iterator[Node]:
    with new_node() as node:
        yield node


class Followed:
    """An agent that runs, and the file that it follows."""

    def __init__(self, node: Node, running: Running, path: Path) -> None:
        self.node = node
        self.agent = running.agent
        self._path = path

    def write(self, text: str) -> None:
        self._path.write_text(text)

    def change(self, text: str) -> None:
        """And wait until it is in force."""
        before = self.changes()
        self.write(text)
        eventually(lambda: self.changes() > before, "the config is in force")

    def changes(self) -> int:
        return len(self.node.events("config in force"))

    def refuse(self, text: str) -> str:
        """The reason."""
        before = len(self.refused())
        self.write(text)
        eventually(lambda: len(self.refused()) > before, "the config is refused")
        return self.refused()[-1]

    def refused(self) -> list[str]:
        return [
            entry["reason"] for entry in self.node.events("config refused, the one before stays in force")
        ]

    def look(self) -> None:
        """As at an event of the kernel's."""
        self.agent._keeper.mark_dirty()


@contextlib.contextmanager
def followed(node: Node, text: str = CONFIG, path: Path | None = None) -> Iterator[Followed]:
    if path is None:
        path = node.root / "config.yaml"
        path.write_text(text)
    file = ConfigFile(path, look_s=0.005)
    file.read()
    with running(node, text, file) as agent:
        yield Followed(node, agent, path)


def add(node: Node, vf: PciAddress, name: str = "pod-a", **conf: object) -> Path:
    pod = node.root / name
    node.kernel.new_pod(pod)
    reply = node.call("ADD", {"deviceID": vf} | conf, pod)
    assert reply.exit_code == 0, reply.stdout
    return pod


def refusal_of(node: Node, vf: PciAddress, **conf: object) -> str:
    pod = node.root / "pod-refused"
    node.kernel.new_pod(pod)
    reply = node.call("ADD", {"deviceID": vf} | conf, pod)
    assert reply.exit_code == 1
    return str(json.loads(reply.stdout)["msg"])


def delete(node: Node, pod: Path) -> None:
    reply = node.call("DEL", {}, pod)
    assert reply.exit_code == 0, reply.stdout
    assert list((node.run_dir / "attachments").glob(f"{pod.name}@*")) == []


# -- pools


def test_a_pool_that_is_added_is_made_and_told(node: Node) -> None:
    both = ONE.replace("}]", "}, {name: new, select: {pfNames: [ens2]}}]")
    with followed(node, ONE) as live:
        node.kubelet.wait_devices(FAST, 3)
        assert "is in no pool" in refusal_of(node, node.vfs(PF1)[0])
        live.change(both)
        assert sorted(node.kubelet.wait_devices(NEW, 2)) == node.vfs(PF1)
        delete(node, add(node, node.vfs(PF1)[0]))
        assert set(node.kubelet.registrations()) == {FAST, NEW}


def test_vfs_of_a_pool_that_is_added_are_made(node: Node) -> None:
    with followed(node, "pools: []") as live:
        live.change(ONE)
        assert sorted(node.kubelet.wait_devices(FAST, 3)) == node.vfs(PF0)


def test_a_pool_that_is_removed_leaves_its_vfs_to_their_pods(node: Node) -> None:
    with followed(node) as live:
        vf, free = node.vfs(PF0)[:2]
        pod = add(node, vf)
        attached = node.kernel.snapshot()
        live.change("pools: [{name: slow, select: {pfNames: [ens2]}}]")
        (entry,) = [e for e in node.events("pool removed, its VFs stay as they are") if e["pool"] == "fast"]
        assert entry["attached"] == [vf]
        assert node.kernel.snapshot() == attached
        assert "is in no pool" in refusal_of(node, free)
        path = node.root / "kubelet/device-plugins/sriov-underlay.io_fast.sock"
        eventually(lambda: not path.exists(), "the pool is gone")
        delete(node, pod)
        assert len(node.vfs(PF0)) == 3
        live.change(CONFIG)
        assert vf in node.kubelet.wait_devices(FAST, 3)


def test_another_prefix_is_another_resource(node: Node) -> None:
    with followed(node, ONE) as live:
        live.change(f"resourcePrefix: example.com\n{ONE}")
        assert sorted(node.kubelet.wait_devices("example.com/fast", 3)) == node.vfs(PF0)
        node.kubelet.give("default", "a", "example.com/fast", node.vfs(PF0)[1])
        pod = node.root / "pod-a"
        node.kernel.new_pod(pod)
        args = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=a"
        assert node.call("ADD", {}, pod, CNI_ARGS=args).exit_code == 0
        delete(node, pod)


def test_a_count_that_a_pod_stands_in_the_way_of_waits_for_it(node: Node) -> None:
    with followed(node) as live:
        vf = node.vfs(PF0)[1]
        pod = add(node, vf)
        attached = node.kernel.snapshot()
        live.change(CONFIG.replace("count: 3", "count: 2"))
        eventually(lambda: node.events("provisioning pending"), "it waits")
        assert f"in use: {vf} (" in node.events("provisioning pending")[0]["reason"]
        assert node.kernel.snapshot() == attached
        delete(node, pod)
        node.kubelet.wait_devices(FAST, 2)
        reasons = [event["reason"] for event in node.events("provisioning pending")]
        assert reasons.count(reasons[0]) == 1


# -- what is refused


def test_a_broken_file_changes_nothing_and_is_told_once(node: Node) -> None:
    with followed(node) as live:
        reason = live.refuse(CONFIG + "extra: 1\n")
        assert reason == live.agent.refusal
        assert reason.startswith("extra: unknown key")
        delete(node, add(node, node.vfs(PF0)[0]))
        assert live.refuse("pools: [") != reason
        assert len(live.refused()) == 2
        live.change(CONFIG)
        assert live.agent.refusal is None
        node.kubelet.wait_devices(FAST, 3)
        assert len(node.kubelet.registrations()) == 3


def test_a_file_that_is_mended_to_something_else(node: Node) -> None:
    with followed(node, ONE) as live:
        live.refuse("pools: [{name: fast}]")
        live.change(ONE.replace("count: 3", "count: 4"))
        node.kubelet.wait_devices(FAST, 4)
        assert live.agent.refusal is None


def test_a_config_that_does_not_fit_the_node(node: Node) -> None:
    """Two names of one PF, which are given different counts."""
    link = node.kernel.find("ens1")
    assert link is not None
    with node.kernel.links() as host:
        host.add_altnames(link.netdev.ifindex, [IfName("enp1s0")])
    with followed(node) as live:
        before = node.kernel.snapshot()
        reason = live.refuse(CONFIG + "- {name: more, select: {pfNames: [enp1s0]}, vfs: {count: 4}}")
        assert reason.startswith("pools[3].vfs.count: 4 VFs are asked of ens1")
        assert node.kernel.snapshot() == before
        assert set(node.kubelet.registrations()) == {FAST, SLOW, "sriov-underlay.io/none"}


def test_an_api_server_without_a_way_to_it(node: Node) -> None:
    with followed(node) as live:
        reason = live.refuse(CONFIG + f"kubernetes: {{kubeconfig: {node.root}/nothing}}")
        assert reason.startswith(f"kubernetes.kubeconfig: {node.root}/nothing gives no way to the API server")
        node.kubelet.wait_devices(FAST, 3)


# -- how it comes


def test_a_config_map_that_is_exchanged(node: Node) -> None:
    folder = node.root / "volume"
    folder.mkdir()
    volume = ConfigMap(folder, ONE)
    with followed(node, ONE, volume.path):
        volume.write(ONE.replace("count: 3", "count: 5"))
        node.kubelet.wait_devices(FAST, 5)


def networks(vlan: int) -> str:
    """A config that is only right as a whole: its limits allow no other's VLAN."""
    limited = ONE.replace("}]", f", limits: {{vlans: [{vlan}]}}}}]")
    return f"{limited}\nnetworks: [{{name: n{vlan}, pools: [fast], vlan: {vlan}}}]"


def test_no_call_sees_a_part_of_each_config(node: Node) -> None:
    """Pods come and go while the VLAN and the limit change together."""
    configs, stop = [networks(100), networks(200)], threading.Event()
    replies: list[CniReply] = []

    def wait_for_replies(count: int) -> None:
        eventually(lambda: len(replies) > count, "calls are under way")

    def come_and_go(vf: PciAddress, name: str) -> None:
        pod = node.root / name
        node.kernel.new_pod(pod)
        args = f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}"
        while not stop.is_set():
            replies.append(node.call("ADD", {}, pod, CNI_ARGS=args))
            replies.append(node.call("DEL", {}, pod))

    with followed(node, configs[0]) as live:
        vfs = node.vfs(PF0)
        for number, vf in enumerate(vfs):
            node.kubelet.give("default", f"pod-{number}", FAST, vf)
        threads = [threading.Thread(target=come_and_go, args=(vf, f"pod-{n}")) for n, vf in enumerate(vfs)]
        for thread in threads:
            thread.start()
        try:
            for number in range(1, 17):
                wait_for_replies(len(replies) + len(vfs))
                live.change(configs[number % 2])
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert [reply.stdout for reply in replies if reply.exit_code != 0] == []
        assert list((node.run_dir / "attachments").iterdir()) == []


def test_limits_are_in_force_with_the_next_call(node: Node) -> None:
    with followed(node, ONE) as live:
        vf = node.vfs(PF0)[0]
        delete(node, add(node, vf, vlan=200))
        live.change(ONE.replace("}]", ", limits: {vlans: [100]}}]"))
        assert "vlan: 200; pool fast of this node has limits.vlans: 100" in refusal_of(node, vf, vlan=200)


def test_the_fallback_may_come_and_go_while_pods_have_what_it_made(node: Node) -> None:
    plugin, conflist = node.root / "other", node.root / "fallback.conflist"
    says = '{"cniVersion": "1.0.0"}'
    plugin.write_text(f"#!/bin/sh\ncat >/dev/null\necho $CNI_COMMAND >>{node.root}/done\necho '{says}'\n")
    plugin.chmod(0o755)
    conflist.write_text('{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "other"}]}')
    pod = node.root / "pod-a"
    node.kernel.new_pod(pod)
    env = {"CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=a", "CNI_PATH": str(node.root)}
    with followed(node) as live:
        assert node.call("ADD", {}, pod, **env).exit_code == 1
        live.change(f"{CONFIG}fallback: {conflist}")
        reply = node.call("ADD", {}, pod, **env)
        assert reply.exit_code == 0, reply.stdout
        live.change(CONFIG)
        assert node.call("DEL", {}, pod, **env).exit_code == 0
        assert (node.root / "done").read_text().split() == ["ADD", "DEL"]
        assert list((node.run_dir / "chain").iterdir()) == []
        assert node.call("ADD", {}, pod, **env).exit_code == 1


# -- PFs that come and go

LATE = PciAddress("0000:03:00.0")


def unplug(node: Node, pf: PciAddress) -> None:
    """The device and its VFs are gone from every namespace, whoever had them."""
    kernel = node.kernel
    with kernel.lock:
        gone = {pf, *node.vfs(pf)}
        kernel.functions = {pci: f for pci, f in kernel.functions.items() if pci not in gone}
        for links in kernel.namespaces.values():
            links[:] = [link for link in links if link.parent not in gone]


def test_a_pf_that_is_not_there_yet(node: Node) -> None:
    with followed(node, ONE.replace("ens1", "ens9")) as live:
        (entry,) = node.events("nothing to provision")
        assert "no SR-IOV PF is called 'ens9'" in entry["reason"]
        node.kubelet.wait_devices(FAST, 0)
        node.kernel.add_pf(LATE, "eth0")
        live.look()
        eventually(lambda: live.agent._keeper.current.find_pf(LATE), "the PF is seen")
        assert node.vfs(LATE) == []
        with node.kernel.lock:  # udev gives it its name
            link = node.kernel.find("eth0")
            assert link is not None
            node.kernel.namespaces[1].remove(link)
        node.kernel._new_link("ens9", LATE)
        live.look()
        assert sorted(node.kubelet.wait_devices(FAST, 3)) == node.vfs(LATE)


def test_a_pf_that_is_unplugged_with_a_vf_in_a_pod(node: Node) -> None:
    with followed(node) as live:
        vf = node.vfs(PF0)[1]
        pod = add(node, vf)
        unplug(node, PF0)
        live.look()
        node.kubelet.wait_devices(FAST, 0)
        gone = [event for event in live.agent.health.events() if event.reason is HealthReason.PF_GONE]
        assert [(event.vf, event.healthy) for event in gone][:1] == [(f"{PF0[:-4]}10.0", False)]
        delete(node, pod)
        node.kernel.add_pf(PF0, "ens1")
        live.look()
        assert sorted(node.kubelet.wait_devices(FAST, 3)) == node.vfs(PF0)
        delete(node, add(node, vf, "pod-b"))


# -- health


def unhealthy(node: Node, resource: str) -> list[str]:
    return [i for i, device in node.kubelet.devices(resource).items() if device.health == "Unhealthy"]


def test_a_wire_that_is_cut(node: Node) -> None:
    why = f"its PF ens2 ({PF1}) has no carrier"
    config = "pools: [{name: slow, select: {pfNames: [ens2]}}]"
    with followed(node, config) as live:
        node.kubelet.wait_devices(SLOW, 2)
        node.set_link("ens2", up=True, carrier=False)
        live.look()
        node.kubelet.wait_devices(SLOW, 0)
        assert sorted(unhealthy(node, SLOW)) == node.vfs(PF1)
        assert node.status() == (50, f"all VFs of this node's pools are Unhealthy: {why}")
        assert {entry["reason"] for entry in node.events("vf is unhealthy")} == {why}
        node.set_link("ens2", up=True)
        live.look()
        node.kubelet.wait_devices(SLOW, 2)
        assert node.status() == (0, "")
        assert {entry["was"] for entry in node.events("vf is healthy again")} == {why}
        assert live.agent.health.transitions() == {
            ("slow", HealthReason.NO_CARRIER, False): 2,
            ("slow", HealthReason.NO_CARRIER, True): 2,
        }


def test_the_lines_of_the_log_are_as_documented(node: Node) -> None:
    page = Path(__file__).parent.parent / "docs" / "device-plugin.md"
    shown = [json.loads(line) for line in page.read_text().splitlines() if line.startswith('{"pool"')]
    assert len(shown) == 2
    with followed(node, "pools: [{name: slow, select: {pfNames: [ens2]}}]") as live:
        for carrier, healthy in ((True, 2), (False, 0), (True, 2)):
            node.set_link("ens2", up=True, carrier=carrier)
            live.look()
            node.kubelet.wait_devices(SLOW, healthy)
    for line in shown:
        said = node.events(line["event"])[0]
        assert said.pop("log_level") == line.pop("level")
        assert said.keys() == line.keys()


def test_the_policy_of_a_pool_may_change(node: Node) -> None:
    config = "pools: [{name: slow, select: {pfNames: [ens2]}}]"
    node.set_link("ens2", up=True, carrier=False)
    with followed(node, config) as live:
        eventually(lambda: len(unhealthy(node, SLOW)) == 2, "no wire")
        live.change(config.replace("}]", ", health: {carrier: ignore}}]"))
        node.kubelet.wait_devices(SLOW, 2)


def test_a_driver_that_is_unbound(node: Node) -> None:
    with followed(node) as live:
        node.kubelet.wait_devices(FAST, 3)
        vf = node.vfs(PF0)[2]
        node.kernel._unbind(vf)
        live.look()
        node.kubelet.wait_devices(FAST, 2)
        assert unhealthy(node, FAST) == [vf]
        (entry,) = node.events("vf is unhealthy")
        assert (entry["pool"], entry["vf"], entry["reason"]) == ("fast", vf, "no driver is bound to it")
        node.kernel.bind_driver(vf, None)
        live.look()
        node.kubelet.wait_devices(FAST, 3)


def test_a_vf_in_a_pod_stays_healthy(node: Node) -> None:
    with followed(node) as live:
        pod = add(node, node.vfs(PF0)[0])
        live.look()
        eventually(lambda: live.agent._keeper.current.vfs()[0].netdev is None, "it is seen to be in the pod")
        node.kubelet.wait_devices(FAST, 3)
        assert node.events("vf is unhealthy") == []
        delete(node, pod)


def test_a_vfio_vf_without_its_node(node: Node) -> None:
    config = ONE.replace("count: 3", "count: 1, driver: vfio-pci")
    with followed(node, config) as live:
        eventually(lambda: unhealthy(node, FAST), "its node is missing")
        assert "/dev/vfio/10 is not there" in node.status()[1]
        (node.root / "dev/vfio").mkdir(parents=True)
        (node.root / "dev/vfio/10").touch()
        live.agent._advertiser.mark()
        node.kubelet.wait_devices(FAST, 1)


def test_a_pf_that_refuses_is_tried_again_when_it_comes_anew(node: Node) -> None:
    def refuse(what: str) -> None:
        raise KernelError(what, 5)

    node.kernel.on_change = refuse
    with followed(node, ONE) as live:
        node.kubelet.wait_devices(FAST, 0)
        node.kernel.on_change = lambda what: None
        unplug(node, PF0)
        live.look()
        eventually(lambda: live.agent._keeper.current.find_pf(PF0) is None, "it is seen to be gone")
        node.kernel.add_pf(PF0, "ens1")
        live.look()
        node.kubelet.wait_devices(FAST, 3)
