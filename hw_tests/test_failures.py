"""What goes wrong on a node: the call is answered with what it was, and nothing is changed or left behind."""

from typing import Any

import pytest

from hw_tests.nics import ip, wait_for_carrier, wait_until
from hw_tests.node import Node, resource_of
from hw_tests.runtime import IFNAME, CniError, Conf, Pod, host_local, network, with_device
from hw_tests.snapshot import Snapshot, differences, read_snapshot, wait_for_same
from hw_tests.stage import Stage

CONF = network("net", vlan=100, ipam=host_local({"subnet": "198.18.7.0/24"}))
WRONG_CONFIG, WRONG_FIELD, WRONG_VERSION, NOT_JSON, TRY_LATER = 7, 2, 1, 6, 11


def test_a_driver_that_refuses_one_of_three_attributes(node: Node, stage: Stage, before: Snapshot) -> None:
    """igb has no link_state. It takes vlan and trust out of the same message before it says so."""
    nic = next((nic for nic in node.nics if nic.driver == "igb"), None)
    if nic is None:
        pytest.skip(f"the drivers here ({', '.join(n.driver for n in node.nics)}) may take link_state")
    pod = stage.pod("refused")
    conf = network("net", vlan=100, trust="on", link_state="enable", ipam=CONF["ipam"])
    with pytest.raises(CniError, match="link_state enable on vf") as caught:
        stage.attach(pod, conf, stage.allocate(pod, nic))
    assert "EOPNOTSUPP" in caught.value.msg
    assert wait_for_same(before, node.nics) == []
    assert_untouched(node, pod)


def test_the_netns_is_gone_before_del(node: Node, stage: Stage, before: Snapshot) -> None:
    """Twice: right after its death, while the kernel still hands the VF back, and when it has."""
    for settled in (False, True):
        pod = stage.pod(f"dead-{settled}")
        vf = stage.allocate(pod, node.nics[0])
        stage.attach(pod, network("net", vlan=100, mac="02:00:00:00:00:07", ipam=CONF["ipam"]), vf)
        pod.destroy()
        if settled:
            wait_until_on_host(node, vf)
        stage.detach(pod)
        assert wait_for_same(before, node.nics) == []
        assert (node.records(), node.leases()) == ([], [])


def wait_until_on_host(node: Node, vf: str) -> None:
    there = f"ip: {vf} ifname"
    wait_until(lambda: there in read_snapshot(node.nics), f"interface of {vf} on the host", 10)


def test_del_of_what_was_never_attached(node: Node, stage: Stage, before: Snapshot) -> None:
    pod = stage.pod("unknown")
    node.runtime.delete(pod, CONF)
    node.runtime.delete(pod, with_device(CONF, node.nics[0].vf_address(0)))
    pod.destroy()
    node.runtime.delete(pod, CONF)
    assert differences(before, read_snapshot(node.nics)) == []


def test_del_twice(node: Node, stage: Stage, before: Snapshot) -> None:
    pod, _ = stage.attach_new("twice", node.nics[0], CONF)
    stage.detach(pod)
    node.runtime.delete(pod, CONF)
    pod.destroy()
    node.runtime.delete(pod, CONF)
    assert wait_for_same(before, node.nics) == []


def test_a_late_del_leaves_the_next_owner_alone(node: Node, stage: Stage, before: Snapshot) -> None:
    """The first pod dies without a DEL, its VF goes to a second one, and then the DEL comes."""
    nic = node.nics[0]
    first, second = stage.pod("first"), stage.pod("second")
    vf = stage.allocate(first, nic)
    stage.attach(first, network("net", vlan=100, trust="on", ipam=CONF["ipam"]), vf)
    first.destroy()
    node.kubelet.free(first.namespace, first.name)
    assert stage.allocate(second, nic) == vf
    answer = stage.attach(second, network("net", vlan=200, mac="02:00:00:00:00:08", ipam=CONF["ipam"]), vf)
    attached, records = read_snapshot(node.nics), node.records()

    stage.detach(first)
    assert differences(attached, read_snapshot(node.nics)) == []
    assert (node.records(), node.leases()) == (records, [f"net/{answer.address}"])
    assert second.links()[IFNAME]["address"] == "02:00:00:00:00:08"
    assert [f"{answer.address}/24"] == second.addresses()

    stage.detach(second)
    assert wait_for_same(before, node.nics) == []


