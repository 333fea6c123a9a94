"""Adapter: what a chain of plugins is made from and what is kept of it, on disk."""

import errno
import os
from pathlib import Path
from typing import Any

import msgspec

from sriov_cni.attachment import attachment_key
from sriov_cni.chain_conflist import Conflist, parse_conflist
from sriov_cni.environment import Environment
from sriov_cni.spec import Undecodable
from vf_manager.errors import InvalidInput, KernelError
from vf_manager.kernel.api import NetnsId

_MOST_BYTES = 1024 * 1024


class ChainRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One attachment that a chain made: all that it takes to run the chain's DEL, in any process.

    Written before the first plugin runs. `attached`: the last one has succeeded, and no DEL has begun.
    `env`: the variables of the ADD, with the path of the namespace as the runtime names it; `result` has that
    path too. `network`: the name of the configuration that was called; the list has one of its own.
    """

    version: int = 1
    attached: bool = False
    network: str
    env: Environment
    sandbox: NetnsId
    conflist: Conflist
    cni_version: str
    runtime_config: dict[str, Any] = {}
    result: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        return attachment_key(self.env.container_id, str(self.env.ifname))


def read_conflist(path: Path) -> Conflist:
    """Read anew for every call: it is small, and so a change counts at once. Plugins may stand beside it, in
    a directory named after the network (libcni, `loadOnlyInlinedPlugins`). Raises InvalidInput, which names
    the file and the key, and KernelError."""

    def beside_it(name: str) -> list[tuple[str, bytes]]:
        files = sorted((path.parent / name).glob("*.conf"))
        return [(file.name, _read(file)) for file in files if file.is_file()]

    try:
        return parse_conflist(_read(path), beside_it)
    except InvalidInput as e:
        key = str(path) if isinstance(e, Undecodable) else f"{path}: {e.key}"
        raise type(e)(key, e.value, e.expected) from e


def _read(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.read(fd, _MOST_BYTES)
        finally:
            os.close(fd)
    except OSError as e:
        raise KernelError(f"read {path}", e.errno or errno.EIO, "the chain for other pods is there") from e
