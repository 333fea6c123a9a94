"""A node on which nothing is wrong, and everything that `sriovctl doctor` looks at can be broken."""

import base64
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from typer.testing import CliRunner, Result

from node_agent import cli
from node_agent.doctor.checks import find_all
from node_agent.doctor.gather import Node, gather
from node_agent.doctor.rules import Finding
from node_agent.status_file import AgentStatus, Provisioned, StatusFile
from sriov_cni.messages import CniReply, CniRequest
from sriov_cni.server import CniServer
from sriov_cni.spec import SUPPORTED_VERSIONS, error_json
from tests.cni_world import World, conf_of, quiet_log
from tests.fake_kernel import FakeLink
from vf_manager.model import PciAddress

CONFIG = """
pools:
- name: fast
  select: {pfNames: [ens0]}
  vfs: {count: 7}
- name: dpdk
  select: {pfNames: [ens1]}
  vfs: {count: 7, driver: vfio-pci}
"""
_IPAM = {"type": "host-local", "ranges": [[{"subnet": "10.56.0.0/24"}]]}


class DoctorNode:
    """Two PFs of seven VFs, the last of the second with vfio-pci; kubelet, agent and container runtime."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run_dir = root / "run/su"
        self.world = World(self.run_dir)
        self.kernel = self.world.kernel
        self.run_dir.chmod(0o700)
        self.not_ready: str | None = None
        self.is_synchronised = True
        self.asked_with = ""  # CNI_PATH of the last call
        self.config = self.write("etc/sriov-underlay/config.yaml", CONFIG)
        self.names_config = True
        self.fallback = self.write_json("etc/cni/fallback.conflist", self.chain("bridge"))
        for socket in ("device-plugins", "pod-resources"):
            self.write(f"kubelet/{socket}/kubelet.sock", "")
        self.write_json("etc/cni/net.d/10-underlay.conflist", self.chain("sriov-underlay"))
        self.set_executable(list(SUPPORTED_VERSIONS))
        self.set_plugins("bridge", "host-local")
        self.add_to_group(16, "0000:02:11.2", "vfio-pci")
        for name in ("ens0", "ens1"):
            self.set_link(name, up=True, carrier=True)
        self.kernel.bind_driver(self.vf(6, "ens1"), "vfio-pci")

    # --- what can be broken

    def path(self, name: str) -> Path:
        found = self.root / name
        found.parent.mkdir(parents=True, exist_ok=True)
        return found

    def write(self, name: str, text: str) -> Path:
        self.path(name).write_text(text)
        return self.path(name)

    def write_json(self, name: str, value: object) -> Path:
        return self.write(name, json.dumps(value))

    def remove(self, name: str) -> None:
        path = self.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def chain(self, *types: str) -> dict[str, Any]:
        return {"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": type_} for type_ in types]}

    def set_executable(self, versions: list[str]) -> None:
        answer = json.dumps({"cniVersion": "1.1.0", "supportedVersions": versions})
        self.set_script(f"echo '{answer}'")

    def set_script(self, line: str) -> None:
        path = self.write("opt/cni/bin/sriov-underlay.new", f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
        path.rename(self.root / "opt/cni/bin/sriov-underlay")

    def set_plugins(self, *names: str) -> None:
        for name in names:
            self.write(f"opt/cni/bin/{name}", "")

    def add_to_group(self, group: int, pci: str, driver: str) -> Path:
        device = self.path(f"sys/kernel/iommu_groups/{group}/devices/{pci}/driver")
        device.symlink_to(f"../../../../../bus/pci/drivers/{driver}")
        return device

    def start_service(self, name: str) -> None:
        self.path(f"run/systemd/units/invocation:{name}.service").symlink_to("0123456789abcdef")

    def write_udev(self, name: str, **properties: str) -> None:
        """What udev knows of an interface."""
        lines = [f"E:{key}={value}" for key, value in properties.items()]
        self.write(f"run/udev/data/n{self.set_link(name).netdev.ifindex}", "\n".join(["I:1", *lines, "V:1"]))

    def set_link(self, name: str, netns: int = 1, **values: Any) -> FakeLink:
        link = self.kernel.find(name, netns)
        assert link is not None
        link.netdev = msgspec.structs.replace(link.netdev, **values)
        return link

    def vf(self, index: int, pf: str = "ens0") -> PciAddress:
        owner = next(f.function for f in self.kernel.functions.values() if f.pf_name == pf)
        return owner.virtfns[index][1]

    def attach(self, container: str, vf: PciAddress, **conf: Any) -> int:
        pod = self.world.new_pod(container)
        names = f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={container}"
        done = self.world.call("ADD", container, pod, conf_of(vf, **({"ipam": _IPAM} | conf)), CNI_ARGS=names)
        assert done.exit_code == 0, done
        return pod

    def detach(self, container: str, pod: int, vf: PciAddress) -> None:
        assert self.world.call("DEL", container, pod, conf_of(vf)).exit_code == 0

    def tell(self, provisioning: Provisioned | None = None, **values: Any) -> None:
        status = AgentStatus(pid=1, provisioning=provisioning or Provisioned(), **values)
        StatusFile(self.run_dir / "status.json", lambda: status, quiet_log()).write()

    # --- the doctor

    def doctor(self, *arguments: str) -> Result:
        options = {
            "--root": self.root,
            **({"--config": self.config} if self.names_config else {}),
            "--run-dir": self.run_dir,
            "--kubelet-dir": self.root / "kubelet",
            "--lease-dir": self.run_dir / "leases",
        }
        words = [word for key, value in options.items() for word in (key, str(value))]
        return CliRunner().invoke(cli.app, ["doctor", *words, *arguments], obj=self.kernel)

    def findings(self, *arguments: str) -> list[dict[str, str]]:
        done = self.doctor("--json", *arguments)
        assert done.exit_code in (0, 3, 4), done.output
        found: list[dict[str, str]] = json.loads(done.stdout)["findings"]
        return found

    def ids(self) -> list[str]:
        return [finding["id"] for finding in self.findings("--probe")]

    def where(self) -> Node:
        """As the command looks, but with a clock and a token of the test's own."""
        return Node(
            root=self.root,
            config=self.config,
            run_dir=self.run_dir,
            kubelet_dir=self.root / "kubelet",
            lease_dir=self.run_dir / "leases",
            conf_dir=None,
            bin_dir=None,
            shipped=self.root / "libexec/sriov-underlay",
            token=self.root / "token",
            is_synchronised=lambda: self.is_synchronised,
        )

    def look(self) -> list[Finding]:
        return find_all(gather(self.where(), self.kernel, time.monotonic(), probe=True))

    def write_token(self, issued_s: float, expires_s: float) -> Path:
        claims = json.dumps({"iat": issued_s, "exp": expires_s}).encode()
        return self.write("token", f"e30.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.c2ln")

    @contextmanager
    def agent(self) -> Iterator[None]:
        """What answers in its place."""
        server = CniServer(self.run_dir / "cni.sock", self._answer, log=quiet_log())
        server.listen()
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield
        finally:
            server.stop()
            thread.join()
            server.close()

    def _answer(self, request: CniRequest) -> CniReply:
        self.asked_with = request.env["CNI_PATH"]
        if self.not_ready is None:
            return CniReply(0, b"")
        return CniReply(1, error_json("1.1.0", 50, self.not_ready))
