"""Adapter: asks the agent by its CNI socket whether it answers, and whether an ADD could succeed now."""

import json
import socket
from pathlib import Path

import msgspec

from sriov_cni import wire
from sriov_cni.messages import CniRequest
from sriov_cni.spec import NEWEST_VERSION, OWN_NAMES
from vf_manager.errors import Busy, Refused, SriovError

BIN_DIR = "/opt/cni/bin"
_CONF = {"cniVersion": NEWEST_VERSION, "name": "sriovctl", "type": OWN_NAMES[0]}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`silent`: why nobody answered. `not_ready`: why an ADD could not succeed now."""

    silent: str | None = None
    not_ready: str | None = None


def ask_agent(path: Path, timeout_s: float = 2.0, *, bin_dir: str = BIN_DIR) -> Answer:
    """`bin_dir`: where the runtime has plugins, those of a fallback chain among them. Never raises: that it
    is silent is an answer, too."""
    try:
        env = {"CNI_COMMAND": "STATUS", "CNI_PATH": bin_dir}
        reply = wire.decode_reply(_exchange(path, env, json.dumps(_CONF).encode(), timeout_s))
        if reply.exit_code == 0:
            return Answer()
        return Answer(not_ready=str(json.loads(reply.stdout)["msg"]))
    except FileNotFoundError:
        return Answer(silent=f"{path} is not there")
    except OSError as e:
        return Answer(silent=f"{path}: {e.strerror or 'no answer in time'}")
    except (SriovError, ValueError, KeyError) as e:
        return Answer(silent=f"{path}: the answer is none of an agent of this release: {e}")


def ask_for(path: Path, command: str, question: bytes, timeout_s: float = 10.0) -> bytes:
    """What the agent answers to a command of ours. Raises Busy: nobody answers; Refused: it says no."""
    try:
        reply = wire.decode_reply(_exchange(path, {"CNI_COMMAND": command}, question, timeout_s))
    except OSError as e:
        raise Busy(f"{path}: {e.strerror or 'no answer in time'}; is the agent running?") from e
    if reply.exit_code != 0:
        raise Refused(str(json.loads(reply.stdout)["msg"]))
    return reply.stdout


def _exchange(path: Path, env: dict[str, str], stdin: bytes, timeout_s: float) -> bytes:
    frame = wire.encode_request(CniRequest(env, stdin, None))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout_s)
        client.connect(str(path))
        client.sendall(frame)
        reply = b""
        while part := client.recv(65536):
            reply += part
        return reply
