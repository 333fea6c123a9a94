"""Pure: the CNI_* environment of a call (CNI SPEC.md, section "Parameters").

CNI_PATH is taken when it is there and never demanded: only a delegate needs it, and a DEL or GC must not
fail for the want of something it does not use.
"""

import re
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from sriov_cni.spec import BadEnvironment
from vf_manager.errors import InvalidInput, plain
from vf_manager.model import IfName, parse_ifname

# Of container ids and network names (pkg/utils of the Go library); as long as a file name can carry, with
# what is put around it.
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,199}")
_LONGEST_NAME = 320  # in the log: a namespace and a pod are 63 and 253
NAME_RULE = "at most 200 letters, digits, '_', '.' and '-', a letter or digit first"

_POD_KEYS = {"namespace": "K8S_POD_NAMESPACE", "name": "K8S_POD_NAME", "uid": "K8S_POD_UID"}
_KNOWN_ARGS = {"IgnoreUnknown", "MAC", "IP", "GATEWAY", "K8S_POD_INFRA_CONTAINER_ID", *_POD_KEYS.values()}


class Command(StrEnum):
    """CNI_COMMAND, without VERSION: the executable answers that one itself."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"

    @property
    def has_container(self) -> bool:
        return self in (Command.ADD, Command.DEL, Command.CHECK)

    @property
    def cleans(self) -> bool:
        """Commands that must get through however wrong the options are."""
        return self in (Command.DEL, Command.GC)


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    """The pod as the runtime names it. `uid` is "" when the runtime does not tell."""

    namespace: str
    name: str
    uid: str = ""


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """`container_id` is "" and `ifname` None for GC and STATUS. `netns`: a path, "" when not given."""

    command: Command
    container_id: str = ""
    ifname: IfName | None = None
    netns: str = ""
    path: tuple[str, ...] = ()
    args: dict[str, str] = {}

    @property
    def pod(self) -> Pod | None:
        found = {field: self.args.get(key, "") for field, key in _POD_KEYS.items()}
        return Pod(**found) if found["namespace"] and found["name"] else None


def parse_environment(env: Mapping[str, str]) -> Environment:
    """Validate the variables that the command needs. Raises BadEnvironment, which names the variable."""
    command = _command(env)
    path = tuple(filter(None, env.get("CNI_PATH", "").split(":")))
    if not command.has_container:
        return Environment(command=command, path=path)
    netns = env.get("CNI_NETNS", "")
    if not netns and command is not Command.DEL:
        raise BadEnvironment("CNI_NETNS", netns, f"the path of a network namespace ({command} needs it)")
    return Environment(
        command=command,
        container_id=_container_id(env, command),
        ifname=_ifname(env, command),
        netns=netns,
        path=path,
        args=parse_cni_args(env.get("CNI_ARGS", ""), strict=not command.cleans),
    )


def name_call(env: Mapping[str, str]) -> dict[str, str]:
    """What tells one call from others, for the log, however wrong the rest of it is."""
    args = parse_cni_args(env.get("CNI_ARGS", ""), strict=False)
    pod = [args.get(_POD_KEYS[field], "") for field in ("namespace", "name")]
    found = {
        "command": env.get("CNI_COMMAND", ""),
        "container": env.get("CNI_CONTAINERID", ""),
        "ifname": env.get("CNI_IFNAME", ""),
        "pod": "/".join(pod) if any(pod) else "",
    }
    return {key: plain(value, _LONGEST_NAME) for key, value in found.items() if value}


def parse_cni_args(text: str, *, strict: bool = True) -> dict[str, str]:
    """`K=V;K=V`. Unknown keys are an error unless IgnoreUnknown is true, as in the Go plugins.

    Not `strict`: what does not parse is left out.
    """
    args: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        if equals and key:
            args[key] = value
        elif strict:
            raise BadEnvironment("CNI_ARGS", pair, "KEY=VALUE pairs separated by ';'")
    if strict and not _ignores_unknown(args):
        _refuse_unknown_args(args)
    return args


def _refuse_unknown_args(args: Mapping[str, str]) -> None:
    for key, value in args.items():
        if key not in _KNOWN_ARGS:
            expected = f"keys among {', '.join(sorted(_KNOWN_ARGS))}, or IgnoreUnknown=1"
            raise BadEnvironment("CNI_ARGS", f"{key}={value}", expected)


def _ignores_unknown(args: Mapping[str, str]) -> bool:
    value = args.get("IgnoreUnknown", "0")
    if value.lower() not in ("1", "true", "0", "false"):
        raise BadEnvironment("CNI_ARGS", f"IgnoreUnknown={value}", "1, true, 0 or false")
    return value.lower() in ("1", "true")


def _command(env: Mapping[str, str]) -> Command:
    value = env.get("CNI_COMMAND", "")
    try:
        return Command(value)
    except ValueError:
        raise BadEnvironment("CNI_COMMAND", value, f"one of {', '.join(Command)}") from None


def _container_id(env: Mapping[str, str], command: Command) -> str:
    value = env.get("CNI_CONTAINERID", "")
    if not NAME.fullmatch(value):
        raise BadEnvironment("CNI_CONTAINERID", value, f"{NAME_RULE} ({command} needs it)")
    return value


def _ifname(env: Mapping[str, str], command: Command) -> IfName:
    try:
        return parse_ifname(env.get("CNI_IFNAME", ""), "CNI_IFNAME")
    except InvalidInput as error:
        raise BadEnvironment(error.key, error.value, f"{error.expected} ({command} needs it)") from error