def test_the_vf_of_a_living_pod_is_not_given_away(node: Node, stage: Stage) -> None:
    owner, _ = stage.attach_new("owner", node.nics[0], CONF)
    vf = node.nics[0].vf_address(0)
    state, thief = read_snapshot(node.nics), stage.pod("thief")
    with pytest.raises(CniError, match=f"{vf} is attached to another pod") as caught:
        stage.attach(thief, CONF, vf)
    assert caught.value.code == TRY_LATER
    assert differences(state, read_snapshot(node.nics)) == []
    assert IFNAME in owner.links()
    assert set(thief.links()) == {"lo"}


@pytest.mark.parametrize("as_altname", [False, True])
def test_the_name_is_taken_in_the_pod(node: Node, stage: Stage, before: Snapshot, as_altname: bool) -> None:
    pod = stage.pod("taken")
    name = "other0" if as_altname else IFNAME
    ip("-n", pod.netns, "link", "add", name, "mtu", "1234", "type", "dummy")
    ip("-n", pod.netns, "address", "add", "203.0.113.5/24", "dev", name)
    ip("-n", pod.netns, "link", "set", name, "up")
    if as_altname:
        ip("-n", pod.netns, "link", "property", "add", "dev", name, "altname", IFNAME)
    inside = ip("-n", pod.netns, "address", "show")
    with pytest.raises(CniError, match=f"CNI_IFNAME.*{IFNAME}"):
        stage.attach(pod, CONF, stage.allocate(pod, node.nics[0]))
    assert ip("-n", pod.netns, "address", "show") == inside
    assert differences(before, read_snapshot(node.nics)) == []
    assert (node.records(), node.leases()) == ([], [])


def test_a_device_that_is_no_vf_to_give(node: Node, stage: Stage, before: Snapshot) -> None:
    pod = stage.pod("wrong-device")
    wrong = {
        node.nics[0].pci: "physical function",
        "0000:00:00.0": "not an SR-IOV virtual function",
        "0000:fe:1f.7": "there is no PCI device 0000:fe:1f.7",
        "0000:01:10": "'0000:01:10' is not valid",
    }
    for device, words in wrong.items():
        with pytest.raises(CniError, match="deviceID") as caught:
            node.runtime.add(pod, CONF, device)
        assert words in caught.value.msg
        assert device in caught.value.msg
    with pytest.raises(CniError, match="deviceID"):
        node.runtime.add(pod, CONF, None)
    assert differences(before, read_snapshot(node.nics)) == []
    assert_untouched(node, pod)


def test_the_range_is_exhausted(node: Node, stage: Stage) -> None:
    one = {"subnet": "198.18.7.0/24", "rangeStart": "198.18.7.9", "rangeEnd": "198.18.7.9"}
    conf = network("tiny", vlan=100, trust="on", ipam=host_local(one))
    stage.attach_new("lucky", node.nics[0], conf)
    state, unlucky = read_snapshot(node.nics), stage.pod("unlucky")
    with pytest.raises(CniError, match=r"no free address.*198\.18\.7\.9") as caught:
        stage.attach(unlucky, conf, stage.allocate(unlucky, node.nics[0]))
    assert caught.value.code == TRY_LATER
    assert differences(state, read_snapshot(node.nics)) == []
    assert node.leases() == ["tiny/198.18.7.9"]
    assert len(node.records()) == 1
    assert set(unlucky.links()) == {"lo"}


