"""Addresses: what host-local gives out, keeps, releases and leaves on disk; what static answers."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sriov_cni.fields import Fields
from sriov_cni.ipam.config import HostLocalConf, IpRequest, StaticConf, parse_ipam
from sriov_cni.ipam.engine import Ipam, make_ipam
from sriov_cni.ipam.lease_dir import BOOT_MARK, TEMPORARY, LeaseDir, OwnerCache, read_boot_id
from sriov_cni.ipam.ranges import parse_address
from sriov_cni.ipam.resolv_conf import parse_resolv_conf
from sriov_cni.spec import Dns, IpConfig, Route, UnsupportedField
from vf_manager.errors import Busy, Exhausted, InvalidInput, KernelError, NotFound, SriovError

BOOT = "11111111-1111-1111-1111-111111111111"
REPOSITORY = Path(__file__).parent.parent
NEXT_BOOT = "22222222-2222-2222-2222-222222222222"


def parse(ipam: dict[str, Any], *, runtime: dict[str, Any] | None = None, env_args: str = "") -> Any:
    request = IpRequest(
        runtime=Fields(runtime or {}, "runtimeConfig"), env_args={"IP": env_args} if env_args else {}
    )
    return parse_ipam(Fields(ipam, "ipam"), request)


def host_local(
    root: Path,
    *,
    boot_id: str = BOOT,
    owners: OwnerCache | None = None,
    runtime: dict[str, Any] | None = None,
    **ipam: Any,
) -> Ipam:
    conf = parse({"type": "host-local", **ipam}, runtime=runtime)
    engine = make_ipam(conf, network="net", boot_id=boot_id, data_dir=root, owners=owners)
    assert engine is not None
    return engine


def leases(root: Path) -> dict[str, str]:
    """Address -> content, of everything in the directory that the reference plugin takes for a lease."""
    directory = root / "net"
    names = [p.name for p in directory.iterdir()] if directory.exists() else []
    return {name: (directory / name).read_bytes().decode() for name in names if parse_address(name)}


def add(engine: Ipam, container_id: str, ifname: str = "eth0") -> list[str]:
    return [ip.address for ip in engine.add(container_id, ifname).ips]


# --- the format on disk ---


def test_the_directory_is_that_of_the_reference_plugin(tmp_path: Path) -> None:
    engine = host_local(tmp_path, ranges=[[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00:0:0:1::/64"}]])
    result = engine.add("c1", "eth0")
    assert result.ips == (
        IpConfig(address="10.0.0.2/24", gateway="10.0.0.1"),
        IpConfig(address="fd00:0:0:1::2/64", gateway="fd00:0:0:1::1"),
    )
    contents = {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()}
    assert contents == {
        "10.0.0.2": b"c1\r\neth0",
        "fd00:0:0:1::2": b"c1\r\neth0",
        "last_reserved_ip.0": b"10.0.0.2",
        "last_reserved_ip.1": b"fd00:0:0:1::2",
        "lock": b"",
    }


def test_leases_of_the_reference_plugin_are_respected_and_released(tmp_path: Path) -> None:
    directory = tmp_path / "net"
    directory.mkdir()
    (directory / "10.0.0.2").write_bytes(b"other\r\neth0")
    (directory / "10.0.0.3").write_bytes(b"old-format\r\n")
    (directory / "last_reserved_ip.0").write_text("10.0.0.1")
    engine = host_local(tmp_path, subnet="10.0.0.0/24")
    assert add(engine, "c1") == ["10.0.0.4/24"]
    engine.delete("other", "eth0")
    engine.delete("old-format", "eth0")
    assert leases(tmp_path) == {"10.0.0.4": "c1\r\neth0"}


@pytest.mark.parametrize("name", ["10.0.0.2", "10.0.0.3"])
def test_anything_in_the_way_is_not_an_address_to_give(tmp_path: Path, name: str) -> None:
    (tmp_path / "net" / "10.0.0.2").mkdir(parents=True)
    (tmp_path / "net" / "10.0.0.3").symlink_to("/nowhere")
    assert add(host_local(tmp_path, subnet="10.0.0.0/24"), "c1") == ["10.0.0.4/24"]
    assert (tmp_path / "net" / name).lstat()


def test_the_config_may_name_the_directory(tmp_path: Path) -> None:
    engine = host_local(tmp_path / "unused", subnet="10.0.0.0/24", dataDir=str(tmp_path / "other"))
    engine.add("c1", "eth0")
    assert list(leases(tmp_path / "other")) == ["10.0.0.2"]
    assert not (tmp_path / "unused").exists()


# --- giving out ---


def test_round_robin_from_the_last_and_around(tmp_path: Path) -> None:
    engine = host_local(tmp_path, subnet="10.0.0.0/29", rangeStart="10.0.0.3", rangeEnd="10.0.0.5")
    seen = []
    for i in range(5):
        seen += add(engine, f"c{i}")
        engine.delete(f"c{i}", "eth0")
    assert [a.split("/")[0][-1] for a in seen] == ["3", "4", "5", "3", "4"]


def test_a_set_of_ranges_gives_one_address_from_one_range_after_the_other(tmp_path: Path) -> None:
    ranges = [[{"subnet": "10.0.0.0/30"}, {"subnet": "10.1.0.0/30", "gateway": "10.1.0.2"}]]
    engine = host_local(tmp_path, ranges=ranges)
    assert add(engine, "c1") + add(engine, "c2") == ["10.0.0.2/30", "10.1.0.1/30"]


def test_asking_again_gives_the_same(tmp_path: Path) -> None:
    engine = host_local(tmp_path, ranges=[[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]])
    first = engine.add("c1", "eth0")
    engine.add("c2", "eth0")
    assert engine.add("c1", "eth0") == first
    assert len(leases(tmp_path)) == 4
    assert engine.add("c1", "net1") != first


def test_a_half_given_answer_is_completed(tmp_path: Path) -> None:
    engine = host_local(tmp_path, ranges=[[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]])
    first = engine.add("c1", "eth0")
    (tmp_path / "net" / "fd00::2").unlink()
    assert engine.add("c1", "eth0").ips[0] == first.ips[0]
    assert len(leases(tmp_path)) == 2


def test_an_exhausted_range_names_itself_and_rolls_back(tmp_path: Path) -> None:
    engine = host_local(tmp_path, ranges=[[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.1.0.0/30"}]])
    engine.add("c1", "eth0")
    before = leases(tmp_path)
    with pytest.raises(Exhausted, match=r"network net: no free address in 10\.1\.0\.1-10\.1\.0\.2"):
        engine.add("c2", "eth0")
    assert leases(tmp_path) == before
    engine.delete("c1", "eth0")
    assert add(engine, "c2")[1] == "10.1.0.2/30"


def test_a_requested_address_is_given_or_refused(tmp_path: Path) -> None:
    engine = host_local(tmp_path, subnet="10.0.0.0/24", runtime={"ips": ["10.0.0.77/24"]})
    assert add(engine, "c1") == ["10.0.0.77/24"]
    assert add(engine, "c1") == ["10.0.0.77/24"]
    with pytest.raises(Busy, match=r"10\.0\.0\.77 is not free"):
        engine.add("c2", "eth0")
    assert list(leases(tmp_path)) == ["10.0.0.77"]


def test_routes_and_name_servers(tmp_path: Path) -> None:
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("# x\nnameserver 10.0.0.2\nsearch a b\n")
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.0.0.9", "priority": 5}]
    engine = host_local(tmp_path, subnet="10.0.0.0/24", routes=routes, resolvConf=str(resolv))
    result = engine.add("c1", "eth0")
    assert result.routes == (Route(dst="0.0.0.0/0"), Route(dst="10.9.0.0/16", gw="10.0.0.9", priority=5))
    assert result.dns == Dns(nameservers=("10.0.0.2",), search=("a", "b"))


def test_a_missing_resolv_conf_takes_no_lease(tmp_path: Path) -> None:
    engine = host_local(tmp_path, subnet="10.0.0.0/24", resolvConf="/nowhere/resolv.conf")
    with pytest.raises(KernelError, match=r"read /nowhere/resolv\.conf: ENOENT"):
        engine.add("c1", "eth0")
    assert leases(tmp_path) == {}


def test_resolv_conf_syntax() -> None:
    text = (
        "; c\n\nnameserver 1.1.1.1 x\nnameserver\ndomain a\ndomain b\nsearch c d\noptions ndots:2\nsortlist e"
    )
    assert parse_resolv_conf(text) == Dns(
        nameservers=("1.1.1.1",), domain="b", search=("c", "d"), options=("ndots:2",)
    )


@pytest.mark.parametrize("subnet", ["10.0.0.0/8", "fd00::/64", "2000::/3"])
def test_the_size_of_a_range_costs_nothing(tmp_path: Path, subnet: str) -> None:
    engine = host_local(tmp_path, subnet=subnet)
    assert len({*add(engine, "c1"), *add(engine, "c2")}) == 2


def test_releasing_is_idempotent_and_touches_nothing_of_others(tmp_path: Path) -> None:
    engine = host_local(tmp_path, subnet="10.0.0.0/24")
    engine.delete("nobody", "eth0")
    assert not (tmp_path / "net").exists()
    engine.add("c1", "eth0")
    engine.add("c1", "net1")
    engine.delete("c1", "eth0")
    engine.delete("c1", "eth0")
    engine.delete("c", "eth0")
    assert list(leases(tmp_path).values()) == ["c1\r\nnet1"]


def test_check_finds_a_missing_lease(tmp_path: Path) -> None:
    engine = host_local(tmp_path, ranges=[[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]])
    with pytest.raises(NotFound):
        engine.check("c1", "eth0")
    engine.add("c1", "eth0")
    engine.check("c1", "eth0")
    (tmp_path / "net" / "fd00::2").unlink()
    with pytest.raises(NotFound, match="fd00::1-fd00::ffff"):
        engine.check("c1", "eth0")


def test_a_lock_that_stays_taken_is_busy(tmp_path: Path) -> None:
    first = LeaseDir(tmp_path / "net", boot_id=BOOT)
    second = LeaseDir(tmp_path / "net", boot_id=BOOT, lock_timeout_s=0.01)
    with first.locked(), pytest.raises(Busy, match="lock of the lease directory"), second.locked():
        pass


def test_a_shared_owner_cache_is_only_a_hint(tmp_path: Path) -> None:
    owners = OwnerCache()
    engine = host_local(tmp_path, subnet="10.0.0.0/24", owners=owners)
    engine.add("c1", "eth0")
    engine.add("c1", "eth0")
    (tmp_path / "net" / "10.0.0.2").write_bytes(b"c2\r\neth0")  # same name, same inode
    assert add(engine, "c1") == ["10.0.0.3/24"]
    engine.delete("c2", "eth0")
    assert leases(tmp_path) == {"10.0.0.3": "c1\r\neth0"}


# --- properties ---

CALLS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "del"]), st.integers(0, 9), st.integers(0, 1)), max_size=40
)
RANGES: list[list[list[dict[str, Any]]]] = [
    [[{"subnet": "10.0.0.0/29", "rangeStart": "10.0.0.0", "rangeEnd": "10.0.0.7", "gateway": "10.0.0.4"}]],
    [
        [{"subnet": "10.0.0.0/30"}, {"subnet": "10.1.0.0/29", "gateway": "10.1.0.6"}],
        [{"subnet": "fd00::/125"}],
    ],
    [[{"subnet": "fd00::/126"}]],
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(RANGES), CALLS, st.booleans())
def test_any_sequence_of_calls_keeps_the_rules(ranges: Any, calls: list[Any], cached: bool) -> None:
    owners = OwnerCache() if cached else None
    conf = parse({"type": "host-local", "ranges": ranges})
    assert isinstance(conf, HostLocalConf)
    model: dict[tuple[str, str], list[str]] = {}
    with TemporaryDirectory() as root:
        for verb, number, interface in calls:
            owner = (f"c{number}", f"net{interface}")
            engine = host_local(Path(root), owners=owners, ranges=ranges)
            if verb == "del":
                engine.delete(*owner)
                model.pop(owner, None)
            else:
                expect_add(engine, conf, model, owner)
            on_disk = {"\r\n".join(o): sorted(a.split("/")[0] for a in ips) for o, ips in model.items()}
            assert grouped(leases(Path(root))) == on_disk


def expect_add(
    engine: Ipam, conf: HostLocalConf, model: dict[tuple[str, str], list[str]], owner: tuple[str, str]
) -> None:
    taken = {ip_interface(a).ip for ips in model.values() for a in ips}
    free = [set(usable(range_set)) - taken for range_set in conf.range_sets]
    if owner in model:
        assert add(engine, *owner) == model[owner]
    elif not all(free):
        with pytest.raises(Exhausted):
            engine.add(*owner)
    else:
        given = add(engine, *owner)
        for address, left in zip(given, free, strict=True):
            assert ip_interface(address).ip in left
        model[owner] = given


def usable(range_set: Any) -> Iterator[Any]:
    gateways = {r.gateway for r in range_set.ranges}
    for span in range_set.ranges:
        for number in range(int(span.start), int(span.end) + 1):
            address = ip_address(number) if span.subnet.version == 4 else type(span.start)(number)
            edge = address == span.subnet.network_address or (
                address.version == 4 and address == span.subnet.broadcast_address
            )
            if address not in gateways and not edge:
                yield address


def grouped(found: dict[str, str]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for name, owner in sorted(found.items()):
        out.setdefault(owner, []).append(name)
    return out


def test_many_threads_get_distinct_addresses(tmp_path: Path) -> None:
    owners = OwnerCache()
    given: list[str] = []

    def work(thread: int) -> None:
        for i in range(8):
            given.extend(add(host_local(tmp_path, owners=owners, subnet="10.0.0.0/24"), f"c{thread}-{i}"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(given) == len(set(given)) == len(leases(tmp_path)) == 48


WORKER = """
import sys
from pathlib import Path
from sriov_cni.fields import Fields
from sriov_cni.ipam.config import IpRequest, parse_ipam
from sriov_cni.ipam.engine import make_ipam
ipam = Fields({"type": "host-local", "subnet": "10.0.0.0/24"}, "ipam")
for i in range(20):
    engine = make_ipam(parse_ipam(ipam, IpRequest()), network="net", boot_id="b", data_dir=Path(sys.argv[1]))
    engine.add(f"{sys.argv[2]}-{i}", "eth0")
    if i % 2:
        engine.delete(f"{sys.argv[2]}-{i - 1}", "eth0")
