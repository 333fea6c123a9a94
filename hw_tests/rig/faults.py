"""Orchestrator: faults of the emulated NICs, made on the word of the guest: a line of JSON each way."""

from enum import StrEnum
from typing import assert_never

import msgspec

from hw_tests.rig.emulated import NICS, EmulatedNic
from hw_tests.rig.host import RigError
from hw_tests.rig.lines import Lines
from hw_tests.rig.qmp import Qmp


class Fault(StrEnum):
    UNPLUG = "unplug"
    PLUG = "plug"
    LINK_DOWN = "link-down"
    LINK_UP = "link-up"


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the guest asks for. `nic`: the id of an EmulatedNic."""

    fault: Fault
    nic: str


class Reply(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`{}`, or why it could not be done."""

    error: str | None = None


class FaultDesk:
    """The launcher's side: one request at a time, answered when it is done."""

    def __init__(self, qmp: Qmp) -> None:
        self._qmp = qmp
        self._lines = Lines()

    def feed(self, data: bytes) -> bytes:
        """The replies to the requests that end in this piece."""
        return b"".join(msgspec.json.encode(self._answer(line)) + b"\n" for line in self._lines.feed(data))

    def _answer(self, line: bytes) -> Reply:
        try:
            request = msgspec.json.decode(line, type=Request)
            self._make(request.fault, _nic(request.nic))
        except (msgspec.DecodeError, RigError) as e:
            return Reply(error=str(e))
        return Reply()

    def _make(self, fault: Fault, nic: EmulatedNic) -> None:
        match fault:
            case Fault.UNPLUG:
                self._qmp.command("device_del", id=nic.id)
                self._qmp.wait_event("DEVICE_DELETED", device=nic.id)
            case Fault.PLUG:
                self._qmp.command("device_add", **nic.device)
            case Fault.LINK_DOWN | Fault.LINK_UP:
                self._qmp.command("set_link", name=nic.id, up=fault is Fault.LINK_UP)
            case _:
                assert_never(fault)


def _nic(nic_id: str) -> EmulatedNic:
    for nic in NICS:
        if nic.id == nic_id:
            return nic
    raise RigError(f"nic: '{nic_id}' is none of {', '.join(nic.id for nic in NICS)}")
