"""Orchestrator: `sriovctl status`: how the agent and its pools are, at a glance."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import typer
from rich.console import Console

from node_agent.agent import RUN_DIR, SOCKET_NAME
from node_agent.agent_socket import Answer, ask_agent
from node_agent.cli_place import Held, JsonOption, RunDirOption, age_word, held_vfs, read_held
from node_agent.events import has_services, is_only_way_out
from node_agent.status_file import STALE_S, STATUS_FILE, AgentStatus, PoolState, read_status
from node_agent.terminal import FAILED, NOTICE, TROUBLE, fail, new_console, new_table, print_json
from sriov_cni.attachment import Attachment, State
from vf_manager.errors import SriovError


class View(msgspec.Struct, frozen=True, kw_only=True):
    """`status`: as the agent left it `age_s` ago; None if none has."""

    answer: Answer
    status: AgentStatus | None
    age_s: float | None
    held: tuple[Held, ...]

    @property
    def is_stale(self) -> bool:
        return self.age_s is not None and self.age_s > STALE_S

    def exit_code(self) -> int:
        status = self.status
        if self.answer.silent or self.is_stale or (status and status.config_refused):
            return TROUBLE
        if status and (status.provisioning.refused or status.provisioning.failed):
            return TROUBLE
        unhealthy = status is not None and any(pool.unhealthy for pool in status.pools)
        waits = status is not None and (status.provisioning.is_held_back or bool(status.in_pod.troubles))
        return NOTICE if self.answer.not_ready or unhealthy or waits else 0


def status_command(run_dir: RunDirOption = RUN_DIR, as_json: JsonOption = False) -> None:
    """Show whether the agent answers, which config is in force, its pools, and what it waits for. Exit code
    0: all is well, 3: something is Unhealthy or waits, 4: no agent, or a config or PF that was refused."""
    try:
        view = _look(run_dir)
    except (SriovError, OSError) as e:
        fail(FAILED, str(e))
    if as_json:
        print_json(msgspec.to_builtins(view) | {"stale": view.is_stale})
    else:
        _show(new_console(), view)
    raise typer.Exit(view.exit_code())


def _look(run_dir: Path) -> View:
    found = read_status(run_dir / STATUS_FILE)
    return View(
        answer=ask_agent(run_dir / SOCKET_NAME),
        status=found.status if found else None,
        age_s=found.age_s(time.monotonic()) if found else None,
        held=tuple(read_held(run_dir)),
    )


def _show(console: Console, view: View) -> None:
    facts = new_table("", "")
    facts.show_header = False
    for row in _summary(view):
        facts.add_row(*row)
    console.print(facts)
    if view.status is None:
        return
    _show_pools(console, view.status.pools, view)
    if work := list(_pending(view.status)):
        console.print()
        table = new_table("PF", "state", "why")
        for line in work:
            table.add_row(*line)
        console.print(table)


def _summary(view: View) -> Iterator[tuple[str, str]]:
    answer, status = view.answer, view.status
    if answer.silent:
        yield "agent", f"does not answer: {answer.silent}"
    else:
        yield (
            "agent",
            f"answers, not ready: {answer.not_ready}" if answer.not_ready else "answers, ready for pods",
        )
    if status is not None:
        refused = f"refused, the one before is in force: {status.config_refused}"
        yield "config", refused if status.config_refused else f"{status.config or 'as given'} is in force"
        if view.is_stale:
            yield "", f"what follows was written {age_word(view.age_s)} ago, by an agent that ended since"
    halves = sum(held.attachment.state is not State.ATTACHED for held in view.held)
    aside = f", {halves} of them half-done" if halves else ""
    yield "attached", f"{len(view.held)} VFs{aside}"
    if status is not None and (status.in_pod.pods or status.in_pod.watched):
        troubles = status.in_pod.troubles
        state = "not up to date" if troubles else "up to date"
        yield "in-pod", f"services or policy in {status.in_pod.pods} pods, {state}"
        yield from (("", trouble) for trouble in troubles)
    if bypassing := len(list(_bypassing(view.held))):
        who = "1 pod has" if bypassing == 1 else f"{bypassing} pods have"
        what = "no way out but a VF, and no `services: in-pod`: no ClusterIP and no cluster DNS from there"
        yield "note", f"{who} {what}"


def _bypassing(held: Sequence[Held]) -> Iterator[Attachment]:
    attached = (one.attachment for one in held if one.attachment.state is State.ATTACHED)
    for one in attached:
        if one.ifname == one.primary and is_only_way_out([one]) and not has_services(one):
            yield one


def _show_pools(console: Console, pools: tuple[PoolState, ...], view: View) -> None:
    held = held_vfs(list(view.held))
    console.print()
    table = new_table("pool", "resource", "VFs", "healthy", "attached", "kubelet")
    for pool in pools:
        ill = sum(vf in pool.unhealthy for vf in pool.vfs)
        attached = sum(vf in held for vf in pool.vfs)
        kubelet = "registered" if pool.registered else f"not registered: {pool.reason}"
        counts = (str(len(pool.vfs)), str(len(pool.vfs) - ill), str(attached))
        table.add_row(pool.name, pool.resource, *counts, kubelet)
    console.print(table if pools else "no pools: nothing is advertised")
    faults = [(pool.name, vf, why) for pool in pools for vf, why in sorted(pool.unhealthy.items())]
    if faults:
        console.print()
        table = new_table("pool", "VF", "Unhealthy because")
        for fault in faults:
            table.add_row(*fault)
        console.print(table)


def _pending(status: AgentStatus) -> Iterator[tuple[str, str, str]]:
    work = status.provisioning
    yield from ((refusal.pf, "pending", refusal.reason) for refusal in work.pending)
    yield from ((refusal.pf, "refused", refusal.reason) for refusal in work.refused)
    yield from ((failure.pf, "failed", failure.error) for failure in work.failed)
    yield from (("-", "missing", line) for line in work.missing)
    if work.trouble:
        yield "-", "waits", work.trouble
