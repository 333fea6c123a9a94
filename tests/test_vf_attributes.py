"""Attributes and MACs of a VF: what is set, what is restored, and what a failure in the middle leaves."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fake_kernel import FakeKernel
from vf_manager.errors import KernelError, NotFound
from vf_manager.model import ZERO_MAC, LinkState, Mac, PciAddress, VfAttributes, VfChange, VlanProto
from vf_manager.vf_attributes import (
    VfPort,
    assign_mac,
    difference,
    original_of,
    restore_macs,
    restore_vf_attributes,
    set_vf_attributes,
    set_vf_mac,
    split_change,
)

PF = PciAddress("0000:01:00.0")
MACS = tuple(Mac(f"02:00:00:5e:00:{n:02x}") for n in range(1, 5))
EXACT = settings(max_examples=100, deadline=None)

vlans = st.fixed_dictionaries(
    {"vlan": st.integers(0, 4094), "qos": st.integers(0, 7), "proto": st.just(VlanProto.DOT1Q)}
)
max_rates = st.fixed_dictionaries({"min_tx_rate": st.just(0), "max_tx_rate": st.sampled_from([0, 50, 900])})
rates = st.fixed_dictionaries(
    {"min_tx_rate": st.sampled_from([0, 10]), "max_tx_rate": st.sampled_from([0, 50, 900])}
)
flags = {"spoofchk": st.booleans(), "trust": st.booleans()}


@st.composite
def changes(draw: st.DrawFn, igb: bool = True) -> VfChange:
    """What a network config can ask for: the VLAN whole, one rate or both."""
    asked: dict[str, Any] = {}
    for group in (vlans, max_rates if igb else rates):
        if draw(st.booleans()):
            asked |= draw(group)
    asked |= draw(st.fixed_dictionaries({}, optional=flags | {"mac": st.sampled_from(MACS)}))
    if not igb:
        asked |= draw(st.fixed_dictionaries({}, optional={"link_state": st.sampled_from(LinkState)}))
        asked |= draw(st.sampled_from([{}, {"min_tx_rate": 10}, {"max_tx_rate": 900}]))
    return VfChange(**asked)


attributes = st.builds(
    VfAttributes,
    mac=st.sampled_from((ZERO_MAC, *MACS)),
    vlan=st.integers(0, 4094),
    qos=st.integers(0, 7),
    proto=st.sampled_from(VlanProto),
    spoofchk=st.none() | st.booleans(),
    trust=st.none() | st.booleans(),
    min_tx_rate=st.none() | st.integers(0, 100),
    max_tx_rate=st.none() | st.integers(0, 100),
    link_state=st.none() | st.sampled_from(LinkState),
)


# -- the pure parts


def apply(now: VfAttributes, change: VfChange) -> VfAttributes:
    return msgspec.structs.replace(now, **dict(change.items()))


@EXACT
@given(attributes, changes(igb=False))
def test_the_difference_brings_about_what_is_wanted(now: VfAttributes, wanted: VfChange) -> None:
    after = apply(now, difference(now, wanted))
    for key, value in wanted.items():
        assert getattr(after, key) == value
    assert difference(after, wanted).is_empty()


@EXACT
@given(attributes, changes(igb=False))
def test_the_difference_touches_nothing_else(now: VfAttributes, wanted: VfChange) -> None:
    after = apply(now, difference(now, wanted))
    asked = {key for key, _ in wanted.items()}
    for key in set(VfAttributes.__struct_fields__) - asked:
        before = getattr(now, key)
        assert getattr(after, key) == before or (before is None and getattr(after, key) == 0), key


@EXACT
@given(attributes, changes(igb=False))
def test_attributes_that_travel_together_are_whole(now: VfAttributes, wanted: VfChange) -> None:
    change = difference(now, wanted)
    assert len({change.vlan is None, change.qos is None, change.proto is None}) == 1
    assert (change.min_tx_rate is None) == (change.max_tx_rate is None)


def test_there_is_no_difference_to_what_is_so_already() -> None:
    now = VfAttributes(vlan=100, qos=3, trust=True)
    wanted = VfChange(vlan=100, qos=3, proto=VlanProto.DOT1Q, trust=True)
    assert difference(now, wanted).is_empty()


def test_the_rate_that_nobody_asked_for_stays() -> None:
    now = VfAttributes(min_tx_rate=10, max_tx_rate=100)
    assert difference(now, VfChange(max_tx_rate=200)) == VfChange(min_tx_rate=10, max_tx_rate=200)
    assert difference(now, VfChange(min_tx_rate=20)) == VfChange(min_tx_rate=20, max_tx_rate=100)


@EXACT
@given(attributes, changes(igb=False))
def test_the_original_takes_back_what_was_reported(now: VfAttributes, asked: VfChange) -> None:
    original = original_of(now, asked)
    back = apply(apply(now, difference(now, asked)), original)
    for key in VfAttributes.__struct_fields__:
        if getattr(now, key) is not None:
            assert getattr(back, key) == getattr(now, key), key


@EXACT
@given(attributes, changes(igb=False))
def test_the_original_names_only_what_is_changed(now: VfAttributes, asked: VfChange) -> None:
    changed = {key for key, _ in difference(now, asked).items()}
    asked_for = {key for key, _ in asked.items()}
    named = {key for key, _ in original_of(now, asked).items()}
    reported = {key for key in VfAttributes.__struct_fields__ if getattr(now, key) is not None}
    assert changed & reported <= named
    assert named <= asked_for | {"qos", "proto", "min_tx_rate", "max_tx_rate"}


@EXACT
@given(changes(igb=False))
def test_the_parts_of_a_change_make_it_whole_again(change: VfChange) -> None:
    parts = split_change(change)
    assert not any(part.is_empty() for part in parts)
    items = [item for part in parts for item in part.items()]
    assert sorted(items) == sorted(change.items())
    for part in parts:
        keys = {key for key, _ in part.items()}
        assert len(keys) == 1 or keys in ({"vlan", "qos", "proto"}, {"min_tx_rate", "max_tx_rate"})


# -- over the kernel


class Vf:
    """VF 1 of a PF of two, and what an attachment does to it."""

    def __init__(self, driver: str = "igb") -> None:
        self.kernel = FakeKernel()
        self.kernel.add_pf(PF, "ens1", driver=driver)
        self.kernel.set_num_vfs(PF, 2)
        self.pci = self.kernel.functions[PF].function.virtfns[1][1]
        self.port = VfPort(pci=self.pci, pf=PF, index=1)

    def attributes(self) -> VfAttributes:
        return self.kernel.functions[PF].attributes[1]

    def own_mac(self) -> Mac:
        link = self.kernel.find("ens1v1")
        assert link is not None
        return link.netdev.mac

    def set(self, change: VfChange) -> None:
        with self.kernel.links() as host:
            set_vf_attributes(self.kernel, host, self.port, change)

    def attach(self, change: VfChange) -> None:
        with self.kernel.links() as host:
            if change.mac is not None:
                assign_mac(self.kernel, host, self.port, change.mac)
            set_vf_attributes(self.kernel, host, self.port, change)

    def detach(self, original: VfAttributes, own: Mac, change: VfChange) -> None:
        before = original_of(original, change)
        with self.kernel.links() as host:
            if before.mac is not None:
                restore_macs(self.kernel, host, self.port, before.mac, own)
            rest = msgspec.structs.replace(before, mac=None)
            restore_vf_attributes(self.kernel, host, self.port, rest)

    @contextmanager
    def fails_at(self, number: int) -> Iterator[list[str]]:
        """The kernel refuses the change of this number, and only that."""
        seen: list[str] = []

        def count(what: str) -> None:
            seen.append(what)
            if len(seen) == number:
                raise KernelError(what, errno.EIO)

        self.kernel.on_change = count
        yield seen
        self.kernel.on_change = lambda what: None


class Before(msgspec.Struct, frozen=True):
    """How a VF is found: an administrator may have been there before us."""

    own: Mac | None = None
    administrative: Mac | None = None
    change: VfChange = VfChange()


befores = st.builds(
    Before,
    own=st.none() | st.sampled_from(MACS),
    administrative=st.none() | st.sampled_from(MACS),
    change=changes().map(lambda change: msgspec.structs.replace(change, mac=None)),
)


def found(before: Before, driver: str = "igb") -> Vf:
    vf = Vf(driver)
    with vf.kernel.links() as host:
        if before.own is not None:
            set_vf_mac(vf.kernel, host, vf.pci, before.own)
    vf.set(before.change)
    if before.administrative is not None:
        vf.set(VfChange(mac=before.administrative))
    return vf


class State(msgspec.Struct, frozen=True):
    """All there is. `mac_is_set`: whether the MAC that the PF shows was set there (IGB_VF_FLAG_PF_SET_MAC) or
    is the VF's own, mirrored: nobody can read that."""

    devices: str
    links: str
    mac_is_set: bool
    same_macs: bool


