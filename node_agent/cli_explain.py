"""Orchestrator: `sriovctl explain`: in which pool a device is, and why not in the others."""

import re
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from device_plugin.explain import Explanation, PfExplanation, Verdict, explain, explain_pf
from device_plugin.pools import resource_of
from node_agent.cli_config import (
    ConfigOption,
    EstablishedOption,
    NodeOption,
    PrefixOption,
    read_or_fail,
    source_or_fail,
)
from node_agent.config import AgentConfig
from node_agent.config_source import HOSTNAME
from node_agent.terminal import FAILED, fail, new_console, new_table, print_json
from vf_manager.discovery import read_lone, read_pfs
from vf_manager.errors import NotFound, Refused, SriovError
from vf_manager.kernel.api import Kernel
from vf_manager.kernel.linux import LinuxKernel
from vf_manager.model import Inventory, PciAddress, parse_pci_address

_WITHOUT_DOMAIN = re.compile(r"[0-9A-Fa-f]{2}:[01][0-9A-Fa-f]\.[0-7]")


def explain_command(
    context: typer.Context,
    address: Annotated[
        str | None, typer.Argument(metavar="PCI_ADDRESS", help="Of one device; all of them if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, with every field.")] = False,
    config: ConfigOption = None,
    device_plugin_config: EstablishedOption = None,
    resource_prefix: PrefixOption = None,
    node_name: NodeOption = HOSTNAME,
) -> None:
    """Say for a device in which pool it is, and what keeps it out of the others. Needs no agent."""
    agent_config = read_or_fail(source_or_fail(config, device_plugin_config, resource_prefix, node_name))
    try:
        kernel: Kernel = context.obj or LinuxKernel()
        inventory = Inventory(pfs=read_pfs(kernel), lone=read_lone(kernel))
        if address is not None:
            _show_one(_explain_address(kernel, inventory, agent_config, address), as_json)
            return
        _show_all(
            explain(agent_config.resources(), agent_config.resource_prefix, inventory), agent_config, as_json
        )
    except (SriovError, OSError) as e:
        fail(FAILED, str(e))


def _explain_address(
    kernel: Kernel, inventory: Inventory, config: AgentConfig, address: str
) -> Explanation | PfExplanation:
    """Raises InvalidInput, NotFound (no such device) and Refused (one that no pool is about)."""
    pci = _parse_address(address)
    if pf := inventory.find_pf(pci):
        return explain_pf(config.resources(), pf)
    explanations = explain(config.resources(), config.resource_prefix, inventory)
    if found := next((one for one in explanations if one.pci == pci), None):
        return found
    function = kernel.read_function(pci)
    if function is None:
        raise NotFound(f"there is no PCI device {pci} on this node")
    what = f"{function.vendor}:{function.device}, driver {function.driver or 'none'}"
    raise Refused(f"{pci} ({what}) is no VF of a NIC, nor a NIC that may be one: no pool can have it")


def _parse_address(address: str) -> PciAddress:
    """As lspci writes it, too: without the domain."""
    if _WITHOUT_DOMAIN.fullmatch(address):
        address = f"0000:{address}"
    return parse_pci_address(address, "PCI_ADDRESS")


def _show_one(found: Explanation | PfExplanation, as_json: bool) -> None:
    if as_json:
        print_json(msgspec.to_builtins(found) | {"reason": found.reason()})
        return
    console = new_console()
    console.print(f"{found.pci}  {found.place}", style="bold")
    if isinstance(found, PfExplanation):
        console.print(found.reason())
        return
    numa = "no NUMA node" if found.numa_node is None else f"NUMA node {found.numa_node}"
    console.print(f"{found.vendor}:{found.device}, driver {found.driver or 'none'}, {numa}")
    console.print(f"in pool {', '.join(found.pools)}" if found.pools else "in no pool")
    if found.unusable:
        console.print(f"not for pods: {found.unusable}")
    _print_answers(console, found)


def _print_answers(console: Console, found: Explanation) -> None:
    if not found.answers:
        console.print(found.reason())
        return
    table = new_table("pool", "resource", "")
    for answer in found.answers:
        has = answer.verdict is Verdict.HAS
        said = "has it" if has else answer.reason()
        table.add_row(answer.pool, answer.resource, said, style="bold" if has else None)
    console.print(table)


def _show_all(found: tuple[Explanation, ...], config: AgentConfig, as_json: bool) -> None:
    if as_json:
        print_json({"devices": [msgspec.to_builtins(one) | {"reason": one.reason()} for one in found]})
        return
    console = new_console()
    if not found:
        console.print("This node has no VF, and no NIC that may be one.")
    else:
        table = new_table("pci", "device", "pool", "why in none")
        for one in found:
            table.add_row(one.pci, one.place, ", ".join(one.pools) or "-", one.reason())
        console.print(table)
    for pool in config.resources():
        if not any(pool.name in one.pools for one in found):
            resource = resource_of(pool, config.resource_prefix)
            console.print(f"Pool {pool.name} has no device: {resource} is 0 on this node.")
