"""Pure: `sriovctl doctor`: the agent, its config and folder, and the kubelet."""

from collections.abc import Iterator

from node_agent.doctor.facts import Facts
from node_agent.doctor.rules import Finding, Rule, Severity

AGENT_SILENT = Rule(
    id="agent-silent",
    severity=Severity.ERROR,
    cause="the agent does not answer: {why}",
    cure="`systemctl status sriov-agent`, or the logs of its pod on this node",
)
AGENT_NOT_READY = Rule(
    id="agent-not-ready",
    severity=Severity.WARNING,
    cause="no pod could be given a VF now: {why}",
    cure="mend what it says; `sriovctl status` shows each VF that is Unhealthy, and what waits",
)
CONFIG_INVALID = Rule(
    id="config-invalid",
    severity=Severity.ERROR,
    cause="the config cannot be used: {why}",
    cure="`sriovctl validate` tells every mistake in it",
)
CONFIG_REFUSED = Rule(
    id="config-refused",
    severity=Severity.ERROR,
    cause="the agent goes on with the config before, since it refused the new one: {why}",
    cure="mend the file; it is looked at again by itself",
)
PROVISIONING_STUCK = Rule(
    id="provisioning-stuck",
    severity=Severity.ERROR,
    cause="the VFs are not made as the config asks: {why}",
    cure="mend what it says; `sriovctl plan` shows what would be done",
)
PROVISIONING_PENDING = Rule(
    id="provisioning-pending",
    severity=Severity.NOTE,
    cause="a change waits until VFs are free: {why}",
    cure="it goes through by itself once these pods are gone",
)
KUBELET_MISSING = Rule(
    id="kubelet-socket-missing",
    severity=Severity.ERROR,
    cause="there is no {path}: no pool can be registered",
    cure="does the kubelet run, and is its folder this one? Else name it by --kubelet-dir, also to the agent",
)
POD_RESOURCES_MISSING = Rule(
    id="pod-resources-missing",
    severity=Severity.WARNING,
    cause="there is no {path}: which VF a pod was given can be asked of nobody",
    cure="does the kubelet run (1.20 or later)? In a pod, mount its folder pod-resources",
)
POOL_NOT_REGISTERED = Rule(
    id="pool-not-registered",
    severity=Severity.ERROR,
    cause="the kubelet does not have {resource}, so no pod can request it: {why}",
    cure="does the kubelet run? The agent registers anew by itself; its log and the kubelet's say more",
)
RUN_DIR_OPEN = Rule(
    id="run-dir-open",
    severity=Severity.ERROR,
    cause="others than root may write to the agent's folder (mode {mode})",
    cure="`chmod go-w {path}`, and find out who changed it: what is there is acted upon as root",
)
SOCKET_OPEN = Rule(
    id="socket-open",
    severity=Severity.WARNING,
    cause="others than root may connect to {path} (mode {mode}). The agent answers root alone, but who may"
    " connect can keep it busy",
    cure="`chmod 600 {path}`, and find out who changed it: the agent makes it so",
)
FOLDER_UNWRITABLE = Rule(
    id="folder-not-writable",
    severity=Severity.ERROR,
    cause="nothing can be written to {path}, where the agent has to: {why}",
    cure="make room, or mount it writable; `findmnt -T {path}` and `df -i {path}` show how it is",
)
RECORDS_UNREADABLE = Rule(
    id="records-unreadable",
    severity=Severity.ERROR,
    cause="what the agent keeps cannot be read: {why}",
    cure="run doctor as root; a record that is damaged is to be moved away once its VF is in order",
)
RULES = (
    AGENT_SILENT,
    AGENT_NOT_READY,
    CONFIG_INVALID,
    CONFIG_REFUSED,
    PROVISIONING_STUCK,
    PROVISIONING_PENDING,
    KUBELET_MISSING,
    POD_RESOURCES_MISSING,
    POOL_NOT_REGISTERED,
    RUN_DIR_OPEN,
    SOCKET_OPEN,
    FOLDER_UNWRITABLE,
    RECORDS_UNREADABLE,
)


def find(facts: Facts) -> Iterator[Finding]:
    if facts.answer.silent:
        yield AGENT_SILENT.finding("agent", why=facts.answer.silent)
    if facts.answer.not_ready:
        yield AGENT_NOT_READY.finding("agent", why=facts.answer.not_ready)
    if facts.config_error:
        yield CONFIG_INVALID.finding(facts.config_path, why=facts.config_error)
    yield from _by_the_agent(facts)
    registration, resources = (
        f"{facts.kubelet_dir}/{name}"
        for name in ("device-plugins/kubelet.sock", "pod-resources/kubelet.sock")
    )
    if not facts.has_registration:
        yield KUBELET_MISSING.finding("kubelet", path=registration)
    else:
        yield from _unregistered(facts)
    if not facts.has_pod_resources:
        yield POD_RESOURCES_MISSING.finding("kubelet", path=resources)
    yield from _permissions(facts)


def _unregistered(facts: Facts) -> Iterator[Finding]:
    for pool in facts.status.pools if facts.status else ():
        if not pool.registered:
            why = pool.reason or "it has not been asked yet"
            yield POOL_NOT_REGISTERED.finding(f"pool {pool.name}", resource=pool.resource, why=why)


def _permissions(facts: Facts) -> Iterator[Finding]:
    """That others may read the folder itself is as the kubelet makes one (`DirectoryOrCreate`): what is in it
    is root's."""
    if facts.run_dir_mode & 0o022:
        yield RUN_DIR_OPEN.finding(facts.run_dir, mode=f"{facts.run_dir_mode:o}", path=facts.run_dir)
    if facts.socket_mode & 0o077:
        yield SOCKET_OPEN.finding(facts.socket, mode=f"{facts.socket_mode:o}", path=facts.socket)
    for folder, why in facts.unwritable.items():
        yield FOLDER_UNWRITABLE.finding(folder, path=folder, why=why)
    if facts.records_error:
        yield RECORDS_UNREADABLE.finding(facts.run_dir, why=facts.records_error)


def _by_the_agent(facts: Facts) -> Iterator[Finding]:
    if facts.status is None:
        return
    if facts.status.config_refused:
        yield CONFIG_REFUSED.finding(facts.config_path, why=facts.status.config_refused)
    work = facts.status.provisioning
    stuck = [(r.pf, r.reason) for r in work.refused] + [(f.pf, f.error) for f in work.failed]
    yield from (PROVISIONING_STUCK.finding(pf, why=why) for pf, why in stuck)
    if work.trouble:
        yield PROVISIONING_STUCK.finding("agent", why=work.trouble)
    yield from (PROVISIONING_PENDING.finding(refusal.pf, why=refusal.reason) for refusal in work.pending)
