"""Adapter: what a guest boots from: an initramfs, and a disk with the project and the command to run."""

import os
import shlex
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hw_tests.rig.environment import compile_for_guest
from hw_tests.rig.host import PROJECT, run, which
from hw_tests.rig.image import BaseImage, make_disk

_HERE = Path(__file__).resolve().parent
_DIRECTORIES = ("bin", "dev", "modules", "root")
_NOT_SOURCE = (".git", ".venv", ".cache", "__pycache__", "node_modules")

_COMMAND_ENV = {
    "PYTHONPATH": "/src:/env",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    # Hypothesis' plugin imports all of Hypothesis at pytest's start: 5-10 s here, used or not.
    "PYTEST_ADDOPTS": "-p no:cacheprovider -p no:hypothesispytest",
}


def write_initramfs(base: BaseImage, target: Path) -> None:
    """BusyBox, the modules between the kernel and its root disk, and a script that mounts it."""
    with target.open("wb") as archive:
        for name in _DIRECTORIES:
            archive.write(_newc_entry(name, stat.S_IFDIR | 0o755, b""))
        archive.write(_newc_entry("bin/busybox", stat.S_IFREG | 0o755, base.busybox.read_bytes()))
        archive.write(_newc_entry("init", stat.S_IFREG | 0o755, (_HERE / "initramfs-init").read_bytes()))
        for module in base.boot_modules:
            archive.write(_newc_entry(f"modules/{module.name}", stat.S_IFREG | 0o644, module.read_bytes()))
        archive.write(_newc_entry("TRAILER!!!", 0, b""))


def _newc_entry(name: str, mode: int, content: bytes) -> bytes:
    """One member of a cpio archive, Documentation/driver-api/early-userspace/buffer-format.rst."""
    links = 1
    fields = (0, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name.encode() + b"\0") + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def write_source_disk(base: BaseImage, work: Path, command: Sequence[str], env: Mapping[str, str]) -> Path:
    """The project's tree as /src, the command, and the guest's first program."""
    tree = work / "source"
    source = tree / "src"
    for relative in _project_files():
        original, copy = PROJECT / relative, source / relative
        if original.is_symlink() or original.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(original, copy, follow_symlinks=False)
    compile_for_guest(source, base)
    shutil.copy2(_HERE / "guest-init", tree / "guest-init")
    (tree / "command").write_text(_command_script(command, env))
    disk = work / "source.ext4"
    make_disk(tree, disk, label="rig")
    shutil.rmtree(tree)
    return disk


def _command_script(command: Sequence[str], env: Mapping[str, str]) -> str:
    settings = {**_COMMAND_ENV, **env}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    return "\n".join([*exports, f"exec {shlex.join(command)}", ""])


def _project_files() -> Iterator[Path]:
    """What git tracks or would track, and what was built; a tree without git gives all but the obvious."""
    if (PROJECT / ".git").exists() and which("git"):
        listing = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = run(["git", "-c", f"safe.directory={PROJECT}", *listing], cwd=PROJECT)
        yield from (Path(name) for name in listed.split("\0") if name)
        yield from _walk("build")
    else:
        yield from _walk(".")


def _walk(start: str) -> Iterator[Path]:
    for folder, folders, files in os.walk(PROJECT / start):
        folders[:] = [name for name in folders if name not in _NOT_SOURCE]
        yield from ((Path(folder) / name).relative_to(PROJECT) for name in files)
