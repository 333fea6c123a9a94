"""NICs, VFs and drivers that come and go while the agent runs: the kubelet has it within a second or so, with
no restart, and pods can go. What the kubelet was told is read from the stub's list of devices."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from hw_tests.conftest import REPORT
from hw_tests.faults import cable_pulled, unplugged
from hw_tests.live import TOLD_WITHIN_S, edited, healthy, seconds_until_told, wait_said
from hw_tests.nics import PCI_DEVICES, Nic, wait_for_carrier, wait_until
from hw_tests.node import Node, resource_of
from hw_tests.runtime import host_local, network
from hw_tests.stage import Stage

CONF = network("live", vlan=100, mac="02:00:00:00:cd:61", ipam=host_local({"subnet": "198.18.61.0/24"}))
BACK_S = 60.0

Measure = Callable[[Nic, list[str], Callable[[str], bool]], Callable[[str], None]]


@pytest.fixture
def stage(node: Node) -> Iterator[Stage]:
    """Here VFs are made anew, with new MACs: they cannot be as they were before, but must all be there."""
    wait_for_carrier(node.nics)
    node.wait_registered()
    with Stage(node) as stage:
        yield stage
    assert (node.records(), node.leases()) == ([], [])
    for nic in node.nics:
        node.kubelet.wait_devices(resource_of(nic), nic.vfs_used, BACK_S)
        assert nic.num_vfs == nic.vfs_used
        assert healthy(node, nic) == set(nic.vf_addresses())
        assert {driver_of(vf) for vf in nic.vf_addresses()} == {"igbvf"}
    node.runtime.status()


@pytest.fixture
def measure(request: pytest.FixtureRequest, node: Node) -> Iterator[Measure]:
    """Begins to look at VFs that are about to become bad; what it returns waits until the kubelet knows."""
    with ThreadPoolExecutor(1, thread_name_prefix="measure") as pool:

        def begin(nic: Nic, vfs: list[str], is_bad: Callable[[str], bool]) -> Callable[[str], None]:
            looking = pool.submit(seconds_until_told, node, nic, vfs, is_bad)

            def done(what: str) -> None:
                seconds = looking.result()
                line = f"{what}: the kubelet knew after {seconds * 1000:.0f} ms"
                request.config.stash.setdefault(REPORT, []).append(line)
                assert seconds < TOLD_WITHIN_S, line

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
def test_a_cable_is_pulled(node: Node, stage: Stage, measure: Measure) -> None:
    """VFs of a pool that goes by the carrier are no good without one, those of another pool are."""
    nic = node.nics[0]
    start = node.log.stat().st_size
    by_carrier = {nic: {"health": {"carrier": "unhealthy"}}}
    with edited(node, by_carrier):
        told = measure(nic, nic.vf_addresses(), lambda vf: not nic.has_carrier)
        with cable_pulled(nic):
            told("a cable is pulled")
            wait_said(node, start, nic.vf_address(0), "carrier")
            with edited(node, {nic: {"health": {"carrier": "ignore"}}}):
                node.kubelet.wait_devices(resource_of(nic), nic.vfs_used, BACK_S)
            node.kubelet.wait_devices(resource_of(nic), 0, BACK_S)
        node.kubelet.wait_devices(resource_of(nic), nic.vfs_used, BACK_S)


def test_a_vf_loses_its_driver(node: Node, stage: Stage, measure: Measure) -> None:
    nic, start = node.nics[0], node.log.stat().st_size
    vf = nic.vf_address(nic.vfs_used - 1)
    driver = PCI_DEVICES.parent / "drivers" / str(driver_of(vf))
    told = measure(nic, [vf], lambda vf: driver_of(vf) is None)
    (driver / "unbind").write_text(vf)
    try:
        told("a VF loses its driver")
        assert healthy(node, nic) == {*nic.vf_addresses()} - {vf}
        assert node.kubelet.devices(resource_of(nic))[vf].health == "Unhealthy"
        wait_said(node, start, vf, "driver")
    finally:
        (driver / "bind").write_text(vf)
    node.kubelet.wait_devices(resource_of(nic), nic.vfs_used, BACK_S)


def test_somebody_else_makes_and_removes_vfs(node: Node, stage: Stage, measure: Measure) -> None:
    """In a pool that nobody asked to make VFs. That the new config is in force shows in its fewer VFs."""
    nic, some = node.nics[-1], 3
    select = {"pfNames": [f"{nic.name}#0-{some - 1}"]}
    with edited(node, {nic: {"select": select, "vfs": None}}):
        node.kubelet.wait_devices(resource_of(nic), some, BACK_S)
        assert nic.num_vfs == nic.vfs_used
        told = measure(nic, nic.vf_addresses()[:some], is_gone)
        nic.set_num_vfs(0)
        told("somebody removes VFs")

        nic.set_num_vfs(some)
        wait_until(lambda: healthy(node, nic) == set(nic.vf_addresses()), "the new VFs", TOLD_WITHIN_S)
        nic.set_num_vfs(0)
        node.kubelet.wait_devices(resource_of(nic), 0, BACK_S)


def test_the_kubelet_is_restarted(node: Node, stage: Stage) -> None:
    before = len(node.kubelet.registrations())
    pod, _ = stage.attach_new("stays", node.nics[0], CONF)
    for _ in range(2):
        node.kubelet.restart()
        node.wait_registered()
    again = node.kubelet.registrations()[before:]
    assert sorted(again) == sorted(2 * [resource_of(nic) for nic in node.nics])
    stage.detach(pod)
