"""Orchestrator: addresses from another executable, called as the CNI specification says (SPEC.md, section 4).

Decisions:
- The result is read strictly, and one without an address is an error, as in sriov-cni: nobody asks an IPAM
  for nothing. Keys that are not known here are left out; interfaces are not an IPAM's to give.
- DEL goes by the config and the variables of the ADD, which the attachment's record keeps: they are what the
  plugin knows the addresses by. "Unknown container" (3) is success there: nothing is held.
- STATUS reaches the plugin from version 1.1.0 on. One that does not know the verb is no obstacle, unless it
  does not serve the config's version: then no ADD could succeed. One that does not know GC has nothing to
  collect.
"""

import time
from collections.abc import Set
from typing import Any

import msgspec

from sriov_cni.environment import Command, Environment
from sriov_cni.exec import PluginRunner, netns_path
from sriov_cni.fields import Fields
from sriov_cni.ipam.config import (
    DelegateConf,
    IpamConf,
    IpamResult,
    Valid,
    address_of,
    canonical,
    dns_of,
    parse_network,
    route_of,
)
from sriov_cni.netconf import decode_object
from sriov_cni.spec import (
    ErrorCode,
    IpConfig,
    NotReady,
    PluginError,
    PluginGarbage,
    PluginMissing,
    Route,
    did_you_mean,
    is_at_least,
)
from vf_manager.errors import InvalidInput
from vf_manager.kernel.api import NetnsId
from vf_manager.model import parse_ifname

# An ADD and the DEL after its failure fit into the time that the executable waits for the agent (shim.c).
_ADD_TIMEOUT_S = 25.0
_TIMEOUT_S = 15.0
_SERVED_HERE = ("host-local", "static")


class Delegate:
    """`conf.env.netns` must be a path that the plugin can open: see `reachable`."""

    def __init__(self, conf: DelegateConf, runner: PluginRunner) -> None:
        self._conf = conf
        self._runner = runner

    def add(self, container_id: str, ifname: str) -> IpamResult:
        """Raises PluginFailure; what the plugin may have done by then is for `delete` to undo."""
        env = self._env(container_id, ifname)
        stdin = self._conf.config.encode()
        answer = self._runner.run_for_result(
            self._conf.kind, Command.ADD, env, stdin, time.monotonic() + _ADD_TIMEOUT_S
        )
        try:
            return parse_ipam_result(answer)
        except InvalidInput as e:
            raise PluginGarbage(f"plugin {self._conf.kind} (ADD) gave a result that is wrong: {e}") from e

    def delete(self, container_id: str, ifname: str) -> None:
        try:
            self._run(Command.DEL, container_id, ifname)
        except PluginError as e:
            if e.code != ErrorCode.UNKNOWN_CONTAINER:
                raise

    def check(self, container_id: str, ifname: str) -> None:
        self._run(Command.CHECK, container_id, ifname)

    def keep_only(self, valid: Valid) -> None:
        config = decode_object(self._conf.config.encode()) | render_valid_attachments(valid())
        deadline = time.monotonic() + _TIMEOUT_S
        self._runner.collect(self._conf.kind, _nobody(self._conf.env), msgspec.json.encode(config), deadline)

    def status(self) -> None:
        """Raises NotReady, or what the plugin answers."""
        stdin = self._conf.config.encode()
        version = str(decode_object(stdin).get("cniVersion"))
        env = _nobody(self._conf.env)
        if is_at_least(version, "1.1.0"):
            deadline = time.monotonic() + _TIMEOUT_S
            self._runner.ask_status(self._conf.kind, env, stdin, version, deadline)
            return
        try:
            self._runner.find(self._conf.kind, env.path)
        except PluginMissing as e:
            raise NotReady(str(e)) from e

    def _run(self, command: Command, container_id: str, ifname: str) -> None:
        env = self._env(container_id, ifname)
        stdin = self._conf.config.encode()
        self._runner.run(self._conf.kind, command, env, stdin, time.monotonic() + _TIMEOUT_S)

    def _env(self, container_id: str, ifname: str) -> Environment:
        """A pod's further VFs have names of their own, not the call's."""
        name = parse_ifname(ifname, "CNI_IFNAME")
        return msgspec.structs.replace(self._conf.env, container_id=container_id, ifname=name)


def refuse_missing(conf: IpamConf | None, runner: PluginRunner) -> None:
    """Raises PluginMissing. To be asked before an attachment is begun: a plugin that is not there could not
    undo what it never did, and the attachment would stay half-done."""
    if not isinstance(conf, DelegateConf):
        return
    try:
        runner.find(conf.kind, conf.env.path)
    except PluginMissing as e:
        hint = did_you_mean(conf.kind, _SERVED_HERE)
        raise PluginMissing(f"ipam.type: {e} ({hint or 'host-local and static need none'})") from e


def reachable(conf: IpamConf | None, netns_fd: int | None, wanted: NetnsId | None) -> IpamConf | None:
    """The same, with a path to the pod's namespace that a plugin can open; "" if that is gone or unknown."""
    if not isinstance(conf, DelegateConf):
        return conf
    netns = netns_path(conf.env.netns, netns_fd, wanted) if wanted else ""
    return msgspec.structs.replace(conf, env=msgspec.structs.replace(conf.env, netns=netns))


def parse_ipam_result(answer: dict[str, Any]) -> IpamResult:
    """Of any version that has `ips` (0.3.0 and newer). Raises InvalidInput that names the key."""
    raw = Fields(answer)
    ips = tuple(_ip_of(fields) for fields in raw.children("ips"))
    if not ips:
        raise InvalidInput("ips", answer.get("ips"), "at least one address")
    dns = raw.child("dns")
    return IpamResult(
        ips=ips,
        routes=tuple(_route_of(fields) for fields in raw.children("routes")),
        **({"dns": dns_of(dns)} if dns else {}),
    )


def render_valid_attachments(valid: Set[tuple[str, str]]) -> dict[str, Any]:
    """For GC, under the key of the specification and the one that libcni uses besides."""
    entries = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in sorted(valid)]
    return {"cni.dev/valid-attachments": entries, "cni.dev/attachments": entries}


def _ip_of(fields: Fields) -> IpConfig:
    text = fields.required_string("address")
    network = parse_network(text, fields.path_of("address"))
    version = fields.string("version")
    if version not in (None, str(network.version)):
        raise InvalidInput(fields.path_of("version"), version, f'"{network.version}", as the address is')
    gateway = address_of(fields, "gateway", network)
    return IpConfig(address=canonical(text), gateway=str(gateway) if gateway else None)


def _route_of(fields: Fields) -> Route:
    """DHCP's way to say "on link" is a gateway of 0.0.0.0 (RFC 3442)."""
    route = route_of(fields)
    return msgspec.structs.replace(route, gw=None) if route.gw in ("0.0.0.0", "::") else route


def _nobody(env: Environment) -> Environment:
    """For GC and STATUS, which concern no container."""
    return Environment(command=env.command, path=env.path)
