"""A real Prometheus scrapes an agent, and answers every question of the alert rules and the dashboard."""

import contextlib
import http.client
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from tests.agent_node import DEADLINE_S, eventually
from tests.monitored_node import Monitored, monitored_node

PROJECT = Path(__file__).parent.parent.parent
ALERTS = PROJECT / "manifests" / "monitoring" / "alerts.yaml"
DASHBOARD = PROJECT / "manifests" / "monitoring" / "dashboard.json"
SCRAPE = PROJECT / "manifests" / "monitoring" / "scrape.yaml"
RULE_TESTS = Path(__file__).parent / "alerts_test.yaml"
DOCS = PROJECT / "docs" / "observability.md"
PROGRAMS = Path(os.environ.get("SRIOV_CACHE_DIR", PROJECT / ".cache")) / "prometheus" / "usr" / "bin"
_LISTENING = re.compile(r"msg=\"?Listening on\"? address=127\.0\.0\.1:(\d+)")


class Prometheus:
    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=DEADLINE_S)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = json.loads(connection.getresponse().read())
        assert answer["status"] == "success", answer
        return answer["data"]

    def ask(self, query: str) -> list[str]:
        """The values now; none of those that are no number."""
        found = self.get(f"/api/v1/query?query={quote(query)}")["result"]
        return [value for one in found if (value := one["value"][1]) != "NaN"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Monitored, Prometheus]]:
    with monitored_node() as monitored, prometheus(monitored, tmp_path_factory.mktemp("tsdb")) as server:
        yield monitored, server


@contextlib.contextmanager
def prometheus(monitored: Monitored, folder: Path) -> Iterator[Prometheus]:
    """With the job that the documentation shows, only faster."""
    (job,) = re.findall(r"^```text\n(scrape_configs:.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    http_endpoint = monitored.running.agent.http
    assert http_endpoint is not None
    config = yaml.safe_load(job.replace("127.0.0.1:9808", str(http_endpoint.address)))
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(ALERTS)]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        str(PROGRAMS / "prometheus"),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        "--web.listen-address=127.0.0.1:0",
    ]
    log = folder / "log"
    with log.open("w") as stderr, subprocess.Popen(command, stderr=stderr, cwd=folder) as process:
        try:
            eventually(lambda: _LISTENING.search(log.read_text()), "Prometheus listens")
            found = _LISTENING.search(log.read_text())
            assert found is not None
            yield Prometheus(int(found[1]))
        finally:
            process.terminate()


def dashboard_queries() -> list[Any]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]
    return [pytest.param(expr, id=f"{title} {number}") for number, (title, expr) in enumerate(queries)]


@pytest.mark.parametrize("expr", dashboard_queries())
def test_every_panel_has_data(scene: tuple[Monitored, Prometheus], expr: str) -> None:
    """While pods come and go, each gets numbers."""
    monitored, server = scene
    query = expr.replace("$node", ".*").replace("$__rate_interval", "20s")

    def answered() -> list[str]:
        monitored.churn()
        return server.ask(query)

    eventually(answered, f"an answer to {query}")


def test_every_metric_of_a_rule_is_there(scene: tuple[Monitored, Prometheus]) -> None:
    _, server = scene
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    names = {name for rule in rules for name in re.findall(r"\bsriov_underlay_\w+", rule["expr"])}
    assert len(names) >= 12
    eventually(lambda: all(server.ask(name) for name in names), f"all of {names} are there")
    eventually(
        lambda: server.ask('up{job="sriov-underlay"} == 1'), "the job has the name that the rules expect"
    )


def test_every_rule_is_evaluated(scene: tuple[Monitored, Prometheus]) -> None:
    """And those whose trouble this node has are on their way."""
    _, server = scene

    def rules() -> dict[str, tuple[str, str]]:
        groups = server.get("/api/v1/rules")["groups"]
        return {rule["name"]: (rule["health"], rule["state"]) for group in groups for rule in group["rules"]}

    eventually(lambda: all(health == "ok" for health, _ in rules().values()), "every rule was evaluated")
    troubles = ("SriovVfsUnhealthy", "SriovPoolWithoutHealthyVf", "SriovProvisioningFails")
    eventually(lambda: {rules()[name][1] for name in troubles} == {"pending"}, "they are pending")
    assert rules()["SriovNotRegistered"][1] == rules()["SriovConfigRefused"][1] == "inactive"


def test_the_job_for_a_cluster_takes_agents_alone_and_names_their_nodes(tmp_path: Path) -> None:
    """By the labels that Kubernetes' pods come with; Debian's Prometheus does not discover those itself."""
    (job,) = yaml.safe_load(SCRAPE.read_text())["scrape_configs"]
    assert job.pop("kubernetes_sd_configs")[0]["role"] == "pod"
    pods = [("sriov-underlay", "metrics"), ("sriov-underlay", ""), ("other", "metrics")]
    job["static_configs"] = [
        {
            "targets": [f"192.0.2.{number}:9808"],
            "labels": {
                "__meta_kubernetes_pod_label_app_kubernetes_io_name": name,
                "__meta_kubernetes_pod_container_port_name": port,
                "__meta_kubernetes_pod_node_name": f"n{number}",
            },
        }
        for number, (name, port) in enumerate(pods)
    ]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
    command = [
        PROGRAMS / "promtool",
        "check",
        "service-discovery",
        "--timeout=1s",
        tmp_path / "prometheus.yml",
        job["job_name"],
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kept = [found["labels"] for found in json.loads(done.stdout) if found["labels"]]
    assert [(labels["job"], labels["instance"]) for labels in kept] == [("sriov-underlay", "n0")]


@pytest.mark.parametrize("arguments", [f"check rules {ALERTS}", f"test rules {RULE_TESTS}"])
def test_the_rules_are_right_and_fire_when_they_should(arguments: str) -> None:
    done = subprocess.run([PROGRAMS / "promtool", *arguments.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_test_and_a_line_in_the_documentation() -> None:
    rules = {
        rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
    }
    tests = yaml.safe_load(RULE_TESTS.read_text())["tests"]
    fired = {
        rule["alertname"] for test in tests for rule in test["alert_rule_test"] if rule.get("exp_alerts")
    }
    calm = {
        rule["alertname"] for test in tests for rule in test["alert_rule_test"] if not rule.get("exp_alerts")
    }
    assert rules == fired == calm
    assert rules == set(re.findall(r"`(Sriov\w+)`", DOCS.read_text()))
