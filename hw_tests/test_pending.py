"""A policy that would hurt a pod waits for it: fewer VFs than there are, while one of them is in a pod."""

from pathlib import Path

from hw_tests.live import edited, healthy, wait_said
from hw_tests.nics import Nic, wait_for_carrier, wait_until
from hw_tests.node import Node, resource_of
from hw_tests.runtime import host_local, network, wait_for_ping
from hw_tests.snapshot import differences, read_snapshot, stable_snapshot
from hw_tests.stage import Stage
from hw_tests.traffic import Traffic

CONF = network("steady", vlan=100, ipam=host_local({"subnet": "198.18.62.0/24"}))
FEWER = 5
APPLIED_S = 60.0


def test_fewer_vfs_wait_for_the_pod(node: Node, two_nics: tuple[Nic, Nic], tmp_path: Path) -> None:
    nic, other = two_nics
    wait_for_carrier(node.nics)
    with Stage(node) as stage:
        pod, _ = stage.attach_new("holds", nic, CONF)
        _, peer = stage.attach_new("peer", other, CONF)
        wait_for_ping(pod, peer.address)
        found, start = stable_snapshot(node.nics), node.log.stat().st_size
        traffic = Traffic(pod, peer.address, tmp_path / "ping")
        traffic.wait_for_more()
        with edited(node, {nic: {"vfs": {"count": FEWER}}}):
            wait_said(node, start, nic.pci, "pending", f"{pod.namespace}/{pod.name}")
            traffic.wait_for_more()
            assert differences(found, read_snapshot(node.nics)) == []
            assert healthy(node, nic) == set(nic.vf_addresses())
            sent, answered = traffic.stop()
            assert sent - answered <= 1, f"{answered} of {sent} answered; one may be on its way"

            stage.detach(pod)
            node.kubelet.free(pod.namespace, pod.name)
            wait_until(lambda: nic.num_vfs == FEWER, f"{FEWER} VFs of {nic.name}", APPLIED_S)
            node.kubelet.wait_devices(resource_of(nic), FEWER, APPLIED_S)
            assert len(node.kubelet.devices(resource_of(nic))) == FEWER
            assert nic.num_vfs == FEWER
            assert healthy(node, other) == set(other.vf_addresses())
        node.kubelet.wait_devices(resource_of(nic), nic.vfs_used, APPLIED_S)
    assert nic.num_vfs == nic.vfs_used
    assert (node.records(), node.leases()) == ([], [])
