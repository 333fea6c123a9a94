"""From what the administrator wants to steps and refusals, and what carrying them out leaves."""

import errno
import tempfile
from collections.abc import Iterator, Set
from pathlib import Path

import msgspec
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.typing import FilteringBoundLogger

from tests.fake_kernel import FakeKernel
from vf_manager.apply import CreatedVfs, apply_plan, created_pfs
from vf_manager.discovery import read_pfs
from vf_manager.errors import Busy, KernelError, SriovError
from vf_manager.kernel.api import LinkChange
from vf_manager.locks import DeviceLocks
from vf_manager.model import IfName, Inventory, PciAddress
from vf_manager.provision import (
    BindVf,
    DriverKind,
    PfPolicy,
    Plan,
    SetAutoprobe,
    SetNumVfs,
    SetPfMtu,
    SetPfUp,
    SetVfMtu,
    Step,
    VfPolicy,
    describe,
    plan,
)
from vf_manager.records import RecordStore

PF0, PF1 = PciAddress("0000:01:00.0"), PciAddress("0000:02:00.0")
KERNEL, VFIO = DriverKind.KERNEL, DriverKind.VFIO_PCI
NOBODY: Set[PciAddress] = frozenset()


def quiet_log() -> FilteringBoundLogger:
    log: FilteringBoundLogger = structlog.wrap_logger(
        structlog.testing.CapturingLogger(), wrapper_class=structlog.make_filtering_bound_logger("critical")
    )
    return log


class Node:
    """A kernel with two PFs, and the agent's knowledge of it."""

    def __init__(self, folder: Path) -> None:
        self.kernel = FakeKernel()
        for number, pf in enumerate((PF0, PF1)):
            self.kernel.add_pf(pf, f"ens{number}")
        self.records = RecordStore(folder, CreatedVfs)
        self.locks = DeviceLocks()

    def inventory(self) -> Inventory:
        return Inventory(pfs=read_pfs(self.kernel))

    def vf(self, pf: PciAddress, index: int) -> PciAddress:
        return self.kernel.functions[pf].function.virtfns[index][1]

    def plan(self, *policies: PfPolicy, in_use: Set[PciAddress] = NOBODY) -> Plan:
        return plan(policies, self.inventory(), in_use, created_pfs(self.records))

    def apply(self, made: Plan) -> list[SriovError]:
        return apply_plan(made, self.kernel, self.locks, self.records, quiet_log())

    def provision(self, *policies: PfPolicy, in_use: Set[PciAddress] = NOBODY) -> Plan:
        """Everything the plan says succeeds."""
        made = self.plan(*policies, in_use=in_use)
        assert self.apply(made) == []
        return made

    def set_pf(self, name: str, change: LinkChange) -> None:
        link = self.kernel.find(name)
        assert link is not None
        with self.kernel.links() as host:
            host.set_link(link.netdev.ifindex, change)

    def move_to_pod(self, vf: PciAddress) -> None:
        path = f"/run/netns/{vf}"
        self.kernel.new_netns(path)
        pod = self.kernel.netns_at(path)
        assert pod is not None
        with self.kernel.links() as host:
            link = next(link for link in host.dump() if link.parent == vf)
            host.move(link.netdev.ifindex, pod, IfName("net1"))

    def state_of(self, vf: PciAddress) -> object:
        """All there is of one VF."""
        function = self.kernel.functions[vf].function
        owner = self.kernel.functions[function.physfn or vf]
        index = next(i for i, address in owner.function.virtfns if address == vf)
        links = [
            (number, link.netdev, link.addresses)
            for number, links in self.kernel.namespaces.items()
            for link in links
            if link.parent == vf
        ]
        return function.driver, owner.attributes[index], links

    def state_of_pf(self, pf: PciAddress) -> object:
        function = self.kernel.functions[pf]
        links = [link.netdev for link in self.kernel.namespaces[1] if link.parent == pf]
        vfs = [self.state_of(vf) for _, vf in function.function.virtfns]
        return function.function, links, vfs


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "pfs")


def wants(count: int, *vfs: VfPolicy, pf: PciAddress = PF0) -> PfPolicy:
    return PfPolicy(pf=pf, count=count, vfs=vfs)


