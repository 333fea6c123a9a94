"""Orchestrator: one run of a command in the emulated machine, from its disks to its verdict."""

import contextlib
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hw_tests.rig.boot import write_initramfs, write_source_disk
from hw_tests.rig.environment import ensure_environment_disk
from hw_tests.rig.host import cache_dir, cache_lock, locked_folder, require, say, step
from hw_tests.rig.image import ensure_base_image
from hw_tests.rig.machine import Channel, Machine, require_igb

EXIT_TIMEOUT = 124
EXIT_NO_VERDICT = 125
_CONSOLES_KEPT = 20


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `exit_code` is the command's own unless `why` says that there is none."""

    exit_code: int
    why: str | None
    console: Path | None


@dataclass
class Verdict:
    """What the guest says on its control channel: `started UPTIME`, then `exit CODE`."""

    on_start: Callable[[], None]
    exit_code: int | None = None
    _pending: bytes = field(default=b"", repr=False)

    def feed(self, data: bytes) -> None:
        """Take the next bytes; a line that is cut short counts for nothing."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            match line.decode(errors="replace").split():
                case ["started", _]:
                    self.on_start()
                case ["exit", code] if code.isdecimal():
                    self.exit_code = int(code)


def run_in_guest(
    command: Sequence[str],
    *,
    timeout_s: float = 600.0,
    out: Path | None = None,
    keep_console: Path | None = None,
    env: Mapping[str, str] | None = None,
    on_machine: Callable[[Machine], None] = lambda machine: None,
) -> Outcome:
    """Boot, run the command with its output on our stdout, power off.

    What the command leaves in `$RIG_OUT` lands in the folder `out`. `on_machine` gets the running machine
    right after its start and may keep its `qmp` for use from another thread while the guest runs.
    """
    require("qemu-system-x86_64", "mke2fs", "setpriv")
    require_igb()
    base = ensure_base_image()
    environment = ensure_environment_disk(base)
    with _run_folder() as work:
        with step("packing the project's tree"):
            source = write_source_disk(base, work, command, env or {})
            write_initramfs(base, work / "initramfs")
        booting = time.monotonic()
        say("booting the emulated machine ...")
        verdict = Verdict(lambda: say(f"booting the emulated machine: {time.monotonic() - booting:.1f} s"))
        console, files = work / "console.log", work / "files.tar"
        with files.open("wb") as archive:
            channels = [
                Channel("verdict", verdict.feed),
                Channel("output", _to_stdout),
                Channel("files", archive.write),
            ]
            disks = [base.root_disk, environment, source]
            with Machine(base, disks, work / "initramfs", console, channels) as machine:
                on_machine(machine)
                ended = machine.wait(timeout_s)
        say(f"machine ended {time.monotonic() - booting:.1f} s after its start")
        exit_code, why = _judge(ended, verdict.exit_code, timeout_s)
        if out is not None:
            _bring_out(files, out)
        if keep_console is not None:
            shutil.copyfile(console, keep_console)
        return Outcome(exit_code, why, _keep_console(console) if why else None)


@contextlib.contextmanager
def _run_folder() -> Iterator[Path]:
    """A folder of this run's own, locked while it lives; those of runs that were killed are swept away."""
    runs = cache_dir() / "runs"
    with contextlib.ExitStack() as stack:
        with cache_lock("runs"):
            runs.mkdir(exist_ok=True)
            for other in runs.iterdir():
                with contextlib.suppress(BlockingIOError), locked_folder(other):
                    shutil.rmtree(other)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=runs)))
            stack.enter_context(locked_folder(folder))
        yield folder


def _to_stdout(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _judge(ended: bool, exit_code: int | None, timeout_s: float) -> tuple[int, str | None]:
    """Exit code, and the reason if it is not the command's own. Only an explicit verdict counts."""
    if exit_code is not None:
        return exit_code, None
    if not ended:
        return EXIT_TIMEOUT, f"no verdict within {timeout_s:.0f} s, the machine was killed"
    return EXIT_NO_VERDICT, "the machine ended without a verdict: its kernel crashed, or pid 1 died"


def _bring_out(files: Path, out: Path) -> None:
    if files.stat().st_size == 0:
        return
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(files) as archive:
            archive.extractall(out, filter="data")
    except (tarfile.TarError, OSError) as error:
        say(f"the files of the guest came out damaged: {error}")


def _keep_console(console: Path) -> Path:
    """Into the cache, under the time of the run; the oldest give way."""
    folder = cache_dir() / "consoles"
    folder.mkdir(exist_ok=True)
    kept = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    shutil.copyfile(console, kept)
    for old in sorted(folder.iterdir())[:-_CONSOLES_KEPT]:
        old.unlink()
    return kept
