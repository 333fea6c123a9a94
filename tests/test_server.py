"""The agent's socket: who may use it, what happens to calls, and that nothing is left behind."""

import contextlib
import json
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from structlog.typing import FilteringBoundLogger

from sriov_cni import server, wire
from sriov_cni.messages import CniReply, CniRequest, Handler
from sriov_cni.server import CniServer
from vf_manager.errors import InvalidInput, KernelError, Refused

ADD = CniRequest({"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "net1"}, b"{}")
TIMEOUT_S = 5.0
Start = Callable[..., CniServer]


def log() -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        threading.Event().wait(0.002)


def cni_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cni-")]


def fd_count() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = fd_count()
    yield
    eventually(lambda: not cni_threads(), f"the worker threads end: {cni_threads()}")
    assert fd_count() == before


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "cni.sock"


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    """Start a server in a thread; at the end of the test it is stopped and its `serve` has returned."""
    with contextlib.ExitStack() as running:

        def start(handler: Handler, *, workers: int = 2, **options: object) -> CniServer:
            made = CniServer(path, handler, workers=workers, log=log(), **options)  # type: ignore[arg-type]
            made.listen()
            thread = threading.Thread(target=made.serve)
            thread.start()
            running.callback(thread.join, TIMEOUT_S)
            running.callback(made.stop)
            return made

        yield start


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(TIMEOUT_S)
    client.connect(str(path))
    return client


def read_reply(client: socket.socket) -> CniReply:
    data = b""
    with contextlib.suppress(ConnectionResetError):  # how a close with input unread ends, after the reply
        while part := client.recv(65536):
            data += part
    return wire.decode_reply(data)


def call(path: Path, request: CniRequest = ADD) -> CniReply:
    with connect(path) as client:
        fds = [] if request.netns_fd is None else [request.netns_fd]
        socket.send_fds(client, [wire.encode_request(request)], fds)
        return read_reply(client)


def answer(request: CniRequest) -> CniReply:
    return CniReply(0, request.env["CNI_COMMAND"].encode() + request.stdin)


def error_of(reply: CniReply) -> tuple[int, str]:
    assert reply.exit_code == 1
    error = json.loads(reply.stdout)
    assert error["cniVersion"] == "1.1.0"
    return error["code"], error["msg"]


def test_a_call_is_answered_by_the_handler(path: Path, start: Start) -> None:
    start(answer)
    assert call(path) == CniReply(0, b"ADD{}")


def test_socket_and_directory_are_for_the_owner_only(path: Path, start: Start) -> None:
    start(answer)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["cni.sock"]


def test_serve_ends_after_stop_and_takes_the_socket_along(path: Path) -> None:
    made = CniServer(path, answer, log=log())
    thread = threading.Thread(target=made.serve)
    thread.start()
    eventually(path.exists, "serve makes the socket")
    assert call(path).exit_code == 0
    made.stop()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert not path.exists()


def test_stop_before_serve_is_not_forgotten(path: Path) -> None:
    made = CniServer(path, answer, log=log())
    made.stop()
    made.serve()


def test_the_socket_of_a_successor_is_left_alone(path: Path, start: Start) -> None:
    made = start(answer)
    path.unlink()
    with server.open_listener(path):
        made.stop()
        eventually(lambda: not cni_threads(), "the first server ends")
        assert path.is_socket()
    path.unlink()


def test_a_stale_socket_is_replaced(path: Path, start: Start) -> None:
    server.open_listener(path).close()
    path.with_name("cni.sock.new").touch()
    start(answer)
    assert call(path).exit_code == 0


def test_a_live_agent_is_not_pushed_aside(path: Path, start: Start) -> None:
    start(answer)
    with pytest.raises(Refused, match="another agent"):
        CniServer(path, answer, log=log()).listen()
    assert call(path).exit_code == 0


def test_a_file_that_is_no_socket_is_not_removed(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(Refused, match="not a socket"):
        server.open_listener(path)
    assert path.read_text() == "precious"


def test_a_socket_that_cannot_be_made_says_why(path: Path) -> None:
    with pytest.raises(InvalidInput, match="at most 103 bytes"):
        server.open_listener(path.with_name("x" * 100))
    path.parent.write_text("not a directory")
    with pytest.raises(KernelError, match=r"listen on .*cni.sock: E"):
        server.open_listener(path)


def test_other_users_are_not_served(path: Path, start: Start) -> None:
    start(answer, allowed_uids=frozenset({os.geteuid() + 1}))
    with structlog.testing.capture_logs() as logs, connect(path) as client:
        assert client.recv(1) == b""
    assert [(entry["event"], entry["peer_uid"]) for entry in logs] == [("cni call refused", os.geteuid())]


def test_the_peer_is_the_one_the_kernel_names() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert server.read_peer_uid(ours) == os.geteuid()


def test_the_netns_is_open_in_the_handler_and_closed_after_it(path: Path, start: Start) -> None:
    seen: list[tuple[int, bool]] = []
    with tempfile.TemporaryFile() as file:

        def handler(request: CniRequest) -> CniReply:
            assert request.netns_fd is not None
            seen.append((request.netns_fd, os.path.sameopenfile(request.netns_fd, file.fileno())))
            return CniReply(0)

        start(handler)
        call(path, CniRequest(ADD.env, b"", file.fileno()))
        [(fd, same)] = seen
        assert same
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_an_unexpected_exception_is_logged_and_answered(path: Path, start: Start) -> None:
    def handler(request: CniRequest) -> CniReply:
        raise ZeroDivisionError("secret of another pod")

    start(handler)
    with structlog.testing.capture_logs() as logs, tempfile.TemporaryFile() as file:
        code, message = error_of(call(path, CniRequest(ADD.env, b"", file.fileno())))
    assert code == 999
    assert "ZeroDivisionError" in message
    assert "secret" not in message
    [entry] = logs
    assert entry["exc_info"]
    assert (entry["command"], entry["containerid"], entry["ifname"]) == ("ADD", "c1", "net1")
    assert error_of(call(path))[0] == 999, "the worker lives on"


@pytest.mark.parametrize("reply", [CniReply(0, b"x" * (wire.REPLY_MAX + 1)), CniReply(300), None])
def test_a_reply_that_cannot_be_sent_is_an_internal_error(path: Path, start: Start, reply: CniReply) -> None:
    start(lambda _: reply)
    with structlog.testing.capture_logs():
        assert error_of(call(path))[0] == 999


@pytest.mark.parametrize(
    ("frame", "code", "message"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n", 5, "SUv1"),
        (wire.REQUEST_HEADER.pack(wire.MAGIC, 4, 0, 0, 0) + b"A=\xff\0", 4, "UTF-8"),
        (wire.REQUEST_HEADER.pack(wire.MAGIC, 4, 0, 0, 0), 11, "deadline"),
    ],
)
def test_a_broken_request_gets_an_answer(
    path: Path, start: Start, frame: bytes, code: int, message: str
) -> None:
    start(answer, read_timeout_s=0.1)
    with structlog.testing.capture_logs(), connect(path) as client:
        client.sendall(frame)
        found, text = error_of(read_reply(client))
    assert found == code
    assert message in text
    assert call(path).exit_code == 0


def test_silent_clients_are_dropped_and_hold_up_nobody_for_long(path: Path, start: Start) -> None:
    start(answer, workers=2, read_timeout_s=0.1)
    with structlog.testing.capture_logs(), contextlib.ExitStack() as clients:
        silent = [clients.enter_context(connect(path)) for _ in range(4)]
        assert call(path).exit_code == 0
        for client in silent:
            assert error_of(read_reply(client))[0] == 11


def test_a_client_that_only_looks_is_no_event(path: Path, start: Start) -> None:
    start(answer, workers=1)
    with structlog.testing.capture_logs() as logs:
        connect(path).close()
        assert call(path).exit_code == 0
    assert logs == []


def test_more_calls_than_workers_wait_their_turn(path: Path, start: Start) -> None:
    lock = threading.Lock()
    running, peak = 0, 0
    both = threading.Barrier(2, timeout=TIMEOUT_S)

    def handler(request: CniRequest) -> CniReply:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        both.wait()  # passes only while two calls run at once
        with lock:
            running -= 1
        return answer(request)

    start(handler, workers=2)
    replies: list[CniReply] = []
    clients = [threading.Thread(target=lambda: replies.append(call(path))) for _ in range(40)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(TIMEOUT_S)
    assert replies == [CniReply(0, b"ADD{}")] * 40
    assert peak == 2


def test_a_running_call_is_finished_on_stop(path: Path, start: Start) -> None:
    entered, go = threading.Event(), threading.Event()

    def handler(request: CniRequest) -> CniReply:
        entered.set()
        assert go.wait(TIMEOUT_S)
        return answer(request)

    made = start(handler)
    replies: list[CniReply] = []
    client = threading.Thread(target=lambda: replies.append(call(path)))
    client.start()
    assert entered.wait(TIMEOUT_S)
    made.stop()
    eventually(lambda: len(cni_threads()) == 1, "the idle worker ends")
    go.set()
    client.join(TIMEOUT_S)
    assert replies == [CniReply(0, b"ADD{}")]


def test_a_call_that_does_not_end_is_given_up_after_the_grace_time(path: Path) -> None:
    entered, go = threading.Event(), threading.Event()

    def handler(request: CniRequest) -> CniReply:
        entered.set()
        go.wait(TIMEOUT_S)
        return answer(request)

    made = CniServer(path, handler, workers=1, log=log(), grace_s=0.05)
    made.listen()
    serving = threading.Thread(target=made.serve)
    client = threading.Thread(target=call, args=(path,))
    with structlog.testing.capture_logs() as logs:
        serving.start()
        client.start()
        assert entered.wait(TIMEOUT_S)
        made.stop()
        serving.join(TIMEOUT_S)
        assert not serving.is_alive()
    go.set()
    client.join(TIMEOUT_S)
    assert [entry["workers"] for entry in logs] == [["cni-0"]]


def test_a_worker_that_ends_by_itself_ends_the_server_with_the_reason(path: Path) -> None:
    made = CniServer(path, answer, workers=2, log=log())
    made.listen()
    assert made._listener is not None
    made._listener.shutdown(socket.SHUT_RDWR)  # accept(2) fails for no reason the server knows
    with pytest.raises(OSError, match="Invalid argument"):
        made.serve()


def test_a_shim_that_left_is_logged(path: Path, start: Start) -> None:
    entered, go = threading.Event(), threading.Event()

    def handler(request: CniRequest) -> CniReply:
        entered.set()
        assert go.wait(TIMEOUT_S)
        return answer(request)

    start(handler)
    with structlog.testing.capture_logs() as logs:
        with connect(path) as client:
            client.sendall(wire.encode_request(ADD))
            assert entered.wait(TIMEOUT_S)
        go.set()
        eventually(lambda: bool(logs), "the lost reply is logged")
    assert (logs[0]["event"], logs[0]["command"]) == ("cni reply not delivered", "ADD")
