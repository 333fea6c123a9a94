"""The running kernel, through the project's adapters."""

import re
import socket
import threading
from pathlib import Path

import pytest

from tests.kernel_contract import KernelContract
from tests.netns.conftest import open_fds
from tests.netns.namespaces import LinuxWorld, add_veth, ip
from vf_manager.errors import KernelError
from vf_manager.kernel import attributes
from vf_manager.kernel.api import LinkChange, Links, RouteSpec
from vf_manager.kernel.devlink import opened
from vf_manager.kernel.linux import LinuxKernel
from vf_manager.kernel.meter import Meter
from vf_manager.kernel.netlink import Netlink
from vf_manager.kernel.netns import Netns
from vf_manager.kernel.rtnl import Rtnl

OWN = Path("/proc/thread-self/ns/net")


class TestContract(KernelContract):
    """The spare link is one end of a veth pair."""


class TestWords:
    """What a refusal says: the kernel's own words where it has some, ours where it has none."""

    def test_the_kernels_own_words(self, world: LinuxWorld) -> None:
        with world.kernel.links() as host, pytest.raises(KernelError) as caught:
            host.set_link(ifindex_of(host, "spare0"), LinkChange(mtu=60))
        said = str(caught.value)
        assert re.fullmatch(r"set mtu 60 on link \d+: EINVAL \(Invalid argument\); .*minimum.*", said), said

    def test_our_hint_where_the_kernel_has_only_a_number(self, world: LinuxWorld) -> None:
        ip("link", "set", "spare0", "up")
        route = RouteSpec(dst="::/0", gateway="2001:db8:9::1")
        with world.kernel.links() as host, pytest.raises(KernelError) as caught:
            host.add_route(ifindex_of(host, "spare0"), route)
        assert str(caught.value) == (
            "add route ::/0 via 2001:db8:9::1: EHOSTUNREACH (No route to host);"
            " the gateway is not on a network of this interface"
        )

    def test_nothing_is_said_twice(self, world: LinuxWorld) -> None:
        with world.kernel.links() as host, pytest.raises(KernelError) as caught:
            host.set_link(999_999, LinkChange(up=True))
        assert str(caught.value) == "set up True on link 999999: ENODEV (No such device)"

    def test_a_sysctl_that_refuses_a_value(self, world: LinuxWorld) -> None:
        netns = Netns(world.new_space().fd)
        name = "net/ipv4/conf/lo/arp_notify"
        with pytest.raises(KernelError, match=f"write 'often' to sysctl {name}: EINVAL"):
            world.kernel.write_sysctls(netns, [(name, "1"), (name, "often")])
        with pytest.raises(KernelError, match="write '1' to sysctl net/ipv4/conf/lo: EISDIR"):
            world.kernel.write_sysctls(netns, [("net/ipv4/conf/lo", "1")])
        netns.close()


class TestTraffic:
    def test_what_goes_over_a_link_is_counted_by_its_fields(self, world: LinuxWorld) -> None:
        """One packet of 20 + 8 + 100 bytes, which lo sends and receives."""
        ip("link", "set", "lo", "up")
        with world.kernel.links() as host, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("127.0.0.1", 0))
            before = next(link for link in host.traffic() if link.name == "lo")
            sender.sendto(bytes(100), sender.getsockname())
            assert len(sender.recv(200)) == 100
            after = next(link for link in host.traffic() if link.name == "lo")
        assert after.tx_bytes - before.tx_bytes == after.rx_bytes - before.rx_bytes >= 128
        assert after.tx_packets - before.tx_packets == after.rx_packets - before.rx_packets == 1
        assert (after.rx_errors, after.tx_errors, after.rx_dropped, after.tx_dropped) == (0, 0, 0, 0)


