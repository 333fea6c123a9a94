"""Adapter: containerd and runc of the distribution as a process, with configuration and folders of its own.

Of the node's own folders it uses three, whose places are fixed: `/run/containerd`, `/run/netns` and
`/var/lib/cni`.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hw_tests.cri.client import Cri, CriError, cri_at
from hw_tests.cri.pause_image import IMAGE, write_pause_image
from hw_tests.nics import wait_until
from hw_tests.runtime import EXECUTABLE

REFERENCE_PLUGINS = Path("/usr/lib/cni")  # where the distribution's package puts them
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0

# restrict_oom_score_adj: root in a container may be without the capability to lower it.
_CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.tracing",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  disable_apparmor = true
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "{snapshotter}"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{folder}/bin"
  conf_dir = "{folder}/net.d"
"""


@dataclass
class Containerd:
    """`conflist`: the node's only network configuration. `agent`: the socket where the CNI executable finds
    the node agent. `enter`: a command that runs containerd as its arguments. `plugins`: what its folder of
    CNI plugins has in the beginning. See `running_containerd`."""

    folder: Path
    conflist: str
    agent: Path
    enter: tuple[str, ...] = ()
    plugins: tuple[Path, ...] = (EXECUTABLE, *REFERENCE_PLUGINS.glob("*"))
    conflist_name: str = "00-pods.conflist"
    snapshotter: str = "native"  # works below whatever folder; each layer is a copy of all below it
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        for path in (self.folder / "bin", self.folder / "net.d"):
            path.mkdir(parents=True)
        for plugin in self.plugins:
            (self.folder / "bin" / plugin.name).symlink_to(plugin)
        (self.folder / "net.d" / self.conflist_name).write_text(self.conflist)
        config = _CONFIG.format(folder=self.folder, image=IMAGE, snapshotter=self.snapshotter)
        (self.folder / "config.toml").write_text(config)
        write_pause_image(self.folder / "pause.tar")

    @property
    def socket(self) -> Path:
        return self.folder / "containerd.sock"

    @property
    def pid(self) -> int:
        assert self._process is not None, "containerd does not run"
        return self._process.pid

    def start(self) -> None:
        """Until it could make a pod. Its own log is `containerd.log`."""
        env = os.environ | {"SRIOV_UNDERLAY_SOCKET": str(self.agent)}
        words = [*self.enter, "containerd", "--config", str(self.folder / "config.toml")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log, env=env)
        try:
            wait_until(self.socket.is_socket, "socket of containerd", _START_TIMEOUT_S)
            with cri_at(self.socket) as cri:
                wait_until(lambda: self._is_ready(cri), "readiness of containerd", _START_TIMEOUT_S)
        except TimeoutError as e:
            raise RuntimeError(f"{e}; its log ends:\n{self.log.read_text()[-4000:]}") from e

    def import_image(self, cri: Cri, archive: Path | None = None, name: str = IMAGE) -> None:
        """That of the sandboxes, if no other is given."""
        words = ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", "images", "import"]
        archive = archive or self.folder / "pause.tar"
        subprocess.run([*words, "--snapshotter", self.snapshotter, str(archive)], check=True)
        wait_until(lambda: cri.has_image(name), f"image {name} in containerd's list", _START_TIMEOUT_S)

    def stop(self) -> None:
        """As a service manager does: pods go on without it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        finally:
            process.kill()
            process.wait()

    @property
    def log(self) -> Path:
        return self.folder / "containerd.log"

    def _is_ready(self, cri: Cri) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise TimeoutError(f"containerd ended with {self._process.returncode}")
        try:
            return not cri.not_ready()
        except CriError:  # "server is not initialized yet", while it takes stock of its pods
            return False


@contextlib.contextmanager
def running_containerd(containerd: Containerd) -> Iterator[Cri]:
    """With the pods' image in it. In the end no pod of it is left, whatever happened."""
    containerd.start()
    try:
        with cri_at(containerd.socket) as cri:
            containerd.import_image(cri)
            try:
                yield cri
            finally:
                for sandbox in cri.sandboxes():
                    with contextlib.suppress(CriError):
                        cri.stop(sandbox.id)
                        cri.remove(sandbox.id)
    finally:
        containerd.stop()
