"""Adapter: a resolv.conf(5) as CNI's dns object."""

import os

from sriov_cni.spec import Dns
from vf_manager.errors import KernelError

_MOST_BYTES = 64 * 1024


def read_resolv_conf(path: str) -> Dns:
    """Neither blocks nor grows, whatever the path names: it comes from a network config."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return parse_resolv_conf(os.read(fd, _MOST_BYTES).decode("utf-8", "replace"))
        finally:
            os.close(fd)
    except OSError as error:
        hint = "ipam.resolvConf must name a file that the agent can read"
        raise KernelError(f"read {path}", error.errno or 0, hint) from error


def parse_resolv_conf(text: str) -> Dns:
    """Search lists and options add up, the last domain wins; what is not known is left out."""
    values: dict[str, list[str]] = {"nameserver": [], "domain": [], "search": [], "options": []}
    for line in text.splitlines():
        word, *rest = line.split() or [""]
        if word not in values or not rest:
            continue
        values[word] += rest if word in ("search", "options") else rest[:1]
    return Dns(
        nameservers=tuple(values["nameserver"]),
        domain=values["domain"][-1] if values["domain"] else "",
        search=tuple(values["search"]),
        options=tuple(values["options"]),
    )