"""


def test_many_processes_get_distinct_addresses(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), f"p{n}"], cwd=REPOSITORY)
        for n in range(3)
    ]
    for worker in workers:
        assert worker.wait(timeout=30) == 0
    assert len(leases(tmp_path)) == 30
    assert len(set(leases(tmp_path).values())) == 30


# --- failures and crashes ---

OS_CALLS = (
    *("mkdir", "open", "read", "write", "close", "scandir", "link", "unlink", "replace"),
    *("setxattr", "getxattr"),
)


class Dead(BaseException):
    """The process is gone: nothing catches this, and nothing after it has an effect."""


class Injector:
    """Fails the n-th call of the operating system, or ends the process there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, *, die: bool) -> None:
        self.count = 0
        self.at = at
        self.die = die
        for name in OS_CALLS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "close":  # the kernel closes what a dead process had open
                return real(*args, **kwargs)
            self.count += 1
            if self.die and self.count >= self.at:
                raise Dead
            if self.count == self.at:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*args, **kwargs)

        return call


TWO_SETS: list[list[dict[str, str]]] = [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]


def steps_of_an_add(root: Path) -> int:
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        injector = Injector(patch, at=1_000_000, die=False)
        host_local(root, ranges=TWO_SETS).add("c1", "eth0")
        return injector.count


