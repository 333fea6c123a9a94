"""Adapter: an allocator over a /dev and a /sys in folders, and what it left in its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog
from structlog.testing import LogCapture
from structlog.typing import FilteringBoundLogger

from device_plugin.allocator import Allocator, Places, Resource, Users
from device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from device_plugin.pools import Pool
from device_plugin.selectors import Selector
from vf_manager.model import PciAddress, Vf

PREFIX = "example.com"
PF = PciAddress("0000:3b:00.0")


def address(index: int, bus: int = 0x3B) -> PciAddress:
    return PciAddress(f"0000:{bus:02x}:02.{index}")


def make_vf(index: int = 0, driver: str | None = "iavf", **more: Any) -> Vf:
    return Vf(pci=address(index), pf_pci=PF, index=index, vendor="8086", device="1889", driver=driver, **more)


def make_pool(name: str = "fast", **more: Any) -> Pool:
    return Pool(name=name, select=(more.pop("select", Selector()),), **more)


class AllocationWorld:
    """`attached` and `given` are what the allocator is told of VFs in use; `reset` what it resets. `on_given`
    and `on_reset` are called for it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cdi_dir = root / "cdi"
        self.device_info_dir = root / "devinfo/dp"
        self.attached: set[PciAddress] = set()
        self.given: set[str] = set()
        self.reset: list[PciAddress] = []
        self.on_given: Callable[[], set[str]] = lambda: self.given
        self.on_reset: Callable[[PciAddress], None] = self.reset.append
        self.logged = LogCapture()
        self.allocator = self.new_allocator()

    def new_allocator(self) -> Allocator:
        """As after a restart of the agent."""
        return Allocator(
            Users(lambda: self.attached, lambda: self.on_given()),
            lambda pci: self.on_reset(pci),
            self.log(),
            Places(self.root / "dev", self.root / "sys", self.cdi_dir, self.device_info_dir),
        )

    def log(self) -> FilteringBoundLogger:
        logger: FilteringBoundLogger = structlog.wrap_logger(
            None, [self.logged], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        return logger

    def add_nodes(self, *nodes: str) -> None:
        for node in nodes:
            path = self.root / node.removeprefix("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def remove_node(self, node: str) -> None:
        (self.root / node.removeprefix("/")).unlink()

    def add_rdma(self, device: str, number: int, parent: str = "") -> None:
        """An RDMA device with one port, as the kernel shows it. Devices of one parent are of one function."""
        folder = self.root / "sys/devices" / (parent or device)
        for name in (f"infiniband_verbs/uverbs{number}", f"infiniband_mad/umad{number}"):
            _write(folder / name / "ibdev", device)
        _write(folder / f"infiniband_mad/issm{number}/ibdev", device)
        ours = self.root / "sys/class/infiniband" / device
        ours.mkdir(parents=True)
        (ours / "device").symlink_to(folder)

    def add_rdma_cm(self) -> None:
        (self.root / "sys/class/misc/rdma_cm").mkdir(parents=True)

    def allocate(self, pool: Pool, vfs: list[Vf], *ids: str) -> pb.ContainerAllocateResponse:
        """All of the pool's VFs if no id is given."""
        container = pb.ContainerAllocateRequest(device_ids=ids or [vf.pci for vf in vfs])
        request = pb.AllocateRequest(container_requests=[container])
        answer = self.allocator.allocate(Resource(pool, PREFIX), vfs, request)
        return answer.container_responses[0]

    def publish(self, pool: Pool, vfs: list[Vf]) -> None:
        self.allocator.publish(Resource(pool, PREFIX), vfs)

    def tidy(self, *pools: tuple[Pool, list[Vf]]) -> None:
        self.allocator.tidy((Resource(pool, PREFIX), vfs) for pool, vfs in pools)

    def spec(self, pool: str = "fast") -> dict[str, Any] | None:
        path = self.cdi_dir / f"sriov-underlay_{PREFIX}_{pool}.json"
        return msgspec.json.decode(path.read_bytes()) if path.exists() else None

    def device_info(self, vf: PciAddress, pool: str = "fast") -> dict[str, Any] | None:
        path = self.device_info_dir / f"{PREFIX}-{pool}-{vf}-device.json"
        return msgspec.json.decode(path.read_bytes()) if path.exists() else None


def mapped(answer: pb.ContainerAllocateResponse) -> dict[str, str]:
    """Host paths by container paths."""
    assert {node.permissions for node in answer.devices} <= {"rw"}
    return {node.container_path: node.host_path for node in answer.devices}


def info(answer: pb.ContainerAllocateResponse, pool: str = "FAST") -> dict[str, dict[str, dict[str, str]]]:
    found: dict[str, dict[str, dict[str, str]]] = msgspec.json.decode(
        answer.envs[f"PCIDEVICE_EXAMPLE_COM_{pool}_INFO"]
    )
    return found


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