class TestRoutesWithSeveralLinks:
    """`ip` makes what the product never does: routes of several hops, and by nexthop objects."""

    @pytest.mark.parametrize("tells_hops", ["1", "0"])
    def test_a_default_route_is_one_of_each(self, world: LinuxWorld, tells_hops: str) -> None:
        add_veth("other0", "far0")
        add_veth("third0", "far1")
        for name in ("peer0", "far0", "far1"):
            ip("link", "set", name, "up")
        for number, name in enumerate(("spare0", "other0", "third0")):
            ip("address", "add", f"198.18.{number}.1/24", "dev", name)
            ip("address", "add", f"fd00:{number}::1/64", "dev", name, "nodad")
            ip("link", "set", name, "up")
        hops = (
            "nexthop",
            "via",
            "198.18.0.2",
            "dev",
            "spare0",
            "nexthop",
            "via",
            "198.18.1.2",
            "dev",
            "other0",
        )
        ip("route", "add", "default", *hops)
        with world.kernel.links() as links:
            found = [links.has_default_route(ifindex_of(links, n)) for n in ("spare0", "other0", "third0")]
            assert found == [True, True, False]
            assert links.default_route_links() == {ifindex_of(links, n) for n in ("spare0", "other0")}
            # Without compatibility such a route does not tell its links (ip-sysctl.rst nexthop_compat_mode).
            Path("/proc/sys/net/ipv4/nexthop_compat_mode").write_text(tells_hops)
            ip("nexthop", "add", "id", "7", "via", "fd00:2::2", "dev", "third0")
            ip("-6", "route", "add", "default", "nhid", "7")
            assert links.has_default_route(ifindex_of(links, "third0"))
            assert not links.has_default_route(ifindex_of(links, "peer0"))
            everybody = {ifindex_of(links, n) for n in ("spare0", "other0", "third0")}
            assert links.default_route_links() == everybody

    @pytest.mark.parametrize("tells_hops", ["1", "0"])
    def test_a_default_route_by_a_group_of_nexthops(self, world: LinuxWorld, tells_hops: str) -> None:
        add_veth("other0", "far0")
        for number, name in enumerate(("spare0", "other0")):
            ip("link", "set", ("peer0", "far0")[number], "up")
            ip("address", "add", f"198.18.{number}.1/24", "dev", name)
            ip("link", "set", name, "up")
            ip("nexthop", "add", "id", str(number + 1), "via", f"198.18.{number}.2", "dev", name)
        ip("nexthop", "add", "id", "3", "group", "1/2")
        Path("/proc/sys/net/ipv4/nexthop_compat_mode").write_text(tells_hops)
        ip("route", "add", "default", "nhid", "3")
        ip("route", "add", "198.51.100.0/24", "nhid", "1")
        with world.kernel.links() as links:
            assert links.default_route_links() == {ifindex_of(links, n) for n in ("spare0", "other0")}