def all_of(count: int, mtu: int | None = None, driver: DriverKind = KERNEL) -> VfPolicy:
    return VfPolicy(first=0, last=count - 1, mtu=mtu, driver=driver)


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
    policy = wants(2, all_of(2, mtu=9000))
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


def test_vfs_of_somebody_else_are_adopted_if_their_number_is_right(node: Node) -> None:
    node.set_pf("ens0", LinkChange(up=True))
    node.kernel.set_num_vfs(PF0, 2)
    assert node.plan(wants(2, all_of(2))) == Plan()
    assert node.plan(wants(2, all_of(2, driver=VFIO))).steps == (BindVf(PF0, 0, VFIO), BindVf(PF0, 1, VFIO))
    assert created_pfs(node.records) == set()


def test_a_smaller_mtu_of_the_pf_is_raised_and_a_greater_one_kept(node: Node) -> None:
    node.set_pf("ens0", LinkChange(up=True, mtu=4000))
    assert SetPfMtu(PF0, 9000) in node.plan(wants(1, all_of(1, mtu=9000))).steps
    assert not any(isinstance(s, SetPfMtu) for s in node.plan(wants(1, all_of(1, mtu=1500))).steps)


# -- refusals


def refusal(made: Plan) -> str:
    assert made.steps == ()
    (refused,) = made.refusals
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
    reason = refusal(node.plan(wants(4, all_of(4)), in_use={attached}))
    assert "would destroy all of them, and 2 of them are in use" in reason
    assert attached in reason
    assert in_pod in reason
    assert refusal(node.plan(wants(0), in_use={attached}))


def test_vfs_of_somebody_else_are_not_destroyed(node: Node) -> None:
    node.kernel.set_num_vfs(PF0, 2)
    for count in (3, 0):
        reason = refusal(node.plan(wants(count)))
        assert f"has 2 VFs that somebody else created, not {count}" in reason
        assert "set the count to 2, or write 0 to its sriov_numvfs" in reason


def test_a_vf_in_use_is_not_bound_to_another_driver(node: Node) -> None:
    node.provision(wants(2, all_of(2)))
    attached = node.vf(PF0, 1)
    reason = refusal(node.plan(wants(2, all_of(2, driver=VFIO)), in_use={attached}))
    assert reason == f"VF {attached} is in use and cannot be bound to vfio-pci now"


def test_a_refused_pf_does_not_hold_up_the_others(node: Node) -> None:
    made = node.provision(wants(8), wants(1, all_of(1), pf=PF1))
    assert [r.pf for r in made.refusals] == [PF0]
    assert len(node.inventory().pfs[1].vfs) == 1


def test_an_attached_vf_is_left_alone_wherever_its_interface_is(node: Node) -> None:
    """Its pod may be gone without a DEL: then the interface is back with what the pod's network asked for."""
    node.provision(wants(2, all_of(2, mtu=1500)))
    attached = node.vf(PF0, 0)
    made = node.plan(wants(2, all_of(2, mtu=9000)), in_use={attached})
    assert made.steps == (SetPfMtu(PF0, 9000), SetVfMtu(PF0, 1, 9000))


# -- carrying it out


def test_vfs_are_there_with_their_driver_and_mtu_when_it_returns(node: Node) -> None:
    node.provision(
        wants(3, VfPolicy(first=0, last=1, mtu=9000), VfPolicy(first=2, last=2, driver=VFIO)),
        wants(1, all_of(1), pf=PF1),
    )
    one, two = node.inventory().pfs
    assert [vf.driver for vf in one.vfs] == ["igbvf", "igbvf", "vfio-pci"]
    assert [vf.netdev.mtu for vf in one.vfs if vf.netdev] == [9000, 9000]
    assert one.netdev is not None
    assert (one.netdev.up, one.netdev.mtu, one.autoprobe) == (True, 9000, True)
    assert len(two.vfs) == 1
    assert created_pfs(node.records) == {PF0, PF1}


def test_removed_vfs_are_ours_no_more(node: Node) -> None:
    node.provision(wants(2, all_of(2)))
    node.provision(wants(0))
    assert created_pfs(node.records) == set()
    assert node.inventory().vfs() == []


