"""What an agent in a container does with files of its node that it sees elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import structlog

from hw_tests.runtime import EXECUTABLE
from sriov_cni.environment import Command, Environment
from sriov_cni.exec import PluginRunner
from sriov_cni.spec import PluginCrashed
from tests.netns.namespaces import LinuxWorld

DEADLINE_S = 10.0
WRITE = """
import sys
from pathlib import Path
from vf_manager.kernel.linux import LinuxKernel
kernel = LinuxKernel(proc_sys=Path(sys.argv[1]))
kernel.write_sysctls(kernel.netns(int(sys.argv[2])), [("net/ipv4/conf/lo/arp_notify", "1")])
"""


def test_a_plugin_is_run_in_the_nodes_root(tmp_path: Path) -> None:
    """It is static, and there is nothing else in that root."""
    host = tmp_path / "host"
    (host / "opt/bin").mkdir(parents=True)
    shutil.copy(EXECUTABLE, host / "opt/bin/demo")
    runner = PluginRunner(structlog.get_logger(), host)
    env = Environment(command=Command.STATUS, path=("/opt/bin",))
    answer = runner.run_for_result("demo", "VERSION", env, b"{}", time.monotonic() + DEADLINE_S)
    assert "1.1.0" in answer["supportedVersions"]
    (host / "opt/bin/demo").write_text("#!/bin/sh\n")
    with pytest.raises(PluginCrashed, match="ended with exit code 127 and no answer; it said"):
        runner.run_for_result("demo", "VERSION", env, b"{}", time.monotonic() + DEADLINE_S)


def test_sysctls_mounted_elsewhere_are_those_of_the_pod(world: LinuxWorld, tmp_path: Path) -> None:
    """In a mount namespace where /proc/sys itself is read-only, as a container's is."""
    mounted = tmp_path / "sys"
    (mounted / "net").mkdir(parents=True)
    pod = world.new_space()
    script = (
        f"mount --bind /proc/sys/net {mounted}/net && mount --bind /proc/sys /proc/sys"
        ' && mount -o remount,bind,ro /proc/sys && exec "$@"'
    )
    words = [sys.executable, "-c", WRITE, str(mounted), str(pod.fd)]
    subprocess.run(["unshare", "--mount", "sh", "-c", script, "sh", *words], check=True, pass_fds=[pod.fd])
    found = {
        where: subprocess.run([*enter, "cat", "/proc/sys/net/ipv4/conf/lo/arp_notify"], capture_output=True)
        for where, enter in (("here", []), ("pod", ["nsenter", f"--net={pod.path}"]))
    }
    assert json.loads(found["here"].stdout) == 0
    assert json.loads(found["pod"].stdout) == 1
    assert os.access("/proc/sys/net/ipv4/conf/lo/arp_notify", os.W_OK)
