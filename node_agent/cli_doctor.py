"""Orchestrator: `sriovctl doctor`: what is wrong on this node, why, and how to mend it."""

import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.padding import Padding

from node_agent.agent import KUBELET_DIR, RUN_DIR
from node_agent.cli_place import JsonOption, KubeletDirOption, RunDirOption, kernel_of
from node_agent.config_source import CONFIG
from node_agent.doctor.checks import RULES, find_all
from node_agent.doctor.gather import Node, gather
from node_agent.doctor.rules import Finding, Severity
from node_agent.terminal import FAILED, NOTICE, TROUBLE, fail, new_console, print_json
from sriov_cni.ipam.engine import DATA_DIR
from sriov_cni.spec import OWN_NAMES
from vf_manager.errors import SriovError


def doctor_command(  # noqa: PLR0913 - each is an option
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help=f"The one that the agent reads, or {CONFIG}, if left out."
        ),
    ] = None,
    run_dir: RunDirOption = RUN_DIR,
    kubelet_dir: KubeletDirOption = KUBELET_DIR,
    lease_dir: Annotated[
        Path, typer.Option("--lease-dir", metavar="DIR", help="Leases of host-local IPAM.")
    ] = DATA_DIR,
    root: Annotated[
        Path, typer.Option("--root", metavar="DIR", help="The host's root, where that is not this one's.")
    ] = Path("/"),
    cni_conf_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Network configurations; the runtime's, or /etc/cni/net.d."),
    ] = None,
    cni_bin_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="CNI plugins; the runtime's, or /opt/cni/bin.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Ask the wire for the pods' addresses and gateways.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look for what is wrong on this node, and say why and how to mend it. Changes nothing; as root. Exit
    code 0: nothing, or notes alone, 3: warnings, 4: errors."""
    node = Node(
        root=root,
        config=config,
        run_dir=run_dir,
        kubelet_dir=kubelet_dir,
        lease_dir=lease_dir,
        conf_dir=cni_conf_dir,
        bin_dir=cni_bin_dir,
        shipped=Path(sys.prefix) / "libexec" / OWN_NAMES[0],
    )
    try:
        found = find_all(gather(node, kernel_of(context), time.monotonic(), probe=probe))
    except (SriovError, OSError) as e:
        fail(FAILED, str(e))
    if as_json:
        print_json({"findings": msgspec.to_builtins(found)})
    else:
        _show(found)
    raise typer.Exit(_exit_code(found))


def _show(found: list[Finding]) -> None:
    console = new_console()
    for finding in found:
        console.print(f"{finding.severity}: {finding.id}: {finding.about}", style="bold")
        cause = f"{finding.cause[0].upper()}{finding.cause[1:]}."
        for sentence in (cause, f"To do: {finding.cure}."):
            console.print(Padding(sentence, (0, 0, 0, 2), expand=False))
    if not found:
        console.print(f"Nothing is wrong: {len(RULES)} checks.")


def _exit_code(found: list[Finding]) -> int:
    worst = {finding.severity for finding in found}
    if Severity.ERROR in worst:
        return TROUBLE
    return NOTICE if Severity.WARNING in worst else 0
