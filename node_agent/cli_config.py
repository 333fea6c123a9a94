"""Orchestrator: the options by which commands of sriovctl are told a configuration file."""

from pathlib import Path
from typing import Annotated

import typer

from device_plugin.established import ESTABLISHED_PREFIX
from node_agent.config import AgentConfig, ConfigError
from node_agent.config_source import CONFIG, HOSTNAME, ConfigSource, choose_source
from node_agent.terminal import WRONG_INPUT, fail
from vf_manager.errors import InvalidInput

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help=f"The agent's config; {CONFIG} if left out.")
]
EstablishedOption = Annotated[
    Path | None,
    typer.Option(
        "--device-plugin-config",
        metavar="FILE",
        help="Instead: a config.json of the established SR-IOV device plugin (resourceList).",
    ),
]
PrefixOption = Annotated[
    str | None,
    typer.Option(
        "--resource-prefix",
        metavar="DOMAIN",
        help=f"Of resources in that file that have none of their own; {ESTABLISHED_PREFIX} if left out.",
    ),
]
# In the container of the agent the variable says it.
NodeOption = Annotated[
    str,
    typer.Option(
        "--node-name", metavar="NAME", envvar="NODE_NAME", help="What `nodes` of the config is matched with."
    ),
]


def source_or_fail(
    config: Path | None, established: Path | None, prefix: str | None, node: str = HOSTNAME
) -> ConfigSource:
    try:
        return choose_source(config, established, prefix, node)
    except InvalidInput as e:
        fail(WRONG_INPUT, str(e))


def read_or_fail(source: ConfigSource) -> AgentConfig:
    """Tells every mistake in the file."""
    try:
        return source.read()
    except ConfigError as e:
        fail(WRONG_INPUT, *(f"{source.path}: {mistake}" for mistake in e.mistakes))
