"""What nobody sends a DEL for is taken back, once it is certain; what lives is left alone."""

from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from sriov_cni.reconcile import Finding, Reconciler
from tests.cni_world import PF0, Died, World, conf_of, quiet_log, result_of
from vf_manager.discovery import read_pfs
from vf_manager.model import Inventory, PciAddress, VfAttributes

GRACE_S = 20.0
POD = "K8S_POD_NAMESPACE=ml;K8S_POD_NAME=p;IgnoreUnknown=1"


class Scene:
    """A world with a reconciler whose clock the test sets."""

    def __init__(self, root: Path, *, repair: bool = False) -> None:
        self.world = World(root)
        self.now = 0.0
        self.reconciler = Reconciler(
            self.world.attacher,
            self.world.kubelet,
            lambda: Inventory(generation=1, pfs=read_pfs(self.world.kernel)),
            quiet_log(),
            repair=lambda: repair,
            clock=lambda: self.now,
        )

    def attach(self, vf: PciAddress, container: str = "c1", **options: object) -> int:
        pod = self.world.new_pod(container)
        conf = conf_of(vf, **options)
        result_of(self.world.call("ADD", container, pod, conf, CNI_ARGS=POD))
        return pod

    def look(self, times: int = 2) -> None:
        for _ in range(times):
            self.reconciler.look()
            self.now += GRACE_S

    def attributes(self) -> VfAttributes:
        return self.world.kernel.functions[PF0].attributes[0]

    def set_attributes(self, **fields: object) -> None:
        pf = self.world.kernel.functions[PF0]
        pf.attributes[0] = msgspec.structs.replace(pf.attributes[0], **fields)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_pod_that_is_gone_without_a_del(scene: Scene) -> None:
    """The kernel gave the VF back under the pod's name; it gets its own name and attributes back."""
    before = scene.world.state()
    pod = scene.attach(scene.world.vfs(PF0)[0], vlan=100, trust="on", mtu=1400)
    scene.world.kernel.destroy_netns(pod)
    assert scene.world.kernel.find("net1") is not None
    scene.look(1)
    assert scene.world.records.list_keys() == ["c1@net1"], "one look is not enough"
    scene.look(1)
    assert scene.world.state() == before


def test_a_living_pod_is_left_alone(scene: Scene) -> None:
    scene.attach(scene.world.vfs(PF0)[0], vlan=100)
    now = scene.world.state()
    scene.look(4)
    assert scene.world.state() == now


def test_a_vf_without_an_interface_stays_while_its_pod_may_live(scene: Scene) -> None:
    """A userspace driver has it: the kernel tells nothing, so the namespace and the kubelet have to."""
    world, vf = scene.world, scene.world.vfs(PF0)[0]
    world.kernel.bind_driver(vf, "vfio-pci")
    world.kubelet.there, world.kubelet.given = True, {("ml", "p"): [vf]}
    before = world.state()
    pod = scene.attach(vf, vlan=100)
    now = world.state()
    scene.look()
    assert world.state() == now
    world.kernel.destroy_netns(pod)
    scene.look()
    assert world.records.list_keys() == ["c1@net1"], "the kubelet still has the pod"
    world.kubelet.given = {}
    scene.look()
    assert world.state() == before


def test_a_device_that_was_unplugged(scene: Scene) -> None:
    vf = scene.world.vfs(PF0)[0]
    pod = scene.attach(vf)
    scene.world.kernel.set_num_vfs(PF0, 0)
    scene.look()
    assert scene.world.records.list_keys() == ["c1@net1"], "its pod lives: the DEL will come"
    scene.world.kernel.destroy_netns(pod)
    scene.look()
    assert (scene.world.records.list_keys(), scene.world.leases()) == ([], [])


def test_what_a_killed_process_left_half_done(scene: Scene) -> None:
    """`recover` could not undo it at the start; the reconciler tries again."""
    world, vf = scene.world, scene.world.vfs(PF0)[0]
    before, pod = world.state(), world.new_pod("c1")

    def die(point: str) -> None:
        if point == "applied 2":
            raise Died

    world.start_agent(die)
    with pytest.raises(Died):
        world.call("ADD", "c1", pod, conf_of(vf, vlan=100))
    world.start_agent()
    scene.reconciler = Reconciler(
        world.attacher, world.kubelet, Inventory, quiet_log(), clock=lambda: scene.now
    )
    scene.look()
    assert world.state().without(pod) == before


def drifts(events: list[EventDict]) -> list[str]:
    return [event["found"] for event in events if "changed by somebody else" in event["event"]]


def test_drift_is_told_once(scene: Scene) -> None:
    scene.attach(scene.world.vfs(PF0)[0], vlan=100, trust="on")
    scene.set_attributes(vlan=7, spoofchk=False)
    with capture_logs() as events:
        scene.look(4)
    assert drifts(events) == ["vlan 7 instead of 100"]
    assert scene.attributes().vlan == 7, "nobody asked for a repair"
    scene.set_attributes(vlan=100)
    scene.look(1)
    scene.set_attributes(vlan=8)
    with capture_logs() as events:
        scene.look(2)
    assert drifts(events) == ["vlan 8 instead of 100"]
    assert scene.reconciler.findings() == {Finding.TAKEN_BACK: 0, Finding.STUCK: 0, Finding.DRIFT: 2}


def test_drift_is_repaired_where_that_is_asked(tmp_path: Path) -> None:
    scene = Scene(tmp_path, repair=True)
    scene.attach(scene.world.vfs(PF0)[0], vlan=100, trust="on")
    scene.set_attributes(vlan=7, trust=False, spoofchk=False)
    scene.look()
    now = scene.attributes()
    assert (now.vlan, now.trust, now.spoofchk) == (100, True, False)


def test_what_cannot_be_taken_back_is_tried_again(scene: Scene) -> None:
    """Somebody else's interface has the VF's name meanwhile."""
    before = scene.world.state()
    pod = scene.attach(scene.world.vfs(PF0)[0])
    thief = scene.world.kernel.add_link("ens0v0")
    scene.world.kernel.destroy_netns(pod)
    scene.look(3)
    assert scene.world.records.list_keys() == ["c1@net1"]
    next(iter(scene.world.kernel.namespaces.values())).remove(thief)
    scene.look(1)
    assert scene.world.state() == before
    assert scene.reconciler.findings() == {Finding.TAKEN_BACK: 1, Finding.STUCK: 2, Finding.DRIFT: 0}


def test_nothing_is_left_after_a_reboot(scene: Scene) -> None:
    """VFs, namespaces and records went with the kernel and with /run; the leases on disk did not. The runtime
    may still send the DELs of the pods that were."""
    world = scene.world
    before = world.state()
    for number, vf in enumerate(world.vfs(PF0)):
        scene.attach(vf, f"c{number}", vlan=100 + number, name="one" if number % 2 else "two")
    assert len(world.leases()) == 14
    world.reboot()
    assert world.state() == before
    assert world.call("DEL", "c0", None, conf_of(world.vfs(PF0)[0], name="two")).exit_code == 0
    assert world.state() == before
    scene.attach(world.vfs(PF0)[0], "c0")
