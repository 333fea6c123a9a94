"""A pod with several VFs and no Multus: the kubelet knows them, one ADD brings them, one DEL takes them."""

import pytest

from hw_tests.nics import Nic, wait_for_carrier
from hw_tests.node import Node, resource_of
from hw_tests.runtime import CniError, host_local, network, wait_for_ping
from hw_tests.snapshot import Snapshot, differences, read_snapshot, wait_for_same
from hw_tests.stage import Stage

CONF = network("pods", vlan=60, ipam=host_local({"subnet": "198.18.60.0/24"}, {"subnet": "fd00:60::/64"}))


def test_three_vfs_of_two_pfs(node: Node, stage: Stage, before: Snapshot, two_nics: tuple[Nic, Nic]) -> None:
    """All on one wire and in one subnet: each address is reached, and answers, by its own VF."""
    wait_for_carrier(node.nics)
    pod = stage.pod("three")
    for nic, count in zip(two_nics, (2, 1), strict=True):
        node.kubelet.allocate(pod.namespace, pod.name, resource_of(nic), count)
    result = node.runtime.add(pod, CONF, None, "eth0").result
    assert [interface["name"] for interface in result["interfaces"]] == ["eth0", "net1", "net2"]
    assert set(pod.links()) == {"lo", "eth0", "net1", "net2"}
    macs = {interface["name"]: interface["mac"] for interface in result["interfaces"]}

    stranger, _ = stage.attach_new("stranger", two_nics[1], CONF)
    for address in result["ips"]:
        text = address["address"].split("/")[0]
        wait_for_ping(stranger, text)
        if ":" not in text:
            name = result["interfaces"][address["interface"]]["name"]
            assert stranger.neighbour(text) == macs[name], f"{text} was answered by another VF than {name}"

    node.runtime.call("CHECK", pod, CONF | {"prevResult": result}, "eth0")
    node.runtime.delete(pod, CONF, ifname="eth0")
    assert set(pod.links()) == {"lo"}
    assert pod.rules() == []
    stage.detach(stranger)
    assert wait_for_same(before, node.nics) == []
    assert (node.records(), node.leases()) == ([], [])


def test_a_vf_that_the_kubelet_gave_to_another_pod(node: Node, stage: Stage, before: Snapshot) -> None:
    nic = node.nics[0]
    owner, thief = stage.pod("owner"), stage.pod("thief")
    vf = stage.allocate(owner, nic)
    with pytest.raises(CniError, match=f"the kubelet did not give VF {vf} to pod rig/thief") as caught:
        node.runtime.add(thief, CONF, vf)
    assert "owner" not in caught.value.msg
    with pytest.raises(CniError, match="pod rig/thief requests no VF"):
        node.runtime.add(thief, CONF, None)
    assert differences(before, read_snapshot(node.nics)) == []
