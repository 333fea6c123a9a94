"""Orchestrator: `sriovctl pfs`: the physical functions of this node."""

import msgspec
import typer

from node_agent.agent import RUN_DIR
from node_agent.cli_place import JsonOption, RunDirOption, held_vfs, kernel_of, read_held
from node_agent.terminal import FAILED, fail, new_console, new_table, print_json
from vf_manager.discovery import read_pfs
from vf_manager.errors import SriovError
from vf_manager.model import PciAddress, Pf


def pfs_command(context: typer.Context, run_dir: RunDirOption = RUN_DIR, as_json: JsonOption = False) -> None:
    """Show the PFs of this node as the kernel has them now. Needs no agent."""
    try:
        pfs = read_pfs(kernel_of(context))
        held = held_vfs(read_held(run_dir))
    except (SriovError, OSError) as e:
        fail(FAILED, str(e))
    if as_json:
        print_json({"pfs": [_document(pf, [vf.pci for vf in pf.vfs if vf.pci in held]) for pf in pfs]})
        return
    if not pfs:
        new_console().print("This node has no SR-IOV capable NIC: no PCI device here has sriov_totalvfs.")
        return
    table = new_table("PF", "pci", "driver", "VFs", "attached", "mac", "mtu", "numa", "eswitch", "link")
    for pf in pfs:
        table.add_row(*_row(pf, sum(vf.pci in held for vf in pf.vfs)))
    new_console().print(table)


def _document(pf: Pf, attached: list[PciAddress]) -> dict[str, object]:
    return {**msgspec.to_builtins(pf), "vfs": [vf.pci for vf in pf.vfs], "attached": attached}


def _row(pf: Pf, attached: int) -> list[str]:
    netdev = pf.netdev
    return [
        netdev.name if netdev else "-",
        pf.pci,
        pf.driver or "-",
        f"{pf.num_vfs} of {pf.total_vfs}",
        str(attached),
        netdev.mac if netdev else "-",
        str(netdev.mtu) if netdev else "-",
        "-" if pf.numa_node is None else str(pf.numa_node),
        pf.eswitch_mode or "-",
        _link(pf),
    ]


def _link(pf: Pf) -> str:
    if pf.netdev is None:
        return "-"
    state = ("up" if pf.netdev.carrier else "no carrier") if pf.netdev.up else "down"
    return ", ".join([state, *(f"devlink reports an error of {name}" for name in pf.sick_reporters)])
