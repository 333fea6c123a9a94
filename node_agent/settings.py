"""Orchestrator: what is in force: one config, and all that follows from it.

Settings never change, they are replaced as a whole: a CNI call is served by one handler from its first to its
last line, and that handler knows one config. What calls under the old and the new config share (records,
locks, inventory) is in `Node`, once.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from device_plugin.pools import resource_of
from node_agent.api_contact import ApiContact
from node_agent.config import AgentConfig, PoolConfig
from node_agent.events_poster import EventsApi
from node_agent.kube.cluster_watch import Sources
from node_agent.node_summary import NodesApi
from node_agent.pool_index import PoolIndex
from node_agent.readiness import Readiness
from sriov_cni.attach import Attacher
from sriov_cni.chain import FallbackChain
from sriov_cni.chain_cache import read_conflist
from sriov_cni.handler import CniHandler
from sriov_cni.netconf import CniCall
from sriov_cni.network import Network
from sriov_cni.pod_attach import PodAttacher, first_network
from sriov_cni.pod_vfs import Kubelet, PodVfs
from vf_manager.health import Expected, HealthPolicy
from vf_manager.inventory import InventoryKeeper
from vf_manager.model import PciAddress


class Chooser(Protocol):
    """Which of the networks of a pool a pod gets, by what the API server says of it."""

    def choose(self, call: CniCall, pool: str, networks: Sequence[Network]) -> Network: ...


class ApiServer(EventsApi, NodesApi, Protocol):
    """Everything that is asked of the API server but that; see api_server.py."""

    @property
    def contact(self) -> ApiContact: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Node:
    """What is there once, whatever the config says."""

    name: str  # as the API server knows it
    keeper: InventoryKeeper
    attacher: Attacher
    chain: FallbackChain
    kubelet: Kubelet
    log: FilteringBoundLogger
    unhealthy: Callable[[], Mapping[str, Mapping[PciAddress, str]]]
    is_provisioned: Callable[[], bool]


@dataclasses.dataclass(frozen=True)
class Settings:
    config: AgentConfig
    pools: PoolIndex
    expected: Mapping[str, Expected]  # of the VFs of each pool
    handler: CniHandler
    api: ApiServer | None
    streams: Sources | None  # lists and watches, by the same API server
    readiness: Readiness
    chooser: Chooser | None


def make_settings(config: AgentConfig, node: Node, before: Settings | None = None) -> Settings:
    """Raises Refused: no way to the API server. The connection of the settings before goes on being used if
    the config says nothing else of it."""
    pools = PoolIndex(config.resources(), node.keeper)
    if before is not None and before.config.kubernetes == config.kubernetes:
        api, chooser, streams = before.api, before.chooser, before.streams
    else:
        api, chooser, streams = _connect(config, node.name)
    readiness = Readiness(
        pools,
        node.attacher,
        node.unhealthy,
        node.is_provisioned,
        has_fallback=config.fallback is not None,
    )
    return Settings(
        config=config,
        pools=pools,
        expected={pool.name: _expected(pool) for pool in config.pools},
        handler=_handler(config, node, pools, readiness, chooser),
        readiness=readiness,
        api=api,
        streams=streams,
        chooser=chooser,
    )


def close_api(settings: Settings, *, unless_of: Settings | None = None) -> None:
    """Let go of the API server, unless the other settings use the same connection. A call under way is served
    to its end."""
    still_used = unless_of.api if unless_of is not None else None
    if settings.api is not None and settings.api is not still_used:
        settings.api.close()


def _expected(pool: PoolConfig) -> Expected:
    return Expected(policy=pool.health or HealthPolicy(), driver=pool.vfs.driver if pool.vfs else None)


def _handler(
    config: AgentConfig, node: Node, pools: PoolIndex, readiness: Readiness, chooser: Chooser | None
) -> CniHandler:
    resources = {resource_of(pool, config.resource_prefix): pool.name for pool in config.resources()}
    pods = PodAttacher(
        node.attacher,
        PodVfs(node.kubelet, resources, pools.pools_of),
        pools.pools_of,
        config.pool_networks(),
        config.limits(),
        chooser.choose if chooser else first_network,
    )
    path = Path(config.fallback) if config.fallback is not None else None
    chain = node.chain.with_list((lambda: read_conflist(path)) if path else None)
    return CniHandler(pods, node.attacher, chain, readiness.refuse_unready, node.log)


def _connect(config: AgentConfig, node: str) -> tuple[ApiServer, Chooser, Sources] | tuple[None, None, None]:
    if config.kubernetes is None:
        return None, None, None
    # The client's package takes 0.3 s and tens of MiB to load: for those who use it.
    from node_agent.api_server import ApiServer
    from node_agent.kube.api_stream import ApiStreams
    from node_agent.pod_annotations import PodAnnotations

    api = ApiServer(config.kubernetes)
    return api, PodAnnotations(api), ApiStreams(config.kubernetes, node)
