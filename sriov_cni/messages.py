"""Pure: one CNI call as the shim hands it to the agent, and the reply it prints.

The netns travels as an open file descriptor: the agent needs no view of the host's /run or /proc.
"""

import dataclasses
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True, slots=True)
class CniRequest:
    """`env`: the CNI_* variables (and TRACEPARENT and the like) of the call. `stdin`: the config, raw.

    `netns_fd`: an open descriptor of CNI_NETNS, or None; `netns_errno` says why it could not be opened
    (0: opened, or CNI_NETNS was not given). The receiver of a request owns the descriptor; the server
    closes it when the handler returns.
    """

    env: Mapping[str, str]
    stdin: bytes
    netns_fd: int | None = None
    netns_errno: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class CniReply:
    """`exit_code` of the executable (0 or 1); `stdout`: a result, an error, or nothing."""

    exit_code: int
    stdout: bytes = b""


Handler = Callable[[CniRequest], CniReply]
