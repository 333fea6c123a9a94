"""Orchestrator: the way off a node. Only an agent can give VFs back, so one stays until no pod has any.

At once the kubelet is offered nothing, so no new pod gets a VF. Pods that run go on, and their DEL is served.
For a VF that is no interface (vfio-pci) there may be none: the kubelet is asked who has one. With the last
attachment goes the network configuration, and new pods get what is next. With the last pod of the fallback
chain go the executable, the VFs that this agent made, and what it has below /run. Then the pod in which this
runs may be deleted.

The configuration does not go first: a runtime sends the DEL of a pod by the one that it has then, not by
the one that made the pod (go-cni, in containerd 1.6). The plugins of the next one cannot give a VF back, and
those that try to delete it fail for as long as the runtime asks: bridge says "operation not supported".
"""

import shutil
import threading
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
from structlog.typing import FilteringBoundLogger

from device_plugin.pools import resource_of
from node_agent.agent import ATTACHMENTS, CHAIN, Agent
from node_agent.config import AgentConfig, PoolConfig
from node_agent.install import Placement, take_away
from vf_manager.errors import SriovError

_POLL_S = 0.5


class MakeAgent(Protocol):
    def __call__(self, config: AgentConfig, *, on_ready: Callable[[], None]) -> Agent: ...


class Kubelet(Protocol):
    def is_there(self) -> bool: ...

    def holders(self, resources: Container[str] | None = None) -> dict[str, tuple[str, str]]:
        """Namespace and name of the pod that was given a device of these resources, by device id. Raises
        SriovError."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps an agent on its node. `attachments`: records of VFs that it has to give back. `pods`: asked
    of the kubelet once there is none. `chained`: interfaces of the fallback chain. `reason`: why the kubelet
    does not say."""

    attachments: int = 0
    pods: tuple[str, ...] = ()
    chained: int = 0
    reason: str | None = None

    def __bool__(self) -> bool:
        return self != _NOTHING

    @property
    def is_attached(self) -> bool:
        """Some DEL is to come that only we can serve."""
        return self.attachments > 0


_NOTHING = Held()


class Uninstall:
    """`run` until `stop`. It may be killed at any moment and begun anew.

    `make_agent`: one that keeps the config it is given. `at_start`, `when_ready`: what an agent installs on
    this node, and when.
    """

    def __init__(
        self,
        config: AgentConfig,
        make_agent: MakeAgent,
        at_start: Sequence[Placement],
        when_ready: Sequence[Placement],
        run_dir: Path,
        kubelet: Kubelet,
        log: FilteringBoundLogger,
    ) -> None:
        self._config = config
        self._resources = {resource_of(pool, config.resource_prefix) for pool in config.resources()}
        self._kubelet = kubelet
        self._make_agent = make_agent
        self._at_start = at_start
        self._when_ready = when_ready
        self._run_dir = run_dir
        self._log = log
        self._stop = threading.Event()
        self._agent: Agent | None = None

    def run(self) -> str | None:
        """The reason if it ended by itself. Raises SriovError and OSError."""
        failure = self._run_agents()
        if failure is not None or self._stop.is_set():
            return failure
        self._take_away(self._at_start)
        _empty(self._run_dir)
        self._log.info("uninstalled")
        self._stop.wait()
        return None

    def _run_agents(self) -> str | None:
        """One that serves until nothing is held, then one that removes the VFs. Calls are answered meanwhile,
        so there may be something to hold again. A VF without a record may be in use all the same: by its
        device node, or since the kubelet has not seen the end of its pod yet."""
        while not self._stop.is_set():
            held = self._held()
            if not held.is_attached:
                self._take_away(self._when_ready)
            if held:
                failure = self._run_agent(without_pools(self._config), self._until_past(held))
            else:
                failure = self._run_agent(without_vfs(self._config), Agent.has_settled)
            if failure is not None:
                return failure
            if not held and not self._held():
                break
        return None

    def stop(self) -> None:
        """From a signal handler's thread."""
        self._stop.set()
        if self._agent is not None:
            self._agent.stop()

    def _run_agent(self, config: AgentConfig, is_done: Callable[[Agent], bool]) -> str | None:
        def watch() -> None:
            while not is_done(agent) and not self._stop.wait(_POLL_S):
                agent.take_back_lost()
            agent.stop()

        def start_watch() -> None:
            threading.Thread(target=watch, name="uninstall", daemon=True).start()

        self._agent = agent = self._make_agent(config, on_ready=start_watch)
        if self._stop.is_set():  # it was before there was an agent to stop
            agent.stop()
        return agent.run()

    def _until_past(self, began: Held) -> Callable[[Agent], bool]:
        """Nothing holds the agent any more, or no attachment where one did. Says so when it changes."""
        said = _NOTHING

        def is_past(_: Agent) -> bool:
            nonlocal said
            held = self._held()
            if held and held != said:
                self._log.info("uninstalling when the last pod is gone", **msgspec.structs.asdict(held))
            said = held
            return not held or held.is_attached is not began.is_attached

        return is_past

    def _held(self) -> Held:
        vfs, chained = (len(list((self._run_dir / name).glob("[!.]*.json"))) for name in (ATTACHMENTS, CHAIN))
        if vfs:
            return Held(attachments=vfs, chained=chained)
        try:
            given = self._kubelet.holders(self._resources) if self._kubelet.is_there() else {}
        except SriovError as e:
            return Held(chained=chained, reason=str(e))
        pods = sorted({f"{namespace}/{name}" for namespace, name in given.values()})
        return Held(pods=tuple(pods), chained=chained)

    def _take_away(self, placements: Sequence[Placement]) -> None:
        for placement in placements:
            if take_away(placement):
                self._log.info("taken away", path=str(placement.target))


def without_pools(config: AgentConfig) -> AgentConfig:
    """Serves what there is, and offers nothing. Pods that come all the same get the fallback chain."""
    return _only(config, ())


def without_vfs(config: AgentConfig) -> AgentConfig:
    """Removes the VFs that were made by this config."""
    pools = tuple(_emptied(pool) for pool in config.pools if pool.vfs is not None)
    return _only(config, pools)


def _only(config: AgentConfig, pools: tuple[PoolConfig, ...]) -> AgentConfig:
    """Its pools may come from elsewhere (`DropInConfig`), and the API server is for networks alone."""
    return AgentConfig(
        pools=pools,
        resource_prefix=config.resource_prefix,
        fallback=config.fallback,
        repair_drift=config.repair_drift,
    )


def _emptied(pool: PoolConfig) -> PoolConfig:
    assert pool.vfs is not None
    return msgspec.structs.replace(pool, vfs=msgspec.structs.replace(pool.vfs, count=0))


def _empty(folder: Path) -> None:
    """The folder itself may be a mount."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
