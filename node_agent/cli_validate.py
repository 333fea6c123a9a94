"""Orchestrator: `sriovctl validate`: whether a configuration file is right, and how it is understood."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from device_plugin.pools import Pool, envs_of, resource_of
from device_plugin.selectors import Selector
from node_agent.cli_config import EstablishedOption, NodeOption, PrefixOption, read_or_fail, source_or_fail
from node_agent.config import AgentConfig, PoolConfig
from node_agent.config_source import CONFIG, HOSTNAME
from node_agent.terminal import new_console, new_table


def validate_command(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help=f"The agent's config, or with a name in .json one of the established device plugin; {CONFIG}"
            " if left out.",
        ),
    ] = None,
    device_plugin_config: EstablishedOption = None,
    resource_prefix: PrefixOption = None,
    node_name: NodeOption = HOSTNAME,
) -> None:
    """Tell everything that is wrong with a configuration file (exit code 2), or what it says (0)."""
    if device_plugin_config is None and file is not None and file.suffix == ".json":
        file, device_plugin_config = None, file
    source = source_or_fail(file, device_plugin_config, resource_prefix, node_name)
    config = read_or_fail(source)
    console = new_console()
    console.print(f"{source.path}: no mistakes")
    _print_pools(console, config)
    _print_rest(console, config)


def _print_pools(console: Console, config: AgentConfig) -> None:
    table = new_table("pool", "resource", "variables in containers", "VFs to make", "also", "takes")
    for pool, written in zip(config.resources(), config.pools, strict=True):
        table.add_row(
            pool.name,
            resource_of(pool, config.resource_prefix),
            ", ".join(envs_of(pool, config.resource_prefix)),
            f"{written.vfs.count} per PF" if written.vfs else "-",
            ", ".join(_flags(pool, written)) or "-",
            " or ".join(map(_describe, pool.select)),
        )
    console.print(table if config.pools else "no pools: nothing is advertised")


def _flags(pool: Pool, written: PoolConfig) -> Iterator[str]:
    if pool.without_pf is not False:
        yield "withoutPf" if pool.without_pf else "with or without PF"
    flags = {
        "shared": pool.shared,
        "excludeTopology": pool.exclude_topology,
        "vhostNet": pool.vhost_net,
        "additionalInfo": bool(pool.additional_info),
        "limits": written.limits is not None,
    }
    yield from (name for name, is_set in flags.items() if is_set)


def _describe(select: Selector) -> str:
    """`pfNames ens1f0#0-3, vendors 8086|15b3`"""
    return ", ".join(f"{key} {'|'.join(entries)}" for key, entries in select.items()) or "every VF"


def _print_rest(console: Console, config: AgentConfig) -> None:
    for network in config.pool_networks():
        console.print(f"network {network.name} for pools {', '.join(network.pools)}")
    if config.fallback is not None:
        console.print(f"pods without a VF: {config.fallback}")
