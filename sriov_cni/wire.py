"""Adapter: the frames between the shim and the agent, and how the agent reads and writes them.

One connection carries one call: a request frame, then a reply frame. Integers are unsigned, 32 bits, in
network byte order. The other side of this text is `shim/shim.c`.

Request, a header of 20 bytes, then the environment, then stdin::

    magic "SUv1" | env length | stdin length | netns errno | flags | env ... | stdin ...

- env: the CNI_* variables and TRACEPARENT, TRACESTATE, BAGGAGE as NUL-terminated `KEY=VALUE` strings (UTF-8).
- flags: bit 0 says that a descriptor of CNI_NETNS comes with the first byte of the frame (SCM_RIGHTS).
- netns errno: why CNI_NETNS could not be opened. 0: it was opened, or CNI_NETNS was not given.

Reply, a header of 12 bytes, then what the shim prints::

    magic "SUv1" | exit code (0-255) | stdout length | stdout ...

Both sides hold the other to ENV_MAX, STDIN_MAX and REPLY_MAX before they make room for anything. A frame of
another layout gets another magic. Deadlines are instants of `time.monotonic()`.
"""

import array
import contextlib
import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import NamedTuple

from sriov_cni.messages import CniReply, CniRequest
from vf_manager.errors import SriovError, shorten

MAGIC = b"SUv1"
ENV_MAX = 64 * 1024
STDIN_MAX = 1024 * 1024
REPLY_MAX = 1024 * 1024
ERRNO_MAX = 4095  # MAX_ERRNO of include/linux/err.h
FLAG_NETNS = 1

REQUEST_HEADER = struct.Struct("!4sIIII")
REPLY_HEADER = struct.Struct("!4sII")
_INT_SIZE = array.array("i").itemsize


class WireError(SriovError):
    """The other side broke the rules of the wire, or the connection did not last."""


class WireTimeout(WireError):
    """The other side was too slow."""

    transient = True


class PeerLeft(WireError):
    """The connection was closed before its first byte: somebody only looked whether we listen."""


class BadEnvironment(WireError):
    """The environment of a call cannot be carried. Names the variable."""


class RequestHeader(NamedTuple):
    """What the first 20 bytes of a request say, within bounds. Lengths in bytes."""

    env_length: int
    stdin_length: int
    netns_errno: int
    has_netns: bool


def decode_request_header(data: bytes) -> RequestHeader:
    """Pure. Raises WireError for everything that the layout above does not allow."""
    magic, env_length, stdin_length, netns_errno, flags = REQUEST_HEADER.unpack(data)
    if magic != MAGIC:
        raise WireError(
            f"request: starts with {magic!r}, expected {MAGIC!r}; is the shim of another release?"
        )
    _check_limit("request: environment", env_length, ENV_MAX)
    _check_limit("request: stdin", stdin_length, STDIN_MAX)
    _check_limit("request: netns errno", netns_errno, ERRNO_MAX)
    if flags & ~FLAG_NETNS:
        raise WireError(f"request: unknown flags {flags:#x}")
    if flags and netns_errno:
        raise WireError(f"request: a netns descriptor together with errno {netns_errno}")
    return RequestHeader(env_length, stdin_length, netns_errno, bool(flags))


def decode_env(block: bytes) -> dict[str, str]:
    """Pure: NUL-terminated `KEY=VALUE` strings to a mapping. A variable given twice is an error."""
    if block and not block.endswith(b"\0"):
        raise BadEnvironment(f"environment: ends inside a variable: {shorten(block[-40:])}")
    env: dict[str, str] = {}
    for entry in block.split(b"\0")[:-1]:
        try:
            key, separator, value = entry.decode().partition("=")
        except UnicodeDecodeError as e:
            raise BadEnvironment(f"environment: {shorten(entry)} is not UTF-8") from e
        if not key or not separator:
            raise BadEnvironment(f"environment: {shorten(entry)} is not KEY=VALUE")
        if key in env:
            raise BadEnvironment(f"environment: {shorten(key)} is given twice")
        env[key] = value
    return env


def encode_env(env: Mapping[str, str]) -> bytes:
    """Pure, the inverse of `decode_env`."""
    for key, value in env.items():
        if not key or "=" in key or "\0" in key + value:
            raise BadEnvironment(
                f"environment: {shorten(key)}={shorten(value)} cannot be an environment variable"
            )
    return b"".join(f"{key}={value}\0".encode() for key, value in env.items())


