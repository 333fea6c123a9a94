"""Pure: the way of a stranger: which commands of the documentation are typed in the playground, and what
shows that each did its work."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.docs_console import Command, File, read_shown

GETTING_STARTED, UPGRADE = "docs/getting-started.md", "docs/upgrade.md"
VF_MANAGER, README = "docs/vf-manager.md", "README.md"
TROUBLESHOOTING = "docs/troubleshooting.md"

# The sections of each page whose commands are typed, in the order in which that makes sense.
WAY: Mapping[str, Sequence[str]] = {
    GETTING_STARTED: (
        "2. Kernel arguments",
        "3. What the kernel has",
        "5. Install",
        "6. The first config",
        "7. The network configuration",
        "8. The first pod",
    ),
    TROUBLESHOOTING: ("",),
    VF_MANAGER: ("VFs before the kubelet starts", "NetworkManager and systemd-networkd"),
    UPGRADE: ("Upgrade", "Uninstall"),
    README: ("You have a real NIC?",),
}

# What a person does elsewhere, or what this machine comes with.
NOT_HERE: Mapping[str, str] = {
    "make demo": "boots a machine of its own; hw_tests/demo.py is a test by itself",
    "make rig-shell": "boots a machine of its own, in which this very walk goes",
    "sudo apt-get install -y git make": "needs a package archive",
    "sudo make install": "needs a package index; tests/image/test_make_install.py runs it",
    "git pull": "needs a remote repository",
}
_CHANGES = 3  # as an exit code of sriovctl: there is something to do


@dataclass(frozen=True)
class Expected:
    """Of a command, by how it begins: what it says in the end, as a person would look again until it does."""

    command: str
    says: str = ""
    codes: Sequence[int] = (0,)


EXPECTED = (
    Expected("cat /sys/class/net/ens1f0/device/sriov_totalvfs", says="^7$"),
    Expected("ls /sys/class/iommu", says="dmar"),
    Expected("ethtool -i ens1f0", says="driver: igb"),
    Expected("sriovctl validate", says="no mistakes"),
    Expected("sriovctl plan", says="create 4 VFs", codes=(_CHANGES,)),
    Expected("sudo sriovctl plan", says="create 7 VFs", codes=(_CHANGES,)),
    Expected("sudo journalctl -u sriov-agent", says=r'"pools": \{"fast": 4\}.*"event": "ready"'),
    Expected("sudo sriovctl status", says=r"fast +sriov-underlay.io/fast +4 +4 +0 +registered"),
    Expected("sriovctl doctor", says="Nothing is wrong"),
    Expected("kubectl get nodes -o jsonpath", says='"sriov-underlay.io/fast":"4"'),
    Expected("kubectl get pod trainer", says=r"1/1 +Running +192\.168\.50\.2\d\d"),
    Expected("kubectl delete pod", says="deleted"),
    Expected("kubectl exec trainer -- ip", says=r"parentdev 0000:\w\w:\w\w\.\d"),
    Expected("kubectl exec trainer -- ping", says=" 0% packet loss"),
)


def expected_of(command: str) -> Expected:
    """A command that is not in the table has to succeed, no more."""
    return next((one for one in EXPECTED if command.startswith(one.command)), Expected(command))


def steps(page: str) -> list[Command | File]:
    """What is on the way, without what is not for here."""
    found = [step for step in read_shown(page) if step.section in WAY[page]]
    assert {step.section for step in found} == set(WAY[page]), f"{page}: no such section, or nothing in it"
    return [step for step in found if not (isinstance(step, Command) and step.text in NOT_HERE)]


def with_names(command: str, names: Mapping[str, str]) -> str:
    """With the names of this machine in the places that the page leaves to the reader."""
    return re.sub(r"\b(NODE|POD)\b", lambda found: names[found[0]], command)
