"""The frames between shim and agent: round trips, every broken rule named, no descriptor left open."""

import contextlib
import os
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sriov_cni import wire
from sriov_cni.messages import CniReply, CniRequest

Pair = tuple[socket.socket, socket.socket]

ENV = {"CNI_COMMAND": "ADD", "CNI_ARGS": "A=b;C=d", "TRACEPARENT": ""}


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        yield ours, theirs


def soon(seconds: float = 2.0) -> float:
    return time.monotonic() + seconds


def open_fds() -> set[tuple[str, str]]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor of this very listing
            found.add((entry.name, str(entry.readlink())))
    return found


def header(env: int = 0, stdin: int = 0, code: int = 0, flags: int = 0, magic: bytes = wire.MAGIC) -> bytes:
    return struct.pack("!4sIIII", magic, env, stdin, code, flags)


def read_all(frame: bytes, fds: list[int] | None = None) -> CniRequest:
    """What the agent reads of a client that sends `frame` and closes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        if frame:
            socket.send_fds(theirs, [frame], fds or [])
        theirs.close()
        return wire.read_request(ours, soon())


def test_a_request_arrives_as_it_was_sent() -> None:
    request = CniRequest(ENV, b'{"name":"n"}\0\xff', None, 2)
    assert read_all(wire.encode_request(request)) == request


def test_the_layout_is_the_documented_one() -> None:
    request = CniRequest({"CNI_A": "b"}, b"xyz", None, 2)
    assert (
        wire.encode_request(request)
        == b"SUv1" + bytes.fromhex("00000008 00000003 00000002 00000000") + b"CNI_A=b\0xyz"
    )
    assert wire.encode_reply(CniReply(1, b"ab")) == b"SUv1" + bytes.fromhex("00000001 00000002") + b"ab"


def test_the_descriptor_arrives_open_and_close_on_exec() -> None:
    with tempfile.TemporaryFile() as file:
        request = read_all(wire.encode_request(CniRequest(ENV, b"", file.fileno())), [file.fileno()])
        assert request.netns_fd is not None
        try:
            assert os.path.sameopenfile(request.netns_fd, file.fileno())
            assert not os.get_inheritable(request.netns_fd)
        finally:
            os.close(request.netns_fd)


def test_a_frame_in_single_bytes_is_read_whole(pair: Pair) -> None:
    ours, theirs = pair
    request = CniRequest(ENV, b"{}")

    def dribble() -> None:
        for byte in wire.encode_request(request):
            theirs.sendall(bytes([byte]))

    thread = threading.Thread(target=dribble)
    thread.start()
    try:
        assert wire.read_request(ours, soon()) == request
    finally:
        thread.join()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (header(magic=b"SUv2"), "SUv2"),
        (header(magic=b"GET "), "GET "),
        (header(env=wire.ENV_MAX + 1), "environment: 65537"),
        (header(stdin=wire.STDIN_MAX + 1), "stdin: 1048577"),
        (header(stdin=2**32 - 1), "stdin: 4294967295"),
        (header(code=4096), "netns errno: 4096"),
        (header(flags=2), "unknown flags 0x2"),
        (header(flags=1, code=2), "together with errno 2"),
        (header(flags=1), "1 descriptor announced, 0 came"),
        (header()[:19], "1 bytes early"),
        (header(env=5) + b"A=b\0", "1 bytes early"),
        (header(stdin=5) + b"1234", "1 bytes early"),
        (header(env=3) + b"A=b", "ends inside a variable"),
        (header(env=2) + b"A\0", "not KEY=VALUE"),
        (header(env=3) + b"=b\0", "not KEY=VALUE"),
        (header(env=1) + b"\0", "not KEY=VALUE"),
        (header(env=8) + b"A=b\0A=c\0", "given twice"),
        (header(env=4) + b"A=\xff\0", "not UTF-8"),
    ],
)
def test_a_malformed_request_is_refused_with_the_reason(frame: bytes, message: str) -> None:
    with pytest.raises(wire.WireError, match=message):
        read_all(frame)


def test_a_closed_connection_is_told_from_a_broken_frame() -> None:
    with pytest.raises(wire.PeerLeft):
        read_all(b"")


@pytest.mark.parametrize("frame", [b"", header(stdin=4)[:7], header(stdin=4)])
def test_a_silent_client_runs_into_the_deadline(pair: Pair, frame: bytes) -> None:
    ours, theirs = pair
    theirs.sendall(frame)
    started = time.monotonic()
    with pytest.raises(wire.WireTimeout):
        wire.read_request(ours, soon(0.05))
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("frame", "fd_count", "message"),
    [
        (header(), 1, "0 descriptor announced, 1 came"),
        (header(flags=1), 2, "announced, 2 came"),
        (header(flags=1), 3, "descriptors were lost"),
        (header(flags=1), 200, "descriptors were lost"),
        (header(flags=1, magic=b"nope"), 1, "nope"),
        (header(flags=1)[:10], 1, "10 bytes early"),
        (header(flags=1, env=4), 1, "4 bytes early"),
        (header(flags=1, env=1) + b"A", 1, "inside a variable"),
    ],
)
def test_no_descriptor_stays_open_after_an_error(frame: bytes, fd_count: int, message: str) -> None:
    before = open_fds()
    with tempfile.TemporaryFile() as file, pytest.raises(wire.WireError, match=message):
        read_all(frame, [file.fileno()] * fd_count)
    assert open_fds() == before


def test_descriptors_in_the_middle_of_a_frame_are_not_taken(pair: Pair) -> None:
    ours, theirs = pair
    with tempfile.TemporaryFile() as file:
        before = open_fds()
        theirs.sendall(header(stdin=4))
        socket.send_fds(theirs, [b"1234"], [file.fileno()] * 3)
        request = wire.read_request(ours, soon())
        assert (request.netns_fd, request.stdin) == (None, b"1234")
        assert open_fds() == before


def test_replies_survive_the_way_and_are_bounded(pair: Pair) -> None:
    ours, theirs = pair
    wire.write_reply(ours, CniReply(1, b"{}"), soon())
    ours.close()
    assert wire.decode_reply(theirs.recv(4096)) == CniReply(1, b"{}")
    for reply in (CniReply(0, b"x" * (wire.REPLY_MAX + 1)), CniReply(256), CniReply(-1)):
        with pytest.raises(wire.WireError):
            wire.encode_reply(reply)


def test_a_shim_that_does_not_read_runs_into_the_deadline(pair: Pair) -> None:
    with pytest.raises(wire.WireTimeout):
        wire.write_reply(pair[0], CniReply(0, b"x" * wire.REPLY_MAX), soon(0.05))


def test_a_shim_that_is_gone_is_an_error(pair: Pair) -> None:
    pair[1].close()
    with pytest.raises(wire.WireError, match="gone"):
        wire.write_reply(pair[0], CniReply(0, b"{}"), soon())


def test_requests_that_would_be_refused_are_not_encoded() -> None:
    for env in ({"": "v"}, {"A=B": "v"}, {"A": "b\0c"}, {"A": "x" * wire.ENV_MAX}):
        with pytest.raises(wire.WireError):
            wire.encode_request(CniRequest(env, b""))
    with pytest.raises(wire.WireError):
        wire.encode_request(CniRequest({}, b"x" * (wire.STDIN_MAX + 1)))


names = st.text("AZ_az09;é✓ \n", min_size=1)
values = st.text("AZ_az09;é✓ \n=")
# near misses of a frame get further into the decoder than noise does
fields = st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1))
frames = st.one_of(
    st.binary(max_size=100),
    st.builds(
        lambda e, s, c, f, rest: header(e, s, c, f) + rest, fields, fields, fields, fields, st.binary()
    ),
)


@given(st.dictionaries(names, values), st.binary(), st.integers(0, wire.ERRNO_MAX))
def test_any_request_that_can_be_encoded_is_read_back(env: dict[str, str], stdin: bytes, code: int) -> None:
    request = CniRequest(env, stdin, None, code)
    assert read_all(wire.encode_request(request)) == request


@given(frames, st.integers(0, 5))
@example(header(flags=1), 1)
@example(b"", 0)
def test_noise_gives_a_request_or_a_wire_error_and_leaks_nothing(frame: bytes, fd_count: int) -> None:
    with open("/dev/null", "rb") as file:  # noqa: PTH123 - a descriptor is all that is wanted
        before = open_fds()
        with contextlib.suppress(wire.WireError):
            request = read_all(frame, [file.fileno()] * fd_count)
            if request.netns_fd is not None:
                os.close(request.netns_fd)
        assert open_fds() == before


@given(st.binary(max_size=64))
def test_noise_as_reply_gives_a_reply_or_a_wire_error(frame: bytes) -> None:
    with contextlib.suppress(wire.WireError):
        assert wire.encode_reply(wire.decode_reply(frame)) == frame
