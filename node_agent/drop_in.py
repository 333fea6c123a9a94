"""Pure: the configuration file of the established device plugin in the place of the agent's own.

Its pools adopt what is there: VFs are neither made nor configured. What is asked of networks comes with each
call, so limits, networks and a fallback need the agent's own file.
"""

from device_plugin.established import ESTABLISHED_PREFIX, parse_established
from device_plugin.pools import Pool, parse_prefix
from node_agent.config import AgentConfig, ConfigError, PoolConfig
from vf_manager.errors import InvalidInput
from vf_manager.mistakes import MistakesFound


class DropInConfig(AgentConfig, frozen=True, kw_only=True):
    """`established`: the pools of the file, with what has no key in the agent's own."""

    established: tuple[Pool, ...]

    def resources(self) -> tuple[Pool, ...]:
        return self.established


def parse_drop_in(text: str, prefix: str = ESTABLISHED_PREFIX) -> DropInConfig:
    """Raises ConfigError."""
    try:
        pools = parse_established(text, parse_prefix(prefix, "--resource-prefix"))
    except MistakesFound as e:
        raise ConfigError(*e.mistakes) from e
    except InvalidInput as e:
        raise ConfigError(str(e)) from e
    return DropInConfig(
        resource_prefix=prefix,
        pools=tuple(PoolConfig(name=pool.name, select=pool.select) for pool in pools),
        established=pools,
    )