def test_wrong_input_is_named(node: Node, stage: Stage, before: Snapshot) -> None:
    pod = stage.pod("wrong")
    device = node.nics[0].vf_address(0)
    for options, code, words in WRONG:
        with pytest.raises(CniError) as caught:
            node.runtime.add(pod, network("net", ipam=CONF["ipam"]) | options, device)
        assert (caught.value.code, options) == (code, options), caught.value
        assert all(word in caught.value.msg for word in words), caught.value
    with pytest.raises(CniError) as caught:
        node.runtime.call("ADD", pod, b"{not json")
    assert caught.value.code == NOT_JSON
    assert differences(before, read_snapshot(node.nics)) == []
    assert_untouched(node, pod)


# What is wrong, the code of the answer, and the key and the value that it names.
WRONG: list[tuple[dict[str, Any], int, tuple[str, ...]]] = [
    ({"vlan": 4095}, WRONG_CONFIG, ("vlan", "4095")),
    ({"vlanQoS": 3}, WRONG_CONFIG, ("vlanQoS", "3", "vlan")),
    ({"spoofchk": "yes"}, WRONG_CONFIG, ("spoofchk", "'yes'")),
    ({"min_tx_rate": 200, "max_tx_rate": 100}, WRONG_CONFIG, ("min_tx_rate", "200", "100")),
    ({"mac": "01:00:5e:00:00:01"}, WRONG_CONFIG, ("mac", "01:00:5e:00:00:01", "unicast")),
    ({"mtu": 20}, WRONG_CONFIG, ("mtu", "20")),
    ({"vlann": 5}, WRONG_FIELD, ("vlann", "5", "vlan")),
    ({"cniVersion": "9.9.9"}, WRONG_VERSION, ("cniVersion", "9.9.9")),
]


def test_an_mtu_that_the_driver_refuses(node: Node, stage: Stage, before: Snapshot) -> None:
    """The kernel's own words reach the runtime; the address that was taken before is given back."""
    pod = stage.pod("huge")
    with pytest.raises(CniError, match="mtu 65000") as caught:
        stage.attach(pod, network("net", mtu=65000, ipam=CONF["ipam"]), stage.allocate(pod, node.nics[0]))
    assert "EINVAL" in caught.value.msg
    assert wait_for_same(before, node.nics) == []
    assert_untouched(node, pod)


def test_status_says_when_all_vfs_are_taken(node: Node, stage: Stage) -> None:
    """With every VF in a pod the kubelet counts them all the same: they are healthy, and in use."""
    for nic in node.nics:
        for index in range(nic.vfs_used):
            stage.attach_new(f"{nic.name}-{index}", nic, network("bare"))
    with pytest.raises(CniError, match="attached") as caught:
        node.runtime.status()
    assert caught.value.code == 50
    for nic in node.nics:
        assert len(node.kubelet.devices(resource_of(nic))) == nic.vfs_used


def assert_untouched(node: Node, pod: Pod) -> None:
    assert set(pod.links()) == {"lo"}
    assert (node.records(), node.leases()) == ([], [])


def refusal_of(node: Node, pod: Pod, conf: Conf) -> str:
    """Of a DEL; "" if it went through."""
    try:
        node.runtime.delete(pod, conf)
    except CniError as e:
        return e.msg
    return ""


def test_del_while_the_pf_has_no_link(node: Node, stage: Stage, before: Snapshot) -> None:
    """igb takes a rate away only while its link is up. Whether an emulated one is down then is not certain:
    the DEL is refused with the reason, and the one after it goes through, or the first does."""
    nic = node.nics[0]
    wait_for_carrier(node.nics)
    conf = network("net", min_tx_rate=0, max_tx_rate=100, trust="on")
    pod, _ = stage.attach_new("rated", nic, conf)
    ip("link", "set", nic.name, "down")
    try:
        refusal = refusal_of(node, pod, conf)
        assert not refusal or "sets rates only while the PF's link is up" in refusal
    finally:
        ip("link", "set", nic.name, "up")
        wait_for_carrier(node.nics)
        stage.detach(pod)
        for index in range(nic.vfs_used):  # a PF that was down hears a VF again after the VF's next reset
            ip("link", "set", nic.vf_name(index), "up")
            ip("link", "set", nic.vf_name(index), "down")
    assert wait_for_same(before, node.nics) == []