class TestInterruptedDumps:
    """The kernel marks a dump that changed under its hands (NLM_F_DUMP_INTR)."""

    def interrupt(self, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
        receive, left = Netlink._receive, [times]

        def interrupted(netlink: Netlink) -> bytes:
            data = receive(netlink)
            left[0] -= 1
            return data if left[0] < 0 else data[:6] + bytes([data[6] | 0x10]) + data[7:]

        monkeypatch.setattr(Netlink, "_receive", interrupted)

    def test_it_is_made_again(self, world: LinuxWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        with Rtnl() as links:
            self.interrupt(3, monkeypatch)
            assert [link.netdev.name for link in links.dump()] == ["lo", "peer0", "spare0"]

    def test_but_not_for_ever(self, world: LinuxWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        with Rtnl() as links:
            self.interrupt(1000, monkeypatch)
            with pytest.raises(KernelError, match="they kept changing meanwhile") as caught:
                links.dump()
            monkeypatch.undo()
            assert [link.netdev.name for link in links.dump()] == ["lo", "peer0", "spare0"]
        assert caught.value.transient


class TestLargeMessages:
    """A PF with 256 VFs answers by one message of some 50 KiB. Here a link has as much of altnames."""

    def test_one_link_of_48_kib(self, world: LinuxWorld) -> None:
        names = sorted(f"{number:03}-".ljust(120, "x") for number in range(370))
        with world.kernel.links() as links:
            links.add_altnames(ifindex_of(links, "spare0"), names)
            found = links.read(name="spare0")
            assert found is not None
            assert sorted(found.netdev.altnames) == names
            assert found in links.dump()


class TestThreads:
    def test_links_refuse_another_thread(self, world: LinuxWorld) -> None:
        """Answers to two threads would get mixed up."""
        failures: list[BaseException] = []

        def use() -> None:
            try:
                links.dump()
            except BaseException as e:  # noqa: BLE001 - looked at below
                failures.append(e)

        with world.kernel.links() as links:
            other = threading.Thread(target=use)
            other.start()
            other.join()
            assert [link.netdev.name for link in links.dump()] == ["lo", "peer0", "spare0"]
        assert [type(failure) for failure in failures] == [RuntimeError]

    def test_run_works_inside_and_hands_out_the_result(self, world: LinuxWorld) -> None:
        space = world.new_space()
        netns, home = Netns(space.fd), Netns.open(OWN)
        inside = netns.run(lambda: Netns.open(OWN))
        assert inside.id == netns.id != home.id
        after = Netns.open(OWN)
        assert after.id == home.id
        for handle in (netns, home, inside, after):
            handle.close()

    def test_run_raises_what_the_function_raised(self, world: LinuxWorld) -> None:
        netns = Netns(world.new_space().fd)
        error = KeyboardInterrupt("from inside")

        def fail() -> None:
            raise error

        with pytest.raises(KeyboardInterrupt) as caught:
            netns.run(fail)
        assert caught.value is error
        assert threading.current_thread() is threading.main_thread()
        netns.close()

    def test_a_closed_handle_cannot_be_entered(self, world: LinuxWorld) -> None:
        netns = Netns(world.new_space().fd)
        netns.close()
        netns.close()
        with pytest.raises(KernelError, match="enter the network namespace"):
            netns.run(lambda: None)
        with pytest.raises(KernelError, match="enter the network namespace"):
            world.kernel.links(netns)

    def test_a_handle_of_another_kernel_is_a_bug(self) -> None:
        class Stranger:
            id = None

        with pytest.raises(TypeError, match="not a namespace of this kernel"):
            LinuxKernel().links(Stranger())  # type: ignore[arg-type]


class TestGenericNetlink:
    """By the one family that every kernel has: the list of families."""

    def test_a_family_is_found_by_its_name(self) -> None:
        meter = Meter()
        with opened(meter, "nlctrl") as families:
            assert families is not None
            names = [attributes.text(family[2]) for family in families.dump(3)]
        assert "nlctrl" in names
        assert meter.netlink_requests == 2

    def test_what_is_refused_is_empty(self) -> None:
        with opened(Meter(), "nlctrl") as families:
            assert families is not None
            assert families.get(255, "0000:01:00.0") == {}
            assert families.dump(255) == []

    def test_a_family_that_is_not_there_is_none(self) -> None:
        with opened(Meter(), "nobodys-family") as family:
            assert family is None


class TestLeaks:
    def test_opening_links_200_times_leaks_nothing(self, world: LinuxWorld) -> None:
        netns = Netns(world.new_space().fd)
        fds, threads = open_fds(), threading.active_count()
        for _ in range(200):
            with world.kernel.links(netns) as links:
                assert links.read(name="lo") is not None
        assert (open_fds(), threading.active_count()) == (fds, threads)
        netns.close()

    def test_asking_devlink_leaks_nothing(self) -> None:
        """Be it there or not."""
        before = open_fds()
        for _ in range(20):
            LinuxKernel().eswitch_modes()
            LinuxKernel().sick_reporters()
        assert open_fds() == before

    def test_opening_what_is_no_namespace_leaks_nothing(self, world: LinuxWorld) -> None:
        before = open_fds()
        assert world.kernel.netns_at("/etc/passwd") is None
        assert open_fds() == before


def ifindex_of(links: Links, name: str) -> int:
    found = links.read(name=name)
    assert found is not None
    return found.netdev.ifindex
