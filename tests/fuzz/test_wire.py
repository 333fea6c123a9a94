"""Frames of a broken or hostile client, over real sockets: a reply or an end, and the server goes on."""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog
from hypothesis import given
from hypothesis import strategies as st

from sriov_cni import wire
from sriov_cni.messages import CniReply, CniRequest
from sriov_cni.netconf import parse_call, version_of
from sriov_cni.server import CniServer
from sriov_cni.spec import code_of, error_json
from tests.fuzz.calls import environments, error_in, stdins
from tests.fuzz.mutations import damaged
from tests.fuzz.pace import keep_trying, no_hang, round_of_examples
from tests.test_wire import open_fds
from vf_manager.errors import SriovError

_numbers = st.sampled_from([0, 1, 2, 20, wire.ENV_MAX, wire.ENV_MAX + 1, wire.STDIN_MAX + 1, 2**32 - 1])


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A request as the shim sends it, with its header or its bytes changed."""
    env = b"".join(f"{key}={value}\0".encode() for key, value in draw(environments()).items())
    stdin = draw(stdins)[: wire.STDIN_MAX]
    fields = [len(env), len(stdin), draw(st.sampled_from([0, 0, 2])), draw(st.sampled_from([0, 0, 1]))]
    if not draw(st.integers(0, 2)):
        fields[draw(st.integers(0, 3))] = draw(_numbers)
    return struct.pack("!4sIIII", wire.MAGIC, *fields) + env + stdin


requests = damaged(frames()) | st.binary(max_size=60)
chunkings = st.sampled_from([1, 7, 20, 4096, 1 << 20])


def send(sock: socket.socket, frame: bytes, chunk: int, fds: list[int]) -> None:
    """In pieces, of which the first has the descriptors. The server may have hung up by then."""
    pieces = [frame[i : i + chunk] for i in range(0, min(len(frame), 200 * chunk), chunk)]
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for number, piece in enumerate(pieces):
            socket.send_fds(sock, [piece], fds if number == 0 else [])
        sock.shutdown(socket.SHUT_WR)


def test_any_frame_is_read_or_refused() -> None:
    @round_of_examples
    @given(requests, chunkings, st.integers(0, 4))
    def prop(frame: bytes, chunk: int, fd_count: int) -> None:
        with open("/dev/null", "rb") as file:  # noqa: PTH123 - a descriptor is all that is wanted
            before = open_fds()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            with ours, theirs, no_hang():
                what = (theirs, frame, chunk, [file.fileno()] * fd_count)
                sender = threading.Thread(target=send, args=what)
                sender.start()
                with contextlib.suppress(wire.WireError):
                    request = wire.read_request(ours, time.monotonic() + 2)
                    if request.netns_fd is not None:
                        os.close(request.netns_fd)
                ours.close()
                sender.join()
            assert open_fds() == before

    keep_trying(0.04, prop)


def parse_only(request: CniRequest) -> CniReply:
    """No more than that: what a call may do to files and VFs is tried in memory, in test_node.py."""
    try:
        parse_call(request.env, request.stdin)
    except SriovError as e:
        return CniReply(1, error_json(version_of(request.stdin), code_of(e), str(e)))
    return CniReply(0, b"")


@contextlib.contextmanager
def serving(path: Path) -> Iterator[None]:
    server = CniServer(path, parse_only, workers=2, log=structlog.get_logger(), read_timeout_s=2.0)
    server.listen()
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join()


def exchange(path: Path, frame: bytes, chunk: int, fds: list[int]) -> bytes:
    """All that comes back."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        send(sock, frame, chunk, fds)
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # of a client that sent more than the server read
            while piece := sock.recv(65536):
                answer += piece
        return answer


def test_the_server_survives_any_client(tmp_path: Path) -> None:
    path = tmp_path / "s"
    stdin = b'{"cniVersion": "1.1.0", "name": "n", "type": "t"}'
    status = wire.encode_request(CniRequest({"CNI_COMMAND": "STATUS"}, stdin))

    @round_of_examples
    @given(requests, chunkings, st.integers(0, 2))
    def prop(frame: bytes, chunk: int, fd_count: int) -> None:
        with open("/dev/null", "rb") as file, no_hang():  # noqa: PTH123 - see above
            answer = exchange(path, frame, chunk, [file.fileno()] * fd_count)
            if answer:
                reply = wire.decode_reply(answer)
                if reply.exit_code:
                    error_in(reply)
            assert wire.decode_reply(exchange(path, status, 4096, [])) == CniReply(0, b"")

    with serving(path):
        before = open_fds()
        keep_trying(0.06, prop)
        wait_for(lambda: open_fds() == before)


def wait_for(true: Callable[[], bool], seconds: float = 5.0) -> None:
    """The server hangs up a moment after its client."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
