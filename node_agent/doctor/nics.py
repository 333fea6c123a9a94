"""Pure: `sriovctl doctor`: PFs, their VFs and what the config asks of them."""

from collections import defaultdict
from collections.abc import Iterator

from node_agent.config import ConfigError, pf_policies
from node_agent.doctor.facts import Facts
from node_agent.doctor.rules import Finding, Rule, Severity
from vf_manager.errors import InvalidInput
from vf_manager.model import ZERO_MAC, Mac, Pf, Vf

_NO_SRIOV_CONFIGURE = "ENOENT"

SRIOV_OFF = Rule(
    id="sriov-off",
    severity=Severity.ERROR,
    cause="{name} is to have VFs (pool {pool}), and its device has no SR-IOV capability that can be used"
    " (sriov_totalvfs is absent or 0)",
    cure="switch SR-IOV on in the firmware of the machine and of the NIC (mlx5: `mstconfig -d {pci} set"
    " SRIOV_EN=1 NUM_OF_VFS=N`), and boot",
)
TOTAL_VFS_LOW = Rule(
    id="totalvfs-low",
    severity=Severity.ERROR,
    cause="the config asks for {count} VFs, and the device can have {total} (sriov_totalvfs)",
    cure="ask for at most {total} in `vfs.count`, or raise the number in the NIC's firmware and boot",
)
PF_NO_DRIVER = Rule(
    id="pf-no-driver",
    severity=Severity.ERROR,
    cause="no driver is bound to the PF, so nobody can make VFs on it",
    cure="load the module of the NIC; `lspci -k -s {pci}` names it",
)
DRIVER_WITHOUT_SRIOV = Rule(
    id="driver-without-sriov",
    severity=Severity.ERROR,
    cause="the driver of the PF, {driver}, makes no VFs: {error}",
    cure="bind the PF to a driver that does; one that came with the NIC's vendor may need a module option",
)
PF_DOWN = Rule(
    id="pf-down",
    severity=Severity.WARNING,
    cause="the PF is down, so its VFs have no wire",
    cure="`ip link set {name} up`, and for good in the host's network configuration; for a pool with `vfs`"
    " the agent does it",
)
PF_NO_CARRIER = Rule(
    id="pf-no-carrier",
    severity=Severity.WARNING,
    cause="the PF is up and has no carrier",
    cure="look at cable, module and switch port: `ethtool {name}`",
)
MTU_MISMATCH = Rule(
    id="mtu-mismatch",
    severity=Severity.WARNING,
    cause="the MTU of the VF is {vf_mtu}, that of its PF {pf_mtu}: longer frames may be dropped",
    cure="`ip link set {name} mtu {vf_mtu}`, or ask for less (`vfs.mtu` of the pool, `mtu` of the network)",
)
DUPLICATE_MAC = Rule(
    id="duplicate-mac",
    severity=Severity.ERROR,
    cause="several VFs have the MAC {mac}: {vfs}",
    cure="give each a MAC of its own: `vfs: {{mac: stable}}` in the pool does",
)
VF_NO_DRIVER = Rule(
    id="vf-no-driver",
    severity=Severity.ERROR,
    cause="no driver is bound to the VF",
    cure="load the module of the VF ({hint}), then `echo {pci} > /sys/bus/pci/drivers_probe`; is"
    " sriov_drivers_autoprobe of its PF 0, a pool with `vfs` binds it",
)
RULES = (
    SRIOV_OFF,
    TOTAL_VFS_LOW,
    PF_NO_DRIVER,
    DRIVER_WITHOUT_SRIOV,
    PF_DOWN,
    PF_NO_CARRIER,
    MTU_MISMATCH,
    DUPLICATE_MAC,
    VF_NO_DRIVER,
)


