"""Orchestrator: whether an ADD of a pod with VFs could succeed now, for STATUS."""

from collections.abc import Callable, Mapping

from node_agent.pool_index import PoolIndex
from sriov_cni.attach import Attacher
from sriov_cni.spec import LimitedConnectivity, NotReady
from vf_manager.model import Inventory, PciAddress

_MOST_REASONS = 3


class NoFreeVf(NotReady):
    """Everything is as it should be; there are just no more VFs."""


class Readiness:
    """`has_fallback`: other pods have a chain of their own, so a node without a free VF still has work to do.
    `unhealthy`: by pool, with the reason. `is_provisioned`: whether the VFs were set up."""

    def __init__(
        self,
        pools: PoolIndex,
        attacher: Attacher,
        unhealthy: Callable[[], Mapping[str, Mapping[PciAddress, str]]],
        is_provisioned: Callable[[], bool],
        *,
        has_fallback: bool,
    ) -> None:
        self._pools = pools
        self._attacher = attacher
        self._unhealthy = unhealthy
        self._is_provisioned = is_provisioned
        self._has_fallback = has_fallback

    def refuse_unready(self) -> None:
        """Raises NotReady with the reason; LimitedConnectivity if pods that run have none either."""
        reason = self._why_not()
        if reason is None:
            return
        cut_off = self._attacher.held_vfs() - _vfs_of_pfs_that_are_up(self._pools.look().inventory)
        if cut_off:
            raise LimitedConnectivity(f"{reason}; the PF of {', '.join(sorted(cut_off))} is down or gone")
        raise (NoFreeVf if self._all_are_attached() else NotReady)(reason)

    def why_unready(self) -> str | None:
        """As a probe wants it: a node whose VFs all have work to do is not one to wait for."""
        try:
            self.refuse_unready()
        except NoFreeVf:
            return None
        except NotReady as e:
            return str(e)
        return None

    def _all_are_attached(self) -> bool:
        """Once they were set up."""
        vfs = self._pools.look().pools_by_vf.keys()
        return self._is_provisioned() and bool(vfs) and vfs <= self._attacher.held_vfs()

    def _why_not(self) -> str | None:
        if not self._is_provisioned():
            return "the VFs are still being set up"
        if self._has_fallback:
            return None
        view, held, unhealthy = self._pools.look(), self._attacher.held_vfs(), self._unhealthy()
        total = len(view.pools_by_vf)
        if total == 0:
            return _none_at_all({text for vfs in unhealthy.values() for text in vfs.values()})
        free = [(name, vf.pci) for name, vfs in view.members.items() for vf in vfs if vf.pci not in held]
        if not free:
            return f"all {total} VFs of this node's pools are attached"
        faults = [unhealthy.get(name, {}).get(vf) for name, vf in free]
        if not all(faults):
            return None
        which = "all" if len({vf for _, vf in free}) == total else "all free"
        reasons = _list({fault for fault in faults if fault})
        return f"{which} VFs of this node's pools are Unhealthy: {reasons}"


def _none_at_all(faults: set[str]) -> str:
    aside = f" ({_list(faults)})" if faults else ""
    return f"no pool has a VF{aside}; see the agent's log and `sriovctl vfs`"


def _list(reasons: set[str]) -> str:
    """What all VFs of a PF suffer from is one reason."""
    shown = sorted(reasons)[:_MOST_REASONS]
    return "; ".join([*shown, *(["..."] if len(reasons) > _MOST_REASONS else [])])


def _vfs_of_pfs_that_are_up(inventory: Inventory) -> set[PciAddress]:
    """With those whose PF cannot be seen from here."""
    lone = {vf.pci for vf in inventory.lone}
    return lone | {vf.pci for pf in inventory.pfs if pf.netdev and pf.netdev.up for vf in pf.vfs}
