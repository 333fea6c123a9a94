"""Orchestrator: the rig's command line: python3 -m hw_tests.rig build | shell | run [options] -- COMMAND"""

import argparse
import math
import os
import sys
from pathlib import Path

from hw_tests.rig.environment import ensure_environment_disk
from hw_tests.rig.guest import run_in_guest
from hw_tests.rig.host import RigError, say
from hw_tests.rig.image import ensure_base_image
from hw_tests.rig.machine import terminate_on_sigterm
from hw_tests.rig.terminal import terminal_size
from hw_tests.rig.verdict import EXIT_NO_VERDICT

_EXIT_INTERRUPTED = 130


def main(arguments: list[str]) -> int:
    """The exit code is the command's; 124: deadline, 125: no verdict or the rig's own failure."""
    options = _parser().parse_args(arguments)
    terminate_on_sigterm()
    try:
        if options.action == "build":
            ensure_environment_disk(ensure_base_image())
            return 0
        if options.action == "shell":
            return _shell()
        return _run(options)
    except RigError as error:
        say(str(error))
        return EXIT_NO_VERDICT
    except KeyboardInterrupt:
        say("interrupted; the machine is gone")
        return _EXIT_INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    env = dict(setting.split("=", 1) for setting in options.env)
    if sys.stdout.isatty():
        env.setdefault("FORCE_COLOR", "1")
    outcome = run_in_guest(
        options.command,
        timeout_s=options.timeout,
        out=options.out,
        keep_console=options.keep_console,
        env=env,
        with_images=options.images,
    )
    outcome.tell()
    return outcome.exit_code


def _shell() -> int:
    """The person at it decides how long it takes."""
    env = {"RIG_TERMINAL": terminal_size(), "TERM": os.environ.get("TERM", "dumb")}
    command = ["python3", "-m", "hw_tests.playground"]
    outcome = run_in_guest(command, timeout_s=math.inf, env=env, interactive=True)
    outcome.tell()
    return outcome.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m hw_tests.rig", description="SR-IOV without SR-IOV hardware"
    )
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("build", help="build the guest's disks into the cache, and end")
    run = actions.add_parser("run", help="boot, run COMMAND in /src as root, power off, exit as it did")
    run.add_argument(
        "--timeout", type=float, default=600, metavar="S", help="kill the machine after so many seconds"
    )
    run.add_argument("--keep-console", type=Path, metavar="FILE", help="write the kernel's console there")
    run.add_argument("--out", type=Path, metavar="DIR", help="where the files in $RIG_OUT go")
    run.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="set for COMMAND; repeatable"
    )
    run.add_argument(
        "--images", action="store_true", help="with the agent's container images, for hw_tests/test_image.py"
    )
    run.add_argument("command", nargs="+", metavar="COMMAND")
    actions.add_parser("shell", help="boot a node to play with, and be root on it until `exit`")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