def find(facts: Facts) -> Iterator[Finding]:
    yield from _without_sriov(facts)
    yield from _too_few(facts)
    yield from _refused_by_driver(facts)
    for pf in facts.inventory.pfs:
        yield from _of_pf(pf)
        for vf in pf.vfs:
            yield from _of_vf(vf, pf, facts)
    yield from _duplicates(facts)


def _without_sriov(facts: Facts) -> Iterator[Finding]:
    """NICs that pools with `vfs` name, and that are no PFs."""
    nics = {
        name: function
        for function in facts.functions
        if function.physfn is None and function.total_vfs == 0
        for name in (function.pci, *function.netdev_names)
    }
    for pool in facts.config.pools_with_vfs() if facts.config else ():
        for rule in pool.pf_rules:
            if (function := nics.get(rule.name)) is not None:
                yield SRIOV_OFF.finding(rule.name, name=rule.name, pool=pool.name, pci=function.pci)


def _too_few(facts: Facts) -> Iterator[Finding]:
    if facts.config is None:
        return
    try:
        policies, _ = pf_policies(facts.config, facts.inventory)
    except (ConfigError, InvalidInput):  # `config-invalid` says it
        return
    for policy in policies:
        pf = facts.inventory.find_pf(policy.pf)
        if pf is not None and policy.count > pf.total_vfs:
            yield TOTAL_VFS_LOW.finding(pf.label, count=policy.count, total=pf.total_vfs)


def _refused_by_driver(facts: Facts) -> Iterator[Finding]:
    """drivers/pci/pci-sysfs.c sriov_numvfs_store: ENOENT of a driver without sriov_configure."""
    for failure in facts.status.provisioning.failed if facts.status else ():
        pf = facts.inventory.find_pf(failure.pf)
        refused = "sriov_numvfs" in failure.error and _NO_SRIOV_CONFIGURE in failure.error
        if pf is not None and pf.driver is not None and refused:
            yield DRIVER_WITHOUT_SRIOV.finding(pf.label, driver=pf.driver, error=failure.error)


def _of_pf(pf: Pf) -> Iterator[Finding]:
    if pf.driver is None:
        yield PF_NO_DRIVER.finding(pf.label, pci=pf.pci)
    if pf.netdev is None or not pf.vfs:
        return
    if not pf.netdev.up:
        yield PF_DOWN.finding(pf.label, name=pf.netdev.name)
    elif not pf.netdev.carrier:
        yield PF_NO_CARRIER.finding(pf.label, name=pf.netdev.name)


def _of_vf(vf: Vf, pf: Pf, facts: Facts) -> Iterator[Finding]:
    if vf.driver is None:
        yield VF_NO_DRIVER.finding(f"VF {vf.pci} of {pf.label}", pci=vf.pci, hint=f"{vf.vendor}:{vf.device}")
    netdev = vf.netdev or (facts.pods[vf.pci].netdev if vf.pci in facts.pods else None)
    if netdev is not None and pf.netdev is not None and netdev.mtu > pf.netdev.mtu:
        about = f"VF {vf.pci} of {pf.label}"
        yield MTU_MISMATCH.finding(about, vf_mtu=netdev.mtu, pf_mtu=pf.netdev.mtu, name=pf.netdev.name)


def _duplicates(facts: Facts) -> Iterator[Finding]:
    having: dict[Mac, list[str]] = defaultdict(list)
    for vf in facts.inventory.vfs():
        for mac in {_mac(vf, facts)} - {None, ZERO_MAC}:
            assert mac is not None
            having[mac].append(vf.pci)
    for mac, vfs in sorted(having.items()):
        if len(vfs) > 1:
            yield DUPLICATE_MAC.finding(mac, mac=mac, vfs=", ".join(vfs))


def _mac(vf: Vf, facts: Facts) -> Mac | None:
    if vf.pci in facts.pods:
        return facts.pods[vf.pci].netdev.mac
    if vf.netdev is not None:
        return vf.netdev.mac
    return vf.attributes.mac if vf.attributes else None
