"""Health: what is a fault of a VF, and how long a VF is without one before it counts as Healthy again."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_clock import FakeClock
from vf_manager.health import (
    Expected,
    Facts,
    HealthPolicy,
    HealthReason,
    Reaction,
    find_fault,
)
from vf_manager.health_keeper import CALM_S, HOLD_S, MAX_HOLD_S, HealthEvent, HealthKeeper
from vf_manager.kernel.device_nodes import DeviceNodes
from vf_manager.model import IfName, Inventory, Mac, Netdev, PciAddress, Pf, Vf
from vf_manager.provision_steps import DriverKind

PF = PciAddress("0000:01:00.0")
VF = PciAddress("0000:01:10.0")
IGNORE = HealthPolicy(carrier=Reaction.IGNORE, pf_down=Reaction.IGNORE)


def a_netdev(name: str, **fields: Any) -> Netdev:
    basic: dict[str, Any] = {"ifindex": 7, "name": IfName(name), "mac": Mac("02:00:00:00:00:01"), "mtu": 1500}
    return Netdev(**(basic | {"up": True, "carrier": True} | fields))


def a_vf(**fields: Any) -> Vf:
    return Vf(**({"pci": VF, "pf_pci": PF, "vendor": "8086", "device": "10ca", "driver": "igbvf"} | fields))


def a_pf(vf: Vf | None, **fields: Any) -> Pf:
    basic: dict[str, Any] = {
        "pci": PF,
        "vendor": "8086",
        "device": "10c9",
        "driver": "igb",
        "netdev": a_netdev("ens1"),
    }
    return Pf(**(basic | {"vfs": (vf,) if vf else ()} | fields))


def judge(vf: Vf, pf: dict[str, Any] | None = None, expected: Expected | None = None, **facts: Any) -> Any:
    """(reason, text) of the fault, or None."""
    inventory = Inventory(pfs=(a_pf(vf, **(pf or {})),))
    fault = find_fault(vf, expected or Expected(), Facts(inventory=inventory, **facts))
    return (fault.reason, fault.text) if fault else None


# -- the rules

WANTS_VFIO = Expected(driver=DriverKind.VFIO_PCI)
WANTS_KERNEL = Expected(driver=DriverKind.KERNEL)
VFIO_VF = a_vf(driver="vfio-pci", iommu_group=12)


def test_a_vf_of_a_pf_that_is_up_is_well() -> None:
    assert judge(a_vf(netdev=a_netdev("ens1v0", up=False, carrier=False))) is None
    assert judge(a_vf(), expected=WANTS_KERNEL) is None


def test_its_interface_need_not_be_on_the_host() -> None:
    """It is in a pod, or with another network plugin's record: nothing is wrong with it."""
    assert judge(a_vf(netdev=None), attached={VF}) is None
    assert judge(a_vf(netdev=None)) is None


def test_without_a_driver() -> None:
    said = (HealthReason.NO_DRIVER, "no driver is bound to it")
    assert judge(a_vf(driver=None)) == said
    assert judge(a_vf(driver=None), expected=WANTS_VFIO, attached={VF}) == said


def test_with_another_driver_than_its_pool_asks_for() -> None:
    found = a_vf(netdev=a_netdev("ens1v0"))
    said = "its driver is igbvf, and its pool has vfs.driver: vfio-pci"
    assert judge(found, expected=WANTS_VFIO) == (HealthReason.OTHER_DRIVER, said)
    said = "its driver is vfio-pci, and its pool has vfs.driver: kernel"
    nodes = {"12"}
    assert judge(VFIO_VF, expected=WANTS_KERNEL, vfio_nodes=nodes) == (HealthReason.OTHER_DRIVER, said)


def test_in_a_pod_it_may_have_the_driver_of_before() -> None:
    """Somebody changed the config: that is no fault of the VF that runs."""
    assert judge(a_vf(netdev=a_netdev("ens1v0")), expected=WANTS_VFIO, attached={VF}) is None
    assert judge(a_vf(netdev=None), expected=WANTS_VFIO) is None
    assert judge(VFIO_VF, expected=WANTS_KERNEL, vfio_nodes={"12"}, attached={VF}) is None


