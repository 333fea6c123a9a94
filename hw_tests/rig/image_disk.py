"""Orchestrator: the disk with the agent's container image, and with one to upgrade to.

The second image is the first with another executable in a layer on top: that is what an upgrade exchanges on
the node. The disk is large enough for a container runtime to keep its copies there.
"""

import hashlib
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Any

from hw_tests.cri.pause_image import tar_of
from hw_tests.rig.agent_image import build_agent_image
from hw_tests.rig.host import cache_dir, cache_lock, require, run, step
from hw_tests.rig.image import forget_old

UPGRADE = "localhost/sriov-underlay:upgrade"
ARCHIVE = "images.tar"  # of both
_EXECUTABLE = "opt/sriov-underlay/libexec/sriov-underlay"
_SIZE_MIB = 2048  # sparse


def ensure_image_disk() -> Path:
    """With the images of the working tree as it is, from the cache or built now. Needs root."""
    require("mke2fs")
    image = build_agent_image()
    key = hashlib.sha256(f"{image.archive.name}\0{Path(__file__).read_text()}".encode()).hexdigest()[:16]
    disk = cache_dir() / f"images-{key}.ext4"
    with cache_lock("images"):
        if not disk.exists():
            with step("writing the disk with the container images"):
                _build(disk, image.archive)
            forget_old("images-*.ext4")
    return disk


def _build(disk: Path, archive: Path) -> None:
    options = ["-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-L", "images", "-m", "0"]
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="building-") as folder:
        tree, written = Path(folder) / "tree", Path(folder) / "disk"
        tree.mkdir()
        add_upgrade(archive, tree / ARCHIVE)
        run(["mke2fs", *options, "-d", tree, written, f"{_SIZE_MIB}M"])
        written.rename(disk)


def add_upgrade(archive: Path, target: Path) -> None:
    """The images of an archive in the format of `docker save`, and the upgrade of the one in it."""
    with tarfile.open(archive) as source, tarfile.open(target, "w") as out:
        for member in source:
            if member.name not in ("manifest.json", "repositories"):
                out.addfile(member, source.extractfile(member) if member.isreg() else None)
        (entry,) = _read_json(source, "manifest.json")
        executable = _read(source, entry["Layers"][-1], _EXECUTABLE)
        layer = tar_of({_EXECUTABLE: executable + b"\nupgrade\n"}, mode=0o755)
        config = _read_json(source, entry["Config"])
        config["rootfs"]["diff_ids"].append(f"sha256:{hashlib.sha256(layer).hexdigest()}")
        upgrade = {
            "Config": "upgrade.json",
            "RepoTags": [UPGRADE],
            "Layers": [*entry["Layers"], "upgrade.tar"],
        }
        _add(out, "upgrade.json", json.dumps(config).encode())
        _add(out, "upgrade.tar", layer)
        _add(out, "manifest.json", json.dumps([entry, upgrade]).encode())


def _read_json(archive: tarfile.TarFile, name: str) -> Any:
    return json.load(_open(archive, name))


def _read(archive: tarfile.TarFile, layer: str, name: str) -> bytes:
    with tarfile.open(fileobj=_open(archive, layer)) as files:
        return _open(files, name).read()


def _open(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    found = archive.extractfile(name)
    assert found is not None, f"{name} is a file"
    return found


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
