"""Adapter: what a container runtime finds: directories, network configurations, the executable."""

import json
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from node_agent.doctor.facts import CniFiles
from sriov_cni.chain_cache import read_conflist
from sriov_cni.spec import OWN_NAMES
from vf_manager.errors import SriovError

_VERSION_TIMEOUT_S = 2.0
_CONF_DIR, _BIN_DIR = "etc/cni/net.d", "opt/cni/bin"
# The plugin that has `cni` in containerd's config: of version 3, of version 2 (docs/cri/config.md).
_CRI = ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri")


def look_at_cni(
    root: Path, conf_dir: Path | None, bin_dir: Path | None, shipped: Path, fallback: str | None
) -> CniFiles:
    """Directories that are not given are those of the runtime's own file, else the usual ones."""
    told_conf, told_bin = _told(root)
    conf_dir = conf_dir or root / (told_conf or _CONF_DIR).lstrip("/")
    bin_dir = bin_dir or root / (told_bin or _BIN_DIR).lstrip("/")
    types, error = _fallback_types(Path(fallback)) if fallback else ((), None)
    return CniFiles(
        conf_dir=str(conf_dir),
        bin_dir=str(bin_dir),
        is_image=root == Path("/") and shipped.exists(),
        has_conf_dir=conf_dir.is_dir(),
        has_bin_dir=bin_dir.is_dir(),
        configs=tuple(_configs(conf_dir)),
        plugins=frozenset(f.name for f in bin_dir.iterdir()) if bin_dir.is_dir() else frozenset(),
        version_answer=_ask_version(bin_dir / OWN_NAMES[0]),
        is_shipped=_is_same(bin_dir / OWN_NAMES[0], shipped),
        fallback=fallback,
        fallback_types=types,
        fallback_error=error,
    )


def _told(root: Path) -> tuple[str | None, str | None]:
    """Where network configurations and plugins are, by the files of CRI-O or containerd; None: the usual."""
    drop_ins = sorted((root / "etc/crio/crio.conf.d").glob("*.conf"))
    crio: dict[str, Any] = {}
    for file in (root / "etc/crio/crio.conf", *drop_ins):
        crio |= _read_toml(file).get("crio", {}).get("network", {})
    if crio:
        return crio.get("network_dir"), next(iter(crio.get("plugin_dirs", ())), None)
    plugins = _read_toml(root / "etc/containerd/config.toml").get("plugins", {})
    cni: dict[str, Any] = next((plugins[name]["cni"] for name in _CRI if "cni" in plugins.get(name, {})), {})
    return cni.get("conf_dir"), next(iter(cni.get("bin_dirs", ())), cni.get("bin_dir"))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError):  # the runtime says so itself, and does not start
        return {}


def _configs(folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """In the order of libcni (ConfFiles): by name, of these endings."""
    for file in sorted(folder.glob("*")) if folder.is_dir() else ():
        if file.suffix not in (".conf", ".conflist", ".json") or not file.is_file():
            continue
        try:
            document = json.loads(file.read_bytes())
            plugins = document.get("plugins", [document])
            yield file.name, tuple(str(plugin.get("type")) for plugin in plugins)
        except (ValueError, AttributeError, TypeError, OSError):  # the runtime skips it, too
            continue


def _fallback_types(path: Path) -> tuple[tuple[str, ...], str | None]:
    """With the IPAM plugins that the plugins of the list call."""
    try:
        conflist = read_conflist(path)
    except SriovError as e:
        return (), str(e)
    ipams = (plugin.get("ipam") for plugin in conflist.plugins)
    called = (str(ipam["type"]) for ipam in ipams if isinstance(ipam, dict) and "type" in ipam)
    return (*conflist.types, *called), None


def _ask_version(executable: Path) -> dict[str, object] | str | None:
    if not executable.exists():
        return None
    try:
        done = subprocess.run(
            [executable],
            env={"CNI_COMMAND": "VERSION"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_TIMEOUT_S,
            check=True,
        )
        answer = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as e:
        return str(e)
    return answer if isinstance(answer, dict) else "it is no JSON object"


def _is_same(installed: Path, shipped: Path) -> bool | None:
    if not (installed.exists() and shipped.exists()):
        return None
    return installed.read_bytes() == shipped.read_bytes()