def test_an_allocation_that_fails_at_any_step_leaves_nothing(tmp_path: Path) -> None:
    total = steps_of_an_add(tmp_path / "dry")
    assert total > 15
    for step in range(1, total + 1):
        root = tmp_path / str(step)
        root.mkdir()
        engine = host_local(root, ranges=TWO_SETS)
        with pytest.MonkeyPatch.context() as patch:
            Injector(patch, at=step, die=False)
            try:
                engine.add("c1", "eth0")
            except SriovError:
                pass
            else:
                pytest.fail(f"step {step} failed and the ADD succeeded")
        assert leases(root) == {}
        assert len(add(engine, "c1")) == 2
        assert not (root / "net" / TEMPORARY).exists()


def test_a_process_that_dies_at_any_step_leaves_whole_leases_that_can_be_released(tmp_path: Path) -> None:
    for step in range(1, steps_of_an_add(tmp_path / "dry") + 1):
        root = tmp_path / str(step)
        root.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            Injector(patch, at=step, die=True)
            with pytest.raises(Dead):
                host_local(root, ranges=TWO_SETS).add("c1", "eth0")
        assert set(leases(root).values()) <= {"c1\r\neth0"}
        engine = host_local(root, ranges=TWO_SETS)
        before = set(leases(root))
        after = {a.split("/")[0] for a in add(engine, "c1")}
        assert before <= after
        assert set(leases(root)) == after
        engine.delete("c1", "eth0")
        assert leases(root) == {}
        assert not (root / "net" / TEMPORARY).exists()


