"""Orchestrator: the `sriov-agent` command: options, logging, signals, exit code."""

import argparse
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# gRPC's C core reads this once, when it is loaded; a kubelet that goes away is no error of ours.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import structlog
from structlog.typing import FilteringBoundLogger

from device_plugin.allocator import PLACES, Places
from device_plugin.established import ESTABLISHED_PREFIX
from device_plugin.registration import Way
from node_agent.agent import KUBELET_DIR, RUN_DIR, Agent, Presence, Roots
from node_agent.config import ConfigError
from node_agent.config_file import ConfigFile
from node_agent.config_source import CONFIG, ConfigSource, choose_source
from node_agent.http_endpoint import parse_address
from sriov_cni.ipam.engine import DATA_DIR
from vf_manager.errors import InvalidInput, SriovError
from vf_manager.kernel.api import Kernel
from vf_manager.kernel.linux import LinuxKernel

# Calls that come at once wait for each other's turn in Python, not for each other's work in the kernel: with
# the usual 5 ms a thread whose answer is there sits by, and the kernel with it.
_SWITCH_INTERVAL_S = 0.0005
_AUTO = "auto"
_OFF = "off"
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
        source = _source(**vars(options))
        http = None if options.metrics_address == _OFF else parse_address(options.metrics_address)
    except InvalidInput as e:
        print(f"sriov-agent: {e}", file=sys.stderr)
        return 2
    config_file = ConfigFile(source.path, source.parse)
    try:
        agent = Agent(
            config_file.read(),
            kernel or LinuxKernel(),
            log,
            roots=Roots(
                run_dir=options.run_dir,
                kubelet_dir=options.kubelet_dir,
                lease_dir=options.lease_dir,
                places=Places(cdi=options.cdi_dir, device_info=options.device_info_dir),
            ),
            config_file=config_file,
            presence=Presence(
                registration=None if options.registration == _AUTO else Way(options.registration),
                node_name=options.node_name,
                http=http,
            ),
        )
        with stopped_by_signals(agent.stop):
            failure = agent.run()
    except ConfigError as e:  # of the file, or what only shows on the node: two pools that mean one PF
        print(f"sriov-agent: {source.path}: {e}", file=sys.stderr)
        return 2
    except (SriovError, OSError) as e:
        failure = str(e)
    if failure:
        print(f"sriov-agent: {failure}", file=sys.stderr)
    return 1 if failure else 0


def _source(
    config: Path | None = None,
    device_plugin_config: Path | None = None,
    resource_prefix: str | None = None,
    **_: object,
) -> ConfigSource:
    """Of the options, those that are given. Raises InvalidInput."""
    return choose_source(config, device_plugin_config, resource_prefix)


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


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sriov-agent",
        description="Gives Kubernetes pods virtual functions of this node's SR-IOV NICs.",
        epilog="VF traffic bypasses the host's kube-proxy and NetworkPolicy enforcement.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help=f"pools and VFs of this node (default: {CONFIG})",
    )
    parser.add_argument(
        "--device-plugin-config",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="instead of --config: a config.json of the established SR-IOV device plugin (resourceList)",
    )
    parser.add_argument(
        "--resource-prefix",
        default=argparse.SUPPRESS,
        metavar="DOMAIN",
        help=f"of the resources in that file that have none of their own (default: {ESTABLISHED_PREFIX})",
    )
    parser.add_argument("--run-dir", type=Path, default=RUN_DIR, metavar="DIR", help="socket and records")
    parser.add_argument(
        "--kubelet-dir", type=Path, default=KUBELET_DIR, metavar="DIR", help="the kubelet's folder"
    )
    parser.add_argument(
        "--lease-dir", type=Path, default=DATA_DIR, metavar="DIR", help="leases of host-local IPAM"
    )
    parser.add_argument(
        "--cdi-dir",
        type=Path,
        default=PLACES.cdi,
        metavar="DIR",
        help="CDI specs",
    )
    parser.add_argument(
        "--device-info-dir", type=Path, default=PLACES.device_info, metavar="DIR", help="what Multus reads"
    )
    parser.add_argument(
        "--registration", choices=(_AUTO, *Way), default=_AUTO, help="how the kubelet is told of the pools"
    )
    parser.add_argument(
        "--node-name",
        default=os.environ.get("NODE_NAME") or socket.gethostname().lower(),
        metavar="NAME",
        help="as the API server knows this node; $NODE_NAME, or the host's name",
    )
    parser.add_argument(
        "--metrics-address",
        default=_OFF,
        metavar="ADDRESS:PORT",
        help="where to serve /healthz, /readyz and /metrics, by HTTP for whoever can reach it",
    )
    parser.add_argument("--log-level", choices=_LEVELS, default="info", help="least level that is logged")
    return parser.parse_args(argv)


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
