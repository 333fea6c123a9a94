"""Orchestrator: `make bench`: measures natively and in the rig, prints a table, writes JSON and a plot."""

import argparse
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from hw_tests.bench import markdown
from hw_tests.bench.grids import as_text
from hw_tests.bench.in_pod_results import InPodRules
from hw_tests.bench.in_pod_table import grids_of, where_of
from hw_tests.bench.plot import render_svg
from hw_tests.bench.results import Looks, Measured, Restarts, to_json
from hw_tests.bench.table import render_looks, render_restarts, render_table
from hw_tests.rig.guest import run_in_guest
from hw_tests.runtime import PROJECT

T = TypeVar("T")

PLACES = ("native", "rig")
PARTS = ("calls", "inventory", "restarts", "in-pod")
_MODULES = {
    "calls": "hw_tests.bench.measure",
    "inventory": "hw_tests.bench.looks",
    "restarts": "hw_tests.bench.restart",
    "in-pod": "hw_tests.bench.in_pod",
}
# A restart is Python's start and the kubelet, rules are nftables': no NIC has a part in either.
_NATIVE_ONLY = ("restarts", "in-pod")
_RIG_TIMEOUT_S = 480.0
# A network namespace that stands for the host's, and mounts of its own: nothing of it outlives the run, and
# nothing that it does reaches an interface of this machine.
_ALONE = ["unshare", "--net", "--mount", "sh", "-c"]
_ALONE_SCRIPT = 'mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /run && exec "$@"'


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    places = [place for place in PLACES if place in options.only] or PLACES
    parts = [part for part in PARTS if part in options.only] or PARTS
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for place in places:
            code = _run(place, parts, options.rounds, Path(name))
            if code:
                print(f"bench: {place} failed, see above", file=sys.stderr)
                return code
        found = _Found.read(Path(name), places, parts)
    print("\n".join(found.lines()))
    options.out.mkdir(parents=True, exist_ok=True)
    written = found.files()
    for file, content in written.items():
        (options.out / file).write_text(content)
    print(f"written: {', '.join(f'{options.out}/{file}' for file in written)}")
    return 0


class _Found(msgspec.Struct, frozen=True):
    """What the parts left, as far as they were run."""

    calls: list[Measured]
    inventory: list[Looks]
    restarts: list[Restarts]
    in_pod: InPodRules | None

    @classmethod
    def read(cls, folder: Path, places: Sequence[str], parts: Sequence[str]) -> "_Found":
        natively = [part for part in parts if "native" in places]
        return cls(
            [_read(folder / f"{place}.json", Measured) for place in places if "calls" in parts],
            [_read(folder / f"looks-{place}.json", Looks) for place in places if "inventory" in parts],
            _read(folder / "restarts.json", list[Restarts]) if "restarts" in natively else [],
            _read(folder / "in-pod.json", InPodRules) if "in-pod" in natively else None,
        )

    def lines(self) -> Iterator[str]:
        for lines in (*map(render_table, self.calls), *map(render_looks, self.inventory)):
            yield from lines
        yield from render_restarts(self.restarts)
        if self.in_pod is not None:
            yield from (where_of(self.in_pod), "")
            for grid in grids_of(self.in_pod):
                yield from as_text(grid)

    def files(self) -> dict[str, str]:
        """By name. A part that was not run leaves the file of the run before."""
        files = {
            "bench.json": to_json(self.calls, self.inventory, self.restarts, self.in_pod).decode(),
            "bench.svg": render_svg(self.calls),
        }
        if self.calls:
            files["calls.md"] = markdown.render_calls(self.calls)
        if self.inventory:
            files["inventory.md"] = markdown.render_inventory(self.inventory)
        if self.restarts:
            files["restarts.md"] = markdown.render_restarts(self.restarts)
        if self.in_pod is not None:
            files["in-pod.md"] = markdown.render_in_pod(self.in_pod)
        return files


def _run(place: str, parts: Sequence[str], rounds: int, out: Path) -> int:
    of_place, of_rounds = ["--place", place], ["--rounds", str(rounds)]
    more = {"calls": of_place + of_rounds, "inventory": of_place, "restarts": of_rounds, "in-pod": of_rounds}
    due = [part for part in parts if place == "native" or part not in _NATIVE_ONLY]
    commands = [["-m", _MODULES[part], *more[part]] for part in due]
    if not commands:
        return 0
    return _run_natively(commands, out) if place == "native" else _run_in_rig(commands, out)


def _run_natively(commands: Sequence[list[str]], out: Path) -> int:
    """Each part in namespaces of its own."""
    for command in commands:
        words = alone(*command, "--out", str(out))
        if code := subprocess.run(words, cwd=PROJECT, check=False).returncode:
            return code
    return 0


def alone(*arguments: str) -> list[str]:
    """A command line: Python with these, where nobody else is."""
    return [*_ALONE, _ALONE_SCRIPT, "alone", sys.executable, *arguments]


def _run_in_rig(commands: Sequence[list[str]], out: Path) -> int:
    """All parts in one machine."""
    script = " && ".join(shlex.join(["python3", *command]) for command in commands)
    outcome = run_in_guest(["sh", "-c", script], timeout_s=_RIG_TIMEOUT_S, out=out)
    if outcome.why is not None:
        print(f"bench: {outcome.why}", file=sys.stderr)
    return outcome.exit_code


def _read(path: Path, kind: type[T]) -> T:
    return msgspec.json.decode(path.read_bytes(), type=kind)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench",
        description="how long ADD, DEL, looks of the inventory and restarts take; what in-pod rules cost",
    )
    parser.add_argument("--rounds", type=int, default=0, help="of calls one after the other; 0: as usual")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=(*PLACES, *PARTS),
        help="a place or a part; may be given several times",
    )
    parser.add_argument("--out", type=Path, default=PROJECT / "build/bench", metavar="DIR")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
