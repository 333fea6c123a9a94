"""From what the administrator wants to steps and refusals."""

from pathlib import Path

import msgspec
import pytest

from tests.provision_world import (
    KERNEL,
    PF0,
    PF1,
    VFIO,
    Node,
    all_of,
    replaced,
    wants,
)
from vf_manager.apply import created_pfs
from vf_manager.kernel.api import LinkChange
from vf_manager.model import Mac, PciAddress
from vf_manager.provision import MacKind, Plan, RefusalKind, VfPolicy
from vf_manager.provision_steps import (
    BindVf,
    EswitchMode,
    SetAutoprobe,
    SetEswitchMode,
    SetNumVfs,
    SetPfMtu,
    SetPfUp,
    SetVfMac,
    SetVfMtu,
    Step,
    describe,
)
from vf_manager.stable_mac import stable_mac

STABLE = MacKind.STABLE
LEGACY, SWITCHDEV = EswitchMode.LEGACY, EswitchMode.SWITCHDEV


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "pfs")


# -- golden plans


def test_from_nothing(node: Node) -> None:
    made = node.plan(wants(2, all_of(2)))
    assert made == Plan(
        steps=(
            SetPfUp(PF0),
            SetAutoprobe(PF0, False),
            SetNumVfs(PF0, 2),
            SetAutoprobe(PF0, True),
            BindVf(PF0, 0, KERNEL),
            BindVf(PF0, 1, KERNEL),
        )
    )
    assert [describe(step) for step in made.steps] == [
        f"set PF {PF0} up",
        f"turn driver autoprobe of the VFs of {PF0} off",
        f"create 2 VFs on {PF0}",
        f"turn driver autoprobe of the VFs of {PF0} on",
        f"bind VF 0 of {PF0} to its kernel driver",
        f"bind VF 1 of {PF0} to its kernel driver",
    ]


def test_with_mtu_and_two_kinds_of_vf(node: Node) -> None:
    node.set_pf("ens0", LinkChange(up=True))
    made = node.plan(
        wants(3, VfPolicy(first=0, last=0, mtu=9000), VfPolicy(first=2, last=2, mtu=9000, driver=VFIO))
    )
    assert made.steps == (
        SetPfMtu(PF0, 9000),
        SetAutoprobe(PF0, False),
        SetNumVfs(PF0, 3),
        SetAutoprobe(PF0, True),
        BindVf(PF0, 0, KERNEL),
        SetVfMtu(PF0, 0, 9000),
        BindVf(PF0, 1, KERNEL),
        BindVf(PF0, 2, VFIO),
    )
    assert describe(made.steps[0]) == f"set mtu 9000 on PF {PF0}"
    assert describe(made.steps[5]) == f"set mtu 9000 on VF 0 of {PF0}"
    assert describe(made.steps[7]) == f"bind VF 2 of {PF0} to vfio-pci"


def test_what_is_so_already_needs_nothing(node: Node) -> None:
    policy = wants(2, all_of(2, mtu=9000, mac=STABLE))
    node.provision(policy)
    assert node.plan(policy) == Plan()


def test_another_number_of_our_own_vfs_is_made_anew(node: Node) -> None:
    node.provision(wants(2, all_of(2)))
    made = node.plan(wants(3, all_of(3)))
    assert made.steps[:4] == (
        SetNumVfs(PF0, 0),
        SetAutoprobe(PF0, False),
        SetNumVfs(PF0, 3),
        SetAutoprobe(PF0, True),
    )


def test_no_vfs_are_wanted_any_more(node: Node) -> None:
    node.provision(wants(2, all_of(2)))
    assert node.plan(wants(0)).steps == (SetNumVfs(PF0, 0),)
    assert node.plan(wants(0, pf=PF1)) == Plan()


def test_only_what_differs_is_done(node: Node) -> None:
    node.provision(wants(3, all_of(3)))
    node.kernel.bind_driver(node.vf(PF0, 1), "vfio-pci")
    assert node.plan(wants(3, all_of(3, mtu=1400))).steps == (
        SetVfMtu(PF0, 0, 1400),
        BindVf(PF0, 1, KERNEL),
        SetVfMtu(PF0, 1, 1400),
        SetVfMtu(PF0, 2, 1400),
    )


def test_vfs_that_no_pool_speaks_of_stay_as_they_are(node: Node) -> None:
    node.provision(wants(2, all_of(2)))
    node.kernel.bind_driver(node.vf(PF0, 1), "vfio-pci")
    assert node.plan(wants(2, VfPolicy(first=0, last=0))) == Plan()