def test_vfs_are_recorded_as_ours_before_they_are_made(node: Node) -> None:
    seen = []

    def look(what: str) -> None:
        if what == "set_num_vfs 2":
            seen.append(created_pfs(node.records))

    node.kernel.on_change = look
    node.provision(wants(2, all_of(2)))
    assert seen == [{PF0}]


def test_a_failure_ends_its_pf_and_no_other(node: Node) -> None:
    def refuse(what: str) -> None:
        if what == "set_num_vfs 2":
            raise KernelError("write 2 to sriov_numvfs", errno.ENOMEM)

    node.kernel.on_change = refuse
    made = node.plan(wants(2, all_of(2)), wants(1, all_of(1), pf=PF1))
    (failure,) = node.apply(made)
    assert "ENOMEM" in str(failure)
    assert [len(pf.vfs) for pf in node.inventory().pfs] == [0, 1]


def test_a_pf_that_somebody_works_on_is_left_alone(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vf_manager.apply._LOCK_TIMEOUT_S", 0.01)
    made = node.plan(wants(1, all_of(1)), wants(1, all_of(1), pf=PF1))
    with node.locks.vf(PF0, PciAddress("0000:01:10.0"), 0):
        (failure,) = node.apply(made)
    assert isinstance(failure, Busy)
    assert [len(pf.vfs) for pf in node.inventory().pfs] == [0, 1]


def test_a_driver_that_makes_no_interface_in_time_is_told(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vf_manager.apply._NETDEV_TIMEOUT_S", 0.01)
    monkeypatch.setattr(node.kernel, "bind_driver", lambda pci, driver: None)
    (failure,) = node.apply(node.plan(wants(1, all_of(1))))
    assert "got no network interface within 0.01 s" in str(failure)


def test_a_plan_for_vfs_that_are_gone_by_now(node: Node) -> None:
    made = Plan(steps=(BindVf(PF0, 3, KERNEL),))
    (failure,) = node.apply(made)
    assert str(failure) == f"PF {PF0} has no VF 3"


@pytest.mark.parametrize("number", range(1, 9))
def test_a_process_that_died_in_the_middle_is_made_up_for(node: Node, number: int) -> None:
    """Autoprobe may be off then, and the VFs there without a driver."""

    class Died(BaseException):
        pass

    left = [number]

    def die(what: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Died

    policy = wants(2, VfPolicy(first=0, last=0, mtu=9000))
    node.kernel.on_change = die
    with pytest.raises(Died):
        node.provision(policy)
    node.kernel.on_change = lambda what: None
    node.provision(policy)
    pf = node.inventory().pfs[0]
    assert [vf.driver for vf in pf.vfs] == ["igbvf", "igbvf"]
    assert [vf.netdev.mtu for vf in pf.vfs if vf.netdev] == [9000, 1500]
    assert pf.autoprobe
    assert node.plan(policy) == Plan()


# -- whatever the node looks like


vf_policies = st.builds(
    lambda first, length, mtu, driver: VfPolicy(first=first, last=first + length, mtu=mtu, driver=driver),
    st.integers(0, 5),
    st.integers(0, 3),
    st.sampled_from([None, 1400, 1500, 9000]),
    st.sampled_from(DriverKind),
)


def policies_for(pf: PciAddress) -> st.SearchStrategy[PfPolicy | None]:
    """Ranges of one PF do not overlap: the config refuses those that do and differ."""

    def disjoint(count: int, vfs: list[VfPolicy]) -> PfPolicy:
        kept: list[VfPolicy] = []
        for one in vfs:
            if all(one.last < other.first or other.last < one.first for other in kept):
                kept.append(one)
        return PfPolicy(pf=pf, count=count, vfs=tuple(kept))

    return st.none() | st.builds(disjoint, st.integers(0, 8), st.lists(vf_policies, max_size=3))


class Found(msgspec.Struct, frozen=True):
    """How one PF is found. `vfs`: of each VF, its driver and whether it is in a pod and on record."""

    up: bool
    autoprobe: bool
    ours: bool
    vfs: tuple[tuple[str, bool, bool], ...]


founds = st.builds(
    Found,
    up=st.booleans(),
    autoprobe=st.booleans(),
    ours=st.booleans(),
    vfs=st.lists(
        st.tuples(st.sampled_from(["igbvf", "vfio-pci", "none"]), st.booleans(), st.booleans()), max_size=4
    ).map(tuple),
)
SEVERAL = settings(max_examples=80, deadline=None)


def set_up(node: Node, name: str, pf: PciAddress, found: Found) -> set[PciAddress]:
    """Returns the VFs on record."""
    attached = set()
    node.kernel.set_num_vfs(pf, len(found.vfs))
    if found.ours and found.vfs:
        node.records.write(pf, CreatedVfs(pf=pf, count=len(found.vfs)))
    for index, (driver, in_pod, on_record) in enumerate(found.vfs):
        vf = node.vf(pf, index)
        if driver == "none":
            node.kernel._unbind(vf)
        elif driver != "igbvf":
            node.kernel.bind_driver(vf, driver)
        elif in_pod:
            node.move_to_pod(vf)
        if on_record:
            attached.add(vf)
    node.kernel.set_autoprobe(pf, found.autoprobe)
    node.set_pf(name, LinkChange(up=found.up))
    return attached


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def fresh(folder: Path) -> Node:
    for left_over in (folder / "pfs").glob("*"):
        left_over.unlink()
    return Node(folder / "pfs")


def in_use_before(node: Node, attached: set[PciAddress]) -> dict[PciAddress, object]:
    """VFs on record and those in pods, with all there is of them."""
    elsewhere = {
        link.parent for number, links in node.kernel.namespaces.items() if number != 1 for link in links
    }
    return {vf.pci: node.state_of(vf.pci) for vf in node.inventory().vfs() if vf.pci in attached | elsewhere}


@SEVERAL
@given(founds, founds, policies_for(PF0), policies_for(PF1))
def test_a_plan_carried_out_leaves_nothing_to_plan_and_vfs_in_use_untouched(
    folder: Path, one: Found, two: Found, first: PfPolicy | None, second: PfPolicy | None
) -> None:
    node = fresh(folder)
    attached = set_up(node, "ens0", PF0, one) | set_up(node, "ens1", PF1, two)
    policies = tuple(policy for policy in (first, second) if policy is not None)
    before = in_use_before(node, attached)
    untouched = {pf: node.state_of_pf(pf) for pf in (PF0, PF1)}

    made = node.provision(*policies, in_use=attached)
    assert {vf: node.state_of(vf) for vf in before} == before
    spoken_of = {step.pf for step in made.steps}
    for pf in {PF0, PF1} - spoken_of:
        assert node.state_of_pf(pf) == untouched[pf]
    assert not spoken_of & {refused.pf for refused in made.refusals}

    again = node.plan(*policies, in_use=attached)
    assert again.steps == ()
    assert again.refusals == made.refusals
    for policy in policies:
        if policy.pf not in {refused.pf for refused in made.refusals}:
            assert len(node.kernel.functions[policy.pf].function.virtfns) == policy.count


@SEVERAL
@given(founds, policies_for(PF0), st.integers(1, 12))
def test_a_failure_in_the_middle_is_made_up_for_by_the_next_plan(
    folder: Path, one: Found, policy: PfPolicy | None, number: int
) -> None:
    node = fresh(folder)
    attached = set_up(node, "ens0", PF0, one)
    before = in_use_before(node, attached)
    policies = (policy,) if policy else ()
    calls: list[str] = []

    def fail(what: str) -> None:
        calls.append(what)
        if len(calls) == number:
            raise KernelError(what, errno.EIO)

    made = node.plan(*policies, in_use=attached)
    node.kernel.on_change = fail
    assert len(node.apply(made)) == (1 if len(calls) >= number else 0)
    node.kernel.on_change = lambda what: None

    if not made.refusals:
        node.provision(*policies, in_use=attached)
        assert node.plan(*policies, in_use=attached) == Plan()
    assert {vf: node.state_of(vf) for vf in before} == before


def test_every_kind_of_step_has_its_line() -> None:
    steps: list[Step] = [SetNumVfs(PF0, 0), SetAutoprobe(PF0, True), BindVf(PF0, 0, VFIO)]
    assert [describe(step) for step in steps] == [
        f"remove the VFs of {PF0}",
        f"turn driver autoprobe of the VFs of {PF0} on",
        f"bind VF 0 of {PF0} to vfio-pci",
    ]
