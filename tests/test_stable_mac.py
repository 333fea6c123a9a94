"""MACs of VFs that are derived: legal, the same each time, and of no other VF."""

from hypothesis import given
from hypothesis import strategies as st

from vf_manager.model import Mac, parse_mac
from vf_manager.stable_mac import stable_mac

BURNT_IN = Mac("b4:96:91:a0:00:10")
macs = st.binary(min_size=6, max_size=6).map(lambda octets: Mac(octets.hex(":")))


def test_they_never_change() -> None:
    """A release that gave others would change the MACs of every pod."""
    assert [stable_mac(BURNT_IN, index) for index in (0, 1, 255)] == [
        "ce:ab:3e:52:9d:aa",
        "ce:ab:3e:52:9d:ab",
        "ce:ab:3e:52:9e:a9",
    ]


@given(macs, st.integers(0, 65535))
def test_they_are_unicast_and_locally_administered(burnt_in: Mac, index: int) -> None:
    mac = parse_mac(stable_mac(burnt_in, index))
    assert int(mac[:2], 16) & 3 == 2


@given(macs, st.lists(st.integers(0, 65535), unique=True))
def test_no_two_vfs_of_a_pf_have_the_same(burnt_in: Mac, indexes: list[int]) -> None:
    assert len({stable_mac(burnt_in, index) for index in indexes}) == len(indexes)


def test_vfs_of_ports_side_by_side_are_far_apart() -> None:
    ports = [Mac(f"b4:96:91:a0:{n >> 8:02x}:{n & 255:02x}") for n in range(2000)]
    assert len({stable_mac(port, index) for port in ports for index in (0, 1, 254, 255)}) == 4 * len(ports)
