"""Pure: the links of the host at one moment, by the PCI function they belong to."""

import re
from collections.abc import Sequence

from vf_manager.kernel.api import LinkInfo, PciFunction
from vf_manager.model import IfName

# net/devlink/port.c __devlink_port_phys_port_name_get: representors are "pf0vf3", "pf0sf88", and "c1pf0vf3"
# those of another host's functions (SmartNICs); an uplink is "p0" or has none.
_REPRESENTOR = re.compile(r"(c\d+)?pf\d+(?:vf(\d+)|sf\d+)?")


def is_representor(link: LinkInfo) -> bool:
    return bool(link.phys_port_name and _REPRESENTOR.fullmatch(link.phys_port_name))


class HostLinks:
    """By IFLA_PARENT_DEV_NAME; on kernels before 5.14, which lack it, by the names in sysfs."""

    def __init__(self, links: Sequence[LinkInfo]) -> None:
        self._by_device: dict[str, list[LinkInfo]] = {}
        self._by_name: dict[str, LinkInfo] = {link.netdev.name: link for link in links if link.parent is None}
        for link in links:
            if link.parent is not None:
                self._by_device.setdefault(link.parent, []).append(link)

    def own(self, function: PciFunction) -> LinkInfo | None:
        """Its own interface, not a representor."""
        return next((link for link in self._of(function) if not is_representor(link)), None)

    def representors(self, pf: PciFunction) -> dict[int, IfName]:
        """By the index of the VF, in switchdev mode. They are interfaces of the PF's device."""
        found = {}
        for link in self._of(pf):
            port = _REPRESENTOR.fullmatch(link.phys_port_name or "")
            if port and port[2] and not port[1]:
                found[int(port[2])] = link.netdev.name
        return found

    def _of(self, function: PciFunction) -> list[LinkInfo]:
        named = (self._by_name.get(name) for name in function.netdev_names)
        return [*self._by_device.get(function.pci, ()), *(link for link in named if link is not None)]
