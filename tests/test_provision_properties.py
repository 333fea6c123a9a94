"""Whatever a node looks like and whatever is wanted of it: no VF in use is touched, refusals say why, and
what a plan says is so once it was carried out.

Thousands of examples, in parts, so that no single test takes long.
"""

import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.provision_world import ONE_AT_A_TIME, PF0, PF1, Node
from vf_manager.apply import CreatedVfs
from vf_manager.errors import KernelError
from vf_manager.kernel.api import LinkChange
from vf_manager.model import IfName, Inventory, Mac, Netdev, PciAddress, Pf, Vf, VfAttributes
from vf_manager.provision import MacKind, PfPolicy, Plan, RefusalKind, VfPolicy, plan
from vf_manager.provision_steps import DriverKind, EswitchMode, SetNumVfs, VfStep
from vf_manager.stable_mac import stable_mac

NAMES = {PF0: "ens0", PF1: "ens1"}
modes = st.sampled_from([None, *EswitchMode])


# -- what is wanted

vf_policies = st.builds(
    lambda first, length, mtu, driver, mac: VfPolicy(
        first=first, last=first + length, mtu=mtu, driver=driver, mac=mac
    ),
    st.integers(0, 5),
    st.integers(0, 3),
    st.sampled_from([None, 1400, 1500, 9000]),
    st.sampled_from(DriverKind),
    st.sampled_from([None, MacKind.STABLE]),
)


def policies_for(pf: PciAddress) -> st.SearchStrategy[PfPolicy | None]:
    """Ranges of one PF do not overlap: the config refuses those that do and differ."""

    def make(count: int, vfs: list[VfPolicy], adopt: bool, mode: EswitchMode | None) -> PfPolicy:
        kept: list[VfPolicy] = []
        for one in vfs:
            if all(one.last < other.first or other.last < one.first for other in kept):
                kept.append(one)
        return PfPolicy(pf=pf, count=count, vfs=tuple(kept), adopt=adopt, eswitch_mode=mode)

    return st.none() | st.builds(
        make, st.integers(0, 8), st.lists(vf_policies, max_size=3), st.booleans(), modes
    )


# -- inventories that no kernel need ever have shown

_mtus = st.sampled_from([1400, 1500, 9000])
_macs = st.sampled_from([Mac("02:00:00:00:00:01"), Mac("b4:96:91:00:00:02"), Mac("b4:96:91:00:00:03")])
netdevs = st.none() | st.builds(
    lambda mac, mtu, up: Netdev(ifindex=7, name=IfName("x"), mac=mac, mtu=mtu, up=up),
    _macs,
    _mtus,
    st.booleans(),
)


def pf_with(pci: PciAddress) -> st.SearchStrategy[Pf]:
    vf = st.builds(
        lambda driver, netdev, mac: Vf(
            pci=pci,
            pf_pci=pci,
            vendor="8086",
            device="10ca",
            driver=driver,
            netdev=netdev if driver != "vfio-pci" else None,
            attributes=VfAttributes(mac=mac) if mac else None,
        ),
        st.sampled_from([None, "igbvf", "vfio-pci", "igb_uio"]),
        netdevs,
        st.none() | _macs,
    )

    def make(netdev: Netdev | None, vfs: list[Vf], autoprobe: bool, mode: str | None, mac: Mac | None) -> Pf:
        placed = [
            msgspec.structs.replace(vf, index=i, pci=PciAddress(f"{pci[:-4]}10.{i}"))
            for i, vf in enumerate(vfs)
        ]
        return Pf(
            pci=pci,
            vendor="8086",
            device="10c9",
            driver="igb",
            netdev=netdev,
            total_vfs=7,
            num_vfs=len(placed),
            autoprobe=autoprobe,
            eswitch_mode=mode,
            permanent_mac=mac,
            vfs=tuple(placed),
        )

    return st.builds(make, netdevs, st.lists(vf, max_size=5), st.booleans(), modes, st.none() | _macs)


@pytest.mark.parametrize("part", range(5))
@settings(max_examples=400, deadline=None)
@given(pf_with(PF0), pf_with(PF1), policies_for(PF0), policies_for(PF1), st.data())
def test_no_plan_touches_a_vf_in_use(
    part: int, one: Pf, two: Pf, first: PfPolicy | None, second: PfPolicy | None, data: st.DataObject
) -> None:
    inventory = Inventory(pfs=(one, two))
    policies = tuple(policy for policy in (first, second) if policy is not None)
    vfs = [vf.pci for vf in inventory.vfs()]
    held = data.draw(st.sets(st.sampled_from(vfs))) if vfs else set()
    created = data.draw(st.dictionaries(st.sampled_from([PF0, PF1]), st.integers(0, 5)))
    made = plan(policies, inventory, dict.fromkeys(held, "default/trainer"), created)

    away = {v.pci for v in inventory.vfs() if v.netdev is None and v.driver == "igbvf"}
    for pf in inventory.pfs:
        in_use = {vf.index for vf in pf.vfs if vf.pci in held | away}
        steps = made.of(pf.pci)
        assert not any(isinstance(s, VfStep) and s.index in in_use for s in steps)
        assert not in_use or not any(isinstance(s, SetNumVfs) for s in steps)
        if not (created.get(pf.pci) == pf.num_vfs or any(p.adopt and p.pf == pf.pci for p in policies)):
            assert pf.num_vfs == 0 or not any(isinstance(s, VfStep | SetNumVfs) for s in steps)
    assert not {step.pf for step in made.steps} & {refusal.pf for refusal in made.refusals}
    assert {step.pf for step in made.steps} <= {policy.pf for policy in policies}
    for refusal in made.refusals:
        assert refusal.pf in refusal.reason
        assert bool(refusal.holders) == (refusal.kind is RefusalKind.PENDING)
        assert {holder.vf for holder in refusal.holders} <= held | away


