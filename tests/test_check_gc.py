"""CHECK finds what is not as ADD left it, and only that; GC takes back what a network no longer has."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sriov_cni.messages import CniReply
from tests.cni_world import IPAM, PF0, World, conf_of, error_of, result_of
from tests.fake_kernel import FakeLink
from vf_manager.model import Mac

OPTIONS = {"vlan": 100, "trust": "on", "mac": "02:00:00:00:aa:01", "mtu": 1400}


class Attached:
    """One attachment, and what a runtime would hand to CHECK about it."""

    def __init__(self, world: World, options: dict[str, Any] | None = None) -> None:
        self.world = world
        self.vf = world.vfs(PF0)[2]
        self.pod = world.new_pod("a")
        self.conf = conf_of(self.vf, **(OPTIONS if options is None else options))
        self.result = result_of(world.call("ADD", "c1", self.pod, self.conf))

    @property
    def link(self) -> FakeLink:
        return next(i for i in self.world.kernel.namespaces[self.pod] if i.parent == self.vf)

    def change(self, **fields: Any) -> None:
        self.link.netdev = msgspec.structs.replace(self.link.netdev, **fields)

    def change_vf(self, **fields: Any) -> None:
        pf = self.world.kernel.functions[PF0]
        pf.attributes[2] = msgspec.structs.replace(pf.attributes[2], **fields)

    def check(self, prev: object = None, **options: Any) -> CniReply:
        conf = self.conf | {"prevResult": self.result if prev is None else prev} | options
        return self.world.call("CHECK", "c1", self.pod, conf)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def attached(world: World) -> Attached:
    return Attached(world)


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_all_is_well(world: World, version: str) -> None:
    attached = Attached(world, OPTIONS | {"cniVersion": version})
    assert attached.check() == CniReply(0, b"")


def _remove_route(attached: Attached) -> None:
    attached.link.routes.pop(0)


def _remove_address(attached: Attached) -> None:
    attached.link.addresses.remove("10.56.0.2/24")


def _another_vf(attached: Attached) -> None:
    """The VF went home, and another one was moved in under the same name."""
    attached.world.kernel.namespaces[attached.pod].remove(attached.link)
    attached.world.kernel.add_link("net1", attached.pod, attached.world.vfs(PF0)[3])


def _lose_lease(attached: Attached) -> None:
    for lease in (attached.world.root / "leases/underlay").glob("10.*"):
        lease.unlink()


DRIFTS: dict[str, tuple[Callable[[Attached], None], str]] = {
    "vlan": (lambda a: a.change_vf(vlan=200), "vlan of the VF is 200, not 100"),
    "trust": (lambda a: a.change_vf(trust=False), "trust of the VF is False, not True"),
    "administrative mac": (
        lambda a: a.change_vf(mac=Mac("02:00:00:00:00:99")),
        "mac of the VF is 02:00:00:00:00:99",
    ),
    "mac": (lambda a: a.change(mac=Mac("02:00:00:00:00:99")), "mac of net1 is 02:00:00:00:00:99"),
    "mtu": (lambda a: a.change(mtu=1500), "mtu of net1 is 1500, not 1400"),
    "down": (lambda a: a.change(up=False), "net1 is down"),
    "renamed": (lambda a: a.change(name="wan"), "is called wan, not net1"),
    "address": (_remove_address, "address 10.56.0.2/24 is missing"),
    "route": (_remove_route, "route 0.0.0.0/0 via 10.56.0.1 is missing"),
    "another VF": (_another_vf, "VF 0000:01:10.2 is not in the pod"),
}


@pytest.mark.parametrize("name", DRIFTS)
def test_drift_is_found(attached: Attached, name: str) -> None:
    cause, words = DRIFTS[name]
    cause(attached)
    code, message = error_of(attached.check())
    assert code == 100
    assert words in message


def test_rules_that_somebody_removed_are_found_and_an_add_puts_them_back(world: World) -> None:
    attached = Attached(world, {"services": "in-pod"})
    assert attached.check() == CniReply(0, b"")
    tables = dict(world.kernel.nft[attached.pod])
    assert tables
    world.kernel.nft[attached.pod].clear()
    assert error_of(attached.check()) == (100, "the rules for services are missing")
    assert result_of(world.call("ADD", "c1", attached.pod, attached.conf)) == attached.result
    assert world.kernel.nft[attached.pod] == tables
    assert attached.check() == CniReply(0, b"")


def test_everything_that_is_wrong_is_named(attached: Attached) -> None:
    attached.change_vf(vlan=7)
    attached.change(up=False, mtu=999)
    _remove_address(attached)
    assert len(error_of(attached.check())[1].split("; ")) == 4


def test_a_lost_lease_is_found(attached: Attached) -> None:
    _lose_lease(attached)
    code, message = error_of(attached.check())
    assert code == 7
    assert "holds no address" in message


def test_what_a_later_plugin_changed_is_no_drift(attached: Attached) -> None:
    """tuning changed the MAC and says so; another plugin dropped a route and no longer lists it."""
    attached.change(mac=Mac("02:00:00:00:bb:bb"), mtu=1300)
    _remove_route(attached)
    prev = json.loads(json.dumps(attached.result))
    prev["interfaces"][0] |= {"mac": "02:00:00:00:BB:BB", "mtu": 1300}
    prev["routes"] = prev["routes"][1:]
    assert attached.check(prev) == CniReply(0, b"")


def test_extra_addresses_and_attributes_nobody_asked_for_are_no_drift(attached: Attached) -> None:
    attached.link.addresses.append("10.99.0.1/32")
    attached.change_vf(spoofchk=False, max_tx_rate=9)
    assert attached.check() == CniReply(0, b"")


def test_without_prev_result(attached: Attached) -> None:
    code, message = error_of(attached.world.call("CHECK", "c1", attached.pod, attached.conf))
    assert code == 7
    assert message.startswith("prevResult: None")


def test_not_attached(attached: Attached) -> None:
    conf = attached.conf | {"prevResult": attached.result}
    code, message = error_of(attached.world.call("CHECK", "c2", attached.pod, conf))
    assert code == 100
    assert "nothing of network underlay is attached as net1" in message


class TestGc:
    """Two networks, two attachments each; the garbage collector is called for the first."""

    @pytest.fixture
    def pods(self, world: World) -> list[int]:
        pods = [world.new_pod(f"p{i}") for i in range(4)]
        for i, (pod, vf) in enumerate(zip(pods, world.vfs(PF0), strict=False)):
            conf = conf_of(vf, name="one" if i < 2 else "two", vlan=100 + i)
            result_of(world.call("ADD", f"c{i}", pod, conf))
        return pods

    def gc(self, world: World, **keys: object) -> CniReply:
        base = {"cniVersion": "1.1.0", "name": "one", "type": "sriov-underlay", "ipam": IPAM}
        return world.call("GC", "", None, base | keys)

    def leases_of(self, world: World, network: str) -> int:
        return len(list((world.root / "leases" / network).glob("[1f]*")))

    def test_no_list_means_nothing_is_done(self, world: World, pods: list[int]) -> None:
        before = world.state()
        assert self.gc(world) == CniReply(0, b"")
        assert world.state() == before

    @pytest.mark.parametrize("nothing", [[], None])
    def test_an_empty_list_takes_this_network_alone(
        self, world: World, pods: list[int], nothing: object
    ) -> None:
        assert self.gc(world, **{"cni.dev/valid-attachments": nothing}) == CniReply(0, b"")
        assert world.records.list_keys() == ["c2@net1", "c3@net1"]
        assert world.kernel.find("ens0v0") is not None
        assert world.kernel.find("net1", pods[2]) is not None
        assert (self.leases_of(world, "one"), self.leases_of(world, "two")) == (0, 4)

    def test_what_is_listed_stays(self, world: World, pods: list[int]) -> None:
        valid = [{"containerID": "c1", "ifname": "net1"}]
        keys = {"cni.dev/valid-attachments": valid, "cni.dev/attachments": []}
        assert self.gc(world, **keys) == CniReply(0, b"")
        assert world.records.list_keys() == ["c1@net1", "c2@net1", "c3@net1"]
        assert self.leases_of(world, "one") == 2

    def test_leases_of_a_plugin_before_us_go_too(self, world: World, pods: list[int]) -> None:
        lease = world.root / "leases/one/10.56.0.77"
        lease.write_text("gone\r\neth0")
        valid = [{"containerID": f"c{i}", "ifname": "net1"} for i in range(2)]
        assert self.gc(world, **{"cni.dev/valid-attachments": valid}) == CniReply(0, b"")
        assert not lease.exists()
        assert self.leases_of(world, "one") == 4

    @pytest.mark.parametrize("wrong", [{}, "c1", [{"containerID": "c1"}], [1]])
    def test_a_malformed_list_removes_nothing(self, world: World, pods: list[int], wrong: object) -> None:
        before = world.state()
        code, message = error_of(self.gc(world, **{"cni.dev/valid-attachments": wrong}))
        assert code == 7
        assert "cni.dev/valid-attachments" in message
        assert world.state() == before

    def test_goes_on_past_what_fails(self, world: World, pods: list[int]) -> None:
        world.kernel.add_link("ens0v0")
        code, message = error_of(self.gc(world, **{"cni.dev/valid-attachments": []}))
        assert code == 5
        assert "ens0v0" in message
        assert world.records.list_keys() == ["c0@net1", "c2@net1", "c3@net1"]
