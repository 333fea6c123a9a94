"""Adapter: devlink, for the eswitch mode and the health of PFs.

Sources: include/uapi/linux/devlink.h, genetlink.h (CTRL_CMD_GETFAMILY), include/net/devlink.h (enum
devlink_health_reporter_state), net/devlink/health.c. Written by hand like rtnetlink: with mlx5 every VF has a
handle and some five reporters, and a library took 110 us to read each of these messages.
"""

import errno
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from vf_manager.errors import KernelError
from vf_manager.kernel import attributes
from vf_manager.kernel.meter import Meter
from vf_manager.kernel.netlink import Netlink, NetlinkRefusal, open_socket
from vf_manager.model import PciAddress

_NETLINK_GENERIC = 16
_GENL = struct.Struct("=BBxx")  # struct genlmsghdr: command, version
_ID_CTRL, _GETFAMILY, _FAMILY_ID, _FAMILY_NAME = 0x10, 3, 1, 2
_GET, _ESWITCH_GET, _ESWITCH_SET, _HEALTH_REPORTER_GET = 1, 29, 30, 52  # enum devlink_command
_BUS_NAME, _DEV_NAME, _ESWITCH_MODE = 1, 2, 25  # enum devlink_attr
_HEALTH_REPORTER, _REPORTER_NAME, _REPORTER_STATE = 114, 115, 116
_MODES = {0: "legacy", 1: "switchdev"}
_NUMBER_OF = {mode: number for number, mode in _MODES.items()}
_HEALTHY = b"\0"


class Devlink:
    """A socket to the family; only for the thread that opened it."""

    def __init__(self, netlink: Netlink, family: int) -> None:
        self._netlink = netlink
        self._family = family

    def dump(self, command: int) -> list[attributes.Attributes]:
        """Empty where the kernel refuses."""
        try:
            answers = self._netlink.dump(self._family, _GENL.pack(command, 1))
        except NetlinkRefusal:
            return []
        return [attributes.read(answer, _GENL.size) for answer in answers]

    def get(self, command: int, pci: str) -> attributes.Attributes:
        """Of one device. Empty where the driver does not have it (EOPNOTSUPP), or the device is gone."""
        try:
            answer = self._netlink.get(self._family, _GENL.pack(command, 1) + _handle(pci))
        except NetlinkRefusal:
            return {}
        return attributes.read(answer, _GENL.size)

    def set(self, command: int, pci: str, what: bytes) -> None:
        """Of one device. Raises NetlinkRefusal."""
        self._netlink.change(self._family, _GENL.pack(command, 1) + _handle(pci) + what)


@contextmanager
def opened(meter: Meter, family: str = "devlink") -> Iterator[Devlink | None]:
    """None where the kernel has no such family."""
    netlink = Netlink(open_socket(_NETLINK_GENERIC), meter)
    try:
        number = _family_number(netlink, family)
        yield Devlink(netlink, number) if number is not None else None
    finally:
        netlink.close()


def read_eswitch_modes(is_wanted: Callable[[str], bool], meter: Meter) -> dict[PciAddress, str]:
    """By PCI address, of those that are wanted: each is a question of its own. A driver without an eswitch is
    left out."""
    with opened(meter) as devlink:
        if devlink is None:
            return {}
        devices = (pci for handle in devlink.dump(_GET) if (pci := _pci_of(handle)) and is_wanted(pci))
        modes = {pci: eswitch_mode(devlink.get(_ESWITCH_GET, pci)) for pci in devices}
        return {pci: mode for pci, mode in modes.items() if mode is not None}


def set_eswitch_mode(pf: PciAddress, mode: str, meter: Meter) -> None:
    """Raises KernelError: ENODEV where the driver has no devlink, EOPNOTSUPP where it has no eswitch or the
    kernel has no devlink."""
    operation = f"set eswitch mode {mode} on {pf}"
    with opened(meter) as devlink:
        if devlink is None:
            raise KernelError(operation, errno.EOPNOTSUPP, "this kernel has no devlink")
        try:
            devlink.set(_ESWITCH_SET, pf, attributes.pack(_ESWITCH_MODE, struct.pack("=H", _NUMBER_OF[mode])))
        except NetlinkRefusal as e:
            raise KernelError(operation, e.code) from e


def read_sick_reporters(meter: Meter) -> dict[PciAddress, tuple[str, ...]]:
    """By PCI address, in the order the kernel lists them."""
    with opened(meter) as devlink:
        return sick_reporters(devlink.dump(_HEALTH_REPORTER_GET)) if devlink else {}


def eswitch_mode(answer: attributes.Attributes) -> str | None:
    """Pure: of an answer to ESWITCH_GET."""
    return _MODES.get(attributes.u16(answer[_ESWITCH_MODE])) if _ESWITCH_MODE in answer else None


def sick_reporters(answers: Iterable[attributes.Attributes]) -> dict[PciAddress, tuple[str, ...]]:
    """Pure: the ones not healthy of answers to HEALTH_REPORTER_GET. That of a port counts for its device."""
    found: dict[PciAddress, tuple[str, ...]] = {}
    for answer in answers:
        pci = _pci_of(answer)
        reporter = attributes.read(answer.get(_HEALTH_REPORTER, b""))
        if pci is not None and reporter.get(_REPORTER_STATE, _HEALTHY) != _HEALTHY:
            found[pci] = (*found.get(pci, ()), attributes.text(reporter.get(_REPORTER_NAME, b"")))
    return found


def _family_number(netlink: Netlink, name: str) -> int | None:
    query = _GENL.pack(_GETFAMILY, 1) + attributes.pack_text(_FAMILY_NAME, name)
    try:
        answer = attributes.read(netlink.get(_ID_CTRL, query), _GENL.size)
    except NetlinkRefusal:  # ENOENT
        return None
    return attributes.u16(answer[_FAMILY_ID])


def _handle(pci: str) -> bytes:
    return attributes.pack_text(_BUS_NAME, "pci") + attributes.pack_text(_DEV_NAME, pci)


def _pci_of(answer: attributes.Attributes) -> PciAddress | None:
    if attributes.text(answer.get(_BUS_NAME, b"")) != "pci":
        return None
    return PciAddress(attributes.text(answer.get(_DEV_NAME, b"")))