def test_a_vfio_vf_needs_its_node() -> None:
    missing = HealthReason.NO_VFIO_NODE
    assert judge(VFIO_VF, expected=WANTS_VFIO, vfio_nodes={"12"}) is None
    assert judge(VFIO_VF, vfio_nodes={"vfio", "13"}) == (missing, "/dev/vfio/12 is not there")
    assert judge(VFIO_VF, attached={VF}) == (missing, "/dev/vfio/12 is not there")
    reason, text = judge(a_vf(driver="vfio-pci"), vfio_nodes={"12"})
    assert (reason, "intel_iommu=on" in text) == (missing, True)


def test_the_node_of_the_single_device_will_do() -> None:
    """A kernel without CONFIG_VFIO_GROUP has no other."""
    found = msgspec.structs.replace(VFIO_VF, vfio_device="vfio3")
    assert judge(found, vfio_nodes={"devices/vfio3"}) is None
    assert judge(found, vfio_nodes={"devices/vfio4"}) is not None


@pytest.mark.parametrize("attached", [set(), {VF}])
@pytest.mark.parametrize(
    ("pf", "key", "reason", "text"),
    [
        ({"up": False}, "pf_down", HealthReason.PF_DOWN, f"its PF ens1 ({PF}) is down"),
        ({"carrier": False}, "carrier", HealthReason.NO_CARRIER, f"its PF ens1 ({PF}) has no carrier"),
    ],
)
def test_the_wire_counts_by_policy(
    pf: dict[str, Any], key: str, reason: HealthReason, text: str, attached: set[PciAddress]
) -> None:
    port = {"netdev": a_netdev("ens1", **pf)}
    assert judge(a_vf(), port, attached=attached) == (reason, text)
    ignored = HealthPolicy(**{key: Reaction.IGNORE})
    assert judge(a_vf(), port, Expected(policy=ignored), attached=attached) is None


def test_each_half_of_the_policy_is_by_itself() -> None:
    down = {"netdev": a_netdev("ens1", up=False, carrier=False)}
    assert judge(a_vf(), down, Expected(policy=HealthPolicy(carrier=Reaction.IGNORE))) is not None
    assert judge(a_vf(), down, Expected(policy=HealthPolicy(pf_down=Reaction.IGNORE))) is None


def test_a_pf_whose_interface_is_elsewhere_says_nothing_of_its_wire() -> None:
    assert judge(a_vf(), {"netdev": None}) is None


def test_a_pf_that_is_broken_counts_under_every_policy() -> None:
    ignore = Expected(policy=IGNORE)
    said = f"no driver is bound to its PF {PF}"
    assert judge(a_vf(), {"driver": None, "netdev": None}, ignore) == (HealthReason.PF_NO_DRIVER, said)
    said = f"devlink reports an error of fw_fatal of its PF ens1 ({PF})"
    assert judge(a_vf(), {"sick_reporters": ("fw_fatal", "tx")}, ignore) == (HealthReason.PF_SICK, said)


def test_the_queues_of_the_pf_are_its_own() -> None:
    assert judge(a_vf(), {"sick_reporters": ("tx", "rx", "mdd")}) is None


def test_what_the_host_needs_is_not_for_pods() -> None:
    why = "br0 of the host stands on its interface ens5"
    lone = a_vf(pf_pci=None, unusable=why, netdev=a_netdev("ens5"))
    inventory = Inventory(lone=(lone,))
    fault = find_fault(lone, Expected(), Facts(inventory=inventory))
    assert fault is not None
    assert (fault.reason, fault.text) == (HealthReason.HOST_NEEDS_IT, why)
    assert find_fault(lone, Expected(), Facts(inventory=inventory, attached={VF})) is None


def test_vfio_nodes_are_read_where_dev_is(tmp_path: Any) -> None:
    assert DeviceNodes(tmp_path).of_vfio() == set()
    (tmp_path / "vfio/devices").mkdir(parents=True)
    for name in ("vfio", "12", "devices/vfio0"):
        (tmp_path / "vfio" / name).touch()
    assert {"12", "devices/vfio0"} <= DeviceNodes(tmp_path).of_vfio()


