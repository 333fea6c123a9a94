"""Orchestrator: `make rig-shell` in the emulated machine: a node to play with, and a shell on it."""

import os
import subprocess
import sys
import termios

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when gRPC is loaded, which the imports below do

from hw_tests.nics import find_nics, settle
from hw_tests.playground.node import environment, playground
from hw_tests.runtime import PROJECT

_HELLO = """\

A node with two SR-IOV NICs, ens1f0 and ens1f1, and all that `make install` puts on it. The agent does
not run yet. Go on with step 6 of docs/getting-started.md: its commands work here as they stand.

kubectl, systemctl and journalctl are stand-ins that know what the documentation shows; sudoedit is vi.
Pods are made by containerd; their programs are those of this machine. 192.168.50.1 is another machine
on the wire. `exit` ends all of it, and nothing is kept.
"""
_PROMPT = r"\[\e[1m\]node\[\e[0m\]:\w\$ "


def main() -> int:
    """The exit code of the shell."""
    if size := os.environ.get("RIG_TERMINAL"):
        rows, columns = map(int, size.split())
        termios.tcsetwinsize(sys.stdin.fileno(), (rows, columns))
    print("The node is being made, which takes some 20 seconds ...", flush=True)
    nics = find_nics()
    settle()
    with playground(nics):
        print(_HELLO, flush=True)
        shell = ["bash", "--norc", "--noprofile", "-i"]
        env = environment() | {"PS1": _PROMPT}
        return subprocess.run(shell, cwd=PROJECT, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
