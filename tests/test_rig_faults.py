"""The rig's launcher makes faults for its guest: what it asks of QEMU, played by a thread at a socket."""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from hw_tests.rig.faults import Fault, FaultDesk, Reply, Request
from hw_tests.rig.host import RigError
from hw_tests.rig.qmp import Qmp

EVENT = {"event": "NIC_RX_FILTER_CHANGED", "data": {"name": "nic2"}}
BARE_EVENT = {"event": "RTC_CHANGE"}
DELETED = {"event": "DEVICE_DELETED", "data": {"device": "nic1", "path": "/machine/peripheral/nic1"}}
OTHER_DELETED = {"event": "DEVICE_DELETED", "data": {"device": "nic2", "path": "/machine/peripheral/nic2"}}


class Qemu:
    """Answers commands with what a test has laid ready, by the command's name; `{"return": {}}` otherwise."""

    def __init__(self) -> None:
        self.theirs, self._ours = socket.socketpair()
        self.asked: list[dict[str, Any]] = []
        self.answers: dict[str, list[dict[str, Any]]] = {}
        self._thread = threading.Thread(target=self._serve, name="qemu")
        self._thread.start()

    def _serve(self) -> None:
        with self._ours, self._ours.makefile("rwb") as stream:
            stream.write(b'{"QMP": {"version": {}, "capabilities": []}}\n')
            stream.flush()
            for line in stream:
                request = json.loads(line)
                if request["execute"] == "quit":
                    return
                self.asked.append(request)
                for answer in self.answers.get(request["execute"], [{"return": {}}]):
                    stream.write(json.dumps(answer).encode() + b"\n")
                stream.flush()

    def end(self) -> None:
        self.theirs.shutdown(socket.SHUT_WR)
        self._thread.join()
        self.theirs.close()


@pytest.fixture
def qemu() -> Iterator[Qemu]:
    qemu = Qemu()
    yield qemu
    qemu.end()


@pytest.fixture
def qmp(qemu: Qemu) -> Qmp:
    return Qmp(qemu.theirs, timeout_s=1.0)


def ask(qmp: Qmp, fault: Fault, nic: str = "nic1") -> str | None:
    (line,) = FaultDesk(qmp).feed(msgspec.json.encode(Request(fault, nic)) + b"\n").splitlines()
    return msgspec.json.decode(line, type=Reply).error


def test_each_fault_is_what_qemu_calls_it(qemu: Qemu, qmp: Qmp) -> None:
    qemu.answers["device_del"] = [{"return": {}}, DELETED]
    assert [ask(qmp, fault) for fault in Fault] == [None] * 4
    device = {"driver": "igb", "id": "nic1", "netdev": "wire1", "bus": "rp1", "romfile": ""}
    assert qemu.asked == [
        {"execute": "qmp_capabilities", "arguments": {}},
        {"execute": "device_del", "arguments": {"id": "nic1"}},
        {"execute": "device_add", "arguments": device | {"mac": "52:54:00:82:57:61"}},
        {"execute": "set_link", "arguments": {"name": "nic1", "up": False}},
        {"execute": "set_link", "arguments": {"name": "nic1", "up": True}},
    ]


@pytest.mark.parametrize(
    "said",
    [
        [{"return": {}}, EVENT, BARE_EVENT, OTHER_DELETED, DELETED],
        [EVENT, DELETED, {"return": {}}],
    ],
)
def test_unplugged_means_gone(qemu: Qemu, qmp: Qmp, said: list[dict[str, Any]]) -> None:
    """QEMU answers at once; the guest has let go of the device when the event comes, which may be before."""
    qemu.answers["device_del"] = said
    assert ask(qmp, Fault.UNPLUG) is None


def test_the_guest_does_not_let_go(qemu: Qemu) -> None:
    qmp = Qmp(qemu.theirs, timeout_s=0.1)
    qemu.answers["device_del"] = [EVENT, {"return": {}}, OTHER_DELETED]
    assert ask(qmp, Fault.UNPLUG) == "QMP DEVICE_DELETED: nothing came for 0.1 s"
    assert ask(qmp, Fault.PLUG) is None, "one that came late does not spoil the next"


def test_a_device_that_went_long_ago_is_not_taken_for_one_that_goes_now(qemu: Qemu) -> None:
    qmp = Qmp(qemu.theirs, timeout_s=0.1)
    qemu.answers["set_link"] = [DELETED, {"return": {}}]
    assert ask(qmp, Fault.LINK_UP) is None
    assert ask(qmp, Fault.UNPLUG) == "QMP DEVICE_DELETED: nothing came for 0.1 s"


def test_qemu_refuses(qemu: Qemu, qmp: Qmp) -> None:
    qemu.answers["device_add"] = [{"error": {"class": "GenericError", "desc": "Duplicate device ID 'nic1'"}}]
    assert ask(qmp, Fault.PLUG) == "QMP device_add: Duplicate device ID 'nic1'"
    assert ask(qmp, Fault.LINK_UP) is None


def test_qemu_goes(qmp: Qmp) -> None:
    with pytest.raises(RigError, match="QMP quit: QEMU is gone"):
        qmp.command("quit")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"unplug nic1", "JSON is malformed"),
        (b'{"fault": "explode", "nic": "nic1"}', "Invalid enum value 'explode'"),
        (b'{"fault": "unplug"}', "missing required field `nic`"),
        (b'{"fault": "unplug", "nic": "plain"}', "nic: 'plain' is none of nic1, nic2"),
    ],
)
def test_a_request_that_is_none(qemu: Qemu, qmp: Qmp, line: bytes, words: str) -> None:
    desk = FaultDesk(qmp)
    assert desk.feed(line[:5]) == b""
    reply = msgspec.json.decode(desk.feed(line[5:] + b"\n"), type=Reply)
    assert reply.error is not None
    assert words in reply.error
    assert qemu.asked == []
