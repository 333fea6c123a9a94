"""Pure: a network configuration list as a runtime reads it, and what it makes of it for each plugin.

What is the runtime's business is read strictly; a plugin's object is its own (CNI SPEC.md, sections 1 and 3).
Other keys of the list are ignored, as by libcni: such lists come from the vendors of their plugins.

What a plugin gets is made to the letter of the specification: `capabilities`, `runtimeConfig`, `prevResult`
and `cni.dev/` keys of the list do not reach it, everything else does. (libcni leaves `capabilities` in.)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from sriov_cni.environment import NAME, NAME_RULE
from sriov_cni.fields import Fields
from sriov_cni.netconf import decode_object
from sriov_cni.spec import SUPPORTED_VERSIONS, IncompatibleVersion, parse_plugin_name
from vf_manager.errors import InvalidInput

VERSIONS = ("0.3.0", *SUPPORTED_VERSIONS)  # 0.3.0: the first with lists; differs from 0.3.1 by a typing error
_MADE_HERE = ("capabilities", "runtimeConfig", "prevResult")


class Conflist(msgspec.Struct, frozen=True, kw_only=True):
    """`versions`: those that the list declares and that are served here, oldest first. `plugins`: as they
    are written."""

    name: str
    versions: tuple[str, ...]
    plugins: tuple[dict[str, Any], ...]
    disable_check: bool = False
    disable_gc: bool = False

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(plugin["type"] for plugin in self.plugins)

    def version_for(self, wanted: str) -> str:
        """The caller's version if the list has it, else the newest that it has."""
        return wanted if wanted in self.versions else self.versions[-1]


MorePlugins = Callable[[str], Sequence[tuple[str, bytes]]]  # name of the network -> files and their content


def no_more_plugins(_: str) -> Sequence[tuple[str, bytes]]:
    return ()


def parse_conflist(text: bytes, more_plugins: MorePlugins = no_more_plugins) -> Conflist:
    """`more_plugins`: what other files hold for the network of a name; not asked if the list rules it out.
    Raises InvalidInput."""
    top = Fields(decode_object(text))
    name = top.required_string("name")
    if not NAME.fullmatch(name):
        raise InvalidInput("name", name, NAME_RULE)
    if top.values.get("plugins") is None and "type" in top.values:
        raise InvalidInput("plugins", None, "a list of plugins; this is the configuration of a single plugin")
    plugins = top.children("plugins")
    if not _parse_flag(top, "loadOnlyInlinedPlugins"):
        plugins += [Fields(decode_object(more), file) for file, more in more_plugins(name)]
    if not plugins:
        raise InvalidInput("plugins", top.values.get("plugins"), "at least one plugin")
    return Conflist(
        name=name,
        versions=_parse_versions(top),
        plugins=tuple(_parse_plugin(plugin) for plugin in plugins),
        disable_check=_parse_flag(top, "disableCheck"),
        disable_gc=_parse_flag(top, "disableGC"),
    )


def render_config(
    conflist: Conflist,
    plugin: Mapping[str, Any],
    version: str,
    *,
    runtime_config: Mapping[str, Any] | None = None,
    prev_result: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> bytes:
    """The stdin of one plugin. Of `runtime_config` it gets what its `capabilities` declare."""
    config = {
        key: value
        for key, value in plugin.items()
        if key not in _MADE_HERE and not key.startswith("cni.dev/")
    }
    config |= {"cniVersion": version, "name": conflist.name}
    declared = plugin.get("capabilities") or {}
    given = {key: value for key, value in (runtime_config or {}).items() if declared.get(key)}
    if given:
        config["runtimeConfig"] = given
    if prev_result is not None:
        config["prevResult"] = prev_result
    return msgspec.json.encode(config | dict(more or {}))


def _parse_versions(top: Fields) -> tuple[str, ...]:
    """Declared are `cniVersion` and all of `cniVersions`. Absent means 0.1.0, which knows no lists."""
    declared = {top.string("cniVersion") or "0.1.0", *top.strings("cniVersions")}
    served = tuple(version for version in VERSIONS if version in declared)
    if not served:
        given = ", ".join(sorted(declared))
        raise IncompatibleVersion("cniVersion", given, f"one of {', '.join(VERSIONS)}")
    return served


def _parse_plugin(plugin: Fields) -> dict[str, Any]:
    parse_plugin_name(plugin.required_string("type"), plugin.path_of("type"))
    capabilities = plugin.child("capabilities")
    for key in capabilities.values if capabilities else ():
        assert capabilities is not None
        capabilities.boolean(key)
    return dict(plugin.values)


def _parse_flag(top: Fields, key: str) -> bool:
    """libcni takes the words as well."""
    value = top.values.get(key)
    match value.lower() if isinstance(value, str) else value:
        case None | False | "false":
            return False
        case True | "true":
            return True
        case _:
            raise InvalidInput(top.path_of(key), value, "true or false")
