"""Adapter: the emulated machine: QEMU with igb NICs and a plain one on one wire, and byte channels into the
guest, on one of which the guest asks for faults of its NICs."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from hw_tests.rig.emulated import NICS
from hw_tests.rig.faults import FaultDesk
from hw_tests.rig.host import RigError, run, which
from hw_tests.rig.image import BaseImage
from hw_tests.rig.qmp import Qmp

# With 4 GiB the emulated PF never answers its VFs' mailbox.
_MEMORY = "2G"
_KERNEL_ARGUMENTS = (
    "console=ttyS0 loglevel=4 intel_iommu=on iommu=pt panic=-1 oops=panic "
    "random.trust_cpu=on mitigations=off audit=0 nokaslr no_timer_check"
)
CPUS = 2


class Channel:
    """A byte stream from the guest, read to its end by a thread of its own. `device`: what the guest has."""

    def __init__(self, name: str, consume: Callable[[bytes], object], device: str = "virtserialport") -> None:
        self.name = name
        self.device = device
        self._ours, self.theirs = socket.socketpair()
        self._consume = consume
        self._thread = threading.Thread(target=self._read, name=f"rig-{name}", daemon=True)

    def start(self) -> None:
        """QEMU holds its end now: with ours of it closed, the stream ends when QEMU does."""
        self.theirs.close()
        self._thread.start()

    def _read(self) -> None:
        with self._ours:
            while data := self._ours.recv(65536):
                self._consume(data)

    def send(self, data: bytes) -> None:
        """To the guest. Nobody hears it when QEMU is gone, which is no news to who reads here."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._ours.sendall(data)

    def finish(self) -> None:
        """Wait for the last byte; QEMU has to have ended."""
        self._thread.join()


class Machine:
    """A running QEMU; leaving the context ends it. Its disks are never written to."""

    def __init__(
        self, base: BaseImage, disks: list[Path], initramfs: Path, console: Path, channels: list[Channel]
    ) -> None:
        control, theirs = socket.socketpair()
        self._qmp = Qmp(control)
        self._channels = [*channels, _fault_channel(self._qmp)]
        command = _command_line(base, disks, initramfs, console, self._channels, theirs.fileno())
        fds = [theirs.fileno(), *(channel.theirs.fileno() for channel in self._channels)]
        # setpriv: QEMU goes with its launcher, however that goes. A session of its own: Ctrl-C is ours.
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=fds,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(console.parent)},
        )
        theirs.close()

    def __enter__(self) -> "Machine":
        for channel in self._channels:
            channel.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        for channel in self._channels:
            channel.finish()
        self._qmp.close()

    def wait(self, timeout_s: float) -> bool:
        """Whether the machine switched itself off within the time; ask as often as you like. QEMU's own
        complaint raises."""
        try:
            said, _ = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return False
        if self._process.returncode != 0:
            raise RigError(
                f"QEMU ended with code {self._process.returncode}:\n{said.decode(errors='replace')}"
            )
        return True


def _fault_channel(qmp: Qmp) -> Channel:
    desk = FaultDesk(qmp)
    channel = Channel("faults", lambda data: channel.send(desk.feed(data)))
    return channel


def require_igb() -> None:
    """Refuse a QEMU that has no emulated 82576."""
    if '"igb"' not in run(["qemu-system-x86_64", "-device", "help"]):
        version = run(["qemu-system-x86_64", "--version"]).splitlines()[0]
        raise RigError(
            f"{version} has no igb device (8.0 or newer has it); '.ci/host-setup rig' installs one that has"
        )


def _command_line(
    base: BaseImage, disks: list[Path], initramfs: Path, console: Path, channels: list[Channel], control: int
) -> list[str]:
    command = [which("qemu-system-x86_64") or "qemu-system-x86_64", "-nodefaults", "-no-user-config"]
    # rdrand: without it the first Python waits a second for the kernel's random numbers.
    command += ["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "qemu64,+rdrand"]
    command += ["-smp", str(CPUS), "-m", _MEMORY]
    command += ["-device", "intel-iommu", "-display", "none", "-no-reboot"]
    command += ["-kernel", str(base.kernel), "-initrd", str(initramfs), "-append", _KERNEL_ARGUMENTS]
    command += ["-chardev", f"file,id=console,path={_quoted(console)}", "-serial", "chardev:console"]
    command += ["-chardev", f"socket,id=control,fd={control}", "-mon", "chardev=control,mode=control"]
    for disk in disks:
        command += ["-drive", f"if=virtio,format=raw,snapshot=on,cache=unsafe,file={_quoted(disk)}"]
    command += ["-device", "virtio-serial-pci"]
    for channel in channels:
        command += ["-chardev", f"socket,id={channel.name},fd={channel.theirs.fileno()}"]
        command += ["-device", f"{channel.device},chardev={channel.name},name=rig.{channel.name}"]
    for nic in NICS:
        command += ["-device", _properties(nic.root_port)]
        command += ["-netdev", _properties(nic.netdev)]
        command += ["-device", _properties(nic.device)]
    # In the guest it stands for a VF whose PF is at a hypervisor: a NIC like any other.
    command += ["-netdev", "hubport,id=wire-plain,hubid=0"]
    command += ["-device", "e1000e,id=plain,netdev=wire-plain,romfile=,mac=52:54:00:10:d3:01"]
    return command


def _properties(of: Mapping[str, str]) -> str:
    """The first is what QEMU wants to hear by its value alone: a device's driver, a netdev's type."""
    (first, *others) = of.items()
    return ",".join([first[1], *(f"{name}={value}" for name, value in others)])


def _quoted(path: Path) -> str:
    """A comma ends a value on QEMU's command line unless it is doubled."""
    return str(path).replace(",", ",,")


def terminate_on_sigterm() -> None:
    """Make SIGTERM unwind like Ctrl-C does, so that everything is put away."""

    def unwind(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, unwind)
