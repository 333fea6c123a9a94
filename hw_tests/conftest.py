"""Options and fixtures of the rig tests: one node with its agent for all, on emulated or on real NICs."""

import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hw_tests.faults import UNAVAILABLE
from hw_tests.nics import Nic, Unusable, as_found, find_nics, named_nics, settle
from hw_tests.node import Node, running_node
from hw_tests.runtime import EXECUTABLE
from hw_tests.snapshot import Snapshot, stable_snapshot, wait_for_same
from hw_tests.stage import Stage

# Before anything imports them: their asserts are to tell what they compared.
pytest.register_assert_rewrite(
    "tests.kernel_contract", "tests.vf_contract", "tests.nft_contract", "tests.host_link_contract"
)

REPORT = pytest.StashKey[list[str]]()  # lines for the end of the run
_NICS = pytest.StashKey[tuple[Nic, ...]]()
_NODE = pytest.StashKey[Node]()
_LOG_START = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rig", "SR-IOV NICs to test on")
    group.addoption(
        "--rig",
        choices=("emulated", "metal"),
        default="emulated",
        help="emulated: inside the machine that `make test-rig` boots. metal: on NICs of this host, see --pf",
    )
    group.addoption(
        "--pf",
        action="append",
        default=[],
        metavar="NAME",
        help="with --rig=metal: a PF to use; repeatable. Its VFs are removed and made again in the end",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse, rather than skip or fail one by one, where there is nothing to test on."""
    metal, names = config.getoption("rig") == "metal", config.getoption("pf")
    if metal and not names:
        raise pytest.UsageError("--rig=metal: say which PFs may be used, with --pf=NAME for each")
    if names and not metal:
        raise pytest.UsageError("--pf names real NICs: it goes with --rig=metal")
    if not metal and os.environ.get("RIG") != "emulated":
        raise pytest.UsageError(
            "hw_tests need the emulated machine (RIG=emulated is not set here): run `make test-rig`;"
            " to use NICs of this host, give --rig=metal --pf=NAME"
        )
    if os.geteuid() != 0:
        raise pytest.UsageError("hw_tests need root")
    if not EXECUTABLE.exists():
        raise pytest.UsageError(f"{EXECUTABLE} is not there: run `make shim`")
    try:
        config.stash[_NICS] = named_nics(names) if metal else find_nics()
    except Unusable as e:
        raise pytest.UsageError(str(e)) from e


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what the rig itself promises (it makes and removes VFs by hand), then what needs the node."""
    items.sort(key=lambda item: "node" in getattr(item, "fixturenames", ()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    node = item.stash.get(_NODE, None)
    if report.failed and node is not None:
        report.sections.append(("agent log", node.log_text(item.stash[_LOG_START])))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(REPORT, []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def nics(request: pytest.FixtureRequest) -> Iterator[tuple[Nic, ...]]:
    """The PFs to use, without VFs at first."""
    found = request.config.stash[_NICS]
    assert found, "there is no SR-IOV PF here"
    with ExitStack() as stack:
        for nic in found:
            stack.enter_context(as_found(nic))
        settle()
        yield found


@pytest.fixture(scope="session")
def two_nics(nics: tuple[Nic, ...]) -> tuple[Nic, Nic]:
    """Two PFs on one wire, for what goes from PF to PF."""
    if len(nics) < 2:
        pytest.skip("this goes from one PF to another: give two of them on one wire with --pf")
    return nics[0], nics[1]


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> None:
    """For tests that make faults of a NIC: `hw_tests.faults` works."""
    if request.config.getoption("rig") == "metal":
        pytest.skip(UNAVAILABLE)


@pytest.fixture(scope="session")
def session_node(nics: tuple[Nic, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Not for tests: they take `node`, which sees to it that they leave it as it was."""
    with running_node(tmp_path_factory.mktemp("node"), nics) as node:
        yield node
    if out := rig_out():
        shutil.copy(node.log, out / "agent.log")


@pytest.fixture
def node(request: pytest.FixtureRequest, session_node: Node) -> Node:
    """The node with its agent."""
    item: pytest.Item = request.node
    item.stash[_NODE] = session_node
    item.stash[_LOG_START] = session_node.log.stat().st_size
    return session_node


@pytest.fixture
def before(node: Node) -> Iterator[Snapshot]:
    """How PFs and VFs were before the test. They must be so again after it, with no lease and no record."""
    snapshot = stable_snapshot(node.nics)
    yield snapshot
    assert not wait_for_same(snapshot, node.nics)
    assert node.records() == []
    assert node.leases() == []


@pytest.fixture
def stage(node: Node, before: Snapshot) -> Iterator[Stage]:
    with Stage(node) as stage:
        yield stage


def need_programs(config: pytest.Config, *programs: str) -> None:
    """The emulated machine has them all; a host with a real NIC may be without."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing and config.getoption("rig") == "metal":
        pytest.skip(f"not on this host: {', '.join(missing)}")
    assert not missing


def rig_out() -> Path | None:
    """Where files go that shall come out of the emulated machine."""
    folder = os.environ.get("RIG_OUT")
    return Path(folder) if folder else None
