"""Adapter: devlink, for the eswitch mode of PFs (include/uapi/linux/devlink.h, DEVLINK_CMD_ESWITCH_GET)."""

from typing import Any

from pyroute2 import DL
from pyroute2.netlink import NLM_F_REQUEST
from pyroute2.netlink.devlink import DEVLINK_NAMES, devlinkcmd
from pyroute2.netlink.exceptions import NetlinkError

from vf_manager.model import PciAddress

_MODES = {0: "legacy", 1: "switchdev"}


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


def _eswitch_mode(dl: Any, handle: dict[str, Any]) -> str | None:
    message = devlinkcmd()
    message["cmd"] = DEVLINK_NAMES["DEVLINK_CMD_ESWITCH_GET"]
    message["attrs"] = [(k, handle[k]) for k in ("DEVLINK_ATTR_BUS_NAME", "DEVLINK_ATTR_DEV_NAME")]
    try:
        answer = dl.nlm_request(message, msg_type=dl.prid, msg_flags=NLM_F_REQUEST)
    except NetlinkError:  # EOPNOTSUPP: no eswitch
        return None
    return next((_MODES.get(m.get_attr("DEVLINK_ATTR_ESWITCH_MODE")) for m in answer), None)
