"""Orchestrator: the `sriov-agent` command: options, logging, signals, exit code."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# gRPC's C core reads this once, when it is loaded; a kubelet that goes away is no error of ours.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import structlog
from structlog.typing import FilteringBoundLogger

from device_plugin.registration import Way
from node_agent.agent import KUBELET_DIR, RUN_DIR, Agent
from node_agent.config import ConfigError, parse_config
from sriov_cni.ipam.engine import DATA_DIR
from vf_manager.errors import SriovError
from vf_manager.kernel.api import Kernel
from vf_manager.kernel.linux import LinuxKernel

CONFIG = Path("/etc/sriov-underlay/config.yaml")
# Calls that come at once wait for each other's turn in Python, not for each other's work in the kernel: with
# the usual 5 ms a thread whose answer is there sits by, and the kernel with it.
_SWITCH_INTERVAL_S = 0.0005
_AUTO = "auto"
_LEVELS = ("debug", "info", "warning", "error")


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
    options = _parse(argv)
    log = _logger(options.log_level)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        config = parse_config(options.config.read_text())
    except (OSError, UnicodeDecodeError, ConfigError) as e:
        print(f"sriov-agent: {options.config}: {getattr(e, 'strerror', None) or e}", file=sys.stderr)
        return 2
    try:
        agent = Agent(
            config,
            kernel or LinuxKernel(),
            log,
            run_dir=options.run_dir,
            kubelet_dir=options.kubelet_dir,
            lease_dir=options.lease_dir,
            registration=None if options.registration == _AUTO else Way(options.registration),
        )
        with call_at_signals(agent.stop):
            failure = agent.run()
    except ConfigError as e:  # what only shows on the node: two pools that mean one PF
        print(f"sriov-agent: {options.config}: {e}", file=sys.stderr)
        return 2
    except (SriovError, OSError) as e:
        failure = str(e)
    if failure:
        print(f"sriov-agent: {failure}", file=sys.stderr)
    return 1 if failure else 0


@contextmanager
def call_at_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at SIGTERM and SIGINT, on a thread of its own: a handler runs in the middle of whatever the
    main thread does, and that may hold the very lock that `stop` needs (threading.Event.wait does).

    And a handler waits until the main thread has something to do, if the kernel gave the signal to one of
    gRPC's; the descriptor of signal.set_wakeup_fd is written at once, by whatever thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=_call_at_bytes, args=(reader, stop), name="signals", daemon=True)
    thread.start()
    fd_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd_before)
        os.close(writer)
        thread.join()
        os.close(reader)


def _call_at_bytes(reader: int, call: Callable[[], None]) -> None:
    while os.read(reader, 1):
        call()


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sriov-agent",
        description="Gives Kubernetes pods virtual functions of this node's SR-IOV NICs.",
        epilog="VF traffic bypasses the host's kube-proxy and NetworkPolicy enforcement.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, default=CONFIG, metavar="FILE", help="pools and VFs of this node"
    )
    parser.add_argument("--run-dir", type=Path, default=RUN_DIR, metavar="DIR", help="socket and records")
    parser.add_argument(
        "--kubelet-dir", type=Path, default=KUBELET_DIR, metavar="DIR", help="the kubelet's folder"
    )
    parser.add_argument(
        "--lease-dir", type=Path, default=DATA_DIR, metavar="DIR", help="leases of host-local IPAM"
    )
    parser.add_argument(
        "--registration", choices=(_AUTO, *Way), default=_AUTO, help="how the kubelet is told of the pools"
    )
    parser.add_argument("--log-level", choices=_LEVELS, default="info", help="least level that is logged")
    return parser.parse_args(argv)


def _logger(level: str) -> FilteringBoundLogger:
    """JSON lines on stderr; on a terminal, lines for people."""
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
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
