"""Adapter: the machine the rig runs on: its cache folder, its commands, its release."""

import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

_PACKAGE_OF = {
    "qemu-system-x86_64": "qemu-system-x86",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "mke2fs": "e2fsprogs",
    "depmod": "kmod",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "setpriv": "util-linux",
}
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


class RigError(Exception):
    """The rig itself could not do its part; the message says which part and what to do."""


def cache_dir() -> Path:
    """The only folder the rig leaves files in."""
    configured = os.environ.get("SRIOV_CACHE_DIR")
    path = Path(configured).resolve() if configured else PROJECT / ".cache" / "rig"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def cache_lock(name: str) -> Iterator[None]:
    """One builder at a time, also among processes; the lock goes with its holder."""
    with (cache_dir() / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, or raise BlockingIOError when another process does."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def say(message: str) -> None:
    """Progress goes to stderr: stdout belongs to the command in the guest."""
    print(f"rig: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done, and how long it took once it is."""
    say(f"{what} ...")
    started = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - started:.1f} s")


def require(*programs: str) -> None:
    """Refuse with the command that helps when a program is absent."""
    if platform.machine() != "x86_64":
        raise RigError(
            f"the rig emulates an x86-64 machine with its own kernel; this is {platform.machine()}"
        )
    missing = [program for program in programs if which(program) is None]
    if missing:
        packages = ", ".join(sorted({_PACKAGE_OF.get(program, program) for program in missing}))
        raise RigError(
            f"not found: {', '.join(missing)} (package {packages}); "
            "'.ci/host-setup rig image' installs what the rig needs"
        )


def which(program: str) -> str | None:
    """Like shutil.which, and looks into sbin as well: a plain user's PATH on Debian lacks it."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '/usr/bin:/bin')}:{_SBIN}")


def run(command: Sequence[str | Path], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run to the end and return stdout; a failure raises with the end of what the command said."""
    argv = [str(part) for part in command]
    path = {"PATH": f"{os.environ.get('PATH', '/usr/bin:/bin')}:{_SBIN}"}
    done = subprocess.run(
        argv, cwd=cwd, env={**os.environ, **path, **(env or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise RigError(f"'{' '.join(argv[:6])} ...' failed with exit code {done.returncode}:\n{said}")
    return done.stdout


def release() -> tuple[str, str]:
    """The distribution and code name of this machine, such as ("debian", "bookworm")."""
    facts = platform.freedesktop_os_release()
    distribution, codename = facts.get("ID", ""), facts.get("VERSION_CODENAME", "")
    if distribution not in ("debian", "ubuntu") or not codename:
        raise RigError(f"the rig builds its guest from Debian or Ubuntu; this is {facts.get('PRETTY_NAME')}")
    return distribution, codename