def test_a_smaller_mtu_of_the_pf_is_raised_and_a_greater_one_kept(node: Node) -> None:
    node.set_pf("ens0", LinkChange(up=True, mtu=4000))
    assert SetPfMtu(PF0, 9000) in node.plan(wants(1, all_of(1, mtu=9000))).steps
    assert not any(isinstance(s, SetPfMtu) for s in node.plan(wants(1, all_of(1, mtu=1500))).steps)


# -- MACs


def burnt_in(node: Node, pf: PciAddress = PF0) -> list[Mac]:
    found = node.inventory().find_pf(pf)
    assert found is not None
    assert found.permanent_mac is not None
    return [stable_mac(found.permanent_mac, index) for index in range(7)]


def test_a_stable_mac_comes_before_the_driver(node: Node) -> None:
    node.set_pf("ens0", LinkChange(up=True))
    macs = burnt_in(node)
    made = node.plan(wants(2, all_of(2, mac=STABLE)))
    assert made.steps[3:] == (
        SetVfMac(PF0, 0, macs[0]),
        BindVf(PF0, 0, KERNEL),
        SetVfMac(PF0, 1, macs[1]),
        BindVf(PF0, 1, KERNEL),
    )
    assert describe(made.steps[3]) == f"set mac {macs[0]} on VF 0 of {PF0}"


def test_a_mac_that_is_not_the_stable_one_is_set(node: Node) -> None:
    node.provision(wants(3, all_of(3)))
    made = node.plan(wants(3, VfPolicy(first=1, last=1, mac=STABLE)))
    assert made.steps == (SetVfMac(PF0, 1, burnt_in(node)[1]),)


def test_a_stable_mac_depends_on_what_is_burnt_in_alone(node: Node) -> None:
    """The ports of a bond have one MAC between them."""
    before = burnt_in(node)
    other = node.inventory().pfs[1].netdev
    assert other is not None
    node.set_pf("ens0", LinkChange(mac=other.mac))
    assert burnt_in(node) == before
    assert not set(before) & set(burnt_in(node, PF1))
    node.provision(wants(2, all_of(2, mac=STABLE)), wants(2, all_of(2, mac=STABLE), pf=PF1))
    assert node.macs_of(PF0) + node.macs_of(PF1) == [*burnt_in(node)[:2], *burnt_in(node, PF1)[:2]]


def test_two_pfs_with_one_burnt_in_mac_get_no_stable_ones(node: Node) -> None:
    one, two = node.kernel.find("ens0"), node.kernel.find("ens1")
    assert one is not None
    assert two is not None
    two.permanent_mac = one.permanent_mac
    reason = refusal(node.plan(wants(2, all_of(2, mac=STABLE))))
    assert f"mac: stable would give VFs of ens0 ({PF0}) and ens1 ({PF1}) the same MACs: both have" in reason
    assert node.plan(wants(2, all_of(2))).refusals == ()


def test_a_pf_that_tells_no_burnt_in_mac_gets_no_stable_ones(node: Node) -> None:
    link = node.kernel.find("ens0")
    assert link is not None
    link.permanent_mac = None
    reason = refusal(node.plan(wants(2, all_of(2, mac=STABLE))))
    assert reason == (
        f"mac: stable is derived from a PF's burnt-in MAC, and ens0 ({PF0}) does not tell its own"
    )


def test_vfs_whose_macs_are_not_told_get_no_stable_ones(node: Node) -> None:
    node.provision(wants(2, all_of(2)))
    node.kernel.functions[PF0].attributes.clear()
    reason = refusal(node.plan(wants(2, all_of(2, mac=STABLE))))
    assert reason == f"mac: stable: the driver of ens0 ({PF0}) does not tell the MACs of its VFs"


# -- eswitch mode


def test_the_eswitch_mode_changes_while_there_are_no_vfs(node: Node) -> None:
    node.kernel.eswitch[PF0] = "legacy"
    node.set_pf("ens0", LinkChange(up=True))
    node.provision(wants(2, all_of(2, mtu=9000)))
    policy = replaced(wants(2, all_of(2, mtu=9000)), eswitch_mode=SWITCHDEV)
    made = node.plan(policy)
    assert made.steps[:6] == (
        SetNumVfs(PF0, 0),
        SetEswitchMode(PF0, SWITCHDEV),
        SetPfUp(PF0),
        SetPfMtu(PF0, 9000),
        SetAutoprobe(PF0, False),
        SetNumVfs(PF0, 2),
    )
    assert describe(made.steps[1]) == f"set eswitch mode switchdev on PF {PF0}"
    node.provision(policy)
    assert node.plan(policy) == Plan()
    assert node.plan(wants(2, all_of(2, mtu=9000))) == Plan()  # left out: any will do


