"""Every command that the documentation shows is run by a test, or stands here with the reason why not."""

from collections.abc import Mapping

import pytest

from hw_tests.playground import walk
from tests import test_docs_sriovctl, test_docs_vf_manager
from tests.docs_console import Command, read_shown
from tests.test_docs_links import PAGES, PROJECT

_CLUSTER = "there is no API server; tests/test_manifests.py checks the objects, tests/image runs them"
_IMAGE = "there is no registry; tests/image builds the same Containerfile and runs what comes out"
_BENCH = "takes minutes of an idle machine; tests/netns/test_bench.py runs a small one"
_MACHINE = "boots machines of its own, or is on real NICs; `make test-rig` is the first with all tests"

NOT_RUN: Mapping[str, str] = {
    **walk.NOT_HERE,
    "make test": "is what runs the tests",
    "buildah build -f manifests/image/Containerfile -t registry.example/sriov-underlay:0.1.0 .": _IMAGE,
    "buildah push registry.example/sriov-underlay:0.1.0": _IMAGE,
    "${EDITOR:-vi} manifests/overlays/default-network/kustomization.yaml": "a person writes there",
    "kubectl apply -f manifests/examples/one-vf.yaml": "hw_tests/test_examples.py runs the pod",
    "kubectl delete -k manifests/overlays/default-network": _CLUSTER,
    "ip netns exec NETNS nft list table inet sriov_underlay": "tests/netns/test_in_pod_services.py does",
}
# By how they begin.
NOT_RUN_SUCH: Mapping[str, str] = {
    "python -m hw_tests.rig run ": _MACHINE,
    "python -m pytest hw_tests --rig=metal ": _MACHINE,
    "make bench": _BENCH,
    "buildah build --timestamp ": _IMAGE,
    "kubectl kustomize manifests/overlays/default-network ": _CLUSTER,
    "kubectl --namespace sriov-underlay ": _CLUSTER,
    "kubectl get nodes -o custom-columns=": _CLUSTER,
}
_SRIOVCTL = ("sriovctl ", "echo $?", "cat ")  # what the tests of pages below run

COMMANDS = [
    command
    for page in PAGES
    for command in read_shown(str(page.relative_to(PROJECT)))
    if isinstance(command, Command)
]


def run_by(command: Command) -> str | None:
    """The test that types it."""
    of_sriovctl = command.text.startswith(_SRIOVCTL)
    match command.page:
        case "docs/sriovctl.md" if of_sriovctl and command.section in test_docs_sriovctl.SCENES:
            return "tests/test_docs_sriovctl.py"
        case "docs/vf-manager.md" if of_sriovctl and command.section in test_docs_vf_manager.SCENES:
            return "tests/test_docs_vf_manager.py"
        case "docs/device-plugin.md" if of_sriovctl and command.section == "explain and validate":
            return "tests/test_migration.py"
        case "docs/services-and-policy.md" if command.text.startswith("sriovctl trace "):
            return "tests/netns/test_in_pod_services.py"
        case page if command.section in walk.WAY.get(page, ()):
            return "hw_tests/test_strangers_path.py"
        case _:
            return None


def not_run(command: Command) -> str | None:
    """The reason."""
    such = (reason for start, reason in NOT_RUN_SUCH.items() if command.text.startswith(start))
    return NOT_RUN.get(command.text) or next(such, None)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}: {command.text}")
def test_a_test_runs_it(command: Command) -> None:
    assert not_run(command) or run_by(command), "run it in a test, or say in NOT_RUN why it cannot be"


def test_reasons_are_for_commands_that_are_there() -> None:
    texts = {command.text for command in COMMANDS}
    assert set(NOT_RUN) <= texts
    assert [start for start in NOT_RUN_SUCH if not any(text.startswith(start) for text in texts)] == []


def test_every_expectation_is_of_a_command_on_the_way() -> None:
    typed = [step.text for page in walk.WAY for step in walk.steps(page) if isinstance(step, Command)]
    assert [e.command for e in walk.EXPECTED if not any(t.startswith(e.command) for t in typed)] == []


def test_a_command_without_a_test_is_found() -> None:
    new = Command("docs/faq.md", "Questions", "sriovctl vfs")
    assert not not_run(new)
    assert not run_by(new)
