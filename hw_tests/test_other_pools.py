"""Pools that are not made of new VFs with a kernel driver: adopted VFs, and VFs bound to vfio-pci."""

from collections.abc import Iterator

import pytest
import yaml

from hw_tests.nics import PCI_DEVICES, Nic, ip, settle, wait_for_carrier
from hw_tests.node import Node, pool_of, render_config, resource_of
from hw_tests.runtime import IFNAME, host_local, network
from hw_tests.snapshot import stable_snapshot, wait_for_same
from hw_tests.stage import Stage

ADOPTED = 3
IPAM = host_local({"subnet": "198.18.12.0/24"})


def driver_of(vf: str) -> str:
    return (PCI_DEVICES / vf / "driver").resolve().name


@pytest.fixture
def other_node(node: Node, two_nics: tuple[Nic, Nic]) -> Iterator[Node]:
    """The first PF has VFs that were made by hand, those of the second are given to vfio-pci."""
    by_hand, vfio = two_nics
    node.stop()
    ip("link", "set", by_hand.name, "up")
    by_hand.set_num_vfs(0)
    by_hand.set_num_vfs(ADOPTED)
    settle()
    for index in range(
        ADOPTED
    ):  # igb resets itself after it made VFs, and is deaf to each until it resets too
        ip("link", "set", by_hand.vf_name(index), "up")
        ip("link", "set", by_hand.vf_name(index), "down")
    pools = [
        {"name": pool_of(by_hand), "select": {"pfNames": [by_hand.name]}},
        {
            "name": pool_of(vfio),
            "select": {"pfNames": [vfio.name]},
            "vfs": {"count": vfio.vfs_used, "driver": "vfio-pci"},
        },
    ]
    node.config.write_text(yaml.safe_dump({"pools": pools}))
    node.start()
    try:
        yield node
    finally:
        node.stop()
        by_hand.set_num_vfs(0)
        node.config.write_text(render_config(node.nics))
        node.start()
        node.wait_registered()
        for nic in node.nics:
            assert {driver_of(nic.vf_address(i)) for i in range(nic.vfs_used)} == {"igbvf"}


def test_adopted_and_userspace_vfs(other_node: Node, two_nics: tuple[Nic, Nic]) -> None:
    by_hand, vfio = two_nics
    other_node.kubelet.wait_devices(resource_of(by_hand), ADOPTED)
    other_node.kubelet.wait_devices(resource_of(vfio), vfio.vfs_used)
    assert by_hand.num_vfs == ADOPTED
    assert {driver_of(vfio.vf_address(i)) for i in range(vfio.vfs_used)} == {"vfio-pci"}
    wait_for_carrier((by_hand,))
    before = stable_snapshot(other_node.nics)
    with Stage(other_node) as stage:
        conf = network("adopted", vlan=100, mac="02:00:00:00:cd:01", mtu=1400, ipam=IPAM)
        pod, answer = stage.attach_new("adopted", by_hand, conf)
        assert pod.links()[IFNAME]["address"] == "02:00:00:00:cd:01"
        assert pod.addresses() == [answer.result["ips"][0]["address"]]
        stage.detach(pod)
        assert wait_for_same(before, other_node.nics) == []

        conf = network("dpdk", vlan=100, mac="02:00:00:00:cd:02", spoofchk="off", ipam=IPAM)
        pod = stage.pod("dpdk")
        vf = stage.allocate(pod, vfio)
        result = stage.attach(pod, conf, vf).result
        assert result["interfaces"] == [
            {"name": IFNAME, "mac": "02:00:00:00:cd:02", "sandbox": str(pod.path), "pciID": vf}
        ]
        assert set(pod.links()) == {"lo"}
        stage.detach(pod)
        assert wait_for_same(before, other_node.nics) == []
    assert (other_node.records(), other_node.leases()) == ([], [])
