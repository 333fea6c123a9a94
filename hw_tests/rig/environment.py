"""Orchestrator: the disk with the project's Python packages, for the Python of the guest."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from hw_tests.rig.host import PROJECT, RigError, cache_dir, cache_lock, require, run, say, step, which
from hw_tests.rig.image import BaseImage, forget_old, magic_number_script, make_disk

# From the one with everything the tests need to the one that is always there.
_REQUIREMENTS = ("requirements-test.txt", "requirements.txt")
# glibc 2.28 is older than that of any release the rig supports.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")


def ensure_environment_disk(base: BaseImage) -> Path:
    """The disk image with site-packages, from the cache or built now."""
    requirements = next((PROJECT / name for name in _REQUIREMENTS if (PROJECT / name).exists()), None)
    if requirements is None:
        raise RigError(f"none of {', '.join(_REQUIREMENTS)} exists in {PROJECT}")
    made_from = [base.python_version, base.python_magic, Path(__file__).read_text(), requirements.read_text()]
    key = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:16]
    disk = cache_dir() / f"env-{key}.ext4"
    with cache_lock("env"):
        if not disk.exists():
            with step(f"installing {requirements.name} for the guest's Python {base.python_version}"):
                _build(disk, requirements, base)
            forget_old("env-*.ext4")
    return disk


def _build(disk: Path, requirements: Path, base: BaseImage) -> None:
    require("mke2fs")
    for abandoned in cache_dir().glob("env-*.building"):
        shutil.rmtree(abandoned)
    work = disk.with_suffix(".building")
    site = work / "site"
    site.mkdir(parents=True)
    # --no-deps: the file is complete, and pip would resolve for the Python it runs on, not for the guest's.
    selection = ["--python-version", base.python_version, "--implementation", "cp", "--only-binary=:all:"]
    for platform in PLATFORMS:
        selection += ["--platform", platform]
    options = ["--quiet", "--no-deps", "--no-compile", "--require-hashes", *selection]
    run([*pip_command(work), "install", *options, "--target", site, "-r", requirements])
    compile_for_guest(site, base)
    make_disk(site, work / "disk", label="env")
    (work / "disk").rename(disk)
    shutil.rmtree(work)


def pip_command(work: Path) -> list[str]:
    """This Python's pip; the distribution's Python has none outside of a virtual environment."""
    here = [sys.executable, "-m", "pip"]
    if subprocess.run([*here, "--version"], capture_output=True, check=False).returncode == 0:
        return here
    run([sys.executable, "-m", "venv", work / "venv"])
    return [str(work / "venv/bin/python"), "-m", "pip"]


def compile_for_guest(tree: Path, base: BaseImage) -> None:
    """Byte code beside every source, by a Python of this machine that writes what the guest's reads."""
    for candidate in (sys.executable, "/usr/bin/python3", f"python{base.python_version}"):
        python = which(candidate)
        if python and run([python, "-c", magic_number_script()]).strip() == base.python_magic:
            break
    else:
        say(f"no Python {base.python_version} on this machine: the guest compiles what it imports, slowly")
        return
    # Some packages ship sources for other Python versions: those stay as they are.
    subprocess.run(
        [
            python,
            "-m",
            "compileall",
            "-q",
            "-q",
            "-j",
            "0",
            "--invalidation-mode",
            "unchecked-hash",
            str(tree),
        ],
        check=False,
    )
