"""Orchestrator: where it is measured: on veths in a namespace of this machine, or on VFs of real NICs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hw_tests.bench.agent import VethsFile
from hw_tests.bench.contenders import Slot
from hw_tests.bench.veths import Veth, make_tree
from hw_tests.nics import Nic, as_found, find_nics, ip, settle, wait_for_carrier
from hw_tests.node import render_config
from hw_tests.runtime import Pod
from vf_manager.model import Mac, PciAddress

_PFS = {"0000:01:00.0": "pf0", "0000:01:00.1": "pf1"}
_VFS_PER_PF = 7


@dataclass(frozen=True)
class Place:
    """`config` and `env`: for the agent, which makes the VFs. `pci_and_names`: of the VFs, once it has.
    `settle`: waits until the machine is quiet again."""

    name: str
    config: str
    pci_and_names: Callable[[], list[tuple[str, str]]]
    settle: Callable[[], None]
    env: dict[str, str] = field(default_factory=dict)


@contextmanager
def native(folder: Path) -> Iterator[Place]:
    """In the caller's namespaces, which nobody else may use: they stand for the host's."""
    ip("link", "set", "lo", "up")
    veths: dict[str, tuple[Veth, ...]] = {}
    for number, (pf, name) in enumerate(_PFS.items()):
        _add_pair(name, f"{name}wire")
        veths[pf] = tuple(_add_vf(number, index) for index in range(_VFS_PER_PF))
    tree, described = folder / "sys", folder / "veths.json"
    make_tree(tree, _PFS, veths)
    all_veths = tuple(veth for some in veths.values() for veth in some)
    described.write_bytes(msgspec.json.encode(VethsFile(str(tree), all_veths)))
    nics = tuple(Nic(pci, name, _VFS_PER_PF, "igb") for pci, name in _PFS.items())
    yield Place(
        "native",
        render_config(nics),
        lambda: [(veth.pci, veth.name) for veth in all_veths],
        lambda: None,
        {"SRIOV_BENCH_VETHS": str(described)},
    )


@contextmanager
def rig(folder: Path) -> Iterator[Place]:
    """On every SR-IOV NIC there is; they are put back as they were found."""
    with ExitStack() as stack:
        nics = tuple(stack.enter_context(as_found(nic)) for nic in find_nics())
        for nic in nics:
            ip("link", "set", nic.name, "up")
        wait_for_carrier(nics)
        yield Place("rig", render_config(nics), lambda: _vfs_of(nics), settle)


PLACES = {"native": native, "rig": rig}


@contextmanager
def slots_of(place: Place) -> Iterator[list[Slot]]:
    """A pod for each VF. The agent has made the VFs."""
    place.settle()
    with ExitStack() as stack:
        slots = []
        for number, (pci, name) in enumerate(place.pci_and_names()):
            pod = Pod(f"bench-{number}").create()
            stack.callback(pod.destroy)
            slots.append(Slot(number, pci, name, pod))
        yield slots


def _add_vf(pf: int, index: int) -> Veth:
    veth = Veth(PciAddress(f"0000:01:1{pf}.{index}"), f"pf{pf}v{index}", Mac(f"02:00:00:00:0{pf}:0{index}"))
    _add_pair(veth.name, f"{veth.name}wire")
    ip("link", "set", veth.name, "address", veth.mac)
    return veth


def _add_pair(name: str, other: str) -> None:
    """The other end is up: whoever brings the first up has a carrier at once."""
    ip("link", "add", name, "type", "veth", "peer", "name", other)
    ip("link", "set", other, "up")


def _vfs_of(nics: tuple[Nic, ...]) -> list[tuple[str, str]]:
    settle()
    return [(nic.vf_address(i), nic.vf_name(i)) for nic in nics for i in range(nic.num_vfs)]