def state(vf: Vf) -> State:
    functions = {pci: (f.function, f.attributes) for pci, f in vf.kernel.functions.items()}
    return State(
        devices=str(functions),
        links=str(vf.kernel.snapshot()[1]),
        mac_is_set=1 in vf.kernel.functions[PF].mac_is_set,
        same_macs=vf.attributes().mac == vf.own_mac(),
    )


def assert_as_before(vf: Vf, earlier: State) -> None:
    """Where both MACs are the same, it counts as the VF's own: that leaves the next pod more freedom."""
    now = state(vf)
    if earlier.same_macs and not now.mac_is_set:
        earlier = msgspec.structs.replace(earlier, mac_is_set=False)
    assert now == earlier


def outcome(action: Callable[[], None]) -> int | None:
    """The errno that it failed with."""
    try:
        action()
    except KernelError as e:
        return e.code
    return None


TWO_MACS = Before(own=MACS[0], administrative=MACS[1])


@EXACT
@given(befores, changes(), st.sampled_from(["igb", "ice"]))
@example(TWO_MACS, VfChange(mac=MACS[2]), "igb")
@example(TWO_MACS, VfChange(mac=MACS[0]), "igb")
@example(TWO_MACS, VfChange(mac=MACS[1]), "igb")
def test_attached_and_detached_is_as_it_was(before: Before, asked: VfChange, driver: str) -> None:
    vf = found(before, driver)
    earlier, original, own = state(vf), vf.attributes(), vf.own_mac()
    vf.attach(asked)
    now = vf.attributes()
    for key, value in asked.items():
        assert getattr(now, key) == value, key
    if asked.mac is not None:
        assert vf.own_mac() == asked.mac
    vf.detach(original, own, asked)
    assert_as_before(vf, earlier)
    vf.detach(original, own, asked)
    assert_as_before(vf, earlier)


