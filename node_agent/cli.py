"""Orchestrator: the `sriovctl` command."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from device_plugin.dra import device_attributes
from node_agent.agent import ATTACHMENTS, RUN_DIR
from node_agent.cli_attachments import attachments_command, gc_command
from node_agent.cli_doctor import doctor_command
from node_agent.cli_explain import explain_command
from node_agent.cli_pfs import pfs_command
from node_agent.cli_plan import add_commands
from node_agent.cli_status import status_command
from node_agent.cli_top import top_command
from node_agent.cli_trace import trace_command
from node_agent.cli_validate import validate_command
from node_agent.terminal import FAILED, fail, new_console, new_table, print_json
from sriov_cni.attachment import Attachment
from vf_manager.discovery import read_inventory
from vf_manager.errors import SriovError
from vf_manager.kernel.linux import LinuxKernel
from vf_manager.model import PciAddress, Pf, Vf

app = typer.Typer(no_args_is_help=True, help="Looks at the SR-IOV devices of this node.")


@app.callback()
def _main() -> None:
    """Options of sriovctl itself would be here."""


@app.command()
def vfs(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, with every field.")] = False,
    run_dir: Annotated[Path, typer.Option(help="Where the agent keeps its records.")] = RUN_DIR,
) -> None:
    """Show the PFs and VFs of this node as the kernel has them now. Needs no agent."""
    try:
        inventory = read_inventory(LinuxKernel())
        pfs, lone = inventory.pfs, inventory.lone
        owners = _owners(run_dir / ATTACHMENTS)
    except (SriovError, OSError) as e:
        fail(FAILED, str(e))
    if as_json:
        print_json(_document(pfs, lone, owners))
        return
    console = new_console()
    if not pfs:
        console.print("This node has no SR-IOV capable NIC: no PCI device here has sriov_totalvfs.")
        if not lone:
            return
    console.print(_table(pfs, lone, owners))


app.command("status")(status_command)
app.command("pfs")(pfs_command)
app.command("attachments")(attachments_command)
app.command("trace")(trace_command)
app.command("top")(top_command)
app.command("gc")(gc_command)
app.command("doctor")(doctor_command)
app.command("explain")(explain_command)
app.command("validate")(validate_command)


def _owners(directory: Path) -> dict[PciAddress, Attachment]:
    """Read without taking part: no folder is made, a record that goes away meanwhile is no error."""
    found = {}
    for path in sorted(directory.glob("[!.]*.json")):
        try:
            record = msgspec.json.decode(path.read_bytes(), type=Attachment)
        except FileNotFoundError:
            continue
        except msgspec.DecodeError as e:
            typer.echo(f"sriovctl: record {path} cannot be read: {e}", err=True)
            continue
        found[record.port.pci] = record
    return found


def _document(
    pfs: tuple[Pf, ...], lone: tuple[Vf, ...], owners: dict[PciAddress, Attachment]
) -> dict[str, object]:
    attached = [
        {"vf": pci, "state": a.state, "container": a.container_id, "ifname": a.ifname, "pod": a.pod}
        for pci, a in owners.items()
    ]
    return {
        "pfs": [msgspec.to_builtins(pf) | {"vfs": [_with_dra(vf, pf) for vf in pf.vfs]} for pf in pfs],
        "withoutPf": [_with_dra(vf, None) for vf in lone],
        "attachments": attached,
    }


def _with_dra(vf: Vf, pf: Pf | None) -> dict[str, Any]:
    return {**msgspec.to_builtins(vf), "dra": device_attributes(vf, pf)}


def _table(pfs: tuple[Pf, ...], lone: tuple[Vf, ...], owners: dict[PciAddress, Attachment]) -> Table:
    table = new_table(
        "device", "pci", "driver", "name", "mac", "mtu", "link", "vlan", "flags", "numa", "used by"
    )
    for pf in pfs:
        table.add_row(*_pf_row(pf), style="bold")
        for vf in pf.vfs:
            table.add_row(*_vf_row(f"  VF {vf.index}", vf, owners.get(vf.pci)))
    for vf in lone:
        table.add_row(*_vf_row("NIC without PF", vf, owners.get(vf.pci)))
    return table


def _pf_row(pf: Pf) -> list[str]:
    netdev = pf.netdev
    return [
        f"PF ({pf.num_vfs} of {pf.total_vfs} VFs)",
        pf.pci,
        pf.driver or "-",
        netdev.name if netdev else "-",
        netdev.mac if netdev else "-",
        str(netdev.mtu) if netdev else "-",
        _link(netdev.up, netdev.carrier) if netdev else "-",
        "",
        pf.eswitch_mode or "",
        _number(pf.numa_node),
        "",
    ]


def _vf_row(title: str, vf: Vf, owner: Attachment | None) -> list[str]:
    netdev, attributes = vf.netdev, vf.attributes
    mac = netdev.mac if netdev else (attributes.mac if attributes else "-")
    return [
        title,
        vf.pci,
        vf.driver or "-",
        netdev.name if netdev else "-",
        mac,
        str(netdev.mtu) if netdev else "-",
        _link(netdev.up, netdev.carrier) if netdev else "-",
        _vlan(vf),
        _flags(vf),
        _number(vf.numa_node),
        _user(owner) or (f"not for pods: {vf.unusable}" if vf.unusable else ""),
    ]


def _link(up: bool, carrier: bool) -> str:
    return ("up" if carrier else "no carrier") if up else "down"


def _vlan(vf: Vf) -> str:
    if vf.attributes is None or vf.attributes.vlan == 0:
        return "-"
    qos = f" qos {vf.attributes.qos}" if vf.attributes.qos else ""
    return f"{vf.attributes.vlan}{qos}"


def _flags(vf: Vf) -> str:
    if vf.attributes is None:
        return "-"
    named = (("spoofchk", vf.attributes.spoofchk), ("trust", vf.attributes.trust))
    return ",".join(name for name, on in named if on) or "-"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _user(owner: Attachment | None) -> str:
    if owner is None:
        return ""
    who = f"{owner.pod.namespace}/{owner.pod.name}" if owner.pod else owner.container_id[:12]
    state = "" if owner.state == "attached" else f" ({owner.state})"
    return f"{who} {owner.ifname}{state}"


add_commands(app, LinuxKernel)


def run() -> None:
    app()


if __name__ == "__main__":
    run()
