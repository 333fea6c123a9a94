"""Adapter: where commands of sriovctl are told that an agent works, and the records that it keeps there."""

import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from node_agent.agent import ATTACHMENTS
from sriov_cni.attachment import Attachment
from vf_manager.kernel.api import Kernel
from vf_manager.kernel.linux import LinuxKernel
from vf_manager.model import PciAddress
from vf_manager.records import read_records

RunDirOption = Annotated[
    Path, typer.Option("--run-dir", metavar="DIR", help="Where the agent keeps its records.")
]
KubeletDirOption = Annotated[Path, typer.Option("--kubelet-dir", metavar="DIR", help="The kubelet's folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable, with every field.")]


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """An attachment, and for how long it has been as it is. None: its record went away meanwhile."""

    attachment: Attachment
    since_s: float | None


def kernel_of(context: typer.Context) -> Kernel:
    """The running one, unless whoever calls has another."""
    kernel: Kernel | None = context.obj
    return kernel or LinuxKernel()


def read_held(run_dir: Path) -> list[Held]:
    """By pod, then interface. Raises CorruptRecord, and OSError where one may not look."""
    folder, now = run_dir / ATTACHMENTS, time.time()
    found = [
        Held(attachment=record, since_s=_age(folder / f"{record.key}.json", now))
        for record in read_records(folder, Attachment)
    ]
    return sorted(found, key=lambda held: (pod_word(held.attachment), held.attachment.ifname))


def held_vfs(held: list[Held]) -> dict[PciAddress, Attachment]:
    return {one.attachment.port.pci: one.attachment for one in held}


def pod_word(attachment: Attachment) -> str:
    pod = attachment.pod
    return f"{pod.namespace}/{pod.name}" if pod else attachment.container_id[:12]


def age_word(seconds: float | None) -> str:
    """`45s`, `12m`, `3h`, `9d`, as kubectl has it."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def _age(record: Path, now: float) -> float | None:
    try:
        return max(0.0, now - record.stat().st_mtime)
    except FileNotFoundError:
        return None
