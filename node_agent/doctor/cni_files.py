"""Pure: `sriovctl doctor`: what a container runtime finds: the executable, network configurations."""

from collections.abc import Iterator

from node_agent.doctor.facts import CniFiles, Facts
from node_agent.doctor.rules import Finding, Rule, Severity
from sriov_cni.spec import OWN_NAMES, SUPPORTED_VERSIONS

_MULTUS = ("multus", "multus-shim")

CONF_DIR_MISSING = Rule(
    id="cni-conf-dir-missing",
    severity=Severity.ERROR,
    cause="there is no directory {path}, where container runtimes look for network configurations",
    cure="does the runtime look elsewhere, and its own file does not say so? Name it with --cni-conf-dir;"
    " else install the runtime",
)
BIN_DIR_MISSING = Rule(
    id="cni-bin-dir-missing",
    severity=Severity.ERROR,
    cause="there is no directory {path}, where container runtimes look for CNI plugins",
    cure="does the runtime look elsewhere, and its own file does not say so? Name it with --cni-bin-dir; else"
    " install the plugins that it needs",
)
NOT_CALLED = Rule(
    id="cni-not-called",
    severity=Severity.WARNING,
    cause="no network configuration in {path} calls sriov-underlay or Multus: pods come up without their VFs",
    cure="put 00-sriov-underlay.conflist there, or install Multus; the agent's pod does it once it is ready",
)
OTHER_FIRST = Rule(
    id="cni-other-first",
    severity=Severity.WARNING,
    cause="{ours} calls sriov-underlay, and {first} sorts before it: runtimes take the first for every pod",
    cure="rename the file so that it sorts first, or use Multus, or let `fallback` name the other one",
)
EXECUTABLE_MISSING = Rule(
    id="executable-missing",
    severity=Severity.ERROR,
    cause="there is no {path}: no pod can be attached",
    cure="`make install-cni`, with `CNI_BIN=` that folder if it is not /opt/cni/bin; or restart the agent's"
    " pod, which installs it",
)
EXECUTABLE_BROKEN = Rule(
    id="executable-broken",
    severity=Severity.ERROR,
    cause="{path} does not answer VERSION: {why}",
    cure="install it anew; is it of another architecture, or on a file system without exec?",
)
EXECUTABLE_OLD = Rule(
    id="executable-old",
    severity=Severity.WARNING,
    cause="{path} is not of this release: {why}",
    cure="install the one of this release: `make install-cni`, or restart the agent's pod",
)
FALLBACK_UNREADABLE = Rule(
    id="fallback-unreadable",
    severity=Severity.ERROR,
    cause="`fallback` of the config cannot be used, so pods without a VF get no network: {why}",
    cure="name a network configuration list that is there",
)
FALLBACK_PLUGIN_MISSING = Rule(
    id="fallback-plugin-missing",
    severity=Severity.ERROR,
    cause="{path} calls the plugin {plugin}, and {bin_dir} has none of that name",
    cure="install it (Debian: containernetworking-plugins), or take it out of the list",
)
RULES = (
    CONF_DIR_MISSING,
    BIN_DIR_MISSING,
    NOT_CALLED,
    OTHER_FIRST,
    EXECUTABLE_MISSING,
    EXECUTABLE_BROKEN,
    EXECUTABLE_OLD,
    FALLBACK_UNREADABLE,
    FALLBACK_PLUGIN_MISSING,
)


def find(facts: Facts) -> Iterator[Finding]:
    cni = facts.cni
    if cni.has_conf_dir:
        yield from _order(cni)
    elif not cni.is_image:
        yield CONF_DIR_MISSING.finding(cni.conf_dir, path=cni.conf_dir)
    if cni.has_bin_dir:
        yield from _executable(cni)
        yield from _fallback_plugins(cni)
    else:
        yield BIN_DIR_MISSING.finding(cni.bin_dir, path=cni.bin_dir)
    if cni.fallback_error:
        yield FALLBACK_UNREADABLE.finding(str(cni.fallback), why=cni.fallback_error)


def _order(cni: CniFiles) -> Iterator[Finding]:
    ours = next((name for name, types in cni.configs if set(types) & set(OWN_NAMES)), None)
    if ours is None:  # a secondary network by Multus needs no file here
        if not any(set(types) & set(_MULTUS) for _, types in cni.configs):
            yield NOT_CALLED.finding(cni.conf_dir, path=cni.conf_dir)
        return
    first, types = cni.configs[0]
    if first != ours and not set(types) & set(_MULTUS):
        yield OTHER_FIRST.finding(f"{cni.conf_dir}/{first}", ours=ours, first=first)


def _executable(cni: CniFiles) -> Iterator[Finding]:
    path = f"{cni.bin_dir}/{OWN_NAMES[0]}"
    match cni.version_answer:
        case None:
            yield EXECUTABLE_MISSING.finding(path, path=path)
        case str() as why:
            yield EXECUTABLE_BROKEN.finding(path, path=path, why=why)
        case answer:
            theirs = [str(version) for version in answer.get("supportedVersions", ())]
            if theirs != list(SUPPORTED_VERSIONS):
                words = ", ".join(theirs) or "nothing"
                why = f"it serves CNI {words}, and the agent {', '.join(SUPPORTED_VERSIONS)}"
                yield EXECUTABLE_OLD.finding(path, path=path, why=why)
            elif cni.is_shipped is False:
                yield EXECUTABLE_OLD.finding(path, path=path, why="it is another than the agent came with")


def _fallback_plugins(cni: CniFiles) -> Iterator[Finding]:
    for plugin in dict.fromkeys(cni.fallback_types):
        if plugin not in cni.plugins:
            about = str(cni.fallback)
            yield FALLBACK_PLUGIN_MISSING.finding(about, path=about, plugin=plugin, bin_dir=cni.bin_dir)
