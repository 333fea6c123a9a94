"""The agent goes away and comes back: what is attached keeps working, is counted, and can be detached."""

from pathlib import Path
from threading import Thread

import pytest
import yaml

from hw_tests.nics import Nic, wait_for_carrier, wait_until
from hw_tests.node import Node, render_config, resource_of
from hw_tests.runtime import IFNAME, Answer, CniError, Pod, host_local, network, wait_for_ping
from hw_tests.snapshot import Snapshot, differences, read_snapshot, wait_for_same
from hw_tests.stage import Stage
from hw_tests.traffic import Traffic

CONF = network("steady", vlan=100, trust="on", ipam=host_local({"subnet": "198.18.8.0/24"}))
NOT_AVAILABLE = 50


def test_killed_in_the_middle_of_traffic(
    node: Node, stage: Stage, before: Snapshot, two_nics: tuple[Nic, Nic], tmp_path: Path
) -> None:
    wait_for_carrier(node.nics)
    a, _ = stage.attach_new("a", two_nics[0], CONF)
    b, at_b = stage.attach_new("b", two_nics[1], CONF)
    wait_for_ping(a, at_b.address)
    attached, registered = read_snapshot(node.nics), len(node.kubelet.registrations())
    traffic = Traffic(a, at_b.address, tmp_path / "ping")
    traffic.wait_for_more()

    node.kill()
    traffic.wait_for_more()
    with pytest.raises(CniError) as caught:
        node.runtime.status()
    assert caught.value.code == NOT_AVAILABLE
    node.start()
    node.wait_registered()
    traffic.wait_for_more()
    sent, answered = traffic.stop()
    assert sent - answered <= 1, f"{answered} of {sent} answered; one may be on its way"

    assert sorted(node.kubelet.registrations()[registered:]) == sorted(resource_of(nic) for nic in node.nics)
    for nic in node.nics:  # those in pods count as well
        assert len(node.kubelet.devices(resource_of(nic))) == nic.vfs_used
    assert differences(attached, read_snapshot(node.nics)) == []
    stage.detach(a)
    stage.detach(b)
    assert wait_for_same(before, node.nics) == []
    assert (node.records(), node.leases()) == ([], [])


def test_killed_in_the_middle_of_adds(node: Node, stage: Stage, before: Snapshot) -> None:
    """Several at once, so that the kill finds each at another point."""
    nic = node.nics[0]
    pods = [stage.pod(f"pod{number}") for number in range(4)]
    vfs = [stage.allocate(pod, nic) for pod in pods]
    answers: list[Answer | CniError] = []
    threads = [Thread(target=add_into, args=(answers, stage, *pair)) for pair in zip(pods, vfs, strict=True)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(node.records()) >= 2, "records of attachments", 10, poll_s=0.005)
    node.kill()
    node.start()
    for thread in threads:
        thread.join()
    assert any(isinstance(answer, CniError) for answer in answers), "the kill came too late for all of them"

    half_done = [pod for pod in pods if f"{pod.container_id}@{IFNAME}.json" not in node.records()]
    assert all(set(pod.links()) == {"lo"} for pod in half_done)
    for pod in pods:  # as the runtime does, whatever ADD answered
        node.runtime.delete(pod, CONF)
    assert wait_for_same(before, node.nics) == []
    assert (node.records(), node.leases()) == ([], [])


def add_into(answers: list[Answer | CniError], stage: Stage, pod: Pod, vf: str) -> None:
    try:
        answers.append(stage.node.runtime.add(pod, CONF, vf))
    except CniError as e:
        answers.append(e)


def test_stopped_and_started_with_a_smaller_pool(node: Node, stage: Stage, before: Snapshot) -> None:
    """A VF that is in no pool any more is not given to a pod; the one that has it can let it go."""
    nic = node.nics[0]
    last = nic.vfs_used - 1
    inside, outside = stage.pod("inside"), stage.pod("outside")
    stage.attach(inside, CONF, nic.vf_address(0))
    stage.attach(outside, CONF, nic.vf_address(last))
    attached = read_snapshot(node.nics)
    assert node.stop() == 0
    assert not node.runtime.socket.exists()

    config = yaml.safe_load(render_config(node.nics))
    config["pools"][0]["select"]["pfNames"] = [f"{nic.name}#0-{last - 1}"]
    node.config.write_text(yaml.safe_dump(config))
    try:
        node.start()
        node.kubelet.wait_devices(resource_of(nic), last)
        assert nic.num_vfs == nic.vfs_used
        assert differences(attached, read_snapshot(node.nics)) == []
        stage.detach(outside)
        with pytest.raises(CniError, match=f"deviceID: VF {nic.vf_address(last)} is in no pool"):
            stage.attach(outside, CONF, nic.vf_address(last))
        stage.detach(inside)
        assert wait_for_same(before, node.nics) == []
    finally:
        node.stop()
        node.config.write_text(render_config(node.nics))
        node.start()
        node.wait_registered()


def test_the_vfs_vanish_under_their_pods(node: Node) -> None:
    """Somebody writes 0 to sriov_numvfs. The agent makes the VFs again, and the pod can go meanwhile."""
    nic = node.nics[0]
    with Stage(node) as stage:
        pod, _ = stage.attach_new("vanished", nic, CONF | {"mac": "02:00:00:00:cd:09"})
        nic.set_num_vfs(0)
        wait_until(lambda: set(pod.links()) == {"lo"}, "end of the VF in the pod", 10)
        stage.detach(pod)
        assert (node.records(), node.leases()) == ([], [])
    # An attempt that came in the middle of it may have failed; the next is half a minute later.
    wait_until(lambda: nic.num_vfs == nic.vfs_used, "VFs again", 75)
    assert node.stop() == 0  # it may still be at it; the next start does the rest
    node.start()
    node.wait_registered()
