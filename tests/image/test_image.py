"""The container image: what is in it, and the agent run from it exactly as the manifests say."""

import json
import subprocess
import tarfile
from pathlib import Path

from hw_tests.kustomize import MANIFESTS, render
from hw_tests.rig.agent_image import AgentImage, build_shim
from hw_tests.runtime import EXECUTABLE
from tests.image.node import PLAIN, ClusterNode, leaving, with_config

MOST_BYTES = 150_000_000
MOST_READY_S = 2.0
OURS, CONFLIST = "/opt/cni/bin/sriov-underlay", "/etc/cni/net.d/00-sriov-underlay.conflist"
CHAIN_ONLY = f"{{pools: [], fallback: /etc/cni/net.d/{PLAIN}}}"


def test_it_is_small_and_has_nothing_to_build_with(image: AgentImage) -> None:
    print(f"\nimage: {image.compressed_bytes / 1e6:.1f} MB compressed")
    assert image.compressed_bytes < MOST_BYTES
    files = {Path(name) for name in files_of(image)}
    programs = {path.name for path in files if path.parent.name in ("bin", "sbin", "libexec")}
    assert {"sriov-agent", "sriovctl", "sriov-underlay", "tini", "python3"} <= programs
    assert not programs & {"gcc", "cc", "as", "ld", "pip", "pip3"}
    packages = {path.name for path in files if path.parent.name == "site-packages"}
    assert {"node_agent", "kubernetes"} <= packages
    assert not packages & {"pip", "hatchling", "hypothesis", "pytest"}


def test_nothing_in_it_names_where_it_was_built(image: AgentImage) -> None:
    """Neither an index of packages nor a folder of wheels; and not when."""
    with tarfile.open(image.archive) as archive:
        (manifest,) = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
        config = json.load(archive.extractfile(manifest["Config"]))  # type: ignore[arg-type]
    assert config["config"]["Entrypoint"] == ["tini", "-s", "--", "sriov-agent"]
    assert {word.split("=")[0] for word in config["config"]["Env"]} == {"PATH", "PYTHONDONTWRITEBYTECODE"}
    assert config["created"].startswith("1970-01-01")
    assert not [word for word in ("PIP_", "wheels", "http") if word in json.dumps(config)]
    assert not [name for name in files_of(image) if Path(name).name == "pip.conf"]


def files_of(image: AgentImage) -> set[str]:
    found: set[str] = set()
    with tarfile.open(image.archive) as archive:
        (manifest,) = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
        for layer in manifest["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(layer)) as files:
                found |= {name for name in files.getnames() if not Path(name).name.startswith(".wh.")}
    return found


def test_the_executable_is_built_for_arm64() -> None:
    executable = build_shim("arm64")
    header = subprocess.run(["readelf", "-hl", executable], capture_output=True, text=True, check=True).stdout
    assert "AArch64" in header
    assert "INTERP" not in header, "it is linked statically"
    answers = [
        subprocess.run(command, env={"CNI_COMMAND": "VERSION"}, capture_output=True, check=True).stdout
        for command in ([EXECUTABLE], [Path("/usr/bin/qemu-aarch64"), executable])
    ]
    assert answers[0] == answers[1]


def test_the_agent_as_installed(node: ClusterNode, image: AgentImage) -> None:
    node.start(render(MANIFESTS / "base"), image.name)
    node.wait_probe("startupProbe")
    ready_s, cpu_s = node.started_to("ready"), node.cpu_s()
    print(f"\nready {ready_s:.2f} s after the start of the container, {cpu_s:.2f} s of it on a CPU")
    assert cpu_s < MOST_READY_S, "how long the whole takes is up to what else the machine does"
    assert node.probe("readinessProbe")
    assert node.probe("livenessProbe")
    assert (
        node.at(OURS).read_bytes() == node.execute("cat", "/opt/sriov-underlay/libexec/sriov-underlay").stdout
    )
    shown = node.execute("sriovctl", "vfs", "--json")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["attachments"] == []
    assert node.stop() == 0
    assert node.at(OURS).exists()


def test_what_it_may_and_may_not(node: ClusterNode, image: AgentImage) -> None:
    node.start(render(MANIFESTS / "base"), image.name)
    node.wait_probe("startupProbe")

    def may(script: str) -> bool:
        return node.execute("sh", "-c", script).exit_code == 0

    assert may("test -w /sys/bus/pci/drivers_probe")
    assert may("echo 0 >/host/proc/sys/net/ipv4/conf/lo/arp_notify")
    assert not may("echo 0 >/proc/sys/net/ipv4/conf/lo/arp_notify")
    assert not may("touch /here")
    assert may("test -c /host/dev/null")
    assert not may("touch /host/dev/here")
    assert may("touch /run/cdi/here && rm /run/cdi/here")
    assert not may("touch /sys/kernel/uevent_helper && echo x >/sys/kernel/uevent_helper")
    assert not may("ls /host/etc")
    assert not may("chroot / true")
    assert may("grep -q 'NoNewPrivs:.1' /proc/1/status")
    assert node.stop() == 0


def test_from_installation_to_uninstallation(node: ClusterNode, image: AgentImage) -> None:
    """Pods without VFs get what they had before, by plugins of the node that are run in its own root."""
    objects = with_config(render(MANIFESTS / "overlays/default-network"), CHAIN_ONLY)
    conflist = node.at(CONFLIST)
    node.start(objects, image.name)
    node.wait_for(conflist.exists, "the configuration of the node")
    assert json.loads(conflist.read_text())["plugins"][0]["type"] == "sriov-underlay"
    pod = node.runner.run("plain")
    assert pod.addresses_told[0].startswith("10.88.0.")
    assert node.at("/run/sriov-underlay/chain").iterdir()

    kept = conflist.stat().st_ino, node.at(OURS).stat().st_ino
    assert node.stop() == 0
    assert kept == (conflist.stat().st_ino, node.at(OURS).stat().st_ino), "an upgrade leaves no gap"
    node.start(leaving(objects), image.name)
    node.wait_for(lambda: not conflist.exists(), "end of the configuration")
    assert node.cri.is_ready(pod.sandbox)
    assert not node.probe("readinessProbe")
    assert node.at(OURS).exists()

    node.runner.remove("plain")
    node.wait_probe("readinessProbe")
    assert node.stop() == 0
    assert node.left() == []


def test_in_the_place_of_another_plugin_and_back(node: ClusterNode, image: AgentImage) -> None:
    objects = with_config(render(MANIFESTS / "overlays/migrate"), "pools: []")
    other = node.at("/opt/cni/bin/sriov")
    other.write_bytes(b"sriov-cni")
    node.start(objects, image.name)
    node.wait_probe("startupProbe")
    assert other.read_bytes() == node.at(OURS).read_bytes()
    assert node.stop() == 0
    node.start(leaving(objects), image.name)
    node.wait_probe("readinessProbe")
    assert node.stop() == 0
    assert other.read_bytes() == b"sriov-cni"
    other.unlink()
    assert node.left() == []