def test_a_release_that_fails_goes_on_and_can_be_repeated(tmp_path: Path) -> None:
    engine = host_local(tmp_path, ranges=TWO_SETS)
    engine.add("c1", "eth0")
    real = os.unlink

    def unlink(path: Any, **kwargs: Any) -> None:
        if Path(path).name == "fd00::2":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        with pytest.raises(KernelError, match="EIO"):
            engine.delete("c1", "eth0")
    assert list(leases(tmp_path)) == ["fd00::2"]
    engine.delete("c1", "eth0")
    assert leases(tmp_path) == {}


# --- reboots ---


def test_leases_do_not_survive_a_reboot_but_those_of_the_reference_plugin_do(tmp_path: Path) -> None:
    engine = host_local(tmp_path, subnet="10.0.0.0/29")
    engine.add("c1", "eth0")
    engine.add("c2", "eth0")
    (tmp_path / "net" / "10.0.0.4").write_bytes(b"other\r\neth0")
    (tmp_path / "net" / "10.0.0.5").write_bytes(b"")  # power loss
    assert os.getxattr(tmp_path / "net" / "10.0.0.2", BOOT_MARK) == BOOT.encode()

    after = host_local(tmp_path, subnet="10.0.0.0/29", boot_id=NEXT_BOOT)
    assert add(after, "c3") == ["10.0.0.5/29"]
    assert leases(tmp_path) == {"10.0.0.4": "other\r\neth0", "10.0.0.5": "c3\r\neth0"}


