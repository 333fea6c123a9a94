"""Orchestrator: which pool of one config has which VF, by the inventory as it was seen last."""

import dataclasses
from collections.abc import Mapping, Sequence

from device_plugin.pools import Pool, assign, held_back, pools_by_vf
from vf_manager.inventory import InventoryKeeper
from vf_manager.model import Inventory, PciAddress, Vf


@dataclasses.dataclass(frozen=True)
class PoolView:
    """Of one inventory. `held_back`: a line about each device that a pool selects and does not get."""

    inventory: Inventory
    members: Mapping[str, tuple[Vf, ...]]
    held_back: tuple[str, ...]
    pools_by_vf: Mapping[PciAddress, tuple[str, ...]]


class PoolIndex:
    """Thread-safe: a view is made anew for each inventory, and is complete before anybody sees it."""

    def __init__(self, pools: Sequence[Pool], keeper: InventoryKeeper) -> None:
        self._pools = tuple(pools)
        self._keeper = keeper
        self._view: PoolView | None = None

    def look(self) -> PoolView:
        inventory, view = self._keeper.current, self._view
        if view is None or view.inventory is not inventory:
            members = assign(self._pools, inventory)
            aside = held_back(self._pools, inventory)
            view = self._view = PoolView(inventory, members, aside, pools_by_vf(members))
        return view

    def pools_of(self, vf: PciAddress) -> tuple[str, ...]:
        """A VF that is in no pool may have come since the last look."""
        if vf not in self.look().pools_by_vf:
            self._keeper.refresh()
        return self.look().pools_by_vf.get(vf, ())
