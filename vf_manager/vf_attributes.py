"""Orchestrator: sets and restores the attributes and the MAC of one VF through its PF.

Read, compare, write what differs: both directions may be repeated after a crash at any point.
"""

import errno
import time

import msgspec

from vf_manager.discovery import host_link, pf_link
from vf_manager.errors import KernelError, NotFound, Refused
from vf_manager.kernel.api import Kernel, LinkChange, LinkInfo, Links
from vf_manager.model import U32, ZERO_MAC, Mac, PciAddress, VfAttributes, VfChange
from vf_manager.quirks import quirk_of

# The order in which rtnetlink.c do_setvfinfo takes the attributes of a message; it stops at the first error.
_KERNEL_ORDER = (
    "mac",
    "vlan",
    "qos",
    "proto",
    "min_tx_rate",
    "max_tx_rate",
    "spoofchk",
    "link_state",
    "trust",
)
_MAC_DEADLINE_S = 2.0  # iavf and others take over a MAC after a reset of the VF
_MAC_RETRIED = (errno.EADDRNOTAVAIL, errno.EAGAIN, errno.EBUSY, errno.EPERM)


class VfPort(msgspec.Struct, frozen=True, kw_only=True):
    """Where a VF is reached: its own address, and its index at its PF. `pf` None: it has none on this node,
    and so no attributes but those of its own interface."""

    pci: PciAddress
    pf: PciAddress | None = None
    index: U32 = 0


def set_vf_attributes(kernel: Kernel, host: Links, port: VfPort, wanted: VfChange) -> None:
    """Program what differs from `wanted`, in one message. Raises KernelError naming the attribute refused."""
    pf = pf_link(kernel, host, _pf_of(port), with_vfs=True)
    change = difference(pf.vfs.get(port.index, VfAttributes()), wanted)
    if not change.is_empty():
        _write(kernel, host, port, pf, change)


def restore_vf_attributes(kernel: Kernel, host: Links, port: VfPort, original: VfChange) -> None:
    """Give the attributes named in `original` back these values, one by one where the driver refuses the
    whole: what can be restored is. Raises the first KernelError at the end. A PF that is gone took its VFs
    with it: nothing is left to restore."""
    now = _attributes(kernel, host, port)
    if now is None:
        return
    failures = []
    for part in split_change(difference(now, original)):
        try:
            set_vf_attributes(kernel, host, port, part)
        except KernelError as e:
            failures.append(e)
    if failures:
        raise failures[0]


def set_vf_mac(kernel: Kernel, host: Links, pci: PciAddress, mac: Mac) -> None:
    """Set the MAC of the VF's own interface and see that it took. The interface is in the host's namespace;
    a VF without one (vfio-pci) has no MAC of its own to set."""
    deadline = time.monotonic() + _MAC_DEADLINE_S
    while (netdev := host_link(kernel, host, pci)) and netdev.mac != mac:
        try:
            host.set_link(netdev.ifindex, LinkChange(mac=mac))
        except KernelError as e:
            if e.code not in _MAC_RETRIED or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def assign_mac(kernel: Kernel, host: Links, port: VfPort, mac: Mac) -> None:
    """Give the VF this MAC, on its own interface and as the administrative one.

    Where the PF mirrors the VF's MAC, the VF first: igb answers an untrusted VF with a NACK whatever MAC it
    sends, the same one even, while an administrative one stands (igb_set_vf_mac_addr). What the PF shows
    then looks as if it were set; only the write sets it.
    """
    if _mirrors(kernel, port):
        pf = pf_link(kernel, host, _pf_of(port))
        _write(kernel, host, port, pf, VfChange(mac=ZERO_MAC))
        set_vf_mac(kernel, host, port.pci, mac)
        _write(kernel, host, port, pf, VfChange(mac=mac))
    else:
        set_vf_attributes(kernel, host, port, VfChange(mac=mac))
        set_vf_mac(kernel, host, port.pci, mac)


def restore_macs(kernel: Kernel, host: Links, port: VfPort, administrative: Mac, own: Mac | None) -> None:
    """Give the VF its administrative MAC and the MAC of its interface back (`own`; None: it had none).

    The administrative one first, since a driver may refuse a VF any other MAC while it stands; and once more
    at the end, since a driver may change it with the VF's own.
    """
    now = _attributes(kernel, host, port)
    if now is None:
        return
    # Where the PF mirrors the VF's MAC, equal values do not tell whether one is set: write zeros anyway.
    mirrored = _mirrors(kernel, port) and own is not None
    if mirrored:
        _write(kernel, host, port, pf_link(kernel, host, _pf_of(port)), VfChange(mac=ZERO_MAC))
    else:
        set_vf_attributes(kernel, host, port, VfChange(mac=administrative))
    if own is not None:
        if mirrored:  # the driver hears of a MAC only when it changes (net/core/dev.c dev_set_mac_address)
            set_vf_mac(kernel, host, port.pci, _stand_in(own))
        set_vf_mac(kernel, host, port.pci, own)
    set_vf_attributes(kernel, host, port, VfChange(mac=administrative))