def test_within_one_boot_nothing_is_swept(tmp_path: Path) -> None:
    for number in range(3):
        host_local(tmp_path, subnet="10.0.0.0/24").add(f"c{number}", "eth0")
    assert len(leases(tmp_path)) == 3


def test_an_empty_lease_is_taken_back_when_addresses_run_out(tmp_path: Path) -> None:
    engine = host_local(tmp_path, subnet="10.0.0.0/29", rangeStart="10.0.0.2", rangeEnd="10.0.0.3")
    engine.add("c1", "eth0")
    (tmp_path / "net" / "10.0.0.3").write_bytes(b"")
    assert add(engine, "c2") == ["10.0.0.3/29"]


def test_a_file_system_without_attributes_still_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "setxattr", unsupported)
    monkeypatch.setattr(os, "getxattr", unsupported)
    host_local(tmp_path, subnet="10.0.0.0/30").add("c1", "eth0")
    after = host_local(tmp_path, subnet="10.0.0.0/30", boot_id=NEXT_BOOT)
    with pytest.raises(Exhausted):
        after.add("c2", "eth0")
    after.delete("c1", "eth0")
    assert add(after, "c2") == ["10.0.0.2/30"]


def test_the_boot_id_of_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "boot_id").write_text(f"{BOOT}\n")
    assert read_boot_id(tmp_path / "boot_id") == BOOT
    assert len(read_boot_id()) == 36


