"""ADD and DEL through the handler, over the in-memory kernel. What is asserted is the state at the end."""

import json
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import pytest

from sriov_cni.device_info import remove_device_info, write_device_info
from sriov_cni.messages import CniReply
from tests.cni_world import IPAM, PF0, PF1, State, World, conf_of, error_of, result_of
from vf_manager.model import Mac, PciAddress, VfAttributes

ALL = {
    "vlan": 100,
    "vlanQoS": 3,
    "mac": "02:00:00:00:aa:01",
    "spoofchk": "off",
    "trust": "on",
    "min_tx_rate": 0,
    "max_tx_rate": 200,
    "mtu": 1400,
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def vf(world: World) -> PciAddress:
    return world.vfs(PF0)[2]


def attributes(world: World, vf: PciAddress) -> VfAttributes:
    function = world.kernel.functions[vf].function
    assert function.physfn is not None
    pf = world.kernel.functions[function.physfn]
    return pf.attributes[next(i for i, address in pf.function.virtfns if address == vf)]


def test_add_sets_what_is_asked_and_del_restores_all_of_it(world: World, vf: PciAddress) -> None:
    link = world.kernel.find("ens0v2")
    assert link is not None
    link.netdev = msgspec.structs.replace(
        link.netdev, altnames=("enp1s0v2", "uplink2"), up=True, carrier=True, mtu=1600
    )
    pod = world.new_pod("a")
    before = world.state()

    result = result_of(world.call("ADD", "c1", pod, conf_of(vf, **ALL)))

    inside = world.kernel.find("net1", pod)
    assert inside is not None
    assert inside.parent == vf
    assert (inside.netdev.mac, inside.netdev.mtu, inside.netdev.up) == ("02:00:00:00:aa:01", 1400, True)
    assert inside.netdev.altnames == ()
    assert inside.addresses == ["10.56.0.2/24", "fd00:56::2/64"]
    assert [(r.dst, r.gateway, r.priority) for r in inside.routes] == [
        ("0.0.0.0/0", "10.56.0.1", None),
        ("10.99.0.0/16", "10.56.0.2", 50),
    ]
    now = attributes(world, vf)
    assert (now.vlan, now.qos, now.spoofchk, now.trust, now.max_tx_rate) == (100, 3, False, True, 200)
    assert result["interfaces"] == [
        {
            "name": "net1",
            "mac": "02:00:00:00:aa:01",
            "mtu": 1400,
            "sandbox": "/run/netns/a",
            "pciID": vf,
        }
    ]
    assert [ip["interface"] for ip in result["ips"]] == [0, 0]
    assert world.kernel.announced == [("net1", "10.56.0.2/24")]  # the kernel announces IPv6
    assert world.attacher.held_vfs() == {vf}

    assert world.call("DEL", "c1", pod, conf_of(vf, **ALL)) == CniReply(0, b"")
    assert world.state() == before
    assert world.attacher.held_vfs() == set()


def test_attributes_nobody_asked_for_are_not_written(world: World, vf: PciAddress) -> None:
    changes: list[str] = []
    world.kernel.on_change = changes.append
    result_of(world.call("ADD", "c1", world.new_pod("a"), conf_of(vf)))
    assert "set_vf" not in changes


def test_attributes_that_are_so_already_are_not_written(world: World, vf: PciAddress) -> None:
    changes: list[str] = []
    world.kernel.on_change = changes.append
    result_of(world.call("ADD", "c1", world.new_pod("a"), conf_of(vf, spoofchk="on", vlan=0, trust="off")))
    assert "set_vf" not in changes


def test_a_refused_attribute_is_named_and_the_others_are_taken_back(world: World, vf: PciAddress) -> None:
    """igb has no link state: the kernel takes the VLAN, refuses the link state and never sees the trust."""
    pod = world.new_pod("a")
    before = world.state()
    code, message = error_of(
        world.call("ADD", "c1", pod, conf_of(vf, vlan=100, trust="on", link_state="enable"))
    )
    assert code == 5
    assert message == (
        f"set link_state enable on vf 2 of ens0 ({vf}): EOPNOTSUPP (Operation not supported);"
        " the driver igb does not support it"
    )
    assert world.state() == before


def test_an_interface_that_has_the_name_is_left_as_it_was(world: World, vf: PciAddress) -> None:
    pod = world.new_pod("a")
    world.kernel.add_link("net1", pod)
    before = world.state()
    code, message = error_of(world.call("ADD", "c1", pod, conf_of(vf, **ALL)))
    assert code == 7
    assert "CNI_IFNAME: the pod already has an interface called 'net1'" in message
    assert world.state() == before


@pytest.mark.parametrize(
    ("device", "code", "words"),
    [
        (PF0, 7, "0000:01:00.0 is a physical function; only a virtual function (VF) can be given"),
        ("0000:09:00.0", 7, "there is no PCI device 0000:09:00.0 on this node"),
        ("../../etc", 7, "deviceID: '../../etc' is not valid; expected a PCI address"),
        (None, 7, "deviceID: None is not valid; expected the PCI address of a VF"),
    ],
)
def test_a_device_that_is_no_vf_is_refused(world: World, device: str | None, code: int, words: str) -> None:
    pod = world.new_pod("a")
    before = world.state()
    conf = conf_of(device or "")
    if device is None:
        del conf["deviceID"]
    answer = error_of(world.call("ADD", "c1", pod, conf))
    assert answer[0] == code
    assert words in answer[1]
    assert world.state() == before


def test_a_vf_outside_every_pool_is_refused(world: World, vf: PciAddress) -> None:
    world.pooled.discard(vf)
    pod = world.new_pod("a")
    before = world.state()
    code, message = error_of(world.call("ADD", "c1", pod, conf_of(vf)))
    assert code == 7
    assert f"VF {vf} is in no pool" in message
    assert world.state() == before


def test_a_vf_without_an_interface_is_refused(world: World, vf: PciAddress) -> None:
    """Somebody took it into a namespace of theirs."""
    link = world.kernel.find("ens0v2")
    assert link is not None
    world.kernel.namespaces[1].remove(link)
    pod = world.new_pod("a")
    before = world.state()
    code, message = error_of(world.call("ADD", "c1", pod, conf_of(vf)))
    assert code == 7
    assert f"VF {vf} (driver igbvf) has no network interface on the host" in message
    assert world.state() == before


def test_a_vf_of_a_userspace_driver(world: World, vf: PciAddress) -> None:
    """Attributes through the PF and addresses in the result; nothing is moved, and one DEL undoes it."""
    world.kernel.bind_driver(vf, "vfio-pci")
    world.kernel.functions[PF0].mac_is_set.add(2)
    pod = world.new_pod("a")
    before = world.state()
    options = {"vlan": 100, "trust": "on", "mac": "02:00:00:00:aa:01"}
    result = result_of(world.call("ADD", "c1", pod, conf_of(vf, **options)))
    assert result["interfaces"] == [
        {"name": "net1", "mac": "02:00:00:00:aa:01", "sandbox": "/run/netns/a", "pciID": vf}
    ]
    assert [ip["address"] for ip in result["ips"]] == ["10.56.0.2/24", "fd00:56::2/64"]
    now = attributes(world, vf)
    assert (now.vlan, now.trust, now.mac) == (100, True, "02:00:00:00:aa:01")
    again = world.call("ADD", "c1", pod, conf_of(vf, **options))
    assert result_of(again) == result  # an application may be at work with these addresses
    check = conf_of(vf, **options) | {"prevResult": result}
    assert world.call("CHECK", "c1", pod, check) == CniReply(0, b"")
    world.start_agent()
    assert world.call("DEL", "c1", pod, conf_of(vf)).exit_code == 0
    assert world.state() == before


def test_a_vf_that_lost_its_userspace_driver_is_attached_anew(world: World, vf: PciAddress) -> None:
    world.kernel.bind_driver(vf, "vfio-pci")
    pod = world.new_pod("a")
    before = world.leases()
    result_of(world.call("ADD", "c1", pod, conf_of(vf, vlan=100)))
    world.kernel.bind_driver(vf, None)
    result = result_of(world.call("ADD", "c1", pod, conf_of(vf, vlan=100)))
    assert result["interfaces"][0]["mtu"] == 1500
    assert world.kernel.find("net1", pod) is not None
    assert world.call("DEL", "c1", pod, conf_of(vf)).exit_code == 0
    assert world.leases() == before


def test_an_exhausted_range_leaves_nothing(world: World) -> None:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/30"}]]}
    first, second = world.vfs(PF0)[:2]
    result_of(world.call("ADD", "c1", world.new_pod("a"), conf_of(first, ipam=ipam)))
    pod = world.new_pod("b")
    before = world.state()
    code, message = error_of(world.call("ADD", "c2", pod, conf_of(second, ipam=ipam, vlan=5)))
    assert code == 11
    assert "10.9.0" in message
    assert "underlay" in message
    assert world.state() == before


def test_a_missing_netns_is_named(world: World, vf: PciAddress) -> None:
    code, message = error_of(world.call("ADD", "c1", None, conf_of(vf)))
    assert code == 4
    assert "CNI_NETNS: '/run/netns/gone'" in message
    assert "No such file or directory" in message


class TestDel:
    """Acceptance: whatever came before, a DEL succeeds and touches nothing that is not its own."""

    @pytest.fixture
    def pod(self, world: World) -> int:
        return world.new_pod("a")

    @pytest.fixture
    def attached(self, world: World, vf: PciAddress, pod: int) -> State:
        """The state before."""
        before = world.state()
        result_of(world.call("ADD", "c1", pod, conf_of(vf, **ALL)))
        return before

    def test_unknown_container(self, world: World, vf: PciAddress, attached: State) -> None:
        now = world.state()
        assert world.call("DEL", "other", None, conf_of(vf)).exit_code == 0
        assert world.state() == now

    def test_twice(self, world: World, vf: PciAddress, pod: int, attached: State) -> None:
        for _ in range(2):
            assert world.call("DEL", "c1", pod, conf_of(vf)).exit_code == 0
            assert world.state() == attached

    def test_netns_gone(self, world: World, vf: PciAddress, pod: int, attached: State) -> None:
        world.kernel.destroy_netns(pod)
        assert world.call("DEL", "c1", None, conf_of(vf)).exit_code == 0
        assert world.state() == attached.without(pod)

    def test_netns_gone_and_udev_gave_altnames(
        self, world: World, vf: PciAddress, pod: int, attached: State
    ) -> None:
        """udev gives a device that comes back its policy name as altname: the very name it shall have."""
        world.kernel.destroy_netns(pod)
        link = world.kernel.find("net1")
        assert link is not None
        link.netdev = msgspec.structs.replace(link.netdev, altnames=("ens0v2",))
        assert world.call("DEL", "c1", None, conf_of(vf)).exit_code == 0
        assert world.state() == attached.without(pod)

    def test_netns_path_names_another_namespace_now(
        self, world: World, vf: PciAddress, pod: int, attached: State
    ) -> None:
        """The new one has an interface of the same name; it stays."""
        world.kernel.destroy_netns(pod)
        other = world.new_pod("a")
        world.kernel.add_link("net1", other)
        assert world.call("DEL", "c1", other, conf_of(vf)).exit_code == 0
        assert world.kernel.find("net1", other) is not None
        assert world.kernel.find("ens0v2") is not None

    def test_late_after_the_vf_went_to_another_pod(
        self, world: World, vf: PciAddress, pod: int, attached: State
    ) -> None:
        assert world.call("DEL", "c1", pod, conf_of(vf)).exit_code == 0
        new = world.new_pod("b")
        result_of(world.call("ADD", "c2", new, conf_of(vf, vlan=200)))
        now = world.state()
        assert world.call("DEL", "c1", pod, conf_of(vf)).exit_code == 0
        assert world.state() == now

    def test_pod_renamed_and_changed_the_interface(
        self, world: World, vf: PciAddress, pod: int, attached: State
    ) -> None:
        link = world.kernel.find("net1", pod)
        assert link is not None
        link.netdev = msgspec.structs.replace(
            link.netdev, name="wan", mtu=900, mac=Mac("02:00:00:00:ff:ff"), altnames=("mine",)
        )
        assert world.call("DEL", "c1", pod, conf_of(vf)).exit_code == 0
        assert world.state() == attached

    def test_wrong_options_do_not_keep_a_vf(
        self, world: World, vf: PciAddress, pod: int, attached: State
    ) -> None:
        assert world.call("DEL", "c1", pod, conf_of(vf, vlan=4095, nonsense=1)).exit_code == 0
        assert world.state() == attached

    def test_host_name_was_taken_meanwhile(
        self, world: World, vf: PciAddress, pod: int, attached: State
    ) -> None:
        """The VF comes home under another name, the DEL says what is wrong, and a later one ends it."""
        intruder = world.kernel.add_link("ens0v2")
        code, message = error_of(world.call("DEL", "c1", pod, conf_of(vf)))
        assert code == 5
        assert f"({vf}) back to ens0v2: EEXIST" in message
        assert "another interface is called ens0v2 now; rename it" in message
        intruder.netdev = msgspec.structs.replace(intruder.netdev, name="other")
        assert world.call("DEL", "c1", pod, conf_of(vf)).exit_code == 0
        world.kernel.namespaces[1].remove(intruder)
        assert world.state() == attached

    def test_nic_is_gone(self, world: World, vf: PciAddress, pod: int, attached: State) -> None:
        world.kernel.set_num_vfs(PF0, 0)
        assert world.call("DEL", "c1", pod, conf_of(vf)).exit_code == 0
        assert world.records.list_keys() == []
        assert world.leases() == []

    def test_driver_is_gone(self, world: World, vf: PciAddress, pod: int, attached: State) -> None:
        """A VF whose interface went with its driver has only its PF's attributes to restore."""
        world.kernel.bind_driver(vf, "vfio-pci")
        assert world.call("DEL", "c1", pod, conf_of(vf)).exit_code == 0
        now = attributes(world, vf)
        assert (now.vlan, now.trust, now.spoofchk) == (0, False, True)


def test_add_again_gives_the_same_result(world: World, vf: PciAddress) -> None:
    pod = world.new_pod("a")
    first = world.call("ADD", "c1", pod, conf_of(vf, **ALL))
    now = world.state()
    assert world.call("ADD", "c1", pod, conf_of(vf, **ALL)) == first
    assert world.state() == now


def test_add_again_with_another_vf_is_refused(world: World, vf: PciAddress) -> None:
    pod = world.new_pod("a")
    result_of(world.call("ADD", "c1", pod, conf_of(vf)))
    now = world.state()
    code, message = error_of(world.call("ADD", "c1", pod, conf_of(world.vfs(PF1)[0])))
    assert code == 7
    assert "CNI_IFNAME: 'net1' of this container is VF" in message
    assert world.state() == now


def test_a_vf_of_another_pod_is_refused(world: World, vf: PciAddress) -> None:
    result_of(world.call("ADD", "secret", world.new_pod("a"), conf_of(vf)))
    pod = world.new_pod("b")
    now = world.state()
    code, message = error_of(world.call("ADD", "c2", pod, conf_of(vf)))
    assert code == 11
    assert "attached to another pod" in message
    assert "secret" not in message
    assert world.state() == now


def test_a_vf_whose_pod_vanished_without_del_can_be_given_again(world: World, vf: PciAddress) -> None:
    pod = world.new_pod("a")
    before = world.state()
    result_of(world.call("ADD", "c1", pod, conf_of(vf, **ALL)))
    world.kernel.destroy_netns(pod)
    world.start_agent()
    new = world.new_pod("a")
    result_of(world.call("ADD", "c2", new, conf_of(vf)))
    assert world.records.list_keys() == ["c2@net1"]
    assert world.leases() == ["10.56.0.3", "fd00:56::3"]
    assert world.call("DEL", "c2", new, conf_of(vf)).exit_code == 0
    world.kernel.destroy_netns(new)
    assert world.call("DEL", "c1", None, conf_of(vf)).exit_code == 0
    assert world.state() == before.without(pod)


def test_two_adds_for_one_vf_at_once_have_one_winner(world: World, vf: PciAddress) -> None:
    pods = [world.new_pod("a"), world.new_pod("b")]
    replies = _at_once([partial(world.call, "ADD", f"c{i}", pods[i], conf_of(vf)) for i in range(2)])
    assert sorted(r.exit_code for r in replies) == [0, 1]
    loser = next(i for i, r in enumerate(replies) if r.exit_code)
    assert error_of(replies[loser])[0] == 11
    assert world.kernel.find("net1", pods[loser]) is None
    assert world.records.list_keys() == [f"c{1 - loser}@net1"]
    assert len(world.leases()) == 2


def test_seven_adds_at_once_on_one_pf_all_succeed(world: World) -> None:
    vfs = world.vfs(PF0)
    pods = [world.new_pod(f"p{i}") for i in range(7)]
    before = world.state()
    replies = _at_once(
        [partial(world.call, "ADD", f"c{i}", pods[i], conf_of(vfs[i], **ALL)) for i in range(7)]
    )
    assert [r.exit_code for r in replies] == [0] * 7
    assert len(world.leases()) == 14
    replies = _at_once([partial(world.call, "DEL", f"c{i}", pods[i], conf_of(vfs[i])) for i in range(7)])
    assert [r.exit_code for r in replies] == [0] * 7
    assert world.state() == before


def test_status_tells_why_an_add_could_not_succeed(world: World) -> None:
    conf = {"cniVersion": "1.1.0", "name": "underlay", "type": "sriov-underlay"}
    assert world.call("STATUS", "", None, conf) == CniReply(0, b"")
    world.not_ready = lambda: "all 14 VFs of this node's pools are attached"
    assert error_of(world.call("STATUS", "", None, conf)) == (
        50,
        "all 14 VFs of this node's pools are attached",
    )


def _at_once(calls: Sequence[Callable[[], CniReply]]) -> list[CniReply]:
    gate = threading.Barrier(len(calls))
    replies: list[CniReply | None] = [None] * len(calls)

    def run(number: int) -> None:
        gate.wait()
        replies[number] = calls[number]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(reply is not None for reply in replies)
    return [reply for reply in replies if reply is not None]


def test_addresses_that_are_in_use_on_the_wire(world: World, vf: PciAddress) -> None:
    """Whoever has it keeps it; the repeated ADD gets the next one."""
    world.kernel.neighbours["10.56.0.2/24"] = Mac("02:00:00:00:99:99")
    conf = conf_of(vf, ipam=IPAM | {"probe": True}, vlan=100)
    before, pod = world.state(), world.new_pod("a")
    code, message = error_of(world.call("ADD", "c1", pod, conf))
    assert code == 11
    assert message.startswith("ipam.probe: 10.56.0.2/24 is in use by 02:00:00:00:99:99")
    assert world.state().without(pod) == before
    assert result_of(world.call("ADD", "c1", pod, conf))["ips"][0]["address"] == "10.56.0.3/24"
    assert world.call("DEL", "c1", pod, conf).exit_code == 0
    assert world.state().without(pod) == before


def test_a_device_information_file(tmp_path: Path, vf: PciAddress) -> None:
    """Written where there is none, and taken away again; another's is left alone by both."""
    path = tmp_path / "cni" / "net1"
    write_device_info(path, vf)
    wanted = {"type": "pci", "version": "1.1.0", "pci": {"pci-address": vf}}
    assert json.loads(path.read_text()) == wanted
    remove_device_info(path, vf)
    remove_device_info(path, vf)
    assert not path.exists()
    path.write_text("the device plugin's")
    write_device_info(path, vf)
    remove_device_info(path, vf)
    assert path.read_text() == "the device plugin's"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("port", "pci"), "../../x"),
        (("port", "index"), -1),
        (("primary",), "a/b"),
        (("network",), "../x"),
        (("asked", "mac"), "attached"),
        (("asked", "device_info"), "/etc/passwd"),
        (("asked", "change", "vlan"), 2**32),
        (("original", "netdev", "mac"), "attached"),
        (("original", "netdev", "name"), ""),
        (("original", "attributes", "mac"), "x"),
        (("sandbox", "path"), "/run/\0"),
        (("result", "interfaces"), []),
    ],
)
def test_a_record_that_makes_no_sense_is_corrupt(
    world: World, vf: PciAddress, tmp_path: Path, place: tuple[str, ...], value: object
) -> None:
    """It is named, and no VF is touched in its name."""
    pod = world.new_pod("a")
    result_of(world.call("ADD", "c1", pod, conf_of(vf, **ALL)))
    path = tmp_path / "attachments" / "c1@net1.json"
    record = json.loads(path.read_bytes())
    inner = record
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(record))
    before = world.state()
    code, message = error_of(world.call("DEL", "c1", pod, conf_of(vf)))
    assert (code, str(path) in message) == (5, True)
    assert world.state() == before
