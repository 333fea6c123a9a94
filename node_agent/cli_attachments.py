"""Orchestrator: `sriovctl attachments` and `sriovctl gc`: which pod has which VF, and which VF has no pod."""

from typing import Annotated

import msgspec
import typer

from device_plugin.podresources import PodResources
from node_agent.agent import KUBELET_DIR, POD_RESOURCES, RUN_DIR
from node_agent.cli_place import (
    Held,
    JsonOption,
    KubeletDirOption,
    RunDirOption,
    age_word,
    kernel_of,
    pod_word,
    read_held,
)
from node_agent.terminal import FAILED, NOTICE, WRONG_INPUT, fail, new_console, new_table, print_json
from sriov_cni.lost import why_lost
from vf_manager.discovery import read_pfs
from vf_manager.errors import SriovError
from vf_manager.model import PciAddress, Pf


def attachments_command(
    context: typer.Context, run_dir: RunDirOption = RUN_DIR, as_json: JsonOption = False
) -> None:
    """Show which pod has which VF, by the records of the agent. Needs no agent."""
    try:
        held = read_held(run_dir)
        pfs = {pf.pci: pf for pf in read_pfs(kernel_of(context))} if held else {}
    except (SriovError, OSError) as e:
        fail(FAILED, str(e))
    if as_json:
        print_json({"attachments": [_document(one, pfs) for one in held]})
        return
    if not held:
        new_console().print("No VF of this node is attached to a pod.")
        return
    table = new_table("pod", "ifname", "VF", "PF", "VLAN", "addresses", "network", "since", "state")
    for one in held:
        table.add_row(*_row(one, pfs))
    new_console().print(table)


def gc_command(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look only. There is no other way.")] = False,
    run_dir: RunDirOption = RUN_DIR,
    kubelet_dir: KubeletDirOption = KUBELET_DIR,
    as_json: JsonOption = False,
) -> None:
    """Show the attachments that the agent would take back, since no pod has them. The agent itself does it,
    20 seconds after it has first seen one. Exit code 0: none, 3: some."""
    if not dry_run:
        fail(WRONG_INPUT, "the agent takes back what no pod has, by itself; gc --dry-run shows what that is")
    kernel, kubelet = kernel_of(context), PodResources(kubelet_dir / POD_RESOURCES)
    try:
        reasons = [(one, why_lost(one.attachment, kernel, kubelet)) for one in read_held(run_dir)]
    except (SriovError, OSError) as e:
        fail(FAILED, str(e))
    lost = [(one, why) for one, why in reasons if why is not None]
    if as_json:
        print_json({"takenBack": [_document(one, {}) | {"reason": why} for one, why in lost]})
    elif not lost:
        new_console().print("Nothing to take back: every attachment has its pod.")
    else:
        table = new_table("pod", "ifname", "VF", "since", "why no pod has it")
        for one, why in lost:
            record = one.attachment
            table.add_row(pod_word(record), record.ifname, record.port.pci, age_word(one.since_s), why)
        new_console().print(table)
    raise typer.Exit(NOTICE if lost else 0)


def _document(held: Held, pfs: dict[PciAddress, Pf]) -> dict[str, object]:
    record = held.attachment
    pf = pfs.get(record.port.pf) if record.port.pf else None
    return {
        "pod": msgspec.to_builtins(record.pod),
        "container": record.container_id,
        "ifname": record.ifname,
        "vf": record.port.pci,
        "pf": record.port.pf,
        "pfName": pf.netdev.name if pf and pf.netdev else None,
        "vlan": record.asked.change.vlan,
        "addresses": _addresses(held),
        "network": record.network,
        "state": record.state,
        "sinceSeconds": held.since_s,
    }


def _row(held: Held, pfs: dict[PciAddress, Pf]) -> list[str]:
    record = held.attachment
    pf = pfs.get(record.port.pf) if record.port.pf else None
    vlan = record.asked.change.vlan
    return [
        pod_word(record),
        record.ifname,
        record.port.pci,
        pf.netdev.name if pf and pf.netdev else record.port.pf or "-",
        "-" if vlan is None else str(vlan),
        ", ".join(_addresses(held)) or "-",
        record.network,
        age_word(held.since_s),
        record.state,
    ]


def _addresses(held: Held) -> list[str]:
    result = held.attachment.result
    return [ip.address for ip in result.ips] if result else []
