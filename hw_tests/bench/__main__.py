"""Orchestrator: `make bench`: measures natively, in the rig and over restarts, prints tables, writes JSON
and a plot."""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from hw_tests.bench.plot import render_svg
from hw_tests.bench.results import Measured, Restarts, to_json
from hw_tests.bench.table import render_restarts, render_table
from hw_tests.rig.guest import run_in_guest
from hw_tests.runtime import PROJECT

_MEASURE = ["-m", "hw_tests.bench.measure", "--place"]
_RIG_TIMEOUT_S = 420.0
# A network namespace that stands for the host's, and mounts of its own: nothing of it outlives the run, and
# nothing that it does reaches an interface of this machine.
_ALONE = ["unshare", "--net", "--mount", "sh", "-c"]
_ALONE_SCRIPT = 'mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /run && exec "$@"'


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    measured, restarts = [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for part, run in (("native", _run_natively), ("rig", _run_in_rig), ("restart", _run_restarts)):
            if options.only in (None, part):
                code = run(options.rounds, Path(name))
                if code:
                    print(f"bench: {part} failed, see above", file=sys.stderr)
                    return code
                result = (Path(name) / f"{part}.json").read_bytes()
                if part == "restart":
                    restarts = msgspec.json.decode(result, type=list[Restarts])
                else:
                    measured.append(msgspec.json.decode(result, type=Measured))
    for one in measured:
        print("\n".join(render_table(one)))
    print("\n".join(render_restarts(restarts)))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench.json").write_bytes(to_json(measured, restarts))
    (options.out / "bench.svg").write_text(render_svg(measured))
    print(f"written: {options.out}/bench.json, {options.out}/bench.svg")
    return 0


def _run_natively(rounds: int, out: Path) -> int:
    measure = [sys.executable, *_MEASURE, "native", "--rounds", str(rounds), "--out", str(out)]
    return subprocess.run([*_ALONE, _ALONE_SCRIPT, "alone", *measure], cwd=PROJECT, check=False).returncode


def _run_restarts(rounds: int, out: Path) -> int:
    restart = [sys.executable, "-m", "hw_tests.bench.restart", "--rounds", str(rounds), "--out", str(out)]
    return subprocess.run([*_ALONE, _ALONE_SCRIPT, "alone", *restart], cwd=PROJECT, check=False).returncode


def _run_in_rig(rounds: int, out: Path) -> int:
    command = ["python3", *_MEASURE, "rig", "--rounds", str(rounds)]
    outcome = run_in_guest(command, timeout_s=_RIG_TIMEOUT_S, out=out)
    if outcome.why is not None:
        print(f"bench: {outcome.why}", file=sys.stderr)
    return outcome.exit_code


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description="how long ADD, DEL and a restart take")
    parser.add_argument("--rounds", type=int, default=0, help="of calls one after the other; 0: as usual")
    parser.add_argument("--only", choices=("native", "rig", "restart"), help="one part of it")
    parser.add_argument("--out", type=Path, default=PROJECT / "build/bench", metavar="DIR")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
