"""CHECK on real drivers: whatever somebody changes about an attachment is found and named."""

import pytest

from hw_tests.nics import Nic, ip, settle
from hw_tests.node import Node
from hw_tests.runtime import IFNAME, CniError, Pod, host_local, network
from hw_tests.snapshot import Snapshot, wait_for_same
from hw_tests.stage import Stage

CHECK_FAILED = 100
CONF = network(
    "checked",
    vlan=100,
    trust="on",
    mac="02:00:00:00:cd:41",
    mtu=1400,
    ipam=host_local({"subnet": "198.18.41.0/24"}, routes=[{"dst": "198.51.100.0/24"}]),
)


def inside(pod: Pod, *words: str) -> None:
    ip("-n", pod.netns, *words)


def swap(nic: Nic, pod: Pod) -> None:
    """The VF goes home, and another one is moved in under its name."""
    inside(pod, "link", "set", IFNAME, "netns", "1", "name", "stolen0")
    name = nic.vf_name(nic.vfs_used - 1)
    ip("link", "set", name, "netns", pod.netns, "name", IFNAME)
    inside(pod, "link", "set", IFNAME, "up")


def swap_back(nic: Nic, pod: Pod, name: str, vf: str) -> None:
    inside(pod, "link", "set", IFNAME, "down")
    inside(pod, "link", "set", IFNAME, "netns", "1", "name", name)
    settle()  # udev may have renamed the one that went home
    (stolen,) = (nic.vf_name(index) for index in range(nic.vfs_used) if nic.vf_address(index) == vf)
    ip("link", "set", stolen, "down")
    ip("link", "set", stolen, "netns", pod.netns, "name", IFNAME)


# What is done with iproute2, on the host's side or the pod's, and what CHECK says of it.
DRIFTS = {
    "vlan": ("link set {pf} vf 0 vlan 7", "vlan of the VF is 7, not 100"),
    "trust": ("link set {pf} vf 0 trust off", "trust of the VF is False, not True"),
    "address": ("-n {pod} address flush dev eth1", "address {address}/24 is missing"),
    "route": ("-n {pod} route del 198.51.100.0/24", "route 198.51.100.0/24 via 198.18.41.1 is missing"),
    "mtu": ("-n {pod} link set eth1 mtu 1300", "mtu of eth1 is 1300, not 1400"),
    "down": ("-n {pod} link set eth1 down", "eth1 is down"),
    "name": ("-n {pod} link set eth1 down; -n {pod} link set eth1 name wan", "is called wan, not eth1"),
}


@pytest.mark.parametrize("name", DRIFTS)
def test_what_was_changed(node: Node, stage: Stage, before: Snapshot, name: str) -> None:
    change, words = DRIFTS[name]
    nic, pod = node.nics[0], stage.pod("checked")
    vf = stage.allocate(pod, nic)
    assert vf == nic.vf_address(0)
    answer = stage.attach(pod, CONF, vf)
    result, words = answer.result, words.format(address=answer.address)
    node.runtime.call("CHECK", pod, CONF | {"prevResult": result})
    for command in change.format(pf=nic.name, pod=pod.netns).split(";"):
        ip(*command.split())
    with pytest.raises(CniError) as caught:
        node.runtime.call("CHECK", pod, CONF | {"prevResult": result})
    assert (caught.value.code, words in caught.value.msg) == (CHECK_FAILED, True), caught.value.msg
    stage.detach(pod)
    assert wait_for_same(before, node.nics) == []


def test_a_mac_that_the_pod_took(node: Node, stage: Stage, before: Snapshot) -> None:
    """A VF without an administrative MAC lets its pod take any."""
    nic, pod = node.nics[0], stage.pod("masked")
    conf = network("masked", ipam=CONF["ipam"])
    result = stage.attach(pod, conf, stage.allocate(pod, nic)).result
    inside(pod, "link", "set", IFNAME, "address", "02:00:00:00:cd:42")
    with pytest.raises(CniError, match="mac of eth1 is 02:00:00:00:cd:42, not ") as caught:
        node.runtime.call("CHECK", pod, conf | {"prevResult": result})
    assert caught.value.code == CHECK_FAILED
    stage.detach(pod)
    assert wait_for_same(before, node.nics) == []


def test_another_vf_in_its_place(node: Node, stage: Stage, before: Snapshot) -> None:
    nic, pod = node.nics[0], stage.pod("swapped")
    conf = network("swapped", ipam=host_local({"subnet": "198.18.42.0/24"}))
    vf = stage.allocate(pod, nic)
    result = stage.attach(pod, conf, vf).result
    name = nic.vf_name(nic.vfs_used - 1)
    swap(nic, pod)
    with pytest.raises(CniError, match=f"VF {vf} is not in the pod") as caught:
        node.runtime.call("CHECK", pod, conf | {"prevResult": result})
    assert caught.value.code == CHECK_FAILED
    swap_back(nic, pod, name, vf)
    stage.detach(pod)
    assert wait_for_same(before, node.nics) == []
