"""What the documentation shows is what the parsers take, and the errors it shows are the errors one gets."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from device_plugin.established import parse_established
from node_agent.config import ConfigError, parse_config
from node_agent.pod_annotations import parse_choice
from sriov_cni.chain_conflist import parse_conflist
from sriov_cni.fields import Fields
from sriov_cni.limits import Limits, check_limits, refuse_beyond
from sriov_cni.netconf import parse_call
from sriov_cni.prev_result import parse_prev_result
from sriov_cni.spec import OWN_NAMES
from sriov_cni.vf_options import parse_vf_options
from tests.cni_world import PF0, World, conf_of, error_of
from vf_manager.errors import Refused
from vf_manager.model import parse_mac

PROJECT = Path(__file__).parent.parent
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
CNI, INSTALL = PROJECT / "docs" / "cni.md", PROJECT / "docs" / "install.md"
ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "4fa1",
    "CNI_NETNS": "/run/netns/a",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}
PART = {"cniVersion": "1.1.0", "name": "underlay", "type": "sriov-underlay", "deviceID": "0000:01:10.0"}

_BLOCK = re.compile(r"^```(json|yaml)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ROW = re.compile(r"^\| `(.+?)` \| (?:(\d+)|`(.+?)`) \| `(.+)` \|$", re.MULTILINE)
_CONFIG_ROW = re.compile(r"^\| `(\{pools: .+?)` \| `(.+)` \|$", re.MULTILINE)


def examples(kind: str) -> list[Any]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in _BLOCK.finditer(text):
            if match[1] == kind:
                line = text.count("\n", 0, match.start()) + 1
                found.append(pytest.param(match[2], id=f"{page.name}:{line}"))
    return found


def rows(number_of_cells: int) -> Iterator[tuple[str, str, str]]:
    """Of the tables of errors: what is written, the code or the limits, the message."""
    for written, code, limits, message in _ROW.findall(CNI.read_text()):
        if (number_of_cells == 3) == bool(code):
            yield written, code or limits, message


def test_there_are_examples() -> None:
    """The expressions above find what is there."""
    text = CNI.read_text()
    assert len(examples("json")) == sum(page.read_text().count("```json") for page in PAGES) >= 12
    assert len(examples("yaml")) == sum(page.read_text().count("```yaml") for page in PAGES) >= 5
    shown = [line for line in text.splitlines() if re.match(r"\| `(\{|CNI_\w+=)", line)]
    assert len(shown) == len([*rows(3), *rows(2), *_CONFIG_ROW.findall(text)]) >= 70


@pytest.mark.parametrize("text", examples("json"))
def test_json(text: str) -> None:
    check_json(text)


def check_json(text: str) -> None:
    value = json.loads(text)
    if "plugins" in value:
        check_conflist(text)
    elif "resourceList" in value:
        parse_established(text)
    elif "interfaces" in value:
        result = parse_prev_result(Fields(value, "prevResult"))
        parse_mac(result.interfaces[0].mac)
    elif "cdiVersion" in value or value.get("type") == "pci" or "0000:3b:02.0" in value:
        pass  # tests/test_allocation_docs.py makes the same
    else:
        command = "GC" if "cni.dev/valid-attachments" in value else "ADD"
        config = value if "cniVersion" in value else PART | value
        call = parse_call(ENV | {"CNI_COMMAND": command}, json.dumps(config).encode())
        assert command == "ADD" or call.conf.valid_attachments


def check_conflist(text: str) -> None:
    """Ours as a runtime reads it; any other as the `fallback` that it is."""
    value = json.loads(text)
    if not any(plugin["type"] in OWN_NAMES for plugin in value["plugins"]):
        parse_conflist(text.encode())
        return
    for plugin in value["plugins"]:
        config = {"cniVersion": value["cniVersion"], "name": value["name"]} | plugin
        parse_call(ENV, json.dumps(config).encode())


@pytest.mark.parametrize("text", examples("yaml"))
def test_yaml(text: str) -> None:
    for document in yaml.safe_load_all(text):
        match document.get("kind"):
            case None:
                parse_config(text)
            case "NetworkAttachmentDefinition":
                check_json(document["spec"]["config"])
            case kind:
                assert kind == "Pod"
                check_pod(document)


def check_pod(pod: dict[str, Any]) -> None:
    for container in pod["spec"]["containers"]:
        assert [name for name in container["resources"]["limits"] if name.startswith("sriov-underlay.io/")]
    chosen = pod["metadata"].get("annotations", {}).get("sriov-underlay.io/networks", "")
    assert all(parse_choice(chosen).values())


IN_A_CLUSTER = ("install.yaml", "uninstall.yaml")  # tests/test_manifests.py
ON_A_NODE = [path for path in sorted((PROJECT / "manifests").iterdir()) if path.is_file()]


@pytest.mark.parametrize(
    "path", [path for path in ON_A_NODE if path.name not in IN_A_CLUSTER], ids=lambda path: path.name
)
def test_manifests(path: Path) -> None:
    match path.suffix:
        case ".yaml":
            parse_config(path.read_text())
        case ".conflist":
            check_conflist(path.read_text())
        case suffix:
            # tests/test_units.py, tests/test_config_reference.py
            assert suffix in (".service", ".rules", ".network", ".json")


@pytest.mark.parametrize(("written", "code", "message"), list(rows(3)))
def test_errors_of_a_call(tmp_path: Path, written: str, code: str, message: str) -> None:
    assert answer_to(tmp_path, written) == (int(code), message)


def answer_to(folder: Path, written: str) -> tuple[int, str]:
    """Of an ADD with this in its config, or with this variable."""
    world = World(folder)
    pod = world.new_pod("a")
    conf = conf_of(world.vfs(PF0)[0])
    before = world.state()
    if written.startswith("CNI_"):
        key, _, value = written.partition("=")
        answer = error_of(world.call("ADD", "4fa1", pod, conf, **{key: value}))
    else:
        answer = error_of(world.call("ADD", "4fa1", pod, conf | json.loads(written)))
    assert world.state() == before
    return answer


@pytest.mark.parametrize(("asked", "limits", "message"), list(rows(2)))
def test_errors_of_limits(asked: str, limits: str, message: str) -> None:
    assert beyond(asked, limits) == message


def beyond(asked: str, limits: str) -> str:
    values = json.loads(asked)
    mac = parse_mac(values.pop("mac")) if "mac" in values else None
    parsed = msgspec.convert(yaml.safe_load(limits), Limits)
    check_limits(parsed, "limits")
    with pytest.raises(Refused) as caught:
        refuse_beyond(parsed, parse_vf_options(Fields(values), mac), "fast")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [row for page in (CNI, INSTALL) for row in _CONFIG_ROW.findall(page.read_text())]
)
def test_errors_of_the_agents_config(text: str, message: str) -> None:
    assert mistake(text) == message


def mistake(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    return str(caught.value)