def test_every_reason_is_in_the_documentation() -> None:
    """In the order in which they count."""
    page = Path(__file__).parent.parent / "docs" / "device-plugin.md"
    section = page.read_text().partition("## Health\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE) == list(HealthReason)


# -- over time


class Watched:
    """One pool with one VF, and a clock."""

    def __init__(self, expected: Expected | None = None) -> None:
        self.clock = FakeClock()
        self.keeper = HealthKeeper(self.clock, wall=lambda: 1000 + self.clock())
        self.expected = expected or Expected()

    def look(self, vf: Vf | None = None, *, pool: bool = True, **pf: Any) -> list[HealthEvent]:
        """At a VF of this PF, in the pool or not."""
        vf = vf or a_vf()
        members = {"fast": (vf,) if pool else ()}
        return self.keeper.look(
            members, {"fast": self.expected}, Facts(inventory=Inventory(pfs=(a_pf(vf, **pf),)))
        )

    def look_at_none(self, *pfs: Pf) -> list[HealthEvent]:
        return self.keeper.look({"fast": ()}, {"fast": self.expected}, Facts(inventory=Inventory(pfs=pfs)))

    def carrier(self, there: bool) -> list[HealthEvent]:
        return self.look(netdev=a_netdev("ens1", carrier=there))

    @property
    def is_healthy(self) -> bool:
        return not self.keeper.unhealthy()


NO_CARRIER = f"its PF ens1 ({PF}) has no carrier"


def test_it_is_unhealthy_at_once_and_healthy_after_a_while() -> None:
    watched = Watched()
    assert watched.carrier(True) == []
    (event,) = watched.carrier(False)
    assert event == HealthEvent(
        when=1000, pool="fast", vf=VF, healthy=False, reason=HealthReason.NO_CARRIER, text=NO_CARRIER
    )
    assert watched.keeper.unhealthy() == {"fast": {VF: NO_CARRIER}}
    assert watched.keeper.next_look_s() is None
    assert watched.carrier(True) == []
    assert watched.keeper.unhealthy() == {"fast": {VF: f"until a moment ago {NO_CARRIER}"}}
    assert watched.keeper.next_look_s() == HOLD_S
    watched.clock.pass_by(HOLD_S)
    (event,) = watched.carrier(True)
    assert event.healthy
    assert watched.is_healthy
    assert watched.keeper.next_look_s() is None
    assert [one.healthy for one in watched.keeper.events()] == [False, True]
    assert watched.keeper.transitions() == {
        ("fast", HealthReason.NO_CARRIER, False): 1,
        ("fast", HealthReason.NO_CARRIER, True): 1,
    }


def test_what_is_just_coming_up_need_not_wait() -> None:
    watched = Watched()
    assert [event.reason for event in watched.look(a_vf(driver=None))] == [HealthReason.NO_DRIVER]
    assert [event.healthy for event in watched.look()] == [True]
    assert watched.is_healthy


def test_another_reason_is_told_and_the_same_one_is_not() -> None:
    watched = Watched()
    watched.carrier(True)
    assert len(watched.carrier(False)) == 1
    assert watched.carrier(False) == []
    assert [event.reason for event in watched.look(a_vf(driver=None))] == [HealthReason.NO_DRIVER]


def test_a_vf_that_is_gone_and_comes_back() -> None:
    watched = Watched()
    watched.look()
    (event,) = watched.look_at_none(a_pf(None))
    assert (event.healthy, event.reason, event.text) == (False, HealthReason.GONE, "the device is gone")
    assert watched.keeper.unhealthy() == {"fast": {VF: "the device is gone"}}
    (event,) = watched.look_at_none()
    assert (event.reason, event.text) == (HealthReason.PF_GONE, f"its PF {PF} is gone")
    assert watched.look() == []
    assert not watched.is_healthy
    watched.clock.pass_by(HOLD_S)
    assert [event.healthy for event in watched.look()] == [True]


def test_what_has_been_gone_for_long_is_forgotten() -> None:
    watched = Watched()
    watched.look()
    watched.look_at_none()
    watched.clock.pass_by(CALM_S)
    assert watched.look_at_none() == []
    assert watched.is_healthy
    assert watched.look_at_none() == []


def test_a_vf_that_left_its_pool_with_its_driver_is_unhealthy() -> None:
    """Of a pool that selects by drivers."""
    watched = Watched()
    watched.look()
    assert [event.reason for event in watched.look(a_vf(driver=None), pool=False)] == [HealthReason.NO_DRIVER]
    assert watched.keeper.unhealthy() == {"fast": {VF: "no driver is bound to it"}}


def test_a_vf_that_is_in_another_pool_now_is_not_unhealthy() -> None:
    watched = Watched()
    watched.look()
    assert watched.look(pool=False) == []
    assert watched.is_healthy


def test_a_pool_that_is_no_more_takes_its_verdicts_along() -> None:
    watched = Watched()
    watched.carrier(False)
    assert watched.keeper.look({}, {}, Facts(inventory=Inventory())) == []
    assert watched.is_healthy


def test_the_same_vf_may_be_well_for_one_pool_and_not_for_another() -> None:
    keeper = HealthKeeper(FakeClock())
    vf = a_vf()
    facts = Facts(inventory=Inventory(pfs=(a_pf(vf, netdev=a_netdev("ens1", carrier=False)),)))
    members = {"strict": (vf,), "lax": (vf,)}
    keeper.look(members, {"strict": Expected(), "lax": Expected(policy=IGNORE)}, facts)
    assert keeper.unhealthy() == {"strict": {VF: NO_CARRIER}}


def fall_and_recover(watched: Watched) -> float:
    """How long it took."""
    watched.carrier(False)
    watched.carrier(True)
    held_s = watched.keeper.next_look_s()
    assert held_s is not None
    watched.clock.pass_by(held_s)
    assert [event.healthy for event in watched.carrier(True)] == [True]
    return held_s


def test_what_flaps_waits_longer_each_time_up_to_a_bound() -> None:
    watched = Watched()
    watched.carrier(True)
    assert [fall_and_recover(watched) for _ in range(7)] == [2, 4, 8, 16, 32, MAX_HOLD_S, MAX_HOLD_S]
    watched.clock.pass_by(CALM_S)
    assert fall_and_recover(watched) == HOLD_S


FLAPS = st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60)