def test_the_eswitch_mode_of_a_pf_without_vfs(node: Node) -> None:
    node.kernel.eswitch[PF0] = "legacy"
    policy = replaced(wants(0), eswitch_mode=SWITCHDEV)
    assert node.plan(policy).steps == (SetEswitchMode(PF0, SWITCHDEV),)
    assert node.plan(replaced(policy, eswitch_mode=LEGACY)) == Plan()


def test_a_driver_without_eswitch(node: Node) -> None:
    reason = refusal(node.plan(replaced(wants(2, all_of(2)), eswitch_mode=LEGACY)))
    assert reason == f"the driver of ens0 ({PF0}), igb, has no eswitch; leave eswitchMode out"


def test_the_eswitch_mode_waits_for_vfs_in_use(node: Node) -> None:
    node.kernel.eswitch[PF0] = "legacy"
    node.provision(wants(2, all_of(2)))
    node.held[node.vf(PF0, 1)] = "default/trainer"
    made = node.plan(replaced(wants(2, all_of(2)), eswitch_mode=SWITCHDEV))
    assert pending(made) == (
        f"eswitch mode legacy -> switchdev would destroy all 2 VFs of ens0 ({PF0}), of which are in use:"
        f" {node.vf(PF0, 1)} (default/trainer)"
    )


# -- refusals


def refusal(made: Plan) -> str:
    assert made.steps == ()
    (refused,) = made.refusals
    assert (refused.kind, refused.holders) == (RefusalKind.REFUSED, ())
    return refused.reason


def pending(made: Plan) -> str:
    assert made.steps == ()
    (refused,) = made.refusals
    assert refused.kind is RefusalKind.PENDING
    assert refused.holders
    assert all(str(holder) in refused.reason for holder in refused.holders)
    return refused.reason


def test_a_pf_that_is_not_there(node: Node) -> None:
    gone = PciAddress("0000:09:00.0")
    assert refusal(node.plan(wants(1, pf=gone))) == f"there is no PF {gone} on this node"


def test_more_vfs_than_the_pf_can_have(node: Node) -> None:
    reason = refusal(node.plan(wants(8, all_of(8))))
    assert reason == f"8 VFs are asked of ens0 ({PF0}), which can have 7 (sriov_totalvfs)"


def test_a_pf_without_interface(node: Node) -> None:
    link = node.kernel.find("ens0")
    assert link is not None
    node.kernel.namespaces[1].remove(link)
    assert "has no network interface on the host (driver: igb)" in refusal(node.plan(wants(1)))


def test_vfs_in_use_are_not_destroyed(node: Node) -> None:
    node.provision(wants(3, all_of(3)))
    attached, in_pod = node.vf(PF0, 0), node.vf(PF0, 2)
    node.move_to_pod(in_pod)
    node.held[attached] = "default/trainer"
    assert pending(node.plan(wants(4, all_of(4)))) == (
        f"3 VFs -> 4 would destroy all 3 VFs of ens0 ({PF0}), of which are in use:"
        f" {attached} (default/trainer), {in_pod} (another network namespace)"
    )
    assert pending(node.plan(wants(0)))


def test_vfs_that_the_host_uses_are_not_destroyed(node: Node) -> None:
    node.provision(wants(2, all_of(2)))
    node.kernel.uppers_of["ens0v1"] = ("br0",)
    assert pending(node.plan(wants(3, all_of(3)))).endswith(
        f"in use: {node.vf(PF0, 1)} (the host: br0 of the host stands on its interface ens0v1)"
    )


def test_nothing_of_a_pf_with_a_pending_change_is_touched(node: Node) -> None:
    node.provision(wants(3, all_of(3)))
    node.held[node.vf(PF0, 0)] = "default/trainer"
    assert pending(node.plan(wants(2, all_of(2, mtu=9000, driver=VFIO))))


def test_vfs_of_somebody_else_are_not_destroyed(node: Node) -> None:
    node.kernel.set_num_vfs(PF0, 2)
    for count in (3, 0):
        reason = refusal(node.plan(wants(count)))
        assert reason == (
            f"ens0 ({PF0}) has 2 VFs that somebody else created, and they would have to go:"
            f" 2 VFs -> {count}; say adopt: true, or write 0 to its sriov_numvfs"
        )


