"""Orchestrator: `sriovctl trace`: what happens to what a pod sends somewhere."""

from typing import Annotated

import msgspec
import typer

from node_agent.agent import RUN_DIR, SOCKET_NAME
from node_agent.agent_socket import ask_for
from node_agent.cli_place import JsonOption, RunDirOption
from node_agent.terminal import FAILED, NOTICE, fail, new_console, new_table, print_json
from node_agent.trace import TRACE, Leg, Question, Trace
from sriov_cni.in_pod.objects import Proto
from vf_manager.errors import SriovError


def trace_command(
    pod: Annotated[str, typer.Argument(metavar="NAMESPACE/POD", help="A pod of this node that has a VF.")],
    destination: Annotated[
        str, typer.Argument(metavar="DESTINATION[:PORT]", help="An address, or NAME.NAMESPACE of a service.")
    ],
    proto: Annotated[Proto, typer.Option(case_sensitive=False, help="The protocol.")] = Proto.TCP,
    run_dir: RunDirOption = RUN_DIR,
    as_json: JsonOption = False,
) -> None:
    """Show which service a destination is, where it ends, by which interface, and which policy stops it. The
    agent is asked. Exit code 0: it gets through to some end, 3: to none."""
    question = Question(pod=pod if "/" in pod else f"default/{pod}", destination=destination, proto=proto)
    try:
        reply = ask_for(run_dir / SOCKET_NAME, TRACE, msgspec.json.encode(question))
        trace = msgspec.json.decode(reply, type=Trace)
    except (SriovError, OSError, msgspec.DecodeError) as e:
        fail(FAILED, str(e))
    if as_json:
        print_json(trace)
    else:
        _show(trace, proto)
    raise typer.Exit(0 if any(leg.passes for leg in trace.legs) else NOTICE)


def _show(trace: Trace, proto: Proto) -> None:
    console = new_console()
    console.print(f"{trace.pod}, {proto} to {trace.destination}: {_way(trace.first)}")
    for line in trace.service:
        if not line.startswith("  "):  # endpoints are in the table
            console.print(line)
    if not trace.legs:
        return
    table = new_table("to", "leaves by", "policy", "why")
    for leg in trace.legs:
        by = leg.ifname or "no route"
        verdict = "let through" if leg.passes else "stopped"
        table.add_row(_socket(leg), by, verdict if leg.policy else "none here", leg.policy or "-")
    console.print(table)


def _way(leg: Leg) -> str:
    if leg.ifname is None:
        return f"the pod has no route to {leg.address}"
    return f"{leg.address} leaves by {leg.ifname}" + (f", by way of {leg.gateway}" if leg.gateway else "")


def _socket(leg: Leg) -> str:
    if leg.port is None:
        return leg.address
    return f"[{leg.address}]:{leg.port}" if ":" in leg.address else f"{leg.address}:{leg.port}"
