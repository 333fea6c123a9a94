"""Orchestrator: how long a restart of the agent keeps pods off the node, by either way of registration.

python -m hw_tests.bench.restart --out DIR: on veths that stand in for VFs, with a kubelet that takes the end
of a stream for the plugin's end and looks for plugins once a second, as the real one does.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import msgspec

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when gRPC is loaded, which the imports below do

from device_plugin.pools import resource_name
from device_plugin.registration import Way
from hw_tests.bench.agent_process import prepare_agent
from hw_tests.bench.places import Place, native
from hw_tests.bench.results import Restarts
from hw_tests.runtime import PROJECT
from node_agent.config import parse_config
from tests.stub_kubelet import StubKubelet

_ROUNDS = 20
_KUBELET_TICK_S = 1.0
_STOP_TIMEOUT_S = 30.0


def measure(way: Way, place: Place, rounds: int, folder: Path) -> Restarts:
    """So many restarts as a service manager does them: SIGTERM, the end, exec."""
    command = prepare_agent(folder, place.config, "--registration", way)
    counts = _devices_of(place)
    found = Restarts(way=way, rounds=rounds)
    with StubKubelet(folder / "kubelet", tick_s=_KUBELET_TICK_S) as kubelet, ExitStack() as stack:
        log = stack.enter_context((folder / "agent.log").open("wb"))

        def start() -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                command, cwd=PROJECT, env={**os.environ, **place.env}, stdout=log, stderr=log
            )
            stack.callback(process.wait, _STOP_TIMEOUT_S)
            stack.callback(process.terminate)
            return process

        process = start()
        _wait(kubelet, counts)
        for _ in range(rounds):
            asked = time.monotonic()
            process.terminate()
            _wait(kubelet, dict.fromkeys(counts, 0))
            gone = time.monotonic()
            process.wait(_STOP_TIMEOUT_S)
            ended = time.monotonic()
            process = start()
            _wait(kubelet, counts)
            back = time.monotonic()
            found.until_gone.append((gone - asked) * 1000)
            found.until_ended.append((ended - asked) * 1000)
            found.until_back.append((back - ended) * 1000)
            found.window.append((back - gone) * 1000)
    return found


def _devices_of(place: Place) -> dict[str, int]:
    """How many each resource has in the end."""
    config = parse_config(place.config)
    return {
        resource_name(config.resource_prefix, pool.name): pool.vfs.count for pool in config.pools if pool.vfs
    }


def _wait(kubelet: StubKubelet, counts: dict[str, int]) -> None:
    for resource, count in counts.items():
        kubelet.wait_devices(resource, count, _STOP_TIMEOUT_S)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m hw_tests.bench.restart")
    parser.add_argument("--rounds", type=int, default=0, help="0: as many as usual")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for restarts.json")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir="/run"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        place = stack.enter_context(native(folder))
        found = [measure(way, place, options.rounds or _ROUNDS, folder / way) for way in Way]
    (options.out / "restarts.json").write_bytes(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