@EXACT
@given(befores, changes(), st.integers(1, 8))
def test_a_failure_while_attaching_can_be_taken_back(before: Before, asked: VfChange, number: int) -> None:
    vf = found(before)
    earlier, original, own = state(vf), vf.attributes(), vf.own_mac()
    with vf.fails_at(number) as seen:
        code = outcome(lambda: vf.attach(asked))
    assert code == (errno.EIO if len(seen) >= number else None)
    vf.detach(original, own, asked)
    assert_as_before(vf, earlier)


@EXACT
@given(befores, changes(), st.integers(1, 8))
def test_a_failure_while_detaching_is_told_and_can_be_repeated(
    before: Before, asked: VfChange, number: int
) -> None:
    vf = found(before)
    earlier, original, own = state(vf), vf.attributes(), vf.own_mac()
    vf.attach(asked)
    with vf.fails_at(number) as seen:
        code = outcome(lambda: vf.detach(original, own, asked))
    assert code == (errno.EIO if len(seen) >= number else None)
    vf.detach(original, own, asked)
    assert_as_before(vf, earlier)


def test_what_can_be_restored_is_though_something_else_cannot() -> None:
    vf = Vf()
    original, own = vf.attributes(), vf.own_mac()
    asked = VfChange(vlan=100, qos=0, proto=VlanProto.DOT1Q, spoofchk=False, trust=True)
    vf.attach(asked)
    with vf.fails_at(1), pytest.raises(KernelError, match="set vlan 0 on vf 1 of ens1") as caught:
        vf.detach(original, own, asked)
    assert caught.value.code == errno.EIO
    now = vf.attributes()
    assert (now.vlan, now.spoofchk, now.trust) == (100, True, False)


def test_only_what_differs_is_written() -> None:
    vf = Vf()
    wanted = VfChange(vlan=100, qos=0, proto=VlanProto.DOT1Q, trust=True)
    with vf.fails_at(0) as seen:
        vf.set(wanted)
        vf.set(wanted)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            VfChange(link_state=LinkState.ENABLE),
            "set link_state enable on vf 1 of ens1 (0000:01:10.1): EOPNOTSUPP",
        ),
        (
            VfChange(min_tx_rate=10, max_tx_rate=50),
            "set min_tx_rate 10 on vf 1 of ens1 (0000:01:10.1): EINVAL",
        ),
        (
            VfChange(trust=True, spoofchk=False, link_state=LinkState.ENABLE),
            "set link_state enable on vf 1 of ens1 (0000:01:10.1): EOPNOTSUPP",
        ),
    ],
)
def test_the_refused_attribute_is_named_with_the_reason(change: VfChange, said: str) -> None:
    vf = Vf()
    with pytest.raises(KernelError) as caught:
        vf.set(change)
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith("the driver igb does not support it")


