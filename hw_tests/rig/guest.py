"""Orchestrator: one run of a command in the emulated machine, from its disks to its verdict."""

import contextlib
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hw_tests.rig.boot import write_initramfs, write_source_disk
from hw_tests.rig.environment import ensure_environment_disk
from hw_tests.rig.host import cache_dir, cache_lock, locked_folder, require, say, step
from hw_tests.rig.image import BaseImage, ensure_base_image
from hw_tests.rig.image_disk import ensure_image_disk
from hw_tests.rig.machine import CPUS, Channel, Machine, require_igb
from hw_tests.rig.terminal import keyboard
from hw_tests.rig.verdict import Verdict

_CONSOLES_KEPT = 20
_CONSOLE_LINES_SHOWN = 60
_LOOK_EVERY_S = 1.0
_INITRAMFS, _CONSOLE, _FILES = "initramfs", "console.log", "files.tar"


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `exit_code` is the command's own unless `why` says that there is none. `hung`:
    the guest stood still."""

    exit_code: int
    why: str | None
    console: Path | None
    hung: bool

    def tell(self) -> None:
        """Why there is no verdict, and what the kernel said last."""
        if self.why is None:
            return
        say(self.why)
        if self.console is not None:
            lines = self.console.read_text(errors="replace").splitlines()
            say(f"the end of the machine's console (all of it: {self.console}):")
            for line in lines[-_CONSOLE_LINES_SHOWN:]:
                print(f"  | {line.rstrip()}", file=sys.stderr)
            sys.stderr.flush()


def _to_stdout(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def run_in_guest(
    command: Sequence[str],
    *,
    timeout_s: float = 600.0,
    out: Path | None = None,
    keep_console: Path | None = None,
    env: Mapping[str, str] | None = None,
    interactive: bool = False,
    with_images: bool = False,
) -> Outcome:
    """Boot, run the command with its output on our stdout, power off. `interactive`: it has a terminal there,
    and ours is its keyboard.

    What the command leaves in `$RIG_OUT` lands in the folder `out`. `with_images`: the agent's container
    images are in `$RIG_IMAGES`. A guest that hangs is booted once more, and the command begins anew: the
    emulator loses the timer of a CPU now and then (seen with the kernel idle and in the middle of a
    benchmark). If that hangs too, the command may be why, and it is a failure.
    """
    require("qemu-system-x86_64", "mke2fs", "setpriv")
    require_igb()
    base = ensure_base_image()
    environment = ensure_environment_disk(base)
    images = [ensure_image_disk()] if with_images else []
    with _run_folder() as work:
        with step("packing the project's tree"):
            source = write_source_disk(base, work, command, env or {})
            write_initramfs(base, work / _INITRAMFS)
        disks = [base.root_disk, environment, source, *images]
        outcome = _boot(base, disks, work, timeout_s, interactive)
        if outcome.hung:
            outcome.tell()
            say("THE GUEST HUNG: the machine is booted once more, and the command begins anew")
            outcome = _boot(base, disks, work, timeout_s, interactive)
        if out is not None:
            _bring_out(work / _FILES, out)
        if keep_console is not None:
            shutil.copyfile(work / _CONSOLE, keep_console)
        return outcome


def _boot(base: BaseImage, disks: list[Path], work: Path, timeout_s: float, interactive: bool) -> Outcome:
    """One life of the machine, which leaves its disks as they are."""
    say("booting the emulated machine ...")
    began = time.monotonic()
    verdict = Verdict(CPUS, time.monotonic, lambda: say(f"booted {_since(began)}"))
    console = work / _CONSOLE
    with (work / _FILES).open("wb") as archive:
        channels = [
            Channel("verdict", verdict.feed),
            Channel("output", _to_stdout),
            Channel("files", archive.write),
        ]
        terminal = Channel("terminal", _to_stdout, device="virtconsole")
        keys = keyboard(sys.stdin.fileno(), terminal.send) if interactive else contextlib.nullcontext()
        channels += [terminal] if interactive else []
        with Machine(base, disks, work / _INITRAMFS, console, channels) as machine, keys:
            ended, dead = _watch(machine, verdict, timeout_s)
    say(f"machine ended {_since(began)}")
    exit_code, why = verdict.judge(ended, dead, timeout_s)
    kept = _keep_console(console) if why else None
    return Outcome(exit_code, why, kept, hung=why is not None and dead is not None)


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s after its start"


def _watch(machine: Machine, verdict: Verdict, timeout_s: float) -> tuple[bool, str | None]:
    """Until the machine is off (the first) or has to go: it is dead (the second), or its time is over."""
    deadline, dead = time.monotonic() + timeout_s, None
    while not (ended := machine.wait(_LOOK_EVERY_S)) and not dead and time.monotonic() < deadline:
        dead = verdict.why_dead()
    return ended, dead


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
