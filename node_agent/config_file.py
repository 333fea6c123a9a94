"""Adapter: the config file, looked at again and again.

It is read whole at each look and its content compared, not its times or inode: that holds for a file that is
rewritten, one that another is renamed over, and a ConfigMap, where a link above it is exchanged. A look costs
some 30 us; inotify would have to follow every link of the path and miss nothing while one of them goes.
"""

from collections.abc import Callable
from pathlib import Path

from node_agent.config import AgentConfig, ConfigError, parse_config

LOOK_S = 0.5
_MAX_BYTES = 1 << 20


class ConfigFile:
    """`read` once, then `poll` every `look_s`. `parse` raises ConfigError."""

    def __init__(
        self, path: Path, parse: Callable[[str], AgentConfig] = parse_config, *, look_s: float = LOOK_S
    ) -> None:
        self.path = path
        self._parse_text = parse
        self.look_s = look_s
        self._taken: str | ConfigError | None = None  # what the agent knows of
        self._seen: str | ConfigError | None = None  # at the look before

    def read(self) -> AgentConfig:
        """What the file says now. Raises ConfigError."""
        self._taken = self._seen = self._look()
        return self._parse(self._taken)

    def poll(self) -> AgentConfig | None:
        """What the file says if it says something else than before, once. Raises ConfigError, also once.

        Only what is the same at two looks counts: an editor may be in the middle of writing it.
        """
        before, self._seen = self._seen, self._look()
        if not _same(self._seen, before) or _same(self._seen, self._taken):
            return None
        self._taken = self._seen
        return self._parse(self._taken)

    def _parse(self, found: str | ConfigError | None) -> AgentConfig:
        if isinstance(found, str):
            return self._parse_text(found)
        assert found is not None
        raise found

    def _look(self) -> str | ConfigError:
        try:
            with self.path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
            if len(content) > _MAX_BYTES:
                return ConfigError(f"the file has more than {_MAX_BYTES} bytes")
            return content.decode()
        except OSError as e:
            return ConfigError(e.strerror or str(e))
        except UnicodeDecodeError as e:
            return ConfigError(str(e))


def _same(one: str | ConfigError | None, other: str | ConfigError | None) -> bool:
    """Errors are the same if they say the same."""
    return type(one) is type(other) and str(one) == str(other)
