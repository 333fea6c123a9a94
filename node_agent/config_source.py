"""Adapter: which configuration file is meant, and what it says of this node."""

import os
import socket
from pathlib import Path

import msgspec

from device_plugin.established import ESTABLISHED_PREFIX
from node_agent.config import AgentConfig, ConfigError, parse_config
from node_agent.drop_in import parse_drop_in
from vf_manager.errors import InvalidInput

CONFIG = Path("/etc/sriov-underlay/config.yaml")
HOSTNAME = os.environ.get("NODE_NAME") or socket.gethostname().lower()  # as Kubernetes has it


class ConfigSource(msgspec.Struct, frozen=True):
    """`prefix`: of resource names, in a file of the established device plugin. None: the agent's own file.
    `node`: what `nodes` in that is matched with."""

    path: Path
    prefix: str | None = None
    node: str = HOSTNAME

    def parse(self, text: str) -> AgentConfig:
        """Raises ConfigError."""
        if self.prefix is None:
            return parse_config(text, self.node)
        return parse_drop_in(text, self.prefix)

    def read(self) -> AgentConfig:
        """Raises ConfigError, also if the file cannot be read."""
        try:
            text = self.path.read_text()
        except OSError as e:
            raise ConfigError(e.strerror or str(e)) from e
        except UnicodeDecodeError as e:
            raise ConfigError(str(e)) from e
        return self.parse(text)


def choose_source(
    config: Path | None, established: Path | None, prefix: str | None, node: str = HOSTNAME
) -> ConfigSource:
    """By the options of a command: --config, --device-plugin-config and --resource-prefix. Raises
    InvalidInput that names the one that is too much."""
    if established is None:
        if prefix is not None:
            raise InvalidInput(
                "--resource-prefix",
                prefix,
                "--device-plugin-config beside it: the agent's own file has a key resourcePrefix",
            )
        return ConfigSource(config or CONFIG, node=node)
    if config is not None:
        raise InvalidInput("--config", str(config), "no such option beside --device-plugin-config")
    return ConfigSource(established, ESTABLISHED_PREFIX if prefix is None else prefix)
