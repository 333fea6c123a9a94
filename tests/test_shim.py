"""The executable that runtimes exec, as a process: built with sanitizers, before agents of every kind."""

import contextlib
import dataclasses
import json
import os
import pty
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from structlog.typing import FilteringBoundLogger

from sriov_cni import wire
from sriov_cni.messages import CniReply, CniRequest
from sriov_cni.server import CniServer

SOURCE = Path(__file__).parent.parent / "sriov_cni" / "shim" / "shim.c"
VERSION = {"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}
TIMEOUT_S = 10.0  # of a shim that hangs: far above every deadline that is tested

WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
STATIC = [*WARNINGS, "-O2", "-static"]
SANITIZED = [*WARNINGS, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
HASTY = [*SANITIZED, "-DCONNECT_TIMEOUT_MS=200", "-DREPLY_TIMEOUT_MS=400"]

Script = Callable[[socket.socket], None]


@dataclasses.dataclass(frozen=True)
class Builds:
    shipped: Path
    sanitized: Path
    hasty: Path  # sanitized, with short deadlines


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    folder = tmp_path_factory.mktemp("shim")
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.fail("the shim's tests need gcc, libc6-dev and libasan (Debian: gcc libc6-dev)")
    flags = {"shipped": STATIC, "sanitized": SANITIZED, "hasty": HASTY}
    for name, options in flags.items():
        command = [compiler, *options, "-o", str(folder / name), str(SOURCE)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if result.returncode:
            pytest.fail(
                f"{' '.join(command)}\n{result.stderr}\n(libasan and libubsan come with Debian's gcc)"
            )
    return Builds(**{name: folder / name for name in flags})


@dataclasses.dataclass(frozen=True)
class Shim:
    """Calls the executable with exactly this environment, plus where the agent is."""

    program: Path
    socket_path: Path

    def environment(self, command: str | None, env: dict[str, str]) -> dict[str, str]:
        base = {"SRIOV_UNDERLAY_SOCKET": str(self.socket_path), **env}
        return base if command is None else {**base, "CNI_COMMAND": command}

    def run(self, command: str | None, stdin: bytes = b"{}", **env: str) -> CniReply:
        result = subprocess.run(
            [self.program],
            env=self.environment(command, env),
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert result.stderr == b"", "what the sanitizers have to say"
        return CniReply(result.returncode, result.stdout)

    @contextlib.contextmanager
    def running(self, command: str, stdin: int) -> "Iterator[subprocess.Popen[bytes]]":
        """The process, with pipes for its stdout and stderr; it does not outlive the block."""
        pipe = subprocess.PIPE
        env = self.environment(command, {})
        with subprocess.Popen([self.program], env=env, stdin=stdin, stdout=pipe, stderr=pipe) as process:
            try:
                yield process
            finally:
                process.kill()


def has_socket(process: "subprocess.Popen[bytes]") -> bool:
    """Has it got as far as looking for the agent?"""
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if str(entry.readlink()).startswith("socket:"):
                return True
    return False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cni.sock"


@pytest.fixture
def shim(builds: Builds, path: Path) -> Shim:
    return Shim(builds.sanitized, path)


@pytest.fixture
def hasty(builds: Builds, path: Path) -> Shim:
    return Shim(builds.hasty, path)


@contextlib.contextmanager
def scripted_agent(path: Path, script: Script) -> Iterator[list[socket.socket]]:
    """An agent that does `script` with each connection. Yields the connections it has had."""
    connections: list[socket.socket] = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # accept(2) at the end, or the script's client went away
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                with contextlib.suppress(OSError):
                    script(connection)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield connections
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(TIMEOUT_S)
            for connection in connections:
                connection.close()


def answering(reply: bytes) -> Script:
    """Read the request, send these bytes, close."""

    def script(connection: socket.socket) -> None:
        request = wire.read_request(connection, time.monotonic() + TIMEOUT_S)
        if request.netns_fd is not None:
            os.close(request.netns_fd)
        connection.sendall(reply)
        connection.shutdown(socket.SHUT_RDWR)

    return script


@contextlib.contextmanager
def agent(path: Path, handler: Callable[[CniRequest], CniReply]) -> Iterator[None]:
    """The real server."""
    log: FilteringBoundLogger = structlog.get_logger()
    server = CniServer(path, handler, workers=2, log=log)
    server.listen()
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join(TIMEOUT_S)


@contextlib.contextmanager
def recording_agent(path: Path, reply: CniReply = CniReply(0)) -> Iterator[list[CniRequest]]:  # noqa: B008 - frozen
    seen: list[CniRequest] = []

    def handler(request: CniRequest) -> CniReply:
        seen.append(request)
        return reply

    with agent(path, handler):
        yield seen


def error_of(reply: CniReply) -> tuple[int, str, str]:
    assert reply.exit_code == 1
    error = json.loads(reply.stdout)
    assert set(error) == {"cniVersion", "code", "msg", "details"}
    assert error["cniVersion"] == "1.1.0"
    return error["code"], error["msg"], error["details"]


# The build


def test_the_source_stays_short() -> None:
    assert len(SOURCE.read_text().splitlines()) < 250


def test_the_shipped_build_is_static_and_answers(builds: Builds, path: Path) -> None:
    image = builds.shipped.read_bytes()
    offset, size, count = (*struct.unpack_from("<Q", image, 32), *struct.unpack_from("<HH", image, 54))
    kinds = [struct.unpack_from("<I", image, offset + size * number)[0] for number in range(count)]
    assert 3 not in kinds, "PT_INTERP: it would need a dynamic loader on the host"
    shipped = Shim(builds.shipped, path)
    assert json.loads(shipped.run("VERSION").stdout) == VERSION
    with recording_agent(path, CniReply(1, b"{}\n")) as seen:
        assert shipped.run("ADD", b"config") == CniReply(1, b"{}\n")
    assert seen == [CniRequest({"CNI_COMMAND": "ADD"}, b"config")]


def test_the_agent_is_expected_where_it_listens(builds: Builds) -> None:
    assert b"/run/sriov-underlay/cni.sock\0" in builds.shipped.read_bytes()


# What it answers by itself


def test_version_needs_no_agent_and_no_stdin(shim: Shim) -> None:
    with shim.running("VERSION", stdin=subprocess.PIPE) as process:  # never written to
        assert process.wait(TIMEOUT_S) == 0
        assert process.stdout is not None
        assert json.loads(process.stdout.read()) == VERSION


@pytest.mark.parametrize("command", [None, ""])
def test_a_missing_command_is_named(shim: Shim, command: str | None) -> None:
    code, message, details = error_of(shim.run(command))
    assert (code, message) == (4, "CNI_COMMAND is not set")
    assert "ADD, DEL" in details


def test_an_empty_environment_is_survived(builds: Builds) -> None:
    result = subprocess.run([builds.sanitized], env={}, capture_output=True, timeout=TIMEOUT_S, check=False)
    assert error_of(CniReply(result.returncode, result.stdout))[0] == 4


@pytest.mark.parametrize(
    "command", ["add", "ADD ", 'A"\\\n\x01\x7f', "\udcff\udcc3", "é" * 100, "x" * 100_000]
)
def test_an_unknown_command_is_named_in_valid_json(shim: Shim, command: str) -> None:
    code, message, _ = error_of(shim.run(command))
    assert code == 4
    assert message.startswith(
        f'CNI_COMMAND: unknown command "{command[0] if command.isascii() else chr(92) + "x"}'
    )


# What it sends


def test_the_agent_gets_cni_and_tracing_variables_and_no_others(shim: Shim, path: Path) -> None:
    wanted = {"CNI_ARGS": "A=b;C=d", "CNI_X": "", "TRACEPARENT": "00-1", "TRACESTATE": "é", "BAGGAGE": "k=v"}
    with recording_agent(path) as seen:
        shim.run("ADD", b"\0\xff", PATH="/bin", XCNI_A="1", TRACEPARENTS="1", CN="1", **wanted)
    assert seen == [CniRequest({"CNI_COMMAND": "ADD", **wanted}, b"\0\xff")]


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
@pytest.mark.parametrize(
    "reply", [CniReply(0), CniReply(0, b'{"ips":[]}'), CniReply(1, b'{"code":3}'), CniReply(255)]
)
def test_the_answer_is_passed_on_unchanged(shim: Shim, path: Path, command: str, reply: CniReply) -> None:
    with recording_agent(path, reply):
        assert shim.run(command) == reply


def test_large_configs_and_answers_pass_whole(shim: Shim, path: Path) -> None:
    config, result = os.urandom(wire.STDIN_MAX), os.urandom(wire.REPLY_MAX)
    with recording_agent(path, CniReply(0, result)) as seen:
        assert shim.run("ADD", config) == CniReply(0, result)
    assert seen[0].stdin == config


def test_the_netns_arrives_as_an_open_descriptor(shim: Shim, path: Path, tmp_path: Path) -> None:
    netns = tmp_path / "netns"
    netns.touch()
    seen: list[bool] = []

    def handler(request: CniRequest) -> CniReply:
        assert request.netns_fd is not None
        seen.append(os.path.samestat(os.fstat(request.netns_fd), netns.stat()))
        return CniReply(0)

    with agent(path, handler):
        assert shim.run("ADD", os.urandom(500_000), CNI_NETNS=str(netns)).exit_code == 0
    assert seen == [True]


def test_the_netns_is_sent_once_however_many_pieces_the_request_takes(shim: Shim, path: Path) -> None:
    received: list[int] = []

    def script(connection: socket.socket) -> None:
        connection.settimeout(TIMEOUT_S)
        left = wire.REQUEST_HEADER.size + len("CNI_COMMAND=ADD\0CNI_NETNS=/dev/null\0") + wire.STDIN_MAX
        while left > 0:
            data, fds, _, _ = socket.recv_fds(connection, 65536, 8)
            received.extend(fds)
            left -= len(data) or left
        connection.sendall(wire.encode_reply(CniReply(0)))

    with scripted_agent(path, script):
        assert shim.run("ADD", b"x" * wire.STDIN_MAX, CNI_NETNS="/dev/null") == CniReply(0)
    for fd in received:
        os.close(fd)
    assert len(received) == 1


@pytest.mark.parametrize(("netns", "code"), [("/does/not/exist", 2), ("/dev/null/x", 20), ("", 0)])
def test_a_netns_that_cannot_be_opened_is_for_the_agent_to_judge(
    shim: Shim, path: Path, netns: str, code: int
) -> None:
    with recording_agent(path) as seen:
        assert shim.run("DEL", CNI_NETNS=netns) == CniReply(0)
    assert seen == [CniRequest({"CNI_COMMAND": "DEL", "CNI_NETNS": netns}, b"{}", None, code)]


def test_a_fifo_as_netns_does_not_block(shim: Shim, path: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with recording_agent(path) as seen:
        shim.run("ADD", CNI_NETNS=str(tmp_path / "fifo"))
    assert seen[0].netns_errno == 0


# Standard descriptors in any state


def run_in_shell(shim: Shim, redirection: str, command: str = "ADD") -> CniReply:
    env = shim.environment(command, {})
    line = ["/bin/sh", "-c", f'exec "$0" {redirection}', str(shim.program)]
    result = subprocess.run(
        line, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False
    )
    assert result.stderr == b""
    return CniReply(result.returncode, result.stdout)


@pytest.mark.parametrize("redirection", ["<&-", "</dev/null", "0>/dev/null", "<&- 2>&-"])
def test_without_stdin_the_agent_gets_an_empty_config(shim: Shim, path: Path, redirection: str) -> None:
    with recording_agent(path, CniReply(0, b"ok")) as seen:
        assert run_in_shell(shim, redirection) == CniReply(0, b"ok")
    assert seen == [CniRequest({"CNI_COMMAND": "ADD"}, b"")]


def test_a_terminal_is_not_waited_for(shim: Shim, path: Path) -> None:
    master, terminal = pty.openpty()
    try:
        with recording_agent(path) as seen, shim.running("ADD", stdin=terminal) as process:
            assert process.communicate(timeout=TIMEOUT_S) == (b"", b"")
        assert seen[0].stdin == b""
    finally:
        os.close(master)
        os.close(terminal)


def test_the_request_never_ends_up_on_a_closed_stdout(shim: Shim, path: Path) -> None:
    """The socket must not become descriptor 1: the agent would be sent its own answer."""
    with recording_agent(path, CniReply(0, b"result")) as seen:
        assert run_in_shell(shim, "<&- >&-") == CniReply(0)
    assert len(seen) == 1


def test_an_answer_that_cannot_be_printed_is_no_success(shim: Shim, path: Path) -> None:
    with recording_agent(path, CniReply(0, b"result")):
        assert run_in_shell(shim, ">/dev/full").exit_code == 1


def test_a_runtime_that_left_is_survived(shim: Shim, path: Path) -> None:
    answer = CniReply(0, b"x" * wire.REPLY_MAX)
    with recording_agent(path, answer), shim.running("ADD", stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(TIMEOUT_S) == 1, "not killed by SIGPIPE"
        assert process.stderr.read() == b""


def test_stdin_that_cannot_be_read_is_an_io_error(shim: Shim) -> None:
    assert error_of(run_in_shell(shim, "</"))[::2] == (5, "Is a directory")


def test_stdin_that_does_not_end_runs_into_the_deadline(hasty: Shim) -> None:
    with hasty.running("ADD", stdin=subprocess.PIPE) as process:  # never written to
        assert process.wait(TIMEOUT_S) == 1
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["code"] == 5


# Too much of everything


@pytest.mark.parametrize("size", [wire.STDIN_MAX + 1, 10 * 1024 * 1024])
def test_too_large_a_config_is_an_error_that_names_the_limit(shim: Shim, path: Path, size: int) -> None:
    with recording_agent(path) as seen:
        code, message, _ = error_of(shim.run("ADD", b"x" * size))
    assert code == 7
    assert str(wire.STDIN_MAX) in message
    assert seen == []


def test_too_large_an_environment_is_an_error_that_names_variable_and_limit(shim: Shim, path: Path) -> None:
    with recording_agent(path) as seen:
        code, message, _ = error_of(shim.run("ADD", CNI_ARGS="x" * wire.ENV_MAX))
        assert code == 4
        assert "CNI_ARGS" in message
        assert str(wire.ENV_MAX) in message
        largest = "x" * (wire.ENV_MAX - len("CNI_COMMAND=ADD\0CNI_ARGS=\0"))
        config = b"x" * wire.STDIN_MAX
        assert shim.run("ADD", config, CNI_ARGS=largest, OTHER="y" * 100_000).exit_code == 0
        assert error_of(shim.run("ADD", config + b"x", CNI_ARGS=largest))[0] == 7
    assert seen == [CniRequest({"CNI_COMMAND": "ADD", "CNI_ARGS": largest}, config)]


def test_too_long_a_socket_path_is_an_error_that_names_it(shim: Shim) -> None:
    code, message, details = error_of(shim.run("ADD", SRIOV_UNDERLAY_SOCKET="/" + "x" * 107))
    assert code == 4
    assert "SRIOV_UNDERLAY_SOCKET" in message
    assert "107" in details


# Agents that are not there


@pytest.mark.parametrize(
    ("command", "code"), [("ADD", 11), ("DEL", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)]
)
def test_no_agent_is_an_error_after_a_bounded_wait(hasty: Shim, path: Path, command: str, code: int) -> None:
    found, message, details = error_of(hasty.run(command))
    assert found == code
    assert str(path) in message
    assert details == "No such file or directory"


def test_a_socket_nobody_listens_on_is_no_agent(hasty: Shim, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        assert error_of(hasty.run("DEL"))[::2] == (11, "Connection refused")


def test_a_full_backlog_is_no_agent(hasty: Shim, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))
        assert error_of(hasty.run("ADD"))[::2] == (11, "Resource temporarily unavailable")
        assert error_of(hasty.run("STATUS"))[0] == 50


def test_what_will_not_pass_is_not_waited_for(shim: Shim, path: Path) -> None:
    path.touch()
    started = time.monotonic()
    code, _, details = error_of(shim.run("ADD", SRIOV_UNDERLAY_SOCKET=f"{path}/x"))
    assert (code, details) == (11, "Not a directory")
    assert time.monotonic() - started < 5, "the default wait for an agent is 10 s"


def test_status_does_not_wait_for_an_agent(shim: Shim) -> None:
    started = time.monotonic()
    assert error_of(shim.run("STATUS"))[0] == 50
    assert time.monotonic() - started < 5, "the default wait for an agent is 10 s"


def test_an_agent_that_comes_up_late_is_found(shim: Shim, path: Path) -> None:
    with shim.running("ADD", stdin=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while not has_socket(process):
            assert time.monotonic() < deadline, "the shim tries to connect"
        with recording_agent(path, CniReply(0, b"late")):
            assert process.communicate(timeout=TIMEOUT_S) == (b"late", b"")


# Agents that misbehave

WHOLE = wire.encode_reply(CniReply(0, b"result"))
BROKEN_REPLIES = {
    "nothing": b"",
    "half a header": WHOLE[:7],
    "header only": WHOLE[:12],
    "short body": WHOLE[:-1],
    "other magic": b"SUv2" + WHOLE[4:],
    "text": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "oversized": struct.pack("!4sII", b"SUv1", 0, wire.REPLY_MAX + 1) + b"x" * (wire.REPLY_MAX + 1),
    "huge": struct.pack("!4sII", b"SUv1", 0, 2**32 - 1) + b"x" * (2 * wire.REPLY_MAX),
    "exit code 256": struct.pack("!4sII", b"SUv1", 256, 0),
    "exit code -1": struct.pack("!4sII", b"SUv1", 2**32 - 1, 0),
}


@pytest.mark.parametrize("command", ["DEL", "STATUS"])
@pytest.mark.parametrize("reply", BROKEN_REPLIES.values(), ids=BROKEN_REPLIES.keys())
def test_a_broken_answer_is_an_error_and_never_a_success(
    shim: Shim, path: Path, reply: bytes, command: str
) -> None:
    with scripted_agent(path, answering(reply)) as connections:
        assert error_of(shim.run(command))[0] == (50 if command == "STATUS" else 11)
    assert len(connections) == 1, "a request that may have been seen is not sent again"


def test_an_agent_that_dies_while_it_is_sent_the_request(shim: Shim, path: Path) -> None:
    def script(connection: socket.socket) -> None:
        connection.recv(100)
        connection.close()

    with scripted_agent(path, script) as connections:
        assert error_of(shim.run("ADD", b"x" * wire.STDIN_MAX))[0] == 11
    assert len(connections) == 1


def test_an_answer_given_before_the_whole_request_was_read_is_passed_on(shim: Shim, path: Path) -> None:
    def script(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(wire.encode_reply(CniReply(1, b"too much")))
        connection.close()

    with scripted_agent(path, script):
        assert shim.run("ADD", b"x" * wire.STDIN_MAX) == CniReply(1, b"too much")


@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("STATUS", 50)])
@pytest.mark.parametrize("reply", [b"", WHOLE[:5], WHOLE[:-1]])
def test_an_agent_that_never_finishes_runs_into_the_deadline(
    hasty: Shim, path: Path, command: str, code: int, reply: bytes
) -> None:
    with scripted_agent(path, lambda connection: connection.sendall(reply)):
        found, message, _ = error_of(hasty.run(command))
    assert found == code
    assert "400 ms" in message


def test_an_agent_that_never_reads_runs_into_the_deadline(hasty: Shim, path: Path) -> None:
    with scripted_agent(path, lambda _: None):
        assert error_of(hasty.run("ADD", b"x" * wire.STDIN_MAX))[0] == 11


def test_an_agent_that_dribbles_runs_into_the_deadline(hasty: Shim, path: Path) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(struct.pack("!4sII", b"SUv1", 0, wire.REPLY_MAX))
        while True:  # until the shim is gone
            connection.send(b"x")
            threading.Event().wait(0.01)

    with scripted_agent(path, script):
        assert error_of(hasty.run("ADD"))[0] == 11


def test_bytes_after_the_answer_are_not_printed(shim: Shim, path: Path) -> None:
    with scripted_agent(path, answering(WHOLE + b"more")):
        assert shim.run("ADD") == CniReply(0, b"result")
