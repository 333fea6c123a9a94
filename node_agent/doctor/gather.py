"""Adapter: looks at a node for `sriovctl doctor`. Nothing is changed; what cannot be read is a fact, too."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from node_agent.agent import ATTACHMENTS, POD_RESOURCES, SOCKET_NAME
from node_agent.agent_socket import ask_agent
from node_agent.config import AgentConfig, ConfigError, parse_config
from node_agent.config_source import CONFIG
from node_agent.doctor.facts import Facts, GroupMember
from node_agent.doctor.look_clock import TOKEN, is_synchronised, look_at_clock
from node_agent.doctor.look_cni import look_at_cni
from node_agent.doctor.look_host import look_at_host
from node_agent.doctor.look_pods import look_at_pods
from node_agent.drop_in import parse_drop_in
from node_agent.status_file import STALE_S, STATUS_FILE, AgentStatus, read_status
from sriov_cni.attachment import Attachment
from vf_manager.discovery import read_inventory
from vf_manager.errors import SriovError
from vf_manager.kernel.api import Kernel
from vf_manager.records import read_records


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """Where to look. `root`: of the host's file system. `config` None: the one that the agent reads.
    `lease_dir`: of networks that name none. `conf_dir`, `bin_dir` None: where the container runtime looks.
    `shipped`: the executable of this release, where it came with this command, as in the image. `token`: of a
    service account."""

    root: Path
    config: Path | None
    run_dir: Path
    kubelet_dir: Path
    lease_dir: Path
    conf_dir: Path | None
    bin_dir: Path | None
    shipped: Path
    token: Path = TOKEN
    is_synchronised: Callable[[], bool] = is_synchronised


def gather(node: Node, kernel: Kernel, now_s: float, *, probe: bool) -> Facts:
    """`now_s`: by CLOCK_MONOTONIC. `probe`: ask the wire for each address of a pod. Raises SriovError where
    the kernel does not answer."""
    inventory = read_inventory(kernel)
    status, attachments, records_error = _read_records(node.run_dir, now_s)
    config_path = node.config or Path(status.config if status and status.config else CONFIG)
    config, config_error = _read_config(config_path)
    fallback = config.fallback if config else None
    cni = look_at_cni(node.root, node.conf_dir, node.bin_dir, node.shipped, fallback)
    groups = {vf.iommu_group for vf in inventory.vfs() if vf.iommu_group is not None}
    return Facts(
        inventory=inventory,
        functions=tuple(kernel.read_functions()),
        config=config,
        config_path=str(config_path),
        config_error=config_error,
        has_iommu=_has_entries(node.root / "sys/kernel/iommu_groups"),
        groups={group: tuple(_group(node.root, group)) for group in groups},
        host=look_at_host(node.root, kernel, inventory, attachments),
        clock=look_at_clock(_written(node.run_dir), node.token, node.is_synchronised),
        cni=cni,
        kubelet_dir=str(node.kubelet_dir),
        has_registration=(node.kubelet_dir / "device-plugins/kubelet.sock").exists(),
        has_pod_resources=(node.kubelet_dir / POD_RESOURCES).exists(),
        answer=ask_agent(node.run_dir / SOCKET_NAME, bin_dir=_on_host(node.root, Path(cni.bin_dir))),
        status=status,
        run_dir=str(node.run_dir),
        run_dir_mode=_mode(node.run_dir, 0o700),
        socket=str(node.run_dir / SOCKET_NAME),
        socket_mode=_mode(node.run_dir / SOCKET_NAME, 0o600),
        unwritable=dict(_unwritable(node, config)),
        records_error=records_error,
        attachments=attachments,
        pods=look_at_pods(attachments, kernel, probe=probe),
    )


def _on_host(root: Path, folder: Path) -> str:
    """As a runtime would name it."""
    return f"/{folder.relative_to(root)}" if folder.is_relative_to(root) else str(folder)


def _read_config(path: Path) -> tuple[AgentConfig | None, str | None]:
    """One with a name in .json is that of the established device plugin, as for `sriovctl validate`."""
    parse = parse_drop_in if path.suffix == ".json" else parse_config
    try:
        return parse(path.read_text()), None
    except ConfigError as e:
        return None, str(e)
    except UnicodeDecodeError as e:
        return None, str(e)
    except OSError as e:
        return None, e.strerror or str(e)


def _read_records(
    run_dir: Path, now_s: float
) -> tuple[AgentStatus | None, tuple[Attachment, ...], str | None]:
    """What an agent that ended has left says nothing of now."""
    try:
        found = read_status(run_dir / STATUS_FILE)
        status = found.status if found and found.age_s(now_s) <= STALE_S else None
        return status, tuple(read_records(run_dir / ATTACHMENTS, Attachment)), None
    except (SriovError, OSError) as e:
        return None, (), str(e)


def _written(run_dir: Path) -> list[Path]:
    return [run_dir / STATUS_FILE, *(run_dir / ATTACHMENTS).glob("*.json")]


def _mode(path: Path, absent: int) -> int:
    try:
        return path.stat().st_mode & 0o777
    except OSError:
        return absent


def _unwritable(node: Node, config: AgentConfig | None) -> Iterator[tuple[str, str]]:
    """Of the folders that the agent writes to. One that is not there yet will be in the one above it."""
    for folder in (node.run_dir, node.kubelet_dir / "device-plugins", *_lease_dirs(node, config)):
        present = next(path for path in (folder, *folder.parents) if os.access(path, os.F_OK))
        if (why := _why_unwritable(present)) is not None:
            yield str(folder), why


def _lease_dirs(node: Node, config: AgentConfig | None) -> set[Path]:
    ipams = [network["ipam"] for network in config.networks if network.get("ipam")] if config else []
    ours = [ipam for ipam in ipams if ipam.get("type") == "host-local"]
    return {Path(ipam.get("dataDir", node.lease_dir)) for ipam in ours}


def _why_unwritable(folder: Path) -> str | None:
    """Root may write wherever the file system lets it, and to the last block."""
    if not folder.is_dir():
        return os.strerror(errno.ENOTDIR)
    state = os.statvfs(folder)
    if state.f_flag & os.ST_RDONLY:
        return os.strerror(errno.EROFS)
    if (state.f_blocks and not state.f_bfree) or (state.f_files and not state.f_ffree):
        return os.strerror(errno.ENOSPC)
    return None if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)


def _group(root: Path, group: int) -> Iterator[GroupMember]:
    folder = root / f"sys/kernel/iommu_groups/{group}/devices"
    for device in sorted(folder.iterdir()) if folder.is_dir() else ():
        driver = device / "driver"
        yield GroupMember(pci=device.name, driver=driver.readlink().name if driver.is_symlink() else None)


def _has_entries(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
