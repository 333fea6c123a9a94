"""Pods that come without a `deviceID`: the kubelet knows their VFs, the agent's config knows the networks."""

import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sriov_cni.environment import Pod
from sriov_cni.limits import Limits, check_limits
from sriov_cni.network import parse_networks
from sriov_cni.pod_vfs import GivenVf, PodVfs
from tests.cni_world import IPAM, PF0, PF1, FakeKubelet, World, conf_of, error_of, result_of
from vf_manager.errors import InvalidInput, Refused
from vf_manager.model import PciAddress

ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ml;K8S_POD_NAME=trainer;K8S_POD_UID=u1"
CONF = {"cniVersion": "1.1.0", "name": "pods", "type": "sriov-underlay", "ipam": IPAM}
NETWORK = {
    "name": "blue",
    "pools": ["pool"],
    "vlan": 100,
    "mtu": 1400,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.7.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def give(world: World, *vfs: PciAddress, name: str = "trainer") -> None:
    world.kubelet.there = True
    world.kubelet.given["ml", name] = list(vfs)


def call(world: World, command: str, netns: int | None, conf: Any = CONF, **env: str) -> Any:
    return world.call(command, "c1", netns, conf, **({"CNI_ARGS": ARGS, "CNI_IFNAME": "eth0"} | env))


class TestOneVf:
    def test_it_gets_the_options_of_the_call_where_no_network_names_its_pool(self, world: World) -> None:
        before, vf = world.state(), world.vfs(PF0)[3]
        give(world, vf)
        pod = world.new_pod("a")
        result = result_of(call(world, "ADD", pod, CONF | {"vlan": 7}))
        assert result["interfaces"][0]["pciID"] == vf
        assert world.kernel.functions[PF0].attributes[3].vlan == 7
        assert call(world, "CHECK", pod, CONF | {"vlan": 7, "prevResult": result}).exit_code == 0
        assert call(world, "DEL", pod).exit_code == 0
        assert world.state().without(pod) == before

    def test_it_gets_those_of_its_network_where_one_does(self, world: World) -> None:
        world.networks = [NETWORK]
        world.start_agent()
        give(world, world.vfs(PF0)[3])
        pod = world.new_pod("a")
        result = result_of(call(world, "ADD", pod, CONF | {"vlan": 7}))
        assert (result["ips"][0]["address"], result["interfaces"][0]["mtu"]) == ("10.7.0.2/24", 1400)
        assert world.kernel.functions[PF0].attributes[3].vlan == 100
        assert [path.parent.name for path in (world.root / "leases").glob("*/10.*")] == ["blue"]
        assert call(world, "CHECK", pod, CONF | {"prevResult": result}).exit_code == 0
        next((world.root / "leases/blue").glob("10.*")).unlink()
        assert "holds no address" in error_of(call(world, "CHECK", pod, CONF | {"prevResult": result}))[1]
        assert call(world, "DEL", pod).exit_code == 0

    def test_the_calls_requests_reach_the_network(self, world: World) -> None:
        world.networks = [NETWORK]
        world.start_agent()
        give(world, world.vfs(PF0)[3])
        asked = {"runtimeConfig": {"ips": ["10.7.0.77"], "mac": "02:00:00:00:00:77"}}
        result = result_of(call(world, "ADD", world.new_pod("a"), CONF | {"ipam": {}} | asked))
        assert result["ips"][0]["address"] == "10.7.0.77/24"
        assert result["interfaces"][0]["mac"] == "02:00:00:00:00:77"

    def test_a_pod_that_has_none(self, world: World) -> None:
        give(world)
        before, pod = world.state(), world.new_pod("a")
        code, message = error_of(call(world, "ADD", pod))
        assert (code, message.partition(";")[0]) == (
            7,
            "pod ml/trainer requests no VF, and the agent's config has no fallback for such pods",
        )
        code, message = error_of(call(world, "ADD", pod, CNI_ARGS=""))
        assert (code, "the call names no pod" in message) == (7, True)
        assert world.state().without(pod) == before

    def test_the_kubelet_is_asked_once_per_sandbox(self, world: World) -> None:
        give(world, world.vfs(PF0)[3])
        pod = world.new_pod("a")
        for _ in range(2):
            result_of(call(world, "ADD", pod))
        assert world.kubelet.questions == 1
        world.call("ADD", "c2", world.new_pod("b"), CONF, CNI_ARGS=ARGS)
        assert world.kubelet.questions == 2


class TestSeveralVfs:
    @pytest.fixture
    def vfs(self, world: World) -> list[PciAddress]:
        """Of two PFs, given in no order at all."""
        vfs = [world.vfs(PF0)[1], world.vfs(PF0)[4], world.vfs(PF1)[0]]
        give(world, vfs[2], vfs[0], vfs[1])
        return vfs

    def test_all_come_with_one_add_and_go_with_one_del(self, world: World, vfs: list[PciAddress]) -> None:
        before, pod = world.state(), world.new_pod("a")
        result = result_of(call(world, "ADD", pod))
        shown = [(i["name"], i["pciID"]) for i in result["interfaces"]]
        assert shown == list(zip(["eth0", "net1", "net2"], vfs, strict=True))
        assert [ip["interface"] for ip in result["ips"]] == [0, 0, 1, 1, 2, 2]
        assert [route["dst"] for route in result["routes"]].count("0.0.0.0/0") == 1
        assert call(world, "CHECK", pod, CONF | {"prevResult": result}).exit_code == 0
        assert result_of(call(world, "ADD", pod)) == result
        assert call(world, "DEL", pod).exit_code == 0
        assert world.state().without(pod) == before
        assert not world.kernel.rules.get(pod)

    def test_answers_leave_by_the_vf_that_was_asked(self, world: World, vfs: list[PciAddress]) -> None:
        pod = world.new_pod("a")
        result = result_of(call(world, "ADD", pod))
        rules = {rule.source.split("/")[0]: rule.table for rule in world.kernel.rules[pod]}
        for ip in result["ips"]:
            link = world.kernel.find(result["interfaces"][ip["interface"]]["name"], pod)
            assert link is not None
            table = rules[ip["address"].split("/")[0]]
            assert {route.table for route in link.routes} - {None} == {table}
        assert len(set(rules.values())) == len(vfs)

    def test_the_default_route_is_the_firsts_and_other_routes_do_not_collide(
        self, world: World, vfs: list[PciAddress]
    ) -> None:
        pod = world.new_pod("a")
        result_of(call(world, "ADD", pod))
        links = [link for link in world.kernel.namespaces[pod] if link.parent]
        main = [
            (link.netdev.name, r.dst, r.priority) for link in links for r in link.routes if r.table is None
        ]
        assert [(name, metric) for name, dst, metric in main if dst == "0.0.0.0/0"] == [("eth0", None)]
        metrics = [metric for _, dst, metric in main if dst == "10.99.0.0/16"]
        assert sorted(map(str, metrics)) == ["151", "152", "50"]

    def test_all_or_none(self, world: World, vfs: list[PciAddress]) -> None:
        """The third belongs to another pod."""
        other, pod = world.new_pod("o"), world.new_pod("a")
        give(world, vfs[2], name="other")
        args = ARGS.replace("trainer", "other")
        assert world.call("ADD", "c9", other, conf_of(vfs[2]), CNI_ARGS=args).exit_code == 0
        now = world.state()
        code, message = error_of(call(world, "ADD", pod))
        assert (code, "attached to another pod" in message) == (11, True)
        assert world.state() == now

    def test_gc_keeps_all_vfs_of_a_pod_that_is_listed(self, world: World, vfs: list[PciAddress]) -> None:
        pod = world.new_pod("a")
        result = result_of(call(world, "ADD", pod))
        gc = CONF | {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}
        now = world.state()
        assert call(world, "GC", None, gc).exit_code == 0
        assert world.state() == now
        assert call(world, "CHECK", pod, CONF | {"prevResult": result}).exit_code == 0
        assert call(world, "GC", None, CONF | {"cni.dev/valid-attachments": []}).exit_code == 0
        assert (world.records.list_keys(), world.leases()) == ([], [])

    def test_another_kind_of_vfs_at_a_repeated_add(self, world: World, vfs: list[PciAddress]) -> None:
        """The kubelet was wrong about a pod that was just made anew."""
        pod = world.new_pod("a")
        result_of(call(world, "ADD", pod))
        world.start_agent()
        give(world, vfs[0])
        assert len(result_of(call(world, "ADD", pod))["interfaces"]) == 1
        assert world.records.list_keys() == ["c1@eth0"]

    def test_one_address_for_many_is_refused(self, world: World, vfs: list[PciAddress]) -> None:
        before, pod = world.state(), world.new_pod("a")
        static = {"type": "static", "addresses": [{"address": "10.1.1.1/24"}]}
        code, message = error_of(call(world, "ADD", pod, CONF | {"ipam": static}))
        assert (code, message.startswith("ipam.type: 'static'")) == (7, True)
        assert world.state().without(pod) == before

    def test_names_stand_clear_of_the_calls_own(self, world: World, vfs: list[PciAddress]) -> None:
        result = result_of(call(world, "ADD", world.new_pod("a"), CNI_IFNAME="net1"))
        assert [i["name"] for i in result["interfaces"]] == ["net1", "net2", "net3"]


class TestForeign:
    """A VF is attached only to the pod that the kubelet gave it to."""

    @pytest.mark.parametrize("args", [ARGS, ""])
    def test_a_device_of_another_pod(self, world: World, args: str) -> None:
        before, vf = world.state(), world.vfs(PF0)[2]
        give(world, vf, name="other")
        pod = world.new_pod("a")
        code, message = error_of(call(world, "ADD", pod, conf_of(vf), CNI_ARGS=args))
        assert (code, message.startswith("deviceID: the kubelet ")) == (7, True)
        assert "other" not in message
        assert world.state().without(pod) == before

    def test_the_kubelet_may_know_better_by_now(self, world: World) -> None:
        """A pod with several networks: its first call was answered before the second device was known."""
        first, second = world.vfs(PF0)[:2]
        give(world, first)
        pod = world.new_pod("a")
        result_of(call(world, "ADD", pod, conf_of(first)))
        give(world, first, second)
        result_of(call(world, "ADD", pod, conf_of(second, ipam={}), CNI_IFNAME="eth1"))

    def test_another_device_plugin_may_have_advertised_it(self) -> None:
        """On a node that moves over from another set of plugins."""
        kubelet = OtherResource(True, {("ml", "p"): ["0000:01:10.0"]})
        vfs = PodVfs(kubelet, {"x/pool": "pool"}, lambda pci: ("pool",))
        vfs.refuse_foreign("c", Pod(namespace="ml", name="p"), PciAddress("0000:01:10.0"))
        assert vfs.of("c", Pod(namespace="ml", name="p")) == ()

    def test_no_kubelet_no_question(self, world: World) -> None:
        result_of(call(world, "ADD", world.new_pod("a"), conf_of(world.vfs(PF0)[2])))
        assert world.kubelet.questions == 0

    def test_what_is_in_another_pool_now(self, world: World) -> None:
        vf = world.vfs(PF0)[2]
        give(world, vf)
        world.pooled.discard(vf)
        code, message = error_of(call(world, "ADD", world.new_pod("a")))
        assert (code, f"gave VF {vf} to the pod as x/pool, but it is in no pool" in message) == (7, True)

    def test_a_vf_of_two_pools_comes_by_either(self, world: World) -> None:
        vf = world.vfs(PF0)[2]
        give(world, vf)
        world.shared_pools[vf] = ("other", "pool")
        result_of(call(world, "ADD", world.new_pod("a")))

    def test_a_device_that_is_no_vf(self) -> None:
        kubelet = FakeKubelet(True, {("ml", "p"): ["GPU-1"]})
        with pytest.raises(Refused, match="no VF: x/pool: 'GPU-1'"):
            PodVfs(kubelet, {"x/pool": "pool"}, lambda pci: ("pool",)).of("c", Pod(namespace="ml", name="p"))

    def test_an_answer_does_for_a_while(self) -> None:
        now, kubelet = [0.0], FakeKubelet(True, {("ml", "p"): ["0000:01:10.0"]})
        vfs = PodVfs(kubelet, {"x/pool": "pool"}, lambda pci: ("pool",), lambda: now[0])
        pod = Pod(namespace="ml", name="p")
        given = (GivenVf(PciAddress("0000:01:10.0"), "pool"),)
        assert vfs.of("c", pod) == vfs.of("c", pod) == given
        assert kubelet.questions == 1
        now[0] = 60.0
        assert vfs.of("c", pod) == given
        assert kubelet.questions == 2


class OtherResource(FakeKubelet):
    def devices_of(self, namespace: str, name: str) -> dict[str, list[str]]:
        return {"intel.com/vfs": super().devices_of(namespace, name)["x/pool"]}


LIMITS = Limits(
    vlans=("100-199", 300), trust=False, spoofchk_off=False, mac=False, max_tx_rate_mbps=500, mtu=1500
)
WITHIN: dict[str, Any] = {
    "vlan": 150,
    "min_tx_rate": 0,
    "max_tx_rate": 500,
    "mtu": 1500,
    "spoofchk": "on",
    "trust": "off",
}


class TestLimits:
    @pytest.mark.parametrize("vlan", [100, 199, 300])
    def test_within(self, world: World, vlan: int) -> None:
        world.limits["pool"] = LIMITS
        world.start_agent()
        result_of(
            call(world, "ADD", world.new_pod("a"), conf_of(world.vfs(PF1)[0], **WITHIN | {"vlan": vlan}))
        )

    @pytest.mark.parametrize(
        ("beyond", "words"),
        [
            ({"vlan": 99}, "vlan: 99; pool pool of this node has limits.vlans: 100-199, 300"),
            ({"vlan": None}, "vlan: not given, which is the untagged network (0); pool pool"),
            ({"trust": "on"}, "trust: on; pool pool of this node has limits.trust: false"),
            ({"spoofchk": "off"}, "spoofchk: off; pool pool of this node has limits.spoofchkOff: false"),
            ({"mac": "02:00:00:00:00:01"}, "mac: 02:00:00:00:00:01; pool pool of this node has limits.mac"),
            ({"max_tx_rate": 501}, "max_tx_rate: 501; pool pool of this node has limits.maxTxRateMbps: 500"),
            ({"max_tx_rate": 0}, "max_tx_rate: not given or 0, which is no limit; pool pool"),
            ({"mtu": 1501}, "mtu: 1501; pool pool of this node has limits.mtu: 1500"),
        ],
    )
    def test_beyond(self, world: World, beyond: dict[str, Any], words: str) -> None:
        world.limits["pool"] = LIMITS
        world.start_agent()
        before, pod = world.state(), world.new_pod("a")
        code, message = error_of(call(world, "ADD", pod, conf_of(world.vfs(PF1)[0], **WITHIN | beyond)))
        assert (code, words in message) == (7, True), message
        assert world.state().without(pod) == before

    def test_of_every_pool_that_a_vf_is_in(self, world: World) -> None:
        """With a deviceID it is not known by which of them the pod got it."""
        vf = world.vfs(PF1)[0]
        world.shared_pools[vf] = ("pool", "other")
        world.limits["other"] = Limits(vlans=(7,))
        world.start_agent()
        code, message = error_of(call(world, "ADD", world.new_pod("a"), conf_of(vf, vlan=8)))
        assert (code, message) == (7, "vlan: 8; pool other of this node has limits.vlans: 7")

    @pytest.mark.parametrize(
        ("limits", "words"),
        [
            (Limits(vlans=("1-5000",)), r"l\.vlans\[0\]: '1-5000'"),
            (Limits(vlans=(1, "9-3")), r"l\.vlans\[1\]: '9-3'"),
            (Limits(max_tx_rate_mbps=0), "l.maxTxRateMbps: 0"),
            (Limits(mtu=9), "l.mtu: 9"),
        ],
    )
    def test_that_make_no_sense(self, limits: Limits, words: str) -> None:
        with pytest.raises(InvalidInput, match=words):
            check_limits(limits, "l")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "../x"}, r"networks\[0\]\.name: '\.\./x'"),
        (
            {"pools": ["slow"]},
            r"networks\[0\]\.pools\[0\]: 'slow' is not valid; .*: pool",
        ),
        ({"pools": []}, r"networks\[0\]\.pools: \[\]"),
        ({"vlan": 5000}, r"networks\[0\]\.vlan: 5000"),
        ({"mac": "02:00:00:00:00:01"}, r"networks\[0\]\.mac: unknown key"),
        ({"ipam": {"type": "host-local", "subnet": "x"}}, r"networks\[0\]\.ipam\.subnet"),
        (
            {"ipam": {"type": "static", "addresses": [{"address": "10.0.0.1/8"}]}},
            r"networks\[0\]\.ipam\.type",
        ),
    ],
)
def test_a_network_that_makes_no_sense(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        parse_networks([NETWORK | change], ["pool"])


def test_two_networks_of_one_name() -> None:
    with pytest.raises(InvalidInput, match=r"networks\[1\]\.name: 'blue'"):
        parse_networks([NETWORK, NETWORK], ["pool"])


def test_a_vf_whose_pod_is_just_dying_is_waited_for(world: World) -> None:
    """Its namespace has no name any more, and the kernel gives the VF back a moment later."""
    vf, pod = world.vfs(PF0)[2], world.new_pod("a")
    result_of(world.call("ADD", "c1", pod, conf_of(vf)))
    world.kernel.paths.clear()
    later = threading.Timer(0.05, world.kernel.destroy_netns, [pod])
    later.start()
    try:
        result_of(world.call("ADD", "c2", world.new_pod("b"), conf_of(vf)))
    finally:
        later.join()
    assert world.records.list_keys() == ["c2@net1"]


def test_records_keep_what_a_del_of_an_older_call_needs(world: World) -> None:
    give(world, *world.vfs(PF0)[:2])
    pod = world.new_pod("a")
    result_of(call(world, "ADD", pod))
    text = (world.root / "attachments/c1@net1.json").read_text()
    assert json.loads(text)["primary"] == "eth0"
    assert msgspec.json.decode(text)["asked"]["secondary"] is True