def _stand_in(mac: Mac) -> Mac:
    """Another MAC for a moment; far off, since VFs side by side often differ in the last octet alone."""
    return Mac(f"{int(mac[:2], 16) ^ 0x40:02x}{mac[2:]}")


def difference(now: VfAttributes, wanted: VfChange) -> VfChange:
    """What of `wanted` is not so yet. VLAN and rates are whole: all their parts, or none. The rate that is
    not asked for keeps its present value (the kernel takes both in one attribute)."""
    change = {key: value for key, value in wanted.items() if getattr(now, key) != value}
    if change.keys() & {"vlan", "qos", "proto"}:
        change |= {key: getattr(wanted, key) for key in ("vlan", "qos", "proto")}
    if change.keys() & {"min_tx_rate", "max_tx_rate"}:
        for key in ("min_tx_rate", "max_tx_rate"):
            asked = getattr(wanted, key)
            change[key] = asked if asked is not None else (getattr(now, key) or 0)
    return VfChange(**change)


def original_of(now: VfAttributes, asked: VfChange) -> VfChange:
    """The present values of what `asked` will change: what to restore later. Attributes that the driver
    does not report cannot be restored to a value; they are left out."""
    keys = {key for key, _ in asked.items()}
    if "vlan" in keys:
        keys |= {"qos", "proto"}
    if keys & {"min_tx_rate", "max_tx_rate"}:
        keys |= {"min_tx_rate", "max_tx_rate"}
    return VfChange(**{key: getattr(now, key) for key in keys})


def split_change(change: VfChange) -> list[VfChange]:
    """One change per kernel attribute."""
    groups = (
        ("mac",),
        ("vlan", "qos", "proto"),
        ("min_tx_rate", "max_tx_rate"),
        ("spoofchk",),
        ("link_state",),
    )
    parts = [VfChange(**{key: getattr(change, key) for key in group}) for group in (*groups, ("trust",))]
    return [part for part in parts if not part.is_empty()]


def _attributes(kernel: Kernel, host: Links, port: VfPort) -> VfAttributes | None:
    """What the PF holds about the VF, or None if there is no such VF (any more)."""
    function = kernel.read_function(port.pci)
    if function is None or function.physfn != port.pf:
        return None
    try:
        return pf_link(kernel, host, _pf_of(port), with_vfs=True).vfs.get(port.index)
    except NotFound:
        return None


def _write(kernel: Kernel, host: Links, port: VfPort, pf: LinkInfo, change: VfChange) -> None:
    try:
        host.set_vf(pf.netdev.ifindex, port.index, change)
    except KernelError as e:
        after = host.read(ifindex=pf.netdev.ifindex, with_vfs=True)
        now = after.vfs.get(port.index) if after else None
        raise _refusal(kernel, port, pf, change, now, e) from e


def _refusal(
    kernel: Kernel, port: VfPort, pf: LinkInfo, change: VfChange, now: VfAttributes | None, error: KernelError
) -> KernelError:
    """The kernel does not say which attribute of the message it refused: the first that did not take."""
    asked = dict(change.items())
    refused = [k for k in _KERNEL_ORDER if k in asked and (now is None or getattr(now, k) != asked[k])]
    key = refused[0] if refused else next(iter(asked))
    driver = _pf_driver(kernel, port)
    hint = f"the driver {driver} does not support it" if key in quirk_of(driver).unsupported else ""
    if key == "max_tx_rate" and quirk_of(driver).rates_need_link and not pf.netdev.carrier:
        hint = f"the driver {driver} sets rates only while the PF's link is up, and that is down"
    what = f"set {key} {_word(asked[key])} on vf {port.index} of {pf.netdev.name} ({port.pci})"
    return KernelError(what, error.code, hint)


def _word(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _mirrors(kernel: Kernel, port: VfPort) -> bool:
    return quirk_of(_pf_driver(kernel, port)).mirrors_vf_mac


def _pf_driver(kernel: Kernel, port: VfPort) -> str | None:
    function = kernel.read_function(_pf_of(port))
    return function.driver if function else None


def _pf_of(port: VfPort) -> PciAddress:
    if port.pf is None:
        raise Refused(f"VF {port.pci} has no PF on this node: its attributes are out of reach")
    return port.pf
