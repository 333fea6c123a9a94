"""Adapter: writes the image of a pod sandbox, one static executable, as an archive that runtimes import."""

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path

PAUSE = Path(__file__).resolve().parents[2] / "build/pause"
IMAGE = "localhost/pause:1"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # by the names of Go


def write_pause_image(archive: Path, executable: Path = PAUSE) -> None:
    """In the format of `docker save`: a manifest, the image's config, one layer."""
    layer = tar_of({"pause": executable.read_bytes()}, mode=0o755)
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    members = {
        "manifest.json": json.dumps(manifest).encode(),
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer,
    }
    archive.write_bytes(tar_of(members, mode=0o644))


def tar_of(members: dict[str, bytes], mode: int) -> bytes:
    """Of files by their names, owned by root."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()
