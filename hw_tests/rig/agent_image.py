"""Orchestrator: the agent's container image, built from manifests/image/Containerfile without a registry.

Its base is made by debootstrap from the archive of this machine and takes the name that the Containerfile
asks for; the wheels are fetched by this machine's pip, as it is configured here. Layers stay in the cache.
"""

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hw_tests.rig.archive import Apt, apt_proxy
from hw_tests.rig.environment import PLATFORMS, pip_command
from hw_tests.rig.host import PROJECT, RigError, cache_dir, cache_lock, release, require, run, step

NAME = "localhost/sriov-underlay:built"
CONTAINERFILE = PROJECT / "manifests/image/Containerfile"
_IGNORE = CONTAINERFILE.with_name("Containerfile.dockerignore")
_LOCKED = ("requirements.txt", "requirements-build.txt")
# What the makers of the slim image leave out.
_NOT_IN_SLIM = (
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
)
_WHEELS_AT = "/wheels"
_IMAGES_KEPT = 3


@dataclass(frozen=True)
class AgentImage:
    """`archive`: in the format of `docker save`, which runtimes import. `compressed_bytes`: of its layers."""

    name: str
    archive: Path
    compressed_bytes: int


def build_agent_image(name: str = NAME) -> AgentImage:
    """The image of the working tree as it is."""
    with _ready_builder() as builder:
        folder = builder.folder
        with step("building what the agent runs on"):
            builder.build("runtime")
        with step("fetching the locked wheels"):
            wheels = _ensure_wheels(folder, builder.python_version())
        with step(f"building {name}"):
            image = builder.build(None, "--tag", name, *_with_wheels(wheels))
        archive, facts = folder / f"{_key(name, image)}.tar", folder / f"{_key(name, image)}.json"
        if not facts.exists():
            with step(f"writing {name} out"):
                builder.export(name, archive)
                facts.write_text(json.dumps({"name": name, "compressed_bytes": _compressed_size(archive)}))
            _forget_old(folder)
    return AgentImage(archive=archive, **json.loads(facts.read_text()))


def build_shim(architecture: str) -> Path:
    """The CNI executable for an architecture, by its name in Go."""
    with _ready_builder() as builder, step(f"building the CNI executable for {architecture}"):
        image = builder.build("shim", "--build-arg", f"TARGETARCH={architecture}")
        target = builder.folder / f"sriov-underlay.{architecture}"
        return builder.copy_out(image, "/build/sriov-underlay", target)


@contextlib.contextmanager
def _ready_builder() -> Iterator["Builder"]:
    """One at a time, with the base image in place."""
    require("buildah", "debootstrap")
    folder = cache_dir() / "image"
    folder.mkdir(exist_ok=True)
    with cache_lock("image"):
        builder = Builder(folder)
        try:
            builder.ensure_base()
            yield builder
        finally:
            # buildah leaves it mounted on itself, and what is a mount cannot be removed.
            subprocess.run(["umount", folder / "store/overlay"], capture_output=True, check=False)


