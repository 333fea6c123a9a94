"""nftables of the running kernel: what comes of a table there, and who is told what was refused."""

import json
import subprocess
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from tests.kernel_contract import Space
from tests.netns.conftest import open_fds
from tests.netns.namespaces import LinuxWorld
from tests.nft_contract import ONE, TWO, NftContract
from tests.nft_strategies import tables
from tests.nft_tables import ACCEPT, INPUT, TCP, address, filter_table, ranges, service_table
from vf_manager.errors import KernelError
from vf_manager.kernel.api import NetnsHandle
from vf_manager.kernel.nft import Chain, Elements, Field, In, Table, Type, Verdict, VerdictKind


class TestContract(NftContract):
    """Namespaces of their own."""


@pytest.fixture
def space(world: LinuxWorld) -> Space:
    return world.new_space()


@pytest.fixture
def pod(world: LinuxWorld, space: Space) -> Iterator[NetnsHandle]:
    handle = world.kernel.netns(space.fd)
    yield handle
    handle.close()


def nft(space: Space, *words: str) -> str:
    command = ["nsenter", f"--net={space.path}", "nft", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def listed(space: Space) -> list[str]:
    """What nft says is there, without numbers that the kernel gives and in an order that means nothing."""
    found = json.loads(nft(space, "-j", "list", "table", "inet", "test"))["nftables"]
    rules: dict[str, list[object]] = {}
    rest: list[object] = []
    for one in found:
        (kind, body), *_ = one.items()
        if kind == "metainfo":
            continue
        body.pop("handle")
        body.pop("size", None)  # of a dynamic set, once there was a rule that writes into it
        if isinstance(body.get("elem"), list):
            body["elem"] = sorted(body["elem"], key=repr)
        if kind == "rule":
            rules.setdefault(body["chain"], []).append(body)
        else:
            rest.append({kind: body})
    return sorted(json.dumps(one, sort_keys=True) for one in [*rest, *({k: v} for k, v in rules.items())])


def test_nft_lists_what_is_there(world: LinuxWorld, space: Space, pod: NetnsHandle) -> None:
    """For people who look for an error; see _lookup_for_more for what nft may die of."""
    services = {(TCP, ("10.96.0.1", 80)): [("10.1.0.1", 8080), ("10.1.0.2", 8080)]}
    world.kernel.apply_nft(pod, None, service_table(services))
    text = nft(space, "list", "table", "inet", "test")
    assert 'elements = { "eth0" }' in text
    assert "tcp . 10.96.0.1 . 80 : goto pick4-2" in text
    assert "tcp . 10.96.0.1 . 80 . 0x00000001 : 10.1.0.2 . 8080" in text
    assert "dnat ip to meta l4proto . ip daddr . th dport . numgen random mod 2 map @endpoints" in text
    assert "meta l4proto . ip daddr . th dport vmap @services" in text


@pytest.mark.parametrize("version", [4, 6])
def test_nft_lists_rules_with_a_memory(
    world: LinuxWorld, space: Space, pod: NetnsHandle, version: int
) -> None:
    at, to = ("10.96.0.1", "10.1.0.1") if version == 4 else ("fd96::1", "fd01::1")
    table = service_table({(TCP, (at, 80)): [(to, 8080)]}, sticky_s=10, version=version)
    world.kernel.apply_nft(pod, None, table)
    text = nft(space, "list", "table", "inet", "test")
    assert "add @sticky { meta l4proto" in text
    assert "@live" in text


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(old=tables(), new=tables())
def test_a_change_comes_to_the_same_as_a_new_table(
    world: LinuxWorld, space: Space, pod: NetnsHandle, old: Table, new: Table
) -> None:
    kernel = world.kernel
    kernel.delete_nft_table(pod, "test")
    kernel.apply_nft(pod, None, new)
    made = listed(space)
    kernel.apply_nft(pod, None, old)
    kernel.apply_nft(pod, old, new)
    assert listed(space) == made
    kernel.apply_nft(pod, new, old)
    kernel.apply_nft(pod, None, new)
    assert listed(space) == made


def test_a_key_gets_another_value_in_one_transaction(
    world: LinuxWorld, space: Space, pod: NetnsHandle
) -> None:
    at = (TCP, ("10.96.0.1", 80))
    old, new = (service_table({at: [(to, 8080)]}) for to in ("10.1.0.1", "10.1.0.9"))
    world.kernel.apply_nft(pod, None, old)
    world.kernel.apply_nft(pod, old, new)
    assert "0x00000000 : 10.1.0.9 . 8080 }" in nft(space, "list", "map", "inet", "test", "endpoints")


def test_ranges_that_touch_and_both_ends_of_all(world: LinuxWorld, space: Space, pod: NetnsHandle) -> None:
    rule = (In((Field.SADDR4,), "blocks"), ACCEPT)
    pairs = {
        "0.0.0.0": "0.0.0.9",
        "10.0.0.0": "10.0.0.255",
        "10.0.1.0": "10.0.1.0",
        "255.255.255.0": "255.255.255.255",
    }
    world.kernel.apply_nft(pod, None, filter_table(INPUT, rule, sets={"blocks": ranges(pairs)}))
    text = " ".join(nft(space, "list", "set", "inet", "test", "blocks").split())
    assert "{ 0.0.0.0-0.0.0.9, 10.0.0.0/24, 10.0.1.0, 255.255.255.0/24 }" in text


def test_a_set_becomes_one_of_ranges(world: LinuxWorld, space: Space, pod: NetnsHandle) -> None:
    """While a rule that stays as it is names it."""
    rule = (In((Field.SADDR4,), "peers"), ACCEPT)
    plain = Elements(key=(Type.IPV4_ADDR,), entries={address("10.0.0.1"): b""})
    blocks = ranges({"10.0.0.1": "10.0.0.9"})
    old, new = (filter_table(INPUT, rule, sets={"peers": one}) for one in (plain, blocks))
    for before, after in ((None, old), (old, new), (new, old), (old, new)):
        world.kernel.apply_nft(pod, before, after)
    text = nft(space, "list", "table", "inet", "test")
    assert "elements = { 10.0.0.1-10.0.0.9 }" in text
    assert "ip saddr @peers accept" in text


class TestRefusals:
    def test_what_is_refused_is_named(self, world: LinuxWorld, pod: NetnsHandle) -> None:
        jump = Verdict(VerdictKind.JUMP, "nowhere")
        with pytest.raises(KernelError) as caught:
            world.kernel.apply_nft(pod, None, filter_table(INPUT, (ACCEPT,), (jump,)))
        assert str(caught.value) == (
            "nftables table test: add rule 2 of chain base: ENOENT (No such file or directory)"
        )
        assert world.kernel.nft_tables(pod) == ()

    def test_elements_that_are_not_what_they_were(
        self, world: LinuxWorld, space: Space, pod: NetnsHandle
    ) -> None:
        world.kernel.apply_nft(pod, None, ONE)
        nft(space, "delete", "element", "inet", "test", "endpoints", "{ tcp . 10.96.0.1 . 80 . 0 }")
        changed = msgspec.structs.replace(ONE, sets={**ONE.sets, "endpoints": TWO.sets["endpoints"]})
        world.kernel.apply_nft(pod, ONE, changed)
        with pytest.raises(KernelError, match="add an element to map endpoints: EEXIST"):
            world.kernel.apply_nft(pod, ONE, changed)

    def test_nothing_of_it_was_done(self, world: LinuxWorld, space: Space, pod: NetnsHandle) -> None:
        world.kernel.apply_nft(pod, None, ONE)
        before = listed(space)
        broken = {**TWO.chains, "worse": Chain(((Verdict(VerdictKind.JUMP, "nowhere"),),))}
        with pytest.raises(KernelError, match="rule 1 of chain worse: ENOENT"):
            world.kernel.apply_nft(pod, ONE, msgspec.structs.replace(TWO, chains=broken))
        assert listed(space) == before


def test_more_than_fits_into_a_message(world: LinuxWorld, space: Space, pod: NetnsHandle) -> None:
    """5000 elements of 56 octets, where an attribute has 64 KiB; the datagram is longer than sockets send."""
    services = {
        (TCP, (f"10.96.{n // 250}.{n % 250}", 80)): [(f"10.{m}.0.1", 8080) for m in range(10)]
        for n in range(500)
    }
    big, small = service_table(services), service_table(dict(list(services.items())[:2]))
    for before, after in ((None, big), (big, small), (small, big)):
        world.kernel.apply_nft(pod, before, after)
    assert nft(space, "list", "map", "inet", "test", "endpoints").count(": 10.") == 5000


@pytest.mark.parametrize(
    "mischief",
    [
        "add rule inet test services ip saddr { 10.0.0.1, 10.0.0.2 } drop",
        "add rule inet test services jump { accept; }",
        "add chain inet test own; add rule inet test services jump own",
        "add chain inet test own { type filter hook ingress device lo priority 0; }",
        "add chain inet test services { type nat hook output priority -100; policy drop; }",
        "add counter inet test own; add rule inet test services counter name own",
        "add table inet test { flags dormant; }",
        "delete element inet test endpoints { tcp . 10.96.0.1 . 80 . 0 }",
        "flush ruleset",
    ],
)
def test_a_table_that_somebody_meddled_with_is_replaced(
    world: LinuxWorld, space: Space, pod: NetnsHandle, mischief: str
) -> None:
    world.kernel.apply_nft(pod, None, ONE)
    before = listed(space)
    nft(space, mischief)
    world.kernel.apply_nft(pod, None, ONE)
    after = [one for one in listed(space) if not one.startswith('{"counter"')]
    assert after == before


def test_a_pods_own_tables_are_not_touched(world: LinuxWorld, space: Space, pod: NetnsHandle) -> None:
    """Not even one of the same name, of another family."""
    nft(space, "add table ip test; add chain ip test own; add table inet own; add chain inet own test")
    before = nft(space, "list", "ruleset")
    for old, new in ((None, ONE), (ONE, TWO), (None, ONE)):
        world.kernel.apply_nft(pod, old, new)
    world.kernel.delete_nft_table(pod, "test")
    assert nft(space, "list", "ruleset") == before


def test_nothing_is_left_open(world: LinuxWorld, pod: NetnsHandle) -> None:
    """Threads and descriptors are counted at the end of each test, too."""
    world.kernel.apply_nft(pod, None, ONE)
    fds = open_fds()
    world.kernel.nft_tables(pod)
    world.kernel.udp_flows(pod)
    assert open_fds() <= fds + 1  # one may be about to be closed
