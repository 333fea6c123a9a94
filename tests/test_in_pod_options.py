"""The keys of a network for services and policy in the pod."""

import json
from typing import Any

import pytest

from node_agent.config import ConfigError, parse_config
from sriov_cni.fields import Fields
from sriov_cni.in_pod.options import InPod, Unsynced, parse_in_pod
from vf_manager.errors import InvalidInput


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"services": "in-pod"}, InPod(services=True, wait_s=5, unsynced=Unsynced.FAIL)),
        (
            {"policy": "in-pod", "syncTimeout": 0, "unsynced": "open"},
            InPod(policy=True, wait_s=0, unsynced=Unsynced.OPEN),
        ),
        (
            {"services": "in-pod", "policy": "in-pod", "unsynced": "start"},
            InPod(services=True, policy=True, unsynced=Unsynced.START),
        ),
    ],
)
def test_what_is_asked(keys: dict[str, Any], expected: InPod | None) -> None:
    assert parse_in_pod(Fields(keys)) == expected


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"services": "on"}, "services: 'on' is not valid; expected one of in-pod"),
        ({"policy": True}, "policy: True is not valid; expected a string"),
        ({"syncTimeout": 3}, "syncTimeout: 3 is not valid; expected services or policy: in-pod beside it"),
        (
            {"unsynced": "fail"},
            "unsynced: 'fail' is not valid; expected services or policy: in-pod beside it",
        ),
        ({"services": "in-pod", "unsynced": "open"}, "expected policy: in-pod beside it, or start"),
        (
            {"services": "in-pod", "syncTimeout": 31},
            "syncTimeout: 31 is not valid; expected an integer from 0 to 30",
        ),
    ],
)
def test_what_is_wrong(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_in_pod(Fields(keys))
    assert words in str(caught.value)


def test_the_agents_config_needs_a_way_to_the_api_server() -> None:
    network = {"name": "blue", "pools": ["fast"], "policy": "in-pod"}
    config = {"pools": [{"name": "fast", "select": {}}], "networks": [network]}
    with pytest.raises(
        ConfigError, match=r"networks\[0\]\.policy: 'in-pod' is not valid; expected the key kubernetes"
    ):
        parse_config(json.dumps(config))
    parse_config(json.dumps(config | {"kubernetes": {}}))
