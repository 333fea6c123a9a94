"""Orchestrator: the `sriov-agent` command: what its options ask for, logging, signals, exit code."""

import argparse
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# gRPC's C core reads this once, when it is loaded; a kubelet that goes away is no error of ours.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import structlog
from structlog.typing import FilteringBoundLogger

from device_plugin.allocator import Places
from device_plugin.podresources import PodResources
from node_agent.agent import POD_RESOURCES, Agent, Presence, Roots
from node_agent.config import ConfigError
from node_agent.config_file import ConfigFile
from node_agent.install import Placement, check_conflist, put
from node_agent.options import parse_options, presence_of, source_of
from node_agent.uninstall import Uninstall
from vf_manager.errors import InvalidInput, SriovError
from vf_manager.kernel.api import Kernel
from vf_manager.kernel.linux import LinuxKernel

# Calls that come at once wait for each other's turn in Python, not for each other's work in the kernel: with
# the usual 5 ms a thread whose answer is there sits by, and the kernel with it.
_SWITCH_INTERVAL_S = 0.0005


def run(kernel: Kernel | None = None) -> None:
    """Exit code 0: asked to stop. 1: ended by itself. 2: wrong options or config."""
    code = main(sys.argv[1:], kernel)
    # Taking down the interpreter and gRPC takes 0.1 s, in which there is no successor and pods are rejected.
    # All that must stay is on disk.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(argv: list[str], kernel: Kernel | None = None) -> int:
    """`kernel`: the running one if not given."""
    options = parse_options(argv)
    log = _logger(options.log_level)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        source, presence = source_of(options), presence_of(options)
    except InvalidInput as e:
        print(f"sriov-agent: {e}", file=sys.stderr)
        return 2
    try:
        for placement in () if options.uninstall else options.install_when_ready:
            check_conflist(placement)
    except SriovError as e:
        print(f"sriov-agent: --install-when-ready: {e}", file=sys.stderr)
        return 2
    kernel = kernel or LinuxKernel(proc_sys=options.host_root / "proc/sys")
    try:
        failure = _serve(options, ConfigFile(source.path, source.parse), presence, kernel, log)
    except ConfigError as e:  # of the file, or what only shows on the node: two pools that mean one PF
        print(f"sriov-agent: {source.path}: {e}", file=sys.stderr)
        return 2
    except (SriovError, OSError) as e:
        failure = str(e)
    if failure:
        print(f"sriov-agent: {failure}", file=sys.stderr)
    return 1 if failure else 0


def _serve(
    options: argparse.Namespace,
    config_file: ConfigFile,
    presence: Presence,
    kernel: Kernel,
    log: FilteringBoundLogger,
) -> str | None:
    """Until a signal, or until it ends by itself: then the reason. Raises SriovError and OSError."""
    config = config_file.read()
    make = functools.partial(Agent, kernel=kernel, log=log, roots=_roots(options), presence=presence)

    def install(placements: list[Placement]) -> None:
        for placement in placements:
            if put(placement):
                log.info("installed", path=str(placement.target))

    if options.uninstall:
        runner: Agent | Uninstall = Uninstall(
            config,
            make,
            options.install,
            options.install_when_ready,
            options.run_dir,
            PodResources(options.kubelet_dir / POD_RESOURCES),
            log,
        )
    else:
        install(options.install)
        when_ready = functools.partial(install, options.install_when_ready)
        runner = make(config, config_file=config_file, on_ready=when_ready)
    with stopped_by_signals(runner.stop):
        return runner.run()


def _roots(options: argparse.Namespace) -> Roots:
    return Roots(
        run_dir=options.run_dir,
        kubelet_dir=options.kubelet_dir,
        lease_dir=options.lease_dir,
        places=Places(
            dev=options.host_root / "dev", cdi=options.cdi_dir, device_info=options.device_info_dir
        ),
        host_root=options.host_root,
    )


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at SIGTERM and SIGINT, on a thread of its own, which the kernel wakes.

    A Python handler runs on the main thread, between two instructions of whatever it does: that may hold the
    very lock that `stop` needs (threading.Event.wait does), or be about to wait for a lock and never come
    there. The C handler below it only writes a byte to a socket (signal.set_wakeup_fd), at any moment.
    """
    ours, signals = socket.socketpair()
    ours.setblocking(False)

    def watch() -> None:
        while signals.recv(1):
            stop()

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    numbers = (signal.SIGTERM, signal.SIGINT)
    with signals, ours:
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        waked = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(waked)
            for number in numbers:
                signal.signal(number, before[number])
            ours.shutdown(socket.SHUT_WR)
            thread.join()


def _logger(level: str) -> FilteringBoundLogger:
    """JSON lines on stderr; on a terminal, lines for people."""
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


if __name__ == "__main__":
    run()
