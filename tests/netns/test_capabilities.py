"""What docs/security.md says the agent needs is enough: these capabilities, and uid 0."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent.parent
PAGE = (PROJECT / "docs/security.md").read_text()
# Between them they move a link, set addresses and routes, announce, and ask the wire.
FILES = ("tests/netns/test_kernel.py", "tests/netns/test_probe.py", "tests/netns/test_announce.py")
SAMPLE = "moves_under_the_new_one or listed_as_they_were_added or gratuitous or one_that_is_in_use"


def run_with(capabilities: list[str]) -> int:
    bounding = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", SAMPLE, *FILES]
    command = ["setpriv", "--bounding-set", bounding, *pytest_]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, check=False).returncode


def test_the_capabilities_that_are_listed_are_enough() -> None:
    assert run_with(listed()) == 0


@pytest.mark.parametrize("without", ["net_admin", "net_raw", "sys_admin"])
def test_each_of_them_is_needed(without: str) -> None:
    assert run_with([name for name in listed() if name != without]) != 0


def listed() -> list[str]:
    names = re.findall(r"^\| `CAP_(\w+)` \|", PAGE, re.MULTILINE)
    assert len(names) == 3
    return [name.lower() for name in names]