@given(FLAPS)
def test_a_fault_shows_at_once_and_its_end_after_the_hold(flaps: list[tuple[float, bool]]) -> None:
    watched = Watched()
    watched.carrier(True)
    good_since: float | None = None
    for passed_s, well in flaps:
        watched.clock.pass_by(passed_s)
        was_healthy = watched.is_healthy
        watched.carrier(well)
        if not well:
            assert not watched.is_healthy
            good_since = None
        elif not was_healthy:
            good_since = watched.clock() if good_since is None else good_since
            good_s = watched.clock() - good_since
            assert not watched.is_healthy or good_s >= HOLD_S
            assert watched.is_healthy or good_s < MAX_HOLD_S


@given(FLAPS)
def test_it_asks_to_be_looked_at_just_when_it_is_due(flaps: list[tuple[float, bool]]) -> None:
    watched = Watched()
    watched.carrier(True)
    for passed_s, well in flaps:
        watched.clock.pass_by(passed_s)
        watched.carrier(well)
        wait_s = watched.keeper.next_look_s()
        assert (wait_s is not None) == (well and not watched.is_healthy)
    watched.carrier(True)
    wait_s = watched.keeper.next_look_s()
    if wait_s is not None:
        watched.clock.pass_by(wait_s + 1e-6)
        watched.carrier(True)
    assert watched.is_healthy


@given(FLAPS)
def test_events_and_counts_tell_the_whole_story(flaps: list[tuple[float, bool]]) -> None:
    watched = Watched()
    watched.carrier(True)
    told: list[HealthEvent] = []
    for passed_s, well in flaps:
        watched.clock.pass_by(passed_s)
        told += watched.carrier(well)
    assert [event.healthy for event in told] == [n % 2 == 1 for n in range(len(told))]
    assert watched.is_healthy == (len(told) % 2 == 0)
    assert list(watched.keeper.events()) == told
    assert sum(watched.keeper.transitions().values()) == len(told)


@given(FLAPS)
def test_pods_are_sent_to_what_flaps_only_now_and_then(flaps: list[tuple[float, bool]]) -> None:
    """In any minute it recovers six times at the most: after 2, 4, 8, 16, 32 s, and once from before."""
    watched = Watched()
    watched.carrier(True)
    recoveries: list[float] = []
    for passed_s, well in flaps:
        watched.clock.pass_by(passed_s)
        recoveries += [event.when for event in watched.carrier(well) if event.healthy]
    for first, later in zip(recoveries, recoveries[6:], strict=False):
        assert later - first > CALM_S