def encode_request(request: CniRequest) -> bytes:
    """Pure: the frame of a request. `netns_fd`, if there is one, has to go with it by SCM_RIGHTS."""
    env = encode_env(request.env)
    flags = 0 if request.netns_fd is None else FLAG_NETNS
    header = REQUEST_HEADER.pack(MAGIC, len(env), len(request.stdin), request.netns_errno, flags)
    decode_request_header(header)  # what we would not accept we do not send
    return header + env + request.stdin


def encode_reply(reply: CniReply) -> bytes:
    """Pure: the frame of a reply."""
    _check_limit("reply: exit code", reply.exit_code, 255)
    _check_limit("reply: stdout", len(reply.stdout), REPLY_MAX)
    return REPLY_HEADER.pack(MAGIC, reply.exit_code, len(reply.stdout)) + reply.stdout


def decode_reply(frame: bytes) -> CniReply:
    """Pure: a whole reply frame, as a client in Python reads it."""
    if len(frame) < REPLY_HEADER.size:
        raise WireError(f"reply: {len(frame)} bytes are no header")
    magic, exit_code, length = REPLY_HEADER.unpack_from(frame)
    stdout = frame[REPLY_HEADER.size :]
    if magic != MAGIC or exit_code > 255 or length != len(stdout):
        raise WireError(
            f"reply: malformed, starts with {frame[: REPLY_HEADER.size]!r}, {len(stdout)} bytes follow"
        )
    return CniReply(exit_code, stdout)


def read_request(sock: socket.socket, deadline: float) -> CniRequest:
    """The request on a fresh connection. The caller owns its `netns_fd`; on an error none is left open."""
    with contextlib.ExitStack() as received:
        data, fds = _receive_with_fds(sock, REQUEST_HEADER.size, deadline, received)
        data += _receive_exactly(sock, REQUEST_HEADER.size - len(data), deadline)
        header = decode_request_header(data)
        if len(fds) != header.has_netns:
            raise WireError(f"request: {int(header.has_netns)} descriptor announced, {len(fds)} came")
        env = decode_env(_receive_exactly(sock, header.env_length, deadline))
        stdin = _receive_exactly(sock, header.stdin_length, deadline)
        request = CniRequest(env, stdin, fds[0] if fds else None, header.netns_errno)
        received.pop_all()  # closes nothing: the descriptor is the caller's from here on
        return request


def write_reply(sock: socket.socket, reply: CniReply, deadline: float) -> None:
    """Send a reply whole, or raise WireError."""
    frame = encode_reply(reply)
    try:
        sock.settimeout(_time_left(deadline))
        sock.sendall(frame)  # the timeout covers the whole of it
    except TimeoutError as e:
        raise WireTimeout("reply: the shim does not read it") from e
    except OSError as e:
        raise WireError(f"reply: {e.strerror}; the shim is gone, the runtime did not see the answer") from e


def _receive_with_fds(
    sock: socket.socket, size: int, deadline: float, received: contextlib.ExitStack
) -> tuple[bytes, list[int]]:
    """At least one of `size` bytes, with the descriptors that came along; `received` closes those.

    Descriptors sent later in the frame are never installed: the kernel drops them when nobody makes room.
    """
    try:
        sock.settimeout(_time_left(deadline))
        room = socket.CMSG_SPACE(_INT_SIZE)
        data, ancillary, flags, _ = sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    except OSError as e:
        raise _read_error(e) from e
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % _INT_SIZE])
    for fd in fds:
        received.callback(os.close, fd)
    if flags & socket.MSG_CTRUNC:
        raise WireError(
            "request: descriptors were lost; more than one was sent, or this process is out of them"
        )
    if not data:
        raise PeerLeft("request: the connection was closed before its first byte")
    return data, list(fds)


def _receive_exactly(sock: socket.socket, size: int, deadline: float) -> bytes:
    data = bytearray(size)
    done = 0
    while done < size:
        try:
            sock.settimeout(_time_left(deadline))
            count = sock.recv_into(memoryview(data)[done:])
        except OSError as e:
            raise _read_error(e) from e
        if count == 0:
            raise WireError(f"request: ended {size - done} bytes early")
        done += count
    return bytes(data)


def _read_error(error: OSError) -> WireError:
    if isinstance(error, TimeoutError):
        return WireTimeout("request: not complete within the deadline")
    return WireError(f"request: {error.strerror}")


def _time_left(deadline: float) -> float:
    """Seconds, always above 0: a timeout of 0 would mean non-blocking to the socket module."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _check_limit(what: str, value: int, limit: int) -> None:
    if not 0 <= value <= limit:
        raise WireError(f"{what}: {value} is not within 0 to {limit}")
