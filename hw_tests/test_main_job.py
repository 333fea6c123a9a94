"""The main job on real drivers: VFs by config, pools at the kubelet, pods that talk, everything put back."""

from typing import Any

import pytest

from hw_tests.nics import Nic, host_address, ip, ip_json, wait_for_carrier
from hw_tests.node import Node, resource_of
from hw_tests.runtime import host_local, network, none_answers, wait_for_ping
from hw_tests.snapshot import Snapshot, differences, read_snapshot, wait_for_same
from hw_tests.stage import Stage

BLUE = network("blue", vlan=100, ipam=host_local({"subnet": "198.18.100.0/24"}))
RED = network("red", vlan=200, ipam=host_local({"subnet": "198.18.100.0/24", "rangeStart": "198.18.100.100"}))
PLAIN = network("plain", ipam=host_local({"subnet": "198.18.0.0/24", "rangeStart": "198.18.0.10"}))


def vf_at_pf(nic: Nic, vf: str) -> dict[str, Any]:
    """What the PF says of a VF, by iproute2."""
    (link,) = ip_json("link", "show", "dev", nic.name)
    index = next(i for i in range(nic.vfs_used) if nic.vf_address(i) == vf)
    return next(entry for entry in link["vfinfo_list"] if entry["vf"] == index)


def is_back(before: Snapshot, node: Node) -> bool:
    """Raises AssertionError with what is not as it was."""
    assert wait_for_same(before, node.nics) == []
    assert node.records() == []
    assert node.leases() == []
    return True


def usable(infos: list[dict[str, Any]]) -> bool:
    """An address that duplicate address detection still holds back would be deaf for a second or two."""
    return all(not info.get("tentative") or info.get("optimistic") for info in infos)


def test_the_config_makes_the_vfs(node: Node) -> None:
    for nic in node.nics:
        assert nic.num_vfs == nic.vfs_used
        assert nic.is_up


def test_both_pools_are_registered_and_counted(node: Node) -> None:
    for nic in node.nics:
        devices = node.kubelet.wait_devices(resource_of(nic), nic.vfs_used)
        assert sorted(devices) == sorted(nic.vf_address(i) for i in range(nic.vfs_used))
    assert node.registered() == {resource_of(nic) for nic in node.nics}


def test_pods_of_one_vlan_talk_and_others_do_not(
    node: Node, stage: Stage, before: Snapshot, two_nics: tuple[Nic, Nic]
) -> None:
    first, second = two_nics
    wait_for_carrier(node.nics)
    a, at_a = stage.attach_new("a", first, BLUE)
    b, at_b = stage.attach_new("b", second, BLUE)
    c, at_c = stage.attach_new("c", first, RED)
    d, at_d = stage.attach_new("d", second, RED)
    wait_for_ping(a, at_b.address)
    wait_for_ping(b, at_a.address)
    wait_for_ping(c, at_d.address)  # so that their silence below is the VLAN's doing and no dead link's
    wait_for_ping(d, at_c.address)
    strangers = [(red, blue.address) for red in (c, d) for blue in (at_a, at_b)]
    assert none_answers([*strangers, (a, at_c.address), (b, at_d.address)])

    assert differences(before, read_snapshot(node.nics)), "four VFs are in pods: a snapshot must show it"
    for pod in (a, b, c, d):
        stage.detach(pod)
        assert set(pod.links()) == {"lo"}
    assert is_back(before, node)


def test_host_and_untagged_pods_reach_each_other(node: Node, stage: Stage) -> None:
    """Over the PF's own interface: to a VF of the same PF, inside the NIC, and to those of other PFs."""
    wait_for_carrier(node.nics)
    with host_address(node.nics[0], "198.18.0.1/24"):
        for nic in node.nics:
            pod, answer = stage.attach_new(f"on-{nic.name}", nic, PLAIN)
            wait_for_ping(None, answer.address)
            wait_for_ping(pod, "198.18.0.1")


def test_every_option_is_set_and_put_back(node: Node, stage: Stage, before: Snapshot) -> None:
    nic = node.nics[0]
    wait_for_carrier(node.nics)  # igb takes a rate only while its link is up
    asked = {"vlan": 7, "vlanQoS": 3, "mac": "02:00:00:00:cd:66", "spoofchk": "off", "trust": "on"}
    conf = network("all", **asked, min_tx_rate=0, max_tx_rate=200, mtu=1400, ipam=PLAIN["ipam"])
    pod = stage.pod("all")
    vf = stage.allocate(pod, nic)
    stage.attach(pod, conf, vf)
    there, at_pf = pod.links()["eth1"], vf_at_pf(nic, vf)
    assert (there["address"], there["mtu"]) == ("02:00:00:00:cd:66", 1400)
    assert at_pf["address"] == "02:00:00:00:cd:66"
    assert at_pf["vlan_list"] == [{"vlan": 7, "qos": 3}]
    assert (at_pf["spoofchk"], at_pf["trust"]) == (False, True)
    assert at_pf["rate"] == {"max_tx": 200, "min_tx": 0}

    stage.detach(pod)
    assert is_back(before, node)


