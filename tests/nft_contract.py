"""What the product relies on of a kernel's nftables. The running one and the tests' in-memory one pass the
same tests; a runner subclasses `NftContract` as with tests/kernel_contract.py."""

from collections.abc import Iterator

import msgspec
import pytest

from tests.kernel_contract import World
from tests.nft_tables import ACCEPT, DROP, INPUT, TCP, filter_table, service_table
from vf_manager.errors import KernelError
from vf_manager.kernel.api import Flow, FlowSide, Kernel, NetnsHandle
from vf_manager.kernel.nft import Table

ONE = service_table({(TCP, ("10.96.0.1", 80)): [("10.1.0.1", 8080)]})
TWO = service_table({(TCP, ("10.96.0.1", 80)): [("10.1.0.1", 8080), ("10.1.0.2", 8080)]})
OTHER = msgspec.structs.replace(filter_table(INPUT, (ACCEPT,)), name="other")


class NftContract:
    @pytest.fixture
    def kernel(self, world: World) -> Kernel:
        return world.kernel

    @pytest.fixture
    def pod(self, world: World) -> Iterator[NetnsHandle]:
        handle = world.kernel.netns(world.new_space().fd)
        yield handle
        handle.close()

    def test_a_namespace_has_no_tables_at_first(self, kernel: Kernel, pod: NetnsHandle) -> None:
        assert kernel.nft_tables(pod) == ()

    def test_a_table_is_made_replaced_changed_and_deleted(self, kernel: Kernel, pod: NetnsHandle) -> None:
        for before, after in ((None, ONE), (None, TWO), (TWO, ONE), (ONE, ONE)):
            kernel.apply_nft(pod, before, after)
            assert kernel.nft_tables(pod) == ("test",)
        kernel.delete_nft_table(pod, "test")
        assert kernel.nft_tables(pod) == ()

    def test_a_table_that_is_not_there_is_deleted_already(self, kernel: Kernel, pod: NetnsHandle) -> None:
        kernel.delete_nft_table(pod, "test")

    def test_a_change_of_something_else_is_refused(self, kernel: Kernel, pod: NetnsHandle) -> None:
        with pytest.raises(KernelError, match="nftables table test"):
            kernel.apply_nft(pod, ONE, TWO)
        kernel.apply_nft(pod, None, TWO)
        with pytest.raises(KernelError, match="nftables table test"):
            kernel.apply_nft(pod, ONE, filter_table(INPUT, (DROP,)))
        kernel.apply_nft(pod, TWO, ONE)

    def test_other_tables_stay(self, kernel: Kernel, pod: NetnsHandle) -> None:
        kernel.apply_nft(pod, None, OTHER)
        for before, after in ((None, ONE), (ONE, TWO), (None, ONE)):
            kernel.apply_nft(pod, before, after)
        kernel.delete_nft_table(pod, "test")
        assert kernel.nft_tables(pod) == ("other",)
        kernel.apply_nft(pod, OTHER, msgspec.structs.replace(OTHER, chains={}))

    def test_an_empty_table(self, kernel: Kernel, pod: NetnsHandle) -> None:
        kernel.apply_nft(pod, None, Table(name="test"))
        kernel.apply_nft(pod, None, Table(name="test"))
        kernel.apply_nft(pod, Table(name="test"), ONE)
        kernel.apply_nft(pod, ONE, Table(name="test"))
        assert kernel.nft_tables(pod) == ("test",)

    def test_each_namespace_has_its_own(self, world: World, kernel: Kernel, pod: NetnsHandle) -> None:
        other = kernel.netns(world.new_space().fd)
        kernel.apply_nft(pod, None, ONE)
        assert kernel.nft_tables(other) == ()
        other.close()

    def test_no_flow_is_tracked_at_first(self, kernel: Kernel, pod: NetnsHandle) -> None:
        assert kernel.udp_flows(pod) == ()

    def test_a_flow_that_is_not_tracked_is_deleted_already(self, kernel: Kernel, pod: NetnsHandle) -> None:
        there, back = FlowSide("10.0.0.1", 1, "10.0.0.2", 2), FlowSide("10.0.0.2", 2, "10.0.0.1", 1)
        kernel.delete_flows(pod, [Flow(17, there, back)])
