"""How many addresses a host-local network has, and how many of them are leased."""

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriov_cni.fields import Fields
from sriov_cni.ipam.capacity import Capacity, read_capacity
from sriov_cni.ipam.config import HostLocalConf, IpRequest, parse_ipam
from sriov_cni.ipam.engine import make_ipam
from sriov_cni.ipam.lease_dir import LeaseDir
from sriov_cni.ipam.ranges import AddressRange, RangeSet
from vf_manager.errors import KernelError


def conf_of(**ipam: Any) -> HostLocalConf:
    conf = parse_ipam(Fields({"type": "host-local", **ipam}, "ipam"), IpRequest())
    assert isinstance(conf, HostLocalConf)
    return conf


def add(conf: HostLocalConf, root: Path, *containers: str) -> None:
    engine = make_ipam(conf, network="net", boot_id="b", data_dir=root)
    assert engine is not None
    for container in containers:
        engine.add(container, "eth0")


@st.composite
def range_sets(draw: st.DrawFn) -> RangeSet:
    """Of two subnets, one after the other; the gateway may be outside."""
    version = draw(st.sampled_from((4, 6)))
    ranges = []
    for base in ("10.0.0.0/28", "10.0.1.0/29") if version == 4 else ("fd00::/124", "fd00::100/125"):
        subnet = ip_network(base)
        one, other = sorted(draw(st.tuples(*2 * [st.integers(0, subnet.num_addresses - 1)])))
        gateway = subnet.network_address + draw(st.integers(0, 20))
        ranges.append(AddressRange(subnet=subnet, start=subnet[one], end=subnet[other], gateway=gateway))
    return RangeSet(ranges=tuple(ranges))


@given(range_sets())
def test_the_size_of_a_set_is_how_many_it_can_give(ranges: RangeSet) -> None:
    candidates = [ip_address(name) for name, _ in ranges.candidates(None)]
    assert ranges.size == len(candidates)
    everything = [address for r in ranges.ranges for address in r.subnet]
    assert ranges.count(everything) == ranges.size


def test_each_range_set_by_itself(tmp_path: Path) -> None:
    conf = conf_of(ranges=[[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]])
    add(conf, tmp_path, "a", "b")
    assert read_capacity(conf, "net", tmp_path) == [
        Capacity(ranges="10.0.0.1-10.0.0.254", addresses=253, leased=2),
        Capacity(ranges="fd00::1-fd00::ffff:ffff:ffff:ffff", addresses=2**64 - 2, leased=2),
    ]


def test_leases_outside_of_the_ranges_are_not_theirs(tmp_path: Path) -> None:
    """Of a range that the config had before, or the gateway's, which an administrator put there."""
    add(conf_of(subnet="10.0.9.0/24"), tmp_path, "a")
    (tmp_path / "net/10.0.0.1").write_text("gateway")
    conf = conf_of(subnet="10.0.0.0/29")
    assert [one.leased for one in read_capacity(conf, "net", tmp_path)] == [0]


def test_a_directory_of_its_own_and_one_that_is_not_there_yet(tmp_path: Path) -> None:
    conf = conf_of(subnet="10.0.0.0/24", dataDir=str(tmp_path / "mine"))
    assert [one.leased for one in read_capacity(conf, "net", Path("/nowhere"))] == [0]
    add(conf, Path("/nowhere"), "a")
    assert [one.leased for one in read_capacity(conf, "net", Path("/nowhere"))] == [1]


def test_it_does_not_wait_for_the_lock(tmp_path: Path) -> None:
    conf = conf_of(subnet="10.0.0.0/24")
    add(conf, tmp_path, "a")
    with LeaseDir(tmp_path / "net", boot_id="b").locked():
        assert [one.leased for one in read_capacity(conf, "net", tmp_path)] == [1]


def test_what_is_no_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "net").write_text("")
    with pytest.raises(KernelError, match="read the lease directory"):
        read_capacity(conf_of(subnet="10.0.0.0/24"), "net", tmp_path)