def test_nor_changed(node: Node) -> None:
    node.set_pf("ens0", LinkChange(up=True))
    node.kernel.set_num_vfs(PF0, 2)
    assert node.plan(wants(2, all_of(2))) == Plan()
    for vfs in (all_of(2, driver=VFIO), all_of(2, mtu=1400), all_of(2, mac=STABLE)):
        assert refusal(node.plan(wants(2, vfs))) == (
            f"somebody else created the 2 VFs of ens0 ({PF0}), and they are not as wanted;"
            " say adopt: true to have them changed"
        )


def test_unless_they_are_adopted(node: Node) -> None:
    node.set_pf("ens0", LinkChange(up=True))
    node.kernel.set_num_vfs(PF0, 2)
    bound = wants(2, all_of(2, driver=VFIO), adopt=True)
    assert node.plan(bound).steps == (BindVf(PF0, 0, VFIO), BindVf(PF0, 1, VFIO))
    node.provision(wants(3, all_of(3), adopt=True))
    assert created_pfs(node.records) == {PF0: 3}


def test_adopted_vfs_in_use_are_not_destroyed(node: Node) -> None:
    node.kernel.set_num_vfs(PF0, 2)
    node.held[node.vf(PF0, 1)] = "default/trainer"
    assert pending(node.plan(wants(3, all_of(3), adopt=True)))


def test_another_number_than_we_made_is_somebody_elses(node: Node) -> None:
    node.provision(wants(2, all_of(2)))
    node.kernel.set_num_vfs(PF0, 0)
    node.kernel.set_num_vfs(PF0, 4)
    assert "has 4 VFs that somebody else created" in refusal(node.plan(wants(2, all_of(2))))


def test_a_vf_in_use_is_not_bound_to_another_driver(node: Node) -> None:
    node.provision(wants(2, all_of(2)))
    attached = node.vf(PF0, 1)
    node.held[attached] = "default/trainer"
    reason = pending(node.plan(wants(2, all_of(2, driver=VFIO))))
    who = f"VF {attached} (default/trainer) of ens0 ({PF0})"
    assert reason == f"{who} is in use and cannot be bound to vfio-pci now"


def test_a_refused_pf_does_not_hold_up_the_others(node: Node) -> None:
    made = node.provision(wants(8), wants(1, all_of(1), pf=PF1))
    assert [r.pf for r in made.refusals] == [PF0]
    assert len(node.inventory().pfs[1].vfs) == 1


def test_an_attached_vf_is_left_alone_wherever_its_interface_is(node: Node) -> None:
    """Its pod may be gone without a DEL: then the interface is back with what the pod's network asked for."""
    node.provision(wants(2, all_of(2, mtu=1500)))
    node.held[node.vf(PF0, 0)] = "default/trainer"
    made = node.plan(wants(2, all_of(2, mtu=9000, mac=STABLE)))
    assert made.steps == (
        SetPfMtu(PF0, 9000),
        SetVfMac(PF0, 1, burnt_in(node)[1]),
        SetVfMtu(PF0, 1, 9000),
    )


def test_a_vf_of_another_userspace_driver_is_free(node: Node) -> None:
    """It has no interface either, and nobody took that away."""
    node.provision(wants(1, all_of(1)))
    function = node.kernel.functions[node.vf(PF0, 0)]
    node.kernel._unbind(node.vf(PF0, 0))
    function.function = msgspec.structs.replace(function.function, driver="uio_pci_generic")
    assert node.plan(wants(1, all_of(1))).steps == (BindVf(PF0, 0, KERNEL),)


def test_autoprobe_left_off_comes_on_again(node: Node) -> None:
    """Whoever died in the middle: with all VFs bound to vfio-pci nothing else would need it."""
    node.provision(wants(1, all_of(1, driver=VFIO)))
    node.kernel.set_autoprobe(PF0, False)
    assert node.plan(wants(1, all_of(1, driver=VFIO))).steps == (SetAutoprobe(PF0, True),)


def test_every_kind_of_step_has_its_line() -> None:
    steps: list[Step] = [SetPfUp(PF0, False), SetNumVfs(PF0, 0), SetAutoprobe(PF0, True)]
    assert [describe(step) for step in steps] == [
        f"set PF {PF0} down",
        f"remove the VFs of {PF0}",
        f"turn driver autoprobe of the VFs of {PF0} on",
    ]