def test_the_result_tells_the_truth(node: Node, stage: Stage) -> None:
    nic = node.nics[-1]
    ipam = host_local({"subnet": "198.18.0.0/24"}, routes=[{"dst": "0.0.0.0/0"}, {"dst": "198.51.100.0/24"}])
    pod = stage.pod("truth")
    vf = stage.allocate(pod, nic)
    result = stage.attach(pod, network("truth", ipam=ipam), vf).result
    (interface,) = result["interfaces"]
    there = pod.links()["eth1"]
    assert interface == {
        "name": "eth1",
        "mac": there["address"],
        "mtu": there["mtu"],
        "sandbox": str(pod.path),
        "pciID": vf,
    }
    assert there["parentdev"] == vf
    assert "UP" in there["flags"]
    (address,) = result["ips"]
    assert address == {"interface": 0, "address": pod.addresses()[0], "gateway": "198.18.0.1"}
    routes = {(route["dst"], route.get("gateway")) for route in pod.routes()}
    assert routes >= {("default", "198.18.0.1"), ("198.51.100.0/24", "198.18.0.1")}


def test_a_pod_with_two_vfs_and_ipv6(node: Node, stage: Stage, two_nics: tuple[Nic, Nic]) -> None:
    """The VF as eth0 and another one as net1, with addresses of both families."""
    wait_for_carrier(node.nics)
    first = network("first", vlan=30, ipam=host_local({"subnet": "198.18.3.0/24"}, {"subnet": "fd00:3::/64"}))
    second = network(
        "second", vlan=31, ipam=host_local({"subnet": "fd00:4::/64"}, {"subnet": "198.18.4.0/24"})
    )
    answers: dict[tuple[str, str], list[str]] = {}
    pods = {name: stage.pod(name) for name in ("p", "q")}
    for (name, pod), ours in zip(pods.items(), (two_nics, two_nics[::-1]), strict=True):
        for conf, ifname, nic in ((first, "eth0", ours[0]), (second, "net1", ours[1])):
            result = stage.attach(pod, conf, stage.allocate(pod, nic), ifname).result
            answers[name, ifname] = [entry["address"].split("/")[0] for entry in result["ips"]]
    for ifname in ("eth0", "net1"):
        assert not any(address.get("dadfailed") for address in pods["q"].address_infos(ifname))
        for address in answers["q", ifname]:
            wait_for_ping(pods["p"], address)


@pytest.mark.parametrize("ipam", [None, {"type": "static", "addresses": [{"address": "198.18.9.9/24"}]}])
def test_other_ipam(node: Node, stage: Stage, before: Snapshot, ipam: dict[str, Any] | None) -> None:
    pod, answer = stage.attach_new("other", node.nics[0], network("other", ipam=ipam))
    assert pod.addresses() == (["198.18.9.9/24"] if ipam else [])
    assert [entry["address"] for entry in answer.result.get("ips", [])] == pod.addresses()
    stage.detach(pod)
    assert is_back(before, node)


def test_an_add_that_is_repeated_answers_the_same(node: Node, stage: Stage) -> None:
    pod = stage.pod("again")
    vf = stage.allocate(pod, node.nics[0])
    first = stage.attach(pod, BLUE, vf)
    assert stage.attach(pod, BLUE, vf).result == first.result
    assert node.leases() == [f"blue/{first.address}"]
    assert len(node.records()) == 1


def test_a_vf_that_the_host_uses_in_its_own_way_comes_back_so(node: Node, stage: Stage) -> None:
    """Up, with an MTU, an altname and VF attributes that somebody set by hand."""
    nic = node.nics[0]
    pod = stage.pod("custom")
    vf = stage.allocate(pod, nic)
    index = next(i for i in range(nic.vfs_used) if nic.vf_address(i) == vf)
    name = nic.vf_name(index)
    ip("link", "property", "add", "dev", name, "altname", "an-altname-of-somebody")
    ip("link", "set", name, "mtu", "1300", "up")
    ip("link", "set", nic.name, "vf", str(index), "vlan", "11", "qos", "2", "spoofchk", "off", "trust", "on")
    try:
        before = read_snapshot(node.nics)
        stage.attach(pod, network("custom", vlan=12, spoofchk="on", trust="off", mtu=1400), vf)
        assert "altnames" not in pod.links()["eth1"]
        stage.detach(pod)
        assert wait_for_same(before, node.nics) == []
    finally:
        ip("link", "set", nic.name, "vf", str(index), "vlan", "0", "spoofchk", "on", "trust", "off")
        ip("link", "set", name, "mtu", "1500", "down")
        ip("link", "property", "del", "dev", name, "altname", "an-altname-of-somebody")
