"""What devlink says of health, read from messages as net/devlink/health.c makes them."""

import struct
from typing import Any

from pyroute2.netlink.devlink import devlinkcmd

from vf_manager.kernel import attributes
from vf_manager.kernel.devlink import sick_reporters

HEALTHY, ERROR = 0, 1
_BUS, _DEVICE, _PORT = 1, 2, 3
_REPORTER, _NAME, _STATE, _ERRORS = 114, 115, 116, 117


def message(device: str, name: str, state: int, *, bus: str = "pci", port: int | None = None) -> Any:
    """An answer to DEVLINK_CMD_HEALTH_REPORTER_GET."""
    reporter = attributes.pack_text(_NAME, name) + attributes.pack(_STATE, bytes([state]))
    reporter += attributes.pack(_ERRORS, struct.pack("=Q", 7))
    body = (
        struct.pack("=BBH", 52, 1, 0)
        + attributes.pack_text(_BUS, bus)
        + attributes.pack_text(_DEVICE, device)
    )
    body += attributes.pack_u32(_PORT, port) if port is not None else b""
    body += attributes.pack(_REPORTER, reporter)
    read = devlinkcmd(struct.pack("=IHHII", 16 + len(body), 30, 2, 1, 0) + body)
    read.decode()
    return read


def test_reporters_in_error_are_of_their_device() -> None:
    found = sick_reporters(
        [
            message("0000:3b:00.0", "fw", HEALTHY),
            message("0000:3b:00.0", "fw_fatal", ERROR),
            message("0000:3b:00.0", "tx", ERROR, port=1),
            message("0000:3b:00.1", "fw", HEALTHY),
            message("0000:5e:00.0", "vnic", ERROR),
            message("mlx5_core.sf.4", "tx", ERROR, bus="auxiliary"),
        ]
    )
    assert found == {"0000:3b:00.0": ("fw_fatal", "tx"), "0000:5e:00.0": ("vnic",)}


def test_a_message_about_something_else_is_passed_over() -> None:
    body = struct.pack("=BBH", 52, 1, 0) + attributes.pack_text(_BUS, "pci")
    read = devlinkcmd(struct.pack("=IHHII", 16 + len(body), 30, 2, 1, 0) + body)
    read.decode()
    assert sick_reporters([read]) == {}
    assert sick_reporters([]) == {}
