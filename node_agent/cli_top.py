"""Orchestrator: `sriovctl top`: how much traffic each VF has, and whose it is."""

import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.live import Live
from rich.table import Table

from node_agent.agent import RUN_DIR
from node_agent.cli_place import Held, JsonOption, RunDirOption, kernel_of, pod_word, read_held
from node_agent.terminal import FAILED, fail, new_console, new_table, print_json
from node_agent.vf_rates import Rates, Sample, rates_between, take_sample
from vf_manager.errors import SriovError
from vf_manager.kernel.api import Kernel
from vf_manager.model import PciAddress

_TITLES = ("pod", "ifname", "VF", "rx Mbit/s", "tx Mbit/s", "rx pkt/s", "tx pkt/s", "drops/s", "errors/s")


class _View:
    """What is attached now, and how it has grown since the look before."""

    def __init__(self, kernel: Kernel, run_dir: Path) -> None:
        self._kernel = kernel
        self._run_dir = run_dir
        self.held: list[Held] = []
        self.rates: dict[PciAddress, Rates] = {}
        self._sample: Sample | None = None

    def look(self) -> None:
        self.held = read_held(self._run_dir)
        before = self._sample
        self._sample = take_sample(self._kernel, [one.attachment for one in self.held])
        self.rates = rates_between(before, self._sample) if before else {}

    def table(self) -> Table:
        table = new_table(*_TITLES)
        for column in table.columns[3:]:
            column.justify = "right"
        for one in self.held:
            record = one.attachment
            table.add_row(
                pod_word(record), record.ifname, record.port.pci, *_numbers(self.rates.get(record.port.pci))
            )
        return table

    def document(self) -> dict[str, object]:
        return {"vfs": [_entry(one, self.rates.get(one.attachment.port.pci)) for one in self.held]}


def top_command(
    context: typer.Context,
    run_dir: RunDirOption = RUN_DIR,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.01, help="From one look to the next.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One table over one interval, then end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the traffic of each attached VF, until Ctrl-C; once with `--json`, or where no terminal is."""
    view = _View(kernel_of(context), run_dir)
    try:
        view.look()
        if once or as_json or not new_console().is_terminal:
            time.sleep(interval)
            view.look()
            _show_once(view, as_json)
        else:
            _show_on(view, interval)
    except (SriovError, OSError) as e:
        fail(FAILED, str(e))


def _show_once(view: _View, as_json: bool) -> None:
    if as_json:
        print_json(view.document())
    elif view.held:
        new_console().print(view.table())
    else:
        new_console().print("No VF of this node is attached to a pod.")


def _show_on(view: _View, interval: float) -> None:
    try:
        with Live(view.table(), console=new_console(), auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(interval)
                view.look()
                live.update(view.table(), refresh=True)
    except KeyboardInterrupt:
        return


def _entry(held: Held, rates: Rates | None) -> dict[str, object]:
    record = held.attachment
    return {
        "pod": msgspec.to_builtins(record.pod),
        "ifname": record.ifname,
        "vf": record.port.pci,
        "perSecond": msgspec.to_builtins(rates),
    }


def _numbers(rates: Rates | None) -> list[str]:
    if rates is None:
        return ["-"] * (len(_TITLES) - 3)
    mbit = [f"{bits / 1e6:.2f}" for bits in (rates.rx_bits, rates.tx_bits)]
    return [
        *mbit,
        *(f"{n:.0f}" for n in (rates.rx_packets, rates.tx_packets, rates.dropped, rates.errors)),
    ]
