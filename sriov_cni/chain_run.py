"""Orchestrator: the plugins of one chain, called in order (CNI SPEC.md, section 3)."""

import time
from collections.abc import Set

import msgspec

from sriov_cni.chain_cache import ChainRecord
from sriov_cni.chain_conflist import Conflist, render_config
from sriov_cni.chain_result import RawResult, parse_result, replace_sandbox
from sriov_cni.environment import Command, Environment
from sriov_cni.exec import PluginRunner, netns_path
from sriov_cni.executor import Checkpoint
from sriov_cni.ipam.delegate import render_valid_attachments
from sriov_cni.spec import CheckFailed, NotReady, PluginGarbage, PluginMissing, is_at_least
from vf_manager.errors import InvalidInput, SriovError


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Of a whole chain, in seconds. `undo`: of the DEL on the way out of another call. An ADD and the DEL
    after its failure fit into the time that the executable waits for the agent (shim.c)."""

    add_s: float = 30.0
    undo_s: float = 15.0
    other_s: float = 40.0


class ChainRun:
    """Nothing is kept between calls. `env`: the variables of a call; CNI_PATH is taken from them, and the
    path of the namespace, if they have one; the rest is the record's."""

    def __init__(self, plugins: PluginRunner, timeouts: Timeouts, checkpoint: Checkpoint) -> None:
        self._plugins = plugins
        self._timeouts = timeouts
        self._checkpoint = checkpoint

    def add(self, record: ChainRecord, netns_fd: int) -> RawResult:
        """The result of the last plugin; each gets that of the one before it."""
        env = _plugin_env(record, record.env, netns_fd)
        deadline = time.monotonic() + self._timeouts.add_s
        result: RawResult | None = None
        for number, plugin in enumerate(record.conflist.plugins):
            self._checkpoint(f"add {number}")
            stdin = render_config(
                record.conflist,
                plugin,
                record.cni_version,
                runtime_config=record.runtime_config,
                prev_result=result,
            )
            answer = self._plugins.run_for_result(plugin["type"], Command.ADD, env, stdin, deadline)
            try:
                result = parse_result(answer, record.cni_version)
            except InvalidInput as e:
                raise PluginGarbage(f"plugin {plugin['type']} (ADD) gave a result that is wrong: {e}") from e
            self._checkpoint(f"added {number}")
        assert result is not None  # a list has at least one plugin
        return replace_sandbox(result, env.netns, record.env.netns)

    def delete(self, record: ChainRecord, env: Environment, netns_fd: int | None, *, brief: bool) -> None:
        """In reverse order, to the first that fails. `brief`: on the way out of another call."""
        env = _plugin_env(record, env, netns_fd)
        deadline = time.monotonic() + (self._timeouts.undo_s if brief else self._timeouts.other_s)
        prev_result = _prev_result(record, env.netns) if is_at_least(record.cni_version, "0.4.0") else None
        for number, plugin in reversed(list(enumerate(record.conflist.plugins))):
            self._checkpoint(f"delete {number}")
            self._run(record, plugin, Command.DEL, env, prev_result, deadline)
            self._checkpoint(f"deleted {number}")

    def check(self, record: ChainRecord, env: Environment, netns_fd: int) -> None:
        """Nothing to do where the list or its version does not allow it."""
        if record.conflist.disable_check or not is_at_least(record.cni_version, "0.4.0"):
            return
        env = _plugin_env(record, env, netns_fd)
        if not env.netns:
            raise CheckFailed("the container is in another network namespace than at ADD")
        deadline = time.monotonic() + self._timeouts.other_s
        prev_result = _prev_result(record, env.netns)
        for plugin in record.conflist.plugins:
            self._run(record, plugin, Command.CHECK, env, prev_result, deadline)

    def collect(
        self, conflist: Conflist, version: str, env: Environment, valid: Set[tuple[str, str]]
    ) -> list[SriovError]:
        """GC, past errors; returns them."""
        if not is_at_least(version, "1.1.0"):
            return []
        failures: list[SriovError] = []
        deadline = time.monotonic() + self._timeouts.other_s
        for plugin in conflist.plugins:
            stdin = render_config(conflist, plugin, version, more=render_valid_attachments(valid))
            try:
                self._plugins.collect(plugin["type"], env, stdin, deadline)
            except SriovError as e:
                failures.append(e)
        return failures

    def status(self, conflist: Conflist, version: str, env: Environment) -> None:
        """Below 1.1.0 a plugin can only be there or not."""
        try:
            self.refuse_missing(conflist, env)
        except PluginMissing as e:
            raise NotReady(str(e)) from e
        deadline = time.monotonic() + self._timeouts.other_s
        for plugin in conflist.plugins if is_at_least(version, "1.1.0") else ():
            stdin = render_config(conflist, plugin, version)
            self._plugins.ask_status(plugin["type"], env, stdin, version, deadline)

    def refuse_missing(self, conflist: Conflist, env: Environment) -> None:
        """Raises PluginMissing. To be asked before anything is begun: see `sriov_cni.ipam.delegate`."""
        for plugin in conflist.types:
            self._plugins.find(plugin, env.path)

    def _run(
        self,
        record: ChainRecord,
        plugin: dict[str, object],
        command: Command,
        env: Environment,
        prev_result: RawResult | None,
        deadline: float,
    ) -> None:
        stdin = render_config(
            record.conflist,
            plugin,
            record.cni_version,
            runtime_config=record.runtime_config,
            prev_result=prev_result,
        )
        self._plugins.run(str(plugin["type"]), command, env, stdin, deadline)


def _plugin_env(record: ChainRecord, env: Environment, netns_fd: int | None) -> Environment:
    netns = netns_path(env.netns, netns_fd, record.sandbox) or netns_path(
        record.env.netns, None, record.sandbox
    )
    return msgspec.structs.replace(record.env, netns=netns, path=env.path or record.env.path)


def _prev_result(record: ChainRecord, netns: str) -> RawResult | None:
    if record.result is None or not netns:
        return record.result
    return replace_sandbox(record.result, record.env.netns, netns)