# --- static, and no IPAM ---


def test_static_answers_what_is_written() -> None:
    conf = parse(
        {
            "type": "static",
            "addresses": [{"address": "10.0.0.5/24", "gateway": "10.0.0.1"}, {"address": "FD00::5/64"}],
            "routes": [{"dst": "10.9.0.0/16"}],
            "dns": {"nameservers": ["10.0.0.2"]},
        }
    )
    engine = make_ipam(conf, network="net", boot_id=BOOT)
    assert engine is not None
    result = engine.add("c1", "eth0")
    assert result.ips == (
        IpConfig(address="10.0.0.5/24", gateway="10.0.0.1"),
        IpConfig(address="fd00::5/64"),
    )
    assert (result.routes, result.dns.nameservers) == ((Route(dst="10.9.0.0/16"),), ("10.0.0.2",))
    engine.check("c1", "eth0")
    engine.delete("c1", "eth0")
    assert isinstance(conf, StaticConf)


def test_no_ipam_is_no_engine() -> None:
    assert parse_ipam(None, IpRequest()) is None
    assert make_ipam(None, network="net", boot_id=BOOT) is None


# --- wrong configs ---

SUBNET = {"subnet": "10.0.0.0/24"}


@pytest.mark.parametrize(
    ("key", "value", "ipam"),
    [
        ("ipam.ranges", "None", {}),
        ("ipam.ranges", "[]", {"ranges": []}),
        ("ipam.ranges[0]", "[]", {"ranges": [[]]}),
        ("ipam.ranges[0]", "{", {"ranges": [SUBNET]}),
        ("ipam.ranges[0][0]", "x", {"ranges": [["x"]]}),
        ("ipam.ranges[0][0].subnet", "None", {"ranges": [[{}]]}),
        ("ipam.ranges[0]", "10.0.0.0", {"ranges": [[SUBNET, {"subnet": "fd00::/64"}]]}),
        ("ipam.ranges", "10.0.0.129-10.0.0.254", {**SUBNET, "ranges": [[{"subnet": "10.0.0.128/25"}]]}),
        ("ipam.subnet", "banana", {"subnet": "banana"}),
        ("ipam.subnet", "10.0.0.0", {"subnet": "10.0.0.0"}),
        ("ipam.subnet", "10.0.0.0/255.255.255.0", {"subnet": "10.0.0.0/255.255.255.0"}),
        ("ipam.subnet", "10.0.0.0/33", {"subnet": "10.0.0.0/33"}),
        ("ipam.subnet", "10.0.0.1/24", {"subnet": "10.0.0.1/24"}),
        ("ipam.subnet", "10.0.0.0/31", {"subnet": "10.0.0.0/31"}),
        ("ipam.subnet", "::ffff:10.0.0.0/120", {"subnet": "::ffff:10.0.0.0/120"}),
        ("ipam.subnet", "fe80::%eth0/64", {"subnet": "fe80::%eth0/64"}),
        ("ipam.rangeStart", "10.0.1.1", {**SUBNET, "rangeStart": "10.0.1.1"}),
        ("ipam.rangeStart", "10.0.0.1", {"rangeStart": "10.0.0.1"}),
        ("ipam.rangeEnd", "fd00::1", {**SUBNET, "rangeEnd": "fd00::1"}),
        ("ipam.rangeEnd", "10.0.0.5", {**SUBNET, "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.5"}),
        ("ipam.gateway", "x", {**SUBNET, "gateway": "x"}),
        ("ipam.routes[0].dst", "0.0.0.0", {**SUBNET, "routes": [{"dst": "0.0.0.0"}]}),
        ("ipam.routes[0].gw", "fd00::1", {**SUBNET, "routes": [{"dst": "0.0.0.0/0", "gw": "fd00::1"}]}),
        ("ipam.routes[0].mtu", "-1", {**SUBNET, "routes": [{"dst": "0.0.0.0/0", "mtu": -1}]}),
        ("ipam.dataDir", "relative", {**SUBNET, "dataDir": "relative"}),
        ("ipam.dataDir", "/a/../b", {**SUBNET, "dataDir": "/a/../b"}),
        ("ipam.resolvConf", "x", {**SUBNET, "resolvConf": "x"}),
        ("ipam.addresses", "None", {"type": "static"}),
        ("ipam.addresses[0].address", "10.0.0.5", {"type": "static", "addresses": [{"address": "10.0.0.5"}]}),
        (
            "ipam.addresses[0].gateway",
            "fd00::1",
            {"type": "static", "addresses": [{"address": "10.0.0.5/24", "gateway": "fd00::1"}]},
        ),
    ],
)
def test_a_wrong_config_is_refused_by_key_and_value(key: str, value: str, ipam: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse({"type": "host-local", **ipam})
    assert str(caught.value).startswith(f"{key}: ")
    assert value in str(caught.value)


@pytest.mark.parametrize(
    ("key", "ipam"),
    [
        ("ipam.rangestart", {**SUBNET, "rangestart": "10.0.0.5"}),
        ("ipam.ranges[0][0].start", {"ranges": [[{**SUBNET, "start": "10.0.0.5"}]]}),
        ("ipam.routes[0].via", {**SUBNET, "routes": [{"dst": "0.0.0.0/0", "via": "10.0.0.1"}]}),
        ("ipam.subnet", {"type": "static", **SUBNET}),
        ("ipam.addresses[0].gw", {"type": "static", "addresses": [{"address": "10.0.0.5/24", "gw": ""}]}),
        (
            "ipam.dns.server",
            {"type": "static", "addresses": [{"address": "10.0.0.5/24"}], "dns": {"server": []}},
        ),
    ],
)
def test_an_unknown_key_is_refused(key: str, ipam: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedField) as caught:
        parse({"type": "host-local", **ipam})
    assert str(caught.value).startswith(f"{key}: unknown key")


@pytest.mark.parametrize(
    ("ips", "fragment"),
    [
        (["10.9.0.5"], "10.0.0.1-10.0.0.254"),
        (["10.0.0.1"], "gateway"),
        (["10.0.0.5", "10.0.0.6"], "one address per range set"),
        (["x"], "an IP address"),
        ([5], "a string"),
    ],
)
def test_a_wrong_request_is_refused(ips: list[Any], fragment: str) -> None:
    with pytest.raises(InvalidInput, match=r"runtimeConfig\.ips\[") as caught:
        parse({"type": "host-local", **SUBNET}, runtime={"ips": ips})
    assert fragment in str(caught.value)


def test_the_same_request_twice_is_one() -> None:
    conf = parse({"type": "host-local", **SUBNET}, runtime={"ips": ["10.0.0.5/24"]}, env_args="10.0.0.5")
    assert str(conf.range_sets[0].requested) == "10.0.0.5"


def test_ranges_of_the_runtime_come_first() -> None:
    runtime = {"ipRanges": [[{"subnet": "10.1.0.0/24"}]]}
    conf = parse({"type": "host-local", **SUBNET, "ranges": [[{"subnet": "10.2.0.0/24"}]]}, runtime=runtime)
    assert [str(s.ranges[0].subnet) for s in conf.range_sets] == ["10.1.0.0/24", "10.0.0.0/24", "10.2.0.0/24"]


def test_a_gateway_may_be_outside_of_the_subnet(tmp_path: Path) -> None:
    engine = host_local(tmp_path, subnet="10.0.0.0/30", gateway="192.0.2.1")
    assert engine.add("c1", "eth0").ips == (IpConfig(address="10.0.0.1/30", gateway="192.0.2.1"),)
