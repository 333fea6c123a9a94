"""Pure: the options of the `sriov-agent` command."""

import argparse
from pathlib import Path

from device_plugin.allocator import PLACES
from device_plugin.established import ESTABLISHED_PREFIX
from device_plugin.registration import Way
from node_agent.agent import KUBELET_DIR, RUN_DIR, Presence
from node_agent.config_source import CONFIG, HOSTNAME, ConfigSource, choose_source
from node_agent.http_endpoint import parse_address
from node_agent.install import Placement
from sriov_cni.ipam.engine import DATA_DIR

_AUTO = "auto"
_OFF = "off"
_LEVELS = ("debug", "info", "warning", "error")


def parse_options(argv: list[str]) -> argparse.Namespace:
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
        "--metrics-address",
        default=_OFF,
        metavar="ADDRESS:PORT",
        help="where to serve /healthz, /readyz and /metrics, by HTTP for whoever can reach it",
    )
    parser.add_argument("--log-level", choices=_LEVELS, default="info", help="least level that is logged")
    _add_container_options(parser)
    options = parser.parse_args(argv)
    options.install = [Placement(*pair) for pair in options.install]
    options.install_when_ready = [Placement(*pair) for pair in options.install_when_ready]
    return options


def _add_container_options(parser: argparse.ArgumentParser) -> None:
    """For an agent that is installed by its DaemonSet."""
    parser.add_argument(
        "--node-name",
        default=HOSTNAME,
        metavar="NAME",
        help="as the API server knows this node; `nodes` of the config is matched with it",
    )
    parser.add_argument(
        "--host-root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="where the node's own file system is seen, for sysctls, device nodes and plugins of others",
    )
    for name, when in (("--install", "at the start"), ("--install-when-ready", "once pods can be attached")):
        parser.add_argument(
            name,
            nargs=2,
            type=Path,
            action="append",
            default=[],
            metavar=("FILE", "TARGET"),
            help=f"put a copy of FILE at TARGET, {when}; may be given more than once",
        )
    parser.add_argument(
        "--uninstall", action="store_true", help="take all of it away, as soon as no pod needs it; then wait"
    )


def presence_of(options: argparse.Namespace) -> Presence:
    """Raises InvalidInput."""
    address = options.metrics_address
    return Presence(
        registration=None if options.registration == _AUTO else Way(options.registration),
        node_name=options.node_name,
        http=None if address == _OFF else parse_address(address),
    )


def source_of(options: argparse.Namespace) -> ConfigSource:
    """Raises InvalidInput."""
    given = vars(options)
    return choose_source(
        given.get("config"),
        given.get("device_plugin_config"),
        given.get("resource_prefix"),
        options.node_name,
    )
