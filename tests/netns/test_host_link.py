"""The link between a node and its pods, with real packets: who is reached, by which way, and by which not."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hw_tests.runtime import CniError
from sriov_cni.host_link.host_side import GUARD
from tests.kernel_contract import Space
from tests.netns.namespaces import LinuxWorld, add_veth, ip
from tests.netns.talk import Reply, Server, ask
from tests.netns.underlay import GATEWAY, IFNAME, WIRE, Underlay, UnderlayPod, running_underlay

UPLINK = ("192.0.2.1", "2001:db8::1")  # of the node, on another network than its pods
LINK = f"host-{IFNAME}"


@pytest.fixture
def behind(world: LinuxWorld) -> Space:
    """A host behind the node, which forwards: on the network of its uplink."""
    ip("link", "set", "lo", "up")
    space = world.new_space()
    add_veth("uplink0", "far0", peer_space=space)
    ip("link", "set", "uplink0", "up")
    ip("link", "set", "far0", "up", space=space)
    for address, far, width in zip(UPLINK, ("192.0.2.9", "2001:db8::9"), (24, 64), strict=True):
        nodad = ["nodad"] if ":" in address else []
        ip("address", "add", f"{address}/{width}", "dev", "uplink0", *nodad)
        ip("address", "add", f"{far}/{width}", "dev", "far0", *nodad, space=space)
        ip("-6" if ":" in address else "-4", "route", "add", "default", "via", address, space=space)
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path(f"/proc/sys/net/{name}").write_text("1")
    return space


@contextlib.contextmanager
def linked_pod(world: LinuxWorld, kind: str, **options: Any) -> Iterator[tuple[Underlay, UnderlayPod]]:
    with running_underlay(world, {"hostLink": kind} | options) as underlay:
        made = host_state()
        pod = underlay.attach(underlay.new_pod("one"))
        yield underlay, pod
        underlay.detach(pod)
        assert host_state() == made, "everything is gone after DEL"
        assert inside(pod, "-4", "rule", "show") == inside(pod, "-6", "rule", "show") == []
        assert {link["ifname"] for link in inside(pod, "link", "show")} == {"lo"}
        assert underlay.node.records() == underlay.node.leases() == []


def host_state() -> set[str]:
    """Links, routes of all tables, rules, and tables of nftables, a line for each; without what comes and
    goes with duplicate address detection, and without VFs, which come back with another index."""
    commands = (
        "ip -o link show",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip -4 rule show",
        "ip -6 rule show",
        "nft list tables",
    )
    outputs = (subprocess.run(c.split(), check=True, capture_output=True, text=True).stdout for c in commands)
    lines = {line.split("expires")[0] for output in outputs for line in output.splitlines()}
    return {
        line for line in lines if not any(word in line for word in ("vf", "fe80", "anycast", "multicast"))
    }


def inside(pod: UnderlayPod, *words: str) -> list[dict[str, Any]]:
    command = ["nsenter", f"--net={pod.space.path}", "ip", "-json", *words]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout or "[]")
    return [entry for entry in found if entry and entry.get("table") not in ("local", "main", "default")]


def packets(pod: UnderlayPod, name: str) -> tuple[int, int]:
    """Received and sent."""
    (link,) = inside(pod, "-s", "link", "show", "dev", name)
    return link["stats64"]["rx"]["packets"], link["stats64"]["tx"]["packets"]


def quiet(pod: UnderlayPod, name: str) -> bool:
    """Nothing that was said by TCP or UDP went by this link: ARP and neighbour discovery may."""
    return packets(pod, name)[1] < 12


class TestVeth:
    @pytest.mark.parametrize("proto", ["TCP", "UDP"])
    def test_the_node_reaches_the_pod_and_the_pod_the_node(
        self, world: LinuxWorld, behind: Space, proto: str
    ) -> None:
        """The node has an address in the pod's own network as well, which is its gateway."""
        with linked_pod(world, "veth") as (_, pod), Server(pod.space, "pod", 80), Server(None, "node", 81):
            # A server by UDP that has no address of its own answers from the one that is nearest.
            for own, uplink, gateway in zip(pod.addresses_given, UPLINK, GATEWAY, strict=True):
                before = packets(pod, LINK)
                for _ in range(20):
                    reply = ask(None, own, 80, proto)
                    assert reply.server == "pod"
                after = packets(pod, LINK)
                assert after[0] - before[0] >= 20
                assert after[1] - before[1] >= 20
                for address in (uplink, gateway):
                    assert ask(pod.space, address, 81) == Reply("node", own)
            assert packets(pod, LINK)[0] - after[0] >= 4
            assert quiet(pod, IFNAME)

    def test_what_the_node_forwards_keeps_its_way(self, world: LinuxWorld, behind: Space) -> None:
        """By the pod's network. By the link itself nothing gets through the node."""
        with (
            linked_pod(world, "veth") as (_, pod),
            Server(pod.space, "pod", 80),
            Server(behind, "far", 82),
        ):
            before = packets(pod, LINK)[1]
            for own, far in zip(pod.addresses_given, ("192.0.2.9", "2001:db8::9"), strict=True):
                assert ask(behind, own, 80) == Reply("pod", far)
                assert ask(pod.space, far, 82) == Reply("far", own)
            assert packets(pod, LINK)[1] - before < 4, "more than what IPv6 says to itself"
            for far, width in (("192.0.2.9", 32), ("2001:db8::9", 128)):
                ip("route", "add", f"{far}/{width}", "dev", LINK, space=pod.space)
                with pytest.raises(OSError):
                    ask(pod.space, far, 82, timeout_s=1)
            subprocess.run(["nft", "delete", "table", "inet", GUARD], check=True)
            assert ask(pod.space, "2001:db8::9", 82).server == "far", (
                "it is the guard that keeps IPv6 from it"
            )

    def test_with_strict_reverse_path_filters(self, world: LinuxWorld, behind: Space) -> None:
        Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text("1")
        with linked_pod(world, "veth") as (_, pod), Server(pod.space, "pod", 80), Server(None, "node", 81):
            ip("link", "set", "lo", "up", space=pod.space)
            assert ask(None, pod.address, 80).server == "pod"
            assert ask(pod.space, UPLINK[0], 81) == Reply("node", pod.address)

    def test_each_vf_of_a_pod_has_its_own(self, world: LinuxWorld, behind: Space) -> None:
        with running_underlay(world, {"hostLink": "veth"}) as underlay:
            made = host_state()
            pod = underlay.new_pod("many")
            underlay.node.kubelet.allocate(pod.namespace, pod.name, "sriov-underlay.io/fast", 2)
            pod.answer = underlay.node.runtime.call("ADD", pod, underlay.conf, IFNAME)
            with Server(pod.space, "pod", 80):
                for index, name in ((0, LINK), (2, "host-net1")):
                    before = packets(pod, name)
                    for address in pod.addresses_given[index : index + 2]:
                        assert ask(None, address, 80).server == "pod"
                    assert packets(pod, name)[1] - before[1] >= 4
            conf = underlay.conf | {"prevResult": pod.answer.result}
            underlay.node.runtime.call("CHECK", pod, conf, IFNAME)
            underlay.detach(pod)
            assert host_state() == made

    def test_a_name_that_the_pod_has_already(self, world: LinuxWorld, behind: Space) -> None:
        with running_underlay(world, {"hostLink": "veth"}) as underlay:
            pod = underlay.new_pod("taken")
            ip("link", "add", LINK, "type", "bridge", space=pod.space)
            with pytest.raises(CniError, match="the pod already has an interface called 'host-eth0'"):
                underlay.attach(pod)
            assert {link["ifname"] for link in inside(pod, "link", "show")} == {"lo", LINK}
            assert underlay.node.records() == underlay.node.leases() == []


class TestPf:
    @pytest.mark.parametrize("proto", ["TCP", "UDP"])
    def test_by_the_pf(self, world: LinuxWorld, behind: Space, proto: str) -> None:
        """The stand-in of the PF is on the segment, without an address."""
        with linked_pod(world, "pf") as (_, pod), Server(pod.space, "pod", 80), Server(None, "node", 81):
            for own, uplink in zip(pod.addresses_given, UPLINK, strict=True):
                assert ask(None, own, 80, proto).server == "pod"
                assert ask(pod.space, uplink, 81) == Reply("node", own)
            shown = subprocess.run(["ip", "-4", "route", "get", pod.address], capture_output=True, text=True)
            assert " dev pf0 " in shown.stdout

    def test_a_pf_that_is_a_port_of_a_bridge(self, world: LinuxWorld, behind: Space) -> None:
        with running_underlay(world, {"hostLink": "pf"}) as underlay:
            ip("link", "set", "pf0", "master", WIRE)
            with pytest.raises(CniError, match="pf0 is a port of a bridge or bond"):
                underlay.attach(underlay.new_pod("bridged"))
            assert underlay.node.records() == underlay.node.leases() == []
