"""Adapter: dnsmasq in a pod, and questions to it by the C library's resolver or by a socket that is kept."""

import contextlib
import os
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from hw_tests.nics import wait_until
from hw_tests.runtime import Pod

PORT = 53
_NETNS_ETC = Path("/etc/netns")  # `ip netns exec` puts what is there over /etc (ip-netns(8))
_ETC_RESOLV_CONF = Path("/etc/resolv.conf")
_TIMEOUT_S = 10.0
_NO_PATIENCE_S = 1.0


@contextlib.contextmanager
def name_server(pod: Pod, name: str, address: str, log: Path) -> Iterator[None]:
    """It knows one name. `log`: see `asked_by`."""
    options = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file="]
    told = ["--user=root", "--log-queries", "--log-facility=-", f"--address=/{name}/{address}"]
    with log.open("wb") as out:
        process = subprocess.Popen(pod.command("dnsmasq", *options, *told), stdout=out, stderr=out)
    try:
        wait_until(lambda: "started, version" in log.read_text(), "start of dnsmasq", _TIMEOUT_S)
        yield
    finally:
        process.terminate()
        process.wait(_TIMEOUT_S)


def asked_by(log: Path) -> list[str]:
    """The addresses that a server was asked from."""
    return re.findall(r"query\[A\] \S+ from (\S+)", log.read_text())


@contextlib.contextmanager
def resolv_conf(pod: Pod, server: str) -> Iterator[None]:
    """What a kubelet writes for a pod, for commands that run in it."""
    if not _ETC_RESOLV_CONF.exists():
        _ETC_RESOLV_CONF.touch()  # there must be something to put it over
    folder = _NETNS_ETC / pod.netns
    folder.mkdir(parents=True)
    written = folder / "resolv.conf"
    written.write_text(f"nameserver {server}\noptions timeout:1 attempts:3\n")
    try:
        yield
    finally:
        written.unlink()
        folder.rmdir()


def resolve(pod: Pod, name: str, *, by_tcp: bool = False) -> set[str]:
    """By getaddrinfo(3) in the pod; nothing if it is not known or nobody answers. Nobody is asked where the
    loopback has the only address (AI_ADDRCONFIG)."""
    env = os.environ | ({"RES_OPTIONS": "use-vc"} if by_tcp else {})
    words = pod.command("getent", "ahostsv4", name)
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    return {line.split()[0] for line in done.stdout.splitlines()}


def question(client: socket.socket, name: str) -> str:
    """By a socket of UDP that is connected: RFC 1035 4.1. "" if nobody answers."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    header = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0)  # recursion is desired, one question
    client.settimeout(_NO_PATIENCE_S)
    try:
        client.send(header + labels + b"\0" + struct.pack(">2H", 1, 1))  # A, of the internet
        return socket.inet_ntoa(client.recv(512)[-4:])  # the answer ends with its address
    except OSError:
        return ""
