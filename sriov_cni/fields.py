"""Pure: typed reading of a decoded JSON object, with the path of every key in the errors.

`null` and, for strings, `""` count as absent: that is what the zero values of the Go plugins mean, and
configs written for them carry both.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sriov_cni.spec import UnsupportedField
from vf_manager.errors import InvalidInput


class Fields:
    """One JSON object. `path` is where it stands in the config ("ipam.ranges[0][1]"; "" = the top)."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self.values = values
        self.path = path

    def path_of(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def refuse_unknown(self, known: Iterable[str], tolerated_prefix: str | None = None) -> None:
        known = frozenset(known)
        for key, value in self.values.items():
            if key in known or (tolerated_prefix and key.startswith(tolerated_prefix)):
                continue
            raise UnsupportedField(self.path_of(key), value, known)

    def string(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise InvalidInput(self.path_of(key), value, "a string")
        return value or None

    def required_string(self, key: str) -> str:
        value = self.string(key)
        if value is None:
            raise InvalidInput(self.path_of(key), self.values.get(key), "a string (the key is required)")
        return value

    def integer(self, key: str, low: int, high: int) -> int | None:
        """JSON integers only: `true`, `1.0` and `"1"` are not numbers here."""
        value = self.values.get(key)
        if value is None:
            return None
        if type(value) is not int or not low <= value <= high:
            raise InvalidInput(self.path_of(key), value, f"an integer from {low} to {high}")
        return value

    def boolean(self, key: str) -> bool | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise InvalidInput(self.path_of(key), value, "true or false")
        return value

    def switch(self, key: str) -> bool | None:
        """The strings "on" and "off"."""
        value = self.values.get(key)
        if value not in (None, "", "on", "off"):
            raise InvalidInput(self.path_of(key), value, '"on" or "off"')
        return value == "on" if value else None

    def choice(self, key: str, choices: tuple[str, ...], *, fold: bool = False) -> str | None:
        """One of these strings. `fold`: in upper case as well; it comes out as in `choices`."""
        value = self.string(key)
        found = value.lower() if value and fold else value
        if found is None or found in choices:
            return found
        raise InvalidInput(self.path_of(key), value, f"one of {', '.join(choices)}")

    def child(self, key: str) -> "Fields | None":
        value = self.values.get(key)
        return None if value is None else as_fields(value, self.path_of(key))

    def children(self, key: str) -> list["Fields"]:
        return [as_fields(item, path) for item, path in self.items(key)]

    def strings(self, key: str) -> tuple[str, ...]:
        pairs = self.items(key)
        for item, path in pairs:
            if not isinstance(item, str):
                raise InvalidInput(path, item, "a string")
        return tuple(item for item, _ in pairs)

    def items(self, key: str) -> list[tuple[Any, str]]:
        """The elements of the array at `key`, each with its path. Absent: none."""
        value = self.values.get(key)
        return [] if value is None else list_items(value, self.path_of(key))


def as_fields(value: Any, path: str) -> Fields:
    if not isinstance(value, dict):
        raise InvalidInput(path, value, "an object")
    return Fields(value, path)


def list_items(value: Any, path: str) -> list[tuple[Any, str]]:
    if not isinstance(value, list):
        raise InvalidInput(path, value, "an array")
    return [(item, f"{path}[{index}]") for index, item in enumerate(value)]
