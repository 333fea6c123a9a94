"""Adapter: devlink, for the eswitch mode and the health of PFs.

Sources: include/uapi/linux/devlink.h (DEVLINK_CMD_ESWITCH_GET, _SET, DEVLINK_CMD_HEALTH_REPORTER_GET),
include/net/devlink.h (enum devlink_health_reporter_state), net/devlink/health.c.
"""

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pyroute2 import DL
from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.devlink import DEVLINK_NAMES, devlinkcmd
from pyroute2.netlink.exceptions import NetlinkError

from vf_manager.errors import KernelError
from vf_manager.kernel.meter import Meter
from vf_manager.model import PciAddress

_MODES = {0: "legacy", 1: "switchdev"}
_HEALTHY = 0
_BUS, _DEVICE = "DEVLINK_ATTR_BUS_NAME", "DEVLINK_ATTR_DEV_NAME"
_NUMBER_OF = {mode: number for number, mode in _MODES.items()}


def read_eswitch_modes(is_wanted: Callable[[str], bool], meter: Meter) -> dict[PciAddress, str]:
    """By PCI address, of those that are wanted: each is a question of its own, and VFs have handles too.
    Empty where the kernel has no devlink; a driver without an eswitch is left out."""
    with _opened(meter) as dl:
        handles = _messages(dl.list, meter) if dl else []
        wanted = [h for h in handles if h.get_attr(_BUS) == "pci" and is_wanted(h.get_attr(_DEVICE))]
        modes = ((PciAddress(h.get_attr(_DEVICE)), _eswitch_mode(dl, h, meter)) for h in wanted)
        return {pci: mode for pci, mode in modes if mode is not None}


def set_eswitch_mode(pf: PciAddress, mode: str, meter: Meter) -> None:
    """Raises KernelError: ENODEV where the driver has no devlink, EOPNOTSUPP where it has no eswitch or the
    kernel has no devlink."""
    operation = f"set eswitch mode {mode} on {pf}"
    place = ((_BUS, "pci"), (_DEVICE, pf), ("DEVLINK_ATTR_ESWITCH_MODE", _NUMBER_OF[mode]))
    message = _message("DEVLINK_CMD_ESWITCH_SET", place)
    with _opened(meter) as dl:
        if dl is None:
            raise KernelError(operation, errno.EOPNOTSUPP, "this kernel has no devlink")
        meter.netlink_requests += 1
        try:
            list(dl.nlm_request(message, msg_type=dl.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK))
        except NetlinkError as e:
            raise KernelError(operation, e.code) from e


def read_sick_reporters(meter: Meter) -> dict[PciAddress, tuple[str, ...]]:
    """By PCI address, in the order the kernel lists them. Empty where the kernel has no devlink, or does not
    list the reporters of all devices at once."""
    with _opened(meter) as dl:
        return sick_reporters(_request(dl, "DEVLINK_CMD_HEALTH_REPORTER_GET", meter) if dl else [])


def sick_reporters(messages: Iterable[Any]) -> dict[PciAddress, tuple[str, ...]]:
    """Pure: those whose state is not healthy. A reporter of a port counts for its device."""
    found: dict[PciAddress, tuple[str, ...]] = {}
    for message in messages:
        reporter = message.get_attr("DEVLINK_ATTR_HEALTH_REPORTER")
        if message.get_attr(_BUS) != "pci" or reporter is None:
            continue
        if reporter.get_attr("DEVLINK_ATTR_HEALTH_REPORTER_STATE") not in (None, _HEALTHY):
            pci = PciAddress(message.get_attr(_DEVICE))
            name = str(reporter.get_attr("DEVLINK_ATTR_HEALTH_REPORTER_NAME"))
            found[pci] = (*found.get(pci, ()), name)
    return found


def _eswitch_mode(dl: Any, handle: Any, meter: Meter) -> str | None:
    answer = _request(dl, "DEVLINK_CMD_ESWITCH_GET", meter, handle)
    return next((_MODES.get(m.get_attr("DEVLINK_ATTR_ESWITCH_MODE")) for m in answer), None)


def _request(dl: Any, command: str, meter: Meter, handle: Any = None) -> list[Any]:
    """Of one device, or a dump of all."""
    place = () if handle is None else [(key, handle.get_attr(key)) for key in (_BUS, _DEVICE)]
    message = _message(command, place)
    flags = NLM_F_REQUEST | (NLM_F_DUMP if handle is None else 0)
    return _messages(lambda: dl.nlm_request(message, msg_type=dl.prid, msg_flags=flags), meter)


def _message(command: str, attributes: Iterable[tuple[str, Any]]) -> Any:
    message = devlinkcmd()
    message["cmd"] = DEVLINK_NAMES[command]
    message["attrs"] = list(attributes)
    return message


def _messages(ask: Callable[[], Iterable[Any]], meter: Meter) -> list[Any]:
    """Nothing where the kernel refuses: EOPNOTSUPP, no eswitch; ENODEV, the device went away meanwhile."""
    meter.netlink_requests += 1
    try:
        return list(ask())
    except (OSError, NetlinkError):
        return []


@contextmanager
def _opened(meter: Meter) -> Iterator[Any]:
    """None where the kernel has no devlink."""
    dl: Any = DL.__new__(DL)  # in two steps: a constructor that fails leaves its socket and event loop open
    opened = dl
    meter.netlink_requests += 1  # for the number of the family
    try:
        dl.__init__()
    except (OSError, NetlinkError):
        opened = None
    try:
        yield opened
    finally:
        dl.close()