# -- and those that the in-memory kernel can be brought to


class Found(msgspec.Struct, frozen=True):
    """How one PF is found. `vfs`: of each VF, its driver and whether it is in a pod and on record."""

    up: bool
    autoprobe: bool
    ours: bool
    mode: str | None
    vfs: tuple[tuple[str, bool, bool], ...]


founds = st.builds(
    Found,
    up=st.booleans(),
    autoprobe=st.booleans(),
    ours=st.booleans(),
    mode=modes,
    vfs=st.lists(
        st.tuples(st.sampled_from(["igbvf", "vfio-pci", "none"]), st.booleans(), st.booleans()), max_size=4
    ).map(tuple),
)
MANY = settings(max_examples=200, deadline=None)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def node_with(folder: Path, driver: str, *found: Found) -> Node:
    for left_over in (folder / "pfs").glob("*"):
        left_over.unlink()
    node = Node(folder / "pfs", driver=driver)
    for pf, one in zip((PF0, PF1), found, strict=False):
        _bring_to(node, pf, one)
    return node


def _bring_to(node: Node, pf: PciAddress, found: Found) -> None:
    if found.mode is not None:
        node.kernel.eswitch[pf] = found.mode
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
            node.held[vf] = "default/trainer"
    node.kernel.set_autoprobe(pf, found.autoprobe)
    node.set_pf(NAMES[pf], LinkChange(up=found.up))


def in_use(node: Node) -> dict[PciAddress, object]:
    """VFs that are held and those in pods, with all there is of them."""
    elsewhere = {
        link.parent for number, links in node.kernel.namespaces.items() if number != 1 for link in links
    }
    return {
        vf.pci: node.state_of(vf.pci)
        for vf in node.inventory().vfs()
        if vf.pci in node.held.keys() | elsewhere
    }


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("driver", ["igb", "ice"])
@MANY
@given(founds, founds, policies_for(PF0), policies_for(PF1))
def test_a_plan_carried_out_leaves_nothing_to_plan(
    folder: Path,
    driver: str,
    part: int,
    one: Found,
    two: Found,
    first: PfPolicy | None,
    second: PfPolicy | None,
) -> None:
    node = node_with(folder, driver, one, two)
    policies = tuple(policy for policy in (first, second) if policy is not None)
    before = in_use(node)
    untouched = {pf: node.state_of_pf(pf) for pf in (PF0, PF1)}

    made = node.provision(*policies)
    assert {vf: node.state_of(vf) for vf in before} == before
    for pf in {PF0, PF1} - {step.pf for step in made.steps}:
        assert node.state_of_pf(pf) == untouched[pf]
    assert node.plan(*policies) == Plan(refusals=made.refusals)
    for policy in policies:
        if policy.pf not in {refused.pf for refused in made.refusals}:
            assert_as_wanted(node, policy)


def assert_as_wanted(node: Node, policy: PfPolicy) -> None:
    pf = node.inventory().find_pf(policy.pf)
    assert pf is not None
    assert pf.num_vfs == len(pf.vfs) == policy.count
    assert policy.eswitch_mode in (None, pf.eswitch_mode)
    used = in_use(node)
    for vf in (vf for vf in pf.vfs if vf.pci not in used):
        wanted = next((p for p in policy.vfs if p.first <= vf.index <= p.last), None)
        if wanted is None:
            continue
        assert (vf.driver == "vfio-pci") == (wanted.driver is DriverKind.VFIO_PCI)
        assert vf.netdev is None or wanted.mtu in (None, vf.netdev.mtu)
        if wanted.mac is not None:
            assert pf.permanent_mac is not None
            assert vf.attributes is not None
            assert vf.attributes.mac == stable_mac(pf.permanent_mac, vf.index)
            assert vf.netdev is None or vf.netdev.mac == vf.attributes.mac


@MANY
@given(founds, policies_for(PF0), st.integers(1, 20))
def test_a_failure_in_the_middle_is_made_up_for_by_the_next_plan(
    folder: Path, one: Found, policy: PfPolicy | None, number: int
) -> None:
    node = node_with(folder, "igb", one)
    before = in_use(node)
    policies = (policy,) if policy else ()
    calls: list[str] = []

    def fail(what: str) -> None:
        calls.append(what)
        if len(calls) == number:
            raise KernelError(what, errno.EIO)

    outline = node.outline_of_pf(PF0)
    node.kernel.on_change = fail
    outcome = node.reconcile(*policies)
    assert len(outcome.failed) == (1 if len(calls) >= number else 0)
    if outcome.failed and "is as it was before" in outcome.failed[0].error:
        assert node.outline_of_pf(PF0) == outline
    node.kernel.on_change = lambda what: None

    node.start_agent(ONE_AT_A_TIME)
    node.provision(*policies)
    assert {vf: node.state_of(vf) for vf in before} == before
