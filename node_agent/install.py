"""Adapter: files that the agent puts into folders of its node: the executable that the container runtime
calls, and the network configuration that names it.

A file comes and goes by rename: whoever reads the folder sees all of it or none of it, and an executable that
is being run is not written to. What stood in its place and is not ours is kept beside it, and comes back.
"""

import errno
import os
from pathlib import Path

import msgspec

from sriov_cni.fields import Fields
from sriov_cni.netconf import decode_object
from sriov_cni.spec import OWN_NAMES, Undecodable
from vf_manager.errors import InvalidInput, KernelError

# In the executable as the path of its socket, in a configuration as the plugin's or its network's name.
_OURS = b"sriov-underlay"
# Hidden, and without an ending that runtimes look for.
_FRESH, _KEPT = ".{}.new", ".{}.before-sriov-underlay"


class Placement(msgspec.Struct, frozen=True):
    """`target`: where a copy of `source` belongs on the node."""

    source: Path
    target: Path

    @property
    def kept(self) -> Path:
        return self.target.with_name(_KEPT.format(self.target.name))


def check_conflist(placement: Placement) -> None:
    """To be asked before: a node whose first configuration cannot be used makes no pods. Raises InvalidInput
    and KernelError."""
    source = placement.source
    try:
        content = source.read_bytes()
    except OSError as e:
        raise KernelError(f"read {source}", e.errno or errno.EIO) from e
    try:
        top = Fields(decode_object(content))
        for key in ("cniVersion", "name"):
            top.required_string(key)
        types = [plugin.required_string("type") for plugin in top.children("plugins")]
        if not set(types) & set(OWN_NAMES) or _OURS not in content:
            raise InvalidInput("plugins", types, f"one of type {OWN_NAMES[0]}")
    except InvalidInput as e:
        where = str(source) if isinstance(e, Undecodable) else f"{source}: {e.key}"
        raise InvalidInput(where, e.value, e.expected) from e


def put(placement: Placement) -> bool:
    """Whether the node has a new file now. One that is the same is not touched. Raises KernelError."""
    source, target = placement.source, placement.target
    try:
        content, present = source.read_bytes(), _read(target)
        if present == content:
            return False
        if present is not None and _OURS not in present:
            placement.kept.unlink(missing_ok=True)
            placement.kept.hardlink_to(target)
        _write(target, content, source.stat().st_mode & 0o755)
    except OSError as e:
        raise KernelError(f"install {target} from {source}", e.errno or errno.EIO) from e
    return True


def take_away(placement: Placement) -> bool:
    """Whether it was there. What stands there by now and is not ours stays. Raises KernelError."""
    target = placement.target
    try:
        present = _read(target)
        if present is None or _OURS not in present:
            return False
        if _read(placement.kept) is None:
            target.unlink()
        else:
            placement.kept.rename(target)
        _sync(target.parent)
    except OSError as e:
        raise KernelError(f"take away {target}", e.errno or errno.EIO) from e
    return True


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write(target: Path, content: bytes, mode: int) -> None:
    fresh = target.with_name(_FRESH.format(target.name))
    fresh.unlink(missing_ok=True)
    with fresh.open("xb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(target)
    _sync(target.parent)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
