"""Adapter: the file from which a pod's network status learns of its device (Network Plumbing Working Group,
device information specification 1.1.0). Multus names it in `runtimeConfig.CNIDeviceInfoFile`.

The device plugin may have filled it before: what is there is left as it is, and only what is ours is removed.
"""

import errno
import os
from pathlib import Path

from vf_manager.device_info import PciInfo, render_device_info
from vf_manager.errors import InvalidInput, KernelError
from vf_manager.model import PciAddress

DIRECTORIES = ("/var/run/k8s.cni.cncf.io/devinfo/", "/run/k8s.cni.cncf.io/devinfo/")


def parse_device_info_path(value: str | None, key: str) -> str | None:
    """Only below the specification's directory: the agent writes as root. Raises InvalidInput."""
    if value is not None and (not value.startswith(DIRECTORIES) or ".." in value.split("/") or "\0" in value):
        raise InvalidInput(key, value, f"a file below {DIRECTORIES[0]}")
    return value


def write_device_info(path: Path, pci: PciAddress) -> None:
    """Raises KernelError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return
    except OSError as e:
        raise KernelError(f"write {path}", e.errno or errno.EIO) from e
    with os.fdopen(fd, "wb") as file:
        file.write(render_device_info(PciInfo(pci_address=pci)))


def remove_device_info(path: Path, pci: PciAddress) -> None:
    """Raises KernelError. One that is gone or another's is no error; one that a crash left empty is ours."""
    try:
        if path.read_bytes() in (render_device_info(PciInfo(pci_address=pci)), b""):
            path.unlink()
    except FileNotFoundError:
        return
    except OSError as e:
        raise KernelError(f"remove {path}", e.errno or errno.EIO) from e