def test_a_rate_that_waits_for_the_link_of_the_pf_says_so() -> None:
    vf = Vf()
    pf = vf.kernel.find("ens1")
    assert pf is not None
    pf.netdev = msgspec.structs.replace(pf.netdev, up=False, carrier=False)

    def refuse(name: str) -> None:
        if "vf" in name:
            raise KernelError(name, errno.EINVAL)

    vf.kernel.on_change = refuse
    with pytest.raises(KernelError, match="sets rates only while the PF's link is up, and that is down"):
        vf.set(VfChange(min_tx_rate=0, max_tx_rate=100))


def test_a_refusal_for_another_reason_does_not_blame_the_driver() -> None:
    vf = Vf()
    with vf.fails_at(1), pytest.raises(KernelError, match="set trust on on vf 1") as caught:
        vf.set(VfChange(trust=True))
    assert "support" not in str(caught.value)


# -- devices that are not there


@pytest.fixture
def gone() -> Vf:
    vf = Vf()
    vf.kernel.set_num_vfs(PF, 0)
    return vf


@pytest.fixture
def pf_in_a_pod() -> Vf:
    vf = Vf()
    link = vf.kernel.find("ens1")
    assert link is not None
    vf.kernel.namespaces[1].remove(link)
    return vf


@pytest.mark.parametrize("which", ["gone", "pf_in_a_pod"])
def test_there_is_nothing_to_restore(which: str, request: pytest.FixtureRequest) -> None:
    vf: Vf = request.getfixturevalue(which)
    before = vf.kernel.snapshot()
    with vf.kernel.links() as host:
        restore_vf_attributes(vf.kernel, host, vf.port, VfChange(trust=True))
        restore_macs(vf.kernel, host, vf.port, MACS[0], MACS[1])
    assert vf.kernel.snapshot() == before


def test_an_address_that_is_another_device_by_now_is_left_alone() -> None:
    vf = Vf()
    pf = vf.kernel.add_pf("0000:02:00.0", "ens2")
    other = VfPort(pci=vf.pci, pf=pf, index=0)
    vf.kernel.set_num_vfs(pf, 1)
    before = vf.kernel.snapshot()
    with vf.kernel.links() as host:
        restore_vf_attributes(vf.kernel, host, other, VfChange(trust=True))
        restore_macs(vf.kernel, host, other, MACS[0], MACS[1])
    assert vf.kernel.snapshot() == before


def test_setting_needs_the_pf(pf_in_a_pod: Vf) -> None:
    with pytest.raises(NotFound, match="PF 0000:01:00"):
        pf_in_a_pod.set(VfChange(trust=True))


def test_a_vf_without_interface_has_only_an_administrative_mac() -> None:
    vf = Vf()
    vf.kernel.bind_driver(vf.pci, "vfio-pci")
    original = vf.attributes()
    with vf.kernel.links() as host:
        assign_mac(vf.kernel, host, vf.port, MACS[0])
        assert vf.attributes().mac == MACS[0]
        restore_macs(vf.kernel, host, vf.port, original.mac, None)
    assert vf.attributes() == original


# -- drivers that take their time


def retried(code: int, times: int) -> Callable[[Vf], None]:
    def arm(vf: Vf) -> None:
        left = [times]

        def refuse(what: str) -> None:
            if "mac" in what and left[0]:
                left[0] -= 1
                raise KernelError(what, code)

        vf.kernel.on_change = refuse

    return arm


@pytest.mark.parametrize("code", [errno.EADDRNOTAVAIL, errno.EAGAIN, errno.EBUSY, errno.EPERM])
def test_a_mac_that_the_driver_is_not_ready_for_is_tried_again(code: int) -> None:
    vf = Vf("iavf")
    retried(code, 2)(vf)
    with vf.kernel.links() as host:
        set_vf_mac(vf.kernel, host, vf.pci, MACS[0])
    assert vf.own_mac() == MACS[0]


def test_but_not_one_that_it_will_never_take() -> None:
    vf = Vf()
    retried(errno.EINVAL, 1)(vf)
    with vf.kernel.links() as host, pytest.raises(KernelError):
        set_vf_mac(vf.kernel, host, vf.pci, MACS[0])
    assert vf.own_mac() != MACS[0]


def test_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vf_manager.vf_attributes._MAC_DEADLINE_S", 0.05)
    vf = Vf()
    vf.set(VfChange(mac=MACS[1]))
    with vf.kernel.links() as host, pytest.raises(KernelError) as caught:
        set_vf_mac(vf.kernel, host, vf.pci, MACS[0])
    assert caught.value.code == errno.EADDRNOTAVAIL
