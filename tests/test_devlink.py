"""What devlink says of PFs, read from attributes as net/devlink/health.c and dev.c make them."""

import struct

import pytest

from vf_manager.kernel import attributes
from vf_manager.kernel.devlink import eswitch_mode, sick_reporters

HEALTHY, ERROR = 0, 1
_BUS, _DEVICE, _PORT, _MODE = 1, 2, 3, 25
_REPORTER, _NAME, _STATE, _ERRORS = 114, 115, 116, 117


def answer(
    device: str, name: str, state: int, *, bus: str = "pci", port: int | None = None
) -> attributes.Attributes:
    """To DEVLINK_CMD_HEALTH_REPORTER_GET."""
    reporter = attributes.pack_text(_NAME, name) + attributes.pack(_STATE, bytes([state]))
    reporter += attributes.pack(_ERRORS, struct.pack("=Q", 7))
    body = attributes.pack_text(_BUS, bus) + attributes.pack_text(_DEVICE, device)
    body += attributes.pack_u32(_PORT, port) if port is not None else b""
    return attributes.read(body + attributes.pack(_REPORTER, reporter))


def test_reporters_in_error_are_of_their_device() -> None:
    found = sick_reporters(
        [
            answer("0000:3b:00.0", "fw", HEALTHY),
            answer("0000:3b:00.0", "fw_fatal", ERROR),
            answer("0000:3b:00.0", "tx", ERROR, port=1),
            answer("0000:3b:00.1", "fw", HEALTHY),
            answer("0000:5e:00.0", "vnic", ERROR),
            answer("mlx5_core.sf.4", "tx", ERROR, bus="auxiliary"),
        ]
    )
    assert found == {"0000:3b:00.0": ("fw_fatal", "tx"), "0000:5e:00.0": ("vnic",)}


def test_an_answer_about_something_else_is_passed_over() -> None:
    assert sick_reporters([attributes.read(attributes.pack_text(_BUS, "pci")), {}]) == {}


@pytest.mark.parametrize(("number", "mode"), [(0, "legacy"), (1, "switchdev"), (7, None)])
def test_the_mode_of_an_eswitch(number: int, mode: str | None) -> None:
    assert eswitch_mode({_MODE: struct.pack("=H", number)}) == mode


def test_no_eswitch_has_no_mode() -> None:
    assert eswitch_mode({}) is None
