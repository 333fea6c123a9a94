"""Orchestrator: `sriovctl plan` and `sriovctl apply`: the VFs that the config asks for, without the agent."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from structlog.typing import FilteringBoundLogger

from device_plugin.podresources import PodResources
from node_agent.agent import ATTACHMENTS, KUBELET_DIR, PFS, POD_RESOURCES, RUN_DIR, lock_alone
from node_agent.cli_config import NodeOption
from node_agent.config import ConfigError, pf_policies
from node_agent.config_source import CONFIG, HOSTNAME, ConfigSource
from node_agent.provision_report import (
    Report,
    render_json,
    report_of_outcome,
    report_of_plan,
    table_rows,
)
from node_agent.terminal import FAILED, NOTICE, TROUBLE, WRONG_INPUT, fail, new_console, new_table
from node_agent.vf_holders import vf_holders
from sriov_cni.attachment import Attachment
from vf_manager.apply import CreatedVfs
from vf_manager.discovery import read_pfs
from vf_manager.errors import Busy, SriovError
from vf_manager.kernel.api import Kernel
from vf_manager.locks import DeviceLocks
from vf_manager.model import Inventory
from vf_manager.provisioner import Provisioner, plan_now
from vf_manager.records import RecordStore, read_records

_CHANGES, _HELD_BACK = NOTICE, TROUBLE
_POLL_S = 0.2

_Config = Annotated[Path, typer.Option("--config", metavar="FILE", help="Pools and VFs of this node.")]
_RunDir = Annotated[Path, typer.Option("--run-dir", metavar="DIR", help="Where the agent keeps its records.")]
_KubeletDir = Annotated[Path, typer.Option("--kubelet-dir", metavar="DIR", help="The kubelet's folder.")]
_Json = Annotated[bool, typer.Option("--json", help="Machine-readable, with every step.")]
_Once = Annotated[
    bool,
    typer.Option(
        "--once", help="At boot: waits for the PFs, and leaves it to the agent if that runs already."
    ),
]
_Wait = Annotated[
    float, typer.Option("--wait", metavar="SECONDS", min=0, help="With --once: how long for PFs at most.")
]


def add_commands(app: typer.Typer, open_kernel: Callable[[], Kernel]) -> None:
    """`plan` and `apply`."""

    @app.command()
    def plan(
        config: _Config = CONFIG,
        run_dir: _RunDir = RUN_DIR,
        kubelet_dir: _KubeletDir = KUBELET_DIR,
        node_name: NodeOption = HOSTNAME,
        as_json: _Json = False,
    ) -> None:
        """Show what the config would change on this node's PFs and VFs, and what is held back and why.
        Changes nothing. Exit code 0: nothing to do, 3: changes, 4: something is held back."""
        with _errors(config):
            node = _Node(ConfigSource(config, node=node_name), open_kernel(), run_dir, kubelet_dir)
            report = node.plan()
            node.show(report, as_json)
        raise typer.Exit(_HELD_BACK if report.is_held_back else _CHANGES if report.steps else 0)

    @app.command()
    def apply(
        config: _Config = CONFIG,
        run_dir: _RunDir = RUN_DIR,
        kubelet_dir: _KubeletDir = KUBELET_DIR,
        node_name: NodeOption = HOSTNAME,
        as_json: _Json = False,
        once: _Once = False,
        wait: _Wait = 30.0,
    ) -> None:
        """Make this node's PFs and VFs what the config asks for, where no agent does. Exit code 0: everything
        is as wanted, 1: something failed, 4: something is held back."""
        with _errors(config):
            node = _Node(ConfigSource(config, node=node_name), open_kernel(), run_dir, kubelet_dir)
            report = node.apply(once, wait if once else 0.0)
            if report is None:
                typer.echo("sriov-agent runs already; it makes the VFs.")
                return
            node.show(report, as_json)
        raise typer.Exit(FAILED if report.failed else _HELD_BACK if report.is_held_back else 0)


@contextmanager
def _errors(config: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError as e:
        fail(WRONG_INPUT, f"{config}: {e}")
    except (SriovError, OSError) as e:
        fail(FAILED, str(e))


class _Node:
    """This node, and what the config asks of it. Raises ConfigError."""

    def __init__(self, config: ConfigSource, kernel: Kernel, run_dir: Path, kubelet_dir: Path) -> None:
        self._config = config.read()
        self._kernel = kernel
        self._run_dir = run_dir
        self._kubelet = PodResources(kubelet_dir / POD_RESOURCES)
        self._seen = Inventory()

    def plan(self) -> Report:
        """Takes no part in what an agent may be doing: no lock, no folder, no left-over is removed."""
        self._seen = self._look()
        policies, missing = pf_policies(self._config, self._seen)
        created = {r.pf: r.count for r in read_records(self._run_dir / PFS, CreatedVfs)}
        made = plan_now(
            policies,
            self._seen,
            self._kernel,
            lambda: vf_holders(read_records(self._run_dir / ATTACHMENTS, Attachment), self._kubelet),
            created,
        )
        return report_of_plan(made, missing)

    def apply(self, once: bool, wait_s: float) -> Report | None:
        """None: the agent runs and does it. Raises Busy for that unless `once`."""
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            alone = lock_alone(self._run_dir / "lock")
        except Busy:
            if once:
                return None
            raise Busy(
                f"sriov-agent runs with {self._run_dir} and makes the VFs by itself;"
                " `sriovctl plan` shows what it waits for"
            ) from None
        try:
            return self._apply(_logger() if once else _silence(), wait_s)
        finally:
            os.close(alone)

    def _apply(self, log: FilteringBoundLogger, wait_s: float) -> Report:
        attachments = RecordStore(self._run_dir / ATTACHMENTS, Attachment)
        provisioner = Provisioner(
            self._kernel,
            DeviceLocks(),
            RecordStore(self._run_dir / PFS, CreatedVfs),
            log,
            holders=lambda: vf_holders(attachments.read_all(), self._kubelet),
        )
        self._wait_for_pfs(wait_s)
        policies, missing = pf_policies(self._config, self._seen)
        return report_of_outcome(provisioner.reconcile(policies, self._seen), missing)

    def show(self, report: Report, as_json: bool) -> None:
        if as_json:
            typer.echo(render_json(report))
            return
        rows = table_rows(report, self._seen)
        if not (report.steps or report.failed or report.is_held_back):
            typer.echo("Nothing to do: every PF that is here is as the config asks for.")
        if rows:
            table = new_table("PF", "state", "what")
            for row in rows:
                table.add_row(*row)
            new_console().print(table)

    def _wait_for_pfs(self, wait_s: float) -> None:
        """At boot drivers come up one by one, and udev gives names later still."""
        deadline = time.monotonic() + wait_s
        self._seen = self._look()
        while pf_policies(self._config, self._seen)[1] and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            self._seen = self._look()

    def _look(self) -> Inventory:
        return Inventory(pfs=read_pfs(self._kernel))


def _logger() -> FilteringBoundLogger:
    """As the agent's, for the journal."""
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.JSONRenderer(),
    ]
    return _wrapped(processors, "info")


def _silence() -> FilteringBoundLogger:
    """The table says it all."""
    return _wrapped([], "critical")


def _wrapped(processors: list[Any], level: str) -> FilteringBoundLogger:
    log: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
    return log