class Builder:
    """buildah, with its images in a folder of ours. Commands run in a chroot, in this machine's network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._driver = "overlay"
        try:
            self._run("images")
        except RigError:  # the folder lies on an overlay itself, as in a container
            self._driver = "vfs"

    def ensure_base(self) -> None:
        """The base image under the name that the Containerfile has for it."""
        found = re.search(r"^ARG BASE=(\S+)$", CONTAINERFILE.read_text(), re.MULTILINE)
        assert found is not None
        suite = _suite(found[1])
        kept = f"localhost/base:{_key(suite, str(_NOT_IN_SLIM))}"
        if not self._run("images", "--quiet", "--filter", f"reference={kept}").strip():
            with step(f"making {found[1]} by debootstrap {suite}"):
                self._make_base(kept, suite)
        self._run("tag", kept, found[1])

    def build(self, target: str | None, *options: str) -> str:
        """The id of the image of a stage, or of the last one."""
        words = ["--isolation=chroot", "--network=host", "--layers", "--force-rm", "--pull-never", "--quiet"]
        words += ["--timestamp=0", f"--ignorefile={_IGNORE}", f"--file={CONTAINERFILE}"]
        if target is not None:
            words.append(f"--target={target}")
        return self._run("build", *words, *options, str(PROJECT)).split()[-1]

    def python_version(self) -> str:
        """Of the stage `runtime`, which must have been built."""
        container = self._run("from", self.build("runtime")).strip()
        try:
            script = "import sys; print('%d.%d' % sys.version_info[:2])"
            return self._run("run", "--isolation", "chroot", container, "--", "python3", "-c", script).strip()
        finally:
            self._run("rm", container)

    def copy_out(self, image: str, path: str, target: Path) -> Path:
        container = self._run("from", image).strip()
        try:
            root = Path(self._run("mount", container).strip())
            return Path(shutil.copy(root / path.lstrip("/"), target))
        finally:
            self._run("rm", container)

    def export(self, name: str, archive: Path) -> None:
        archive.unlink(missing_ok=True)
        self._run("push", "--quiet", name, f"docker-archive:{archive}:{name}")

    def _make_base(self, name: str, suite: str) -> None:
        root, archive = self.folder / "base.building", self.folder / "base.tar"
        shutil.rmtree(root, ignore_errors=True)
        site, proxy = self._site(), apt_proxy()
        # A mount namespace of its own: an interrupted debootstrap leaves no /proc mounted behind.
        run(
            ["unshare", "--mount", "debootstrap", "--variant=minbase", suite, root, site],
            env={"http_proxy": proxy} if proxy else None,
        )
        for folder in _NOT_IN_SLIM:
            for entry in (root / folder).iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        run(["tar", "-C", root, "--sort=name", "--numeric-owner", "-cf", archive, "."])
        container = self._run("from", "scratch").strip()
        self._run("add", "--quiet", container, str(archive), "/")
        self._run("commit", "--quiet", "--rm", container, name)
        archive.unlink()
        shutil.rmtree(root)

    def _site(self) -> str:
        """The archive that has this machine's own release has the others of its distribution too."""
        state = self.folder / "apt"
        apt = Apt(state)
        try:
            apt.run("update")
            return apt.archive(release()[1])
        finally:
            shutil.rmtree(state)

    def _run(self, command: str, *arguments: str) -> str:
        places = ["--root", str(self.folder / "store"), "--runroot", str(self.folder / "run")]
        return run(["buildah", *places, "--storage-driver", self._driver, command, *arguments])


def _suite(base: str) -> str:
    """Which suite stands in for an image called `docker.io/library/debian:trixie-slim`. Where the archive is
    that of another distribution, its own release does."""
    distribution, codename = release()
    found = re.fullmatch(r".*/(\w+):(\w+)-slim", base)
    assert found is not None, base
    return found[2] if found[1] == distribution else codename


def _with_wheels(folder: Path) -> list[str]:
    """Options of a build that asks no index."""
    arguments = ["--build-arg", "PIP_NO_INDEX=1", "--build-arg", f"PIP_FIND_LINKS={_WHEELS_AT}"]
    return ["--volume", f"{folder}:{_WHEELS_AT}:ro", *arguments]


def _ensure_wheels(folder: Path, python_version: str) -> Path:
    locked = [PROJECT / name for name in _LOCKED]
    wheels = folder / f"wheels-{_key(python_version, *(path.read_text() for path in locked))}"
    if not wheels.exists():
        work = folder / "wheels.building"
        shutil.rmtree(work, ignore_errors=True)
        options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", str(work)]
        options += ["--python-version", python_version, "--implementation", "cp"]
        options += [word for platform in PLATFORMS for word in ("--platform", platform)]
        for path in locked:
            run([*pip_command(folder), "download", *options, "--requirement", path])
        for old in folder.glob("wheels-*"):
            shutil.rmtree(old)
        work.rename(wheels)
    return wheels


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compressed_size(archive: Path) -> int:
    """About what a registry would hold of it."""
    squeezed = archive.with_suffix(".gz")
    try:
        with squeezed.open("wb") as out:
            subprocess.run(["gzip", "--stdout", str(archive)], stdout=out, check=True)
        return squeezed.stat().st_size
    finally:
        squeezed.unlink()


def _forget_old(folder: Path) -> None:
    """Keep the newest few images: branches that differ take turns without writing them out again."""
    for old in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-_IMAGES_KEPT]:
        old.with_suffix(".tar").unlink(missing_ok=True)
        old.unlink()


if __name__ == "__main__":
    try:
        built = build_agent_image()
        print(f"{built.archive}: {built.name}, {built.compressed_bytes / 1e6:.0f} MB compressed")
    except RigError as failure:
        sys.exit(f"image: {failure}")
