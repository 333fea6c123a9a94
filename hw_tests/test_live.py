"""NICs, VFs and drivers that come and go while the agent runs: the kubelet has it within a second or so, with
no restart, and pods can go. What the kubelet was told is read from the stub's list of devices."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest

from hw_tests.conftest import REPORT
from hw_tests.faults import cable_pulled, unplugged
from hw_tests.live import TOLD_WITHIN_S, edited, healthy, look_until_told, other_kubelet, wait_said
from hw_tests.nics import PCI_DEVICES, Nic, wait_for_carrier, wait_until
from hw_tests.node import Node, resource_of
from hw_tests.runtime import host_local, network
from hw_tests.stage import Stage

CONF = network("live", vlan=100, mac="02:00:00:00:cd:61", ipam=host_local({"subnet": "198.18.61.0/24"}))
BACK_S = 60.0
SOME = 3

Measure = Callable[[Nic, list[str], Callable[[str], bool]], Callable[[str], None]]


@pytest.fixture
def stage(node: Node) -> Iterator[Stage]:
    """Here VFs are made anew, with new MACs: they cannot be as they were before, but must all be there."""
    wait_for_carrier(node.nics)
    node.wait_registered()
    drivers = {driver_of(nic.vf_address(0)) for nic in node.nics}
    with Stage(node) as stage:
        yield stage
    assert (node.records(), node.leases()) == ([], [])
    for nic in node.nics:
        node.kubelet.wait_devices(resource_of(nic), nic.vfs_used, BACK_S)
        assert nic.num_vfs == nic.vfs_used
        assert healthy(node, nic) == set(nic.vf_addresses())
        assert {driver_of(vf) for vf in nic.vf_addresses()} <= drivers
    node.runtime.status()


@pytest.fixture
def measure(request: pytest.FixtureRequest, node: Node) -> Iterator[Measure]:
    """Begins to look at VFs that are about to become bad. What it returns is for when the kernel has done it,
    and waits until the kubelet knows."""
    with ThreadPoolExecutor(1, thread_name_prefix="measure") as pool:

        def begin(nic: Nic, vfs: list[str], is_bad: Callable[[str], bool]) -> Callable[[str], None]:
            looking = pool.submit(look_until_told, node, nic, vfs, is_bad)

            def done(what: str) -> None:
                kernel_done = time.monotonic()
                looks = looking.result()
                after = looks.after_s(kernel_done)
                told = f"{after * 1000:.0f} ms after the kernel was done"
                line = (
                    f"{what}: the kubelet knew {told}, {looks.longest_s() * 1000:.0f} ms at most for one VF"
                )
                request.config.stash.setdefault(REPORT, []).append(line)
                assert after < TOLD_WITHIN_S, line

            return done

        yield begin


def driver_of(vf: str) -> str | None:
    link = PCI_DEVICES / vf / "driver"
    return link.resolve().name if link.exists() else None


def is_gone(vf: str) -> bool:
    return not (PCI_DEVICES / vf).exists()


@pytest.mark.usefixtures("faults")
def test_a_nic_is_unplugged_with_a_vf_in_a_pod(node: Node, stage: Stage, measure: Measure) -> None:
    nic, others = node.nics[0], node.nics[1:]
    vfs = nic.vf_addresses()
    pod, _ = stage.attach_new("unplugged", nic, CONF)
    told = measure(nic, vfs, is_gone)
    with unplugged(nic):
        told("a NIC is unplugged")
        assert set(pod.links()) == {"lo"}
        for other in others:
            assert healthy(node, other) == set(other.vf_addresses())
        stage.detach(pod)
        assert (node.records(), node.leases()) == ([], [])
    node.kubelet.wait_devices(resource_of(nic), nic.vfs_used, BACK_S)
    assert nic.vf_addresses() == vfs
    assert nic.is_up
    wait_for_carrier(node.nics)
    stage.attach_new("plugged", nic, CONF)


@pytest.mark.usefixtures("faults")
def test_cables_are_pulled(node: Node, stage: Stage, measure: Measure, two_nics: tuple[Nic, Nic]) -> None:
    """VFs of a pool that goes by the carrier are no good without one. The other pool comes to ignore it."""
    by_carrier, other = two_nics
    start = node.log.stat().st_size
    unhealthy = {"health": {"carrier": "unhealthy"}}
    with edited(node, {by_carrier: unhealthy, other: unhealthy}), ExitStack() as cables:
        told = measure(by_carrier, by_carrier.vf_addresses(), lambda vf: not by_carrier.has_carrier)
        for nic in two_nics:
            cables.enter_context(cable_pulled(nic))
        told("a cable is pulled")
        wait_said(node, start, by_carrier.vf_address(0), "carrier")
        node.kubelet.wait_devices(resource_of(other), 0, BACK_S)
        with edited(node, {other: {"health": {"carrier": "ignore"}}}):
            node.kubelet.wait_devices(resource_of(other), other.vfs_used, BACK_S)
            assert healthy(node, by_carrier) == set()
            cables.close()
            wait_for_carrier(two_nics)
            node.kubelet.wait_devices(resource_of(by_carrier), by_carrier.vfs_used, BACK_S)


def test_a_vf_loses_its_driver_for_a_moment(node: Node, stage: Stage) -> None:
    """It is bound again by policy."""
    nic = node.nics[0]
    vf = nic.vf_address(nic.vfs_used - 1)
    driver = driver_of(vf)
    (PCI_DEVICES / vf / "driver/unbind").write_text(vf)
    wait_until(lambda: driver_of(vf) == driver, f"driver {driver} of {vf}", BACK_S)
    node.kubelet.wait_devices(resource_of(nic), nic.vfs_used, BACK_S)


def test_somebody_else_has_his_hands_on_vfs(node: Node, stage: Stage, measure: Measure) -> None:
    """In a pool that nobody asked to make VFs or to keep their drivers: a driver is unbound and bound again,
    VFs are removed, others are made. That the new config is in force shows in its fewer VFs."""
    nic, start = node.nics[-1], node.log.stat().st_size
    vfs = nic.vf_addresses()[:SOME]
    select = {"pfNames": [f"{nic.name}#0-{SOME - 1}"]}
    with edited(node, {nic: {"select": select, "vfs": None}}):
        node.kubelet.wait_devices(resource_of(nic), SOME, BACK_S)
        assert nic.num_vfs == nic.vfs_used

        driver = (PCI_DEVICES / vfs[-1] / "driver").resolve()
        told = measure(nic, vfs[-1:], lambda vf: driver_of(vf) is None)
        (driver / "unbind").write_text(vfs[-1])
        told("somebody unbinds a driver")
        assert node.kubelet.devices(resource_of(nic))[vfs[-1]].health == "Unhealthy"
        assert healthy(node, nic) == {*vfs[:-1]}
        wait_said(node, start, vfs[-1], "driver")
        (driver / "bind").write_text(vfs[-1])
        node.kubelet.wait_devices(resource_of(nic), SOME, BACK_S)

        told = measure(nic, vfs, is_gone)
        nic.set_num_vfs(0)
        told("somebody removes VFs")
        nic.set_num_vfs(SOME)
        listed = partial(node.kubelet.devices, resource_of(nic))
        wait_until(lambda: listed().keys() == {*vfs}, "word to the kubelet of the new VFs", TOLD_WITHIN_S)
        nic.set_num_vfs(0)


def test_the_kubelet_is_restarted(node: Node, stage: Stage) -> None:
    """One that is called. The pod stays, and can go."""
    pod, _ = stage.attach_new("stays", node.nics[0], CONF)
    for _ in range(2):
        restart_kubelet(node)
    stage.detach(pod)


def test_a_kubelet_that_looks_for_plugins_is_restarted(node: Node, stage: Stage) -> None:
    with other_kubelet(node, takes_calls=False):
        pod, _ = stage.attach_new("stays", node.nics[0], CONF)
        for _ in range(2):
            restart_kubelet(node)
        stage.detach(pod)


def restart_kubelet(node: Node) -> None:
    before = len(node.kubelet.registrations())
    node.kubelet.restart()
    node.wait_registered()
    again = node.kubelet.registrations()[before:]
    assert sorted(again) == sorted(resource_of(nic) for nic in node.nics)
