"""Adapter: devlink, for the eswitch mode of PFs (include/uapi/linux/devlink.h, DEVLINK_CMD_ESWITCH_*)."""

import errno
from typing import Any

from pyroute2 import DL
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST
from pyroute2.netlink.devlink import DEVLINK_NAMES, devlinkcmd
from pyroute2.netlink.exceptions import NetlinkError

from vf_manager.errors import KernelError
from vf_manager.model import PciAddress

_MODES = {0: "legacy", 1: "switchdev"}
_NUMBER_OF = {mode: number for number, mode in _MODES.items()}


def read_eswitch_modes() -> dict[PciAddress, str]:
    """By PCI address. Empty where the kernel has no devlink; a driver without an eswitch is left out."""
    dl: Any = DL.__new__(DL)  # in two steps: a constructor that fails leaves its socket and event loop open
    try:
        dl.__init__()
        handles = [dict(m["attrs"]) for m in dl.list()]
        modes = {}
        for handle in handles:
            mode = _eswitch_mode(dl, handle)
            if handle["DEVLINK_ATTR_BUS_NAME"] == "pci" and mode is not None:
                modes[PciAddress(handle["DEVLINK_ATTR_DEV_NAME"])] = mode
        return modes
    except (OSError, NetlinkError):
        return {}
    finally:
        dl.close()


def set_eswitch_mode(pf: PciAddress, mode: str) -> None:
    """Raises KernelError: ENODEV where the driver has no devlink, EOPNOTSUPP where it has no eswitch or the
    kernel has no devlink."""
    operation = f"set eswitch mode {mode} on {pf}"
    dl: Any = DL.__new__(DL)
    try:
        try:
            dl.__init__()
        except (OSError, NetlinkError) as e:
            raise KernelError(operation, errno.EOPNOTSUPP, "this kernel has no devlink") from e
        message = _request("DEVLINK_CMD_ESWITCH_SET", "pci", pf)
        message["attrs"].append(("DEVLINK_ATTR_ESWITCH_MODE", _NUMBER_OF[mode]))
        list(dl.nlm_request(message, msg_type=dl.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK))
    except NetlinkError as e:
        raise KernelError(operation, e.code) from e
    finally:
        dl.close()


def _eswitch_mode(dl: Any, handle: dict[str, Any]) -> str | None:
    message = _request(
        "DEVLINK_CMD_ESWITCH_GET", handle["DEVLINK_ATTR_BUS_NAME"], handle["DEVLINK_ATTR_DEV_NAME"]
    )
    try:
        answer = dl.nlm_request(message, msg_type=dl.prid, msg_flags=NLM_F_REQUEST)
    except NetlinkError:  # EOPNOTSUPP: no eswitch
        return None
    return next((_MODES.get(m.get_attr("DEVLINK_ATTR_ESWITCH_MODE")) for m in answer), None)


def _request(command: str, bus: str, device: str) -> Any:
    message = devlinkcmd()
    message["cmd"] = DEVLINK_NAMES[command]
    message["attrs"] = [("DEVLINK_ATTR_BUS_NAME", bus), ("DEVLINK_ATTR_DEV_NAME", device)]
    return message
