"""Pools that are not made of new VFs with a kernel driver: adopted VFs, and VFs bound to vfio-pci."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hw_tests.nics import PCI_DEVICES, Nic, ip, ip_json, settle, wait_for_carrier
from hw_tests.node import Node, pool_of, render_config, resource_of
from hw_tests.runtime import IFNAME, CniError, Pod, host_local, network
from hw_tests.snapshot import Snapshot, stable_snapshot, wait_for_same
from hw_tests.stage import Stage

ADOPTED = 3
MAC = "02:00:00:00:cd:02"
IPAM = host_local({"subnet": "198.18.12.0/24", "gateway": "198.18.12.254"}, {"subnet": "fd00:12::/64"})
DPDK = network(
    "dpdk",
    vlan=100,
    vlanQoS=3,
    mac=MAC,
    spoofchk="off",
    trust="on",
    min_tx_rate=0,
    max_tx_rate=100,
    ipam=IPAM,
)


def driver_of(vf: str) -> str:
    return (PCI_DEVICES / vf / "driver").resolve().name


def vf_info(nic: Nic, vf: str) -> dict[str, Any]:
    """What iproute2 shows of a VF at its PF."""
    (link,) = ip_json("link", "show", "dev", nic.name)
    info: dict[str, Any] = link["vfinfo_list"][nic.vf_addresses().index(vf)]
    return info


@pytest.fixture(scope="module")
def other_node(session_node: Node, two_nics: tuple[Nic, Nic]) -> Iterator[Node]:
    """The first PF has VFs that were made by hand, those of the second are given to vfio-pci."""
    by_hand, vfio = two_nics
    node = session_node
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


@pytest.fixture
def found(other_node: Node, node: Node) -> Iterator[Snapshot]:
    """How PFs and VFs are before a test, and again after it. `node`: the agent's log goes to the report."""
    wait_for_carrier(node.nics)
    snapshot = stable_snapshot(node.nics)
    yield snapshot
    assert wait_for_same(snapshot, node.nics) == []
    assert (node.records(), node.leases()) == ([], [])


def test_adopted_vfs(node: Node, found: Snapshot, two_nics: tuple[Nic, Nic]) -> None:
    by_hand, _ = two_nics
    node.kubelet.wait_devices(resource_of(by_hand), ADOPTED)
    assert by_hand.num_vfs == ADOPTED
    with Stage(node) as stage:
        conf = network("adopted", vlan=100, mac="02:00:00:00:cd:01", mtu=1400, ipam=IPAM)
        pod, answer = stage.attach_new("adopted", by_hand, conf)
        assert pod.links()[IFNAME]["address"] == "02:00:00:00:cd:01"
        assert pod.addresses() == [ip["address"] for ip in answer.result["ips"]]


class TestUserspace:
    """A VF of vfio-pci: all is done at its PF, and an application in the pod has the device."""

    @pytest.fixture
    def stage(self, node: Node, found: Snapshot) -> Iterator[Stage]:
        with Stage(node) as stage:
            yield stage

    @pytest.fixture
    def nic(self, two_nics: tuple[Nic, Nic], other_node: Node) -> Nic:
        _, nic = two_nics
        other_node.kubelet.wait_devices(resource_of(nic), nic.vfs_used)
        assert {driver_of(vf) for vf in nic.vf_addresses()} == {"vfio-pci"}
        return nic

    def test_the_pod_has_its_device_nodes(self, node: Node, stage: Stage, nic: Nic) -> None:
        pod = stage.pod("dpdk")
        given = node.kubelet.allocate(pod.namespace, pod.name, resource_of(nic))
        group = (PCI_DEVICES / given.ids[0] / "iommu_group").resolve().name
        nodes = [device.host_path for device in given.response.devices]
        assert {f"/dev/vfio/{group}", "/dev/vfio/vfio"} <= set(nodes)  # with those of iommufd, if it has them
        assert all(Path(path).is_char_device() for path in nodes)

    def test_what_add_does(self, node: Node, stage: Stage, nic: Nic) -> None:
        pod, result, vf = attach(stage, nic)
        assert result["interfaces"] == [{"name": IFNAME, "mac": MAC, "sandbox": str(pod.path), "pciID": vf}]
        four, six = result["ips"]
        assert (four["interface"], four["gateway"], six["interface"]) == (0, "198.18.12.254", 0)
        assert four["address"].startswith("198.18.12.")
        held = {f"dpdk/{ip['address'].split('/')[0]}" for ip in (four, six)}
        assert set(node.leases()) == held
        assert set(pod.links()) == {"lo"}
        assert driver_of(vf) == "vfio-pci"

        info = vf_info(nic, vf)
        assert (info["address"], info["vlan_list"]) == (MAC, [{"vlan": 100, "qos": 3}])
        assert (info["spoofchk"], info["trust"], info["rate"]["max_tx"]) == (False, True, 100)
        assert node.runtime.add(pod, DPDK, vf).result == result  # once more: the same
        node.runtime.call("CHECK", pod, DPDK | {"prevResult": result})

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (("vlan", "7"), "vlan of the VF is 7, not 100"),
            (("spoofchk", "on"), "spoofchk of the VF is True, not False"),
            (("mac", "02:00:00:00:cd:03"), f"mac of the VF is 02:00:00:00:cd:03, not {MAC}"),
        ],
    )
    def test_check_finds_what_was_changed_at_the_pf(
        self, node: Node, stage: Stage, nic: Nic, change: tuple[str, str], words: str
    ) -> None:
        pod, result, vf = attach(stage, nic)
        ip("link", "set", nic.name, "vf", str(nic.vf_addresses().index(vf)), *change)
        with pytest.raises(CniError) as caught:
            node.runtime.call("CHECK", pod, DPDK | {"prevResult": result})
        assert (caught.value.code, words in caught.value.msg) == (100, True), caught.value.msg

    @pytest.mark.parametrize("meanwhile", ["nothing", "pod gone", "agent killed", "both"])
    def test_the_first_del_is_right(
        self, node: Node, stage: Stage, found: Snapshot, nic: Nic, meanwhile: str
    ) -> None:
        pod, _, _ = attach(stage, nic)
        if meanwhile in ("pod gone", "both"):
            pod.destroy()
        if meanwhile in ("agent killed", "both"):
            node.kill()
            node.start()
        stage.detach(pod)
        assert wait_for_same(found, node.nics) == []
        assert (node.records(), node.leases()) == ([], [])

    def test_gc_takes_it_back(self, node: Node, stage: Stage, found: Snapshot, nic: Nic) -> None:
        pod, _, _ = attach(stage, nic)
        node.runtime.call("GC", pod, DPDK | {"cni.dev/valid-attachments": []})
        assert wait_for_same(found, node.nics) == []
        assert (node.records(), node.leases()) == ([], [])


def attach(stage: Stage, nic: Nic) -> tuple[Pod, dict[str, Any], str]:
    """A pod, the result of its ADD, and its VF."""
    pod = stage.pod("dpdk")
    vf = stage.allocate(pod, nic)
    return pod, stage.attach(pod, DPDK, vf).result, vf
