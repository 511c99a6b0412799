"""Alert rules and dashboard: they speak of metrics that exist, and the rules do what they say."""

from __future__ import annotations

import contextlib
import json
import re
import runpy
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.metrics import Metrics
from tests.service.conftest import Server, wait_for

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "docker" / "prometheus"
DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "tcm.json"
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]

_SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
_OF_PROMETHEUS = {"job", "instance", "le", "namespace"}


def dashboard_expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def labels_by_sample() -> dict[str, set[str]]:
    """Every sample that /metrics can show, with its labels."""
    registry = Metrics().registry
    found: dict[str, set[str]] = {}
    for collector in set(registry._collector_to_names):
        labels = set(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            found |= {family.name + suffix: labels for suffix in _SUFFIXES.get(family.type, [""])}
    return found


def metrics_and_labels(expression: str) -> list[tuple[str, set[str]]]:
    """The metrics of a PromQL expression, each with the labels that its selector names."""
    found = re.findall(r"\b((?:tcm|process)_\w+)(?:\{([^}]*)\})?", expression)
    return [(name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))) for name, selector in found]


@pytest.mark.parametrize("expression", [*(rule["expr"] for rule in RULES), *dashboard_expressions()])
def test_every_metric_and_label_exists(expression: str) -> None:
    there = labels_by_sample()
    for name, labels in metrics_and_labels(expression):
        assert name in there
        assert labels <= there[name] | _OF_PROMETHEUS, name
    grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", expression))))
    used = [there[name] for name, _ in metrics_and_labels(expression)]
    assert grouped <= set().union(_OF_PROMETHEUS, *used)


def test_recorded_names_are_recorded() -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for expression in [*(rule["expr"] for rule in RULES), *dashboard_expressions()]:
        assert set(re.findall(r"\btcm:[\w:]+", expression)) <= recorded


def test_every_alert_is_tested() -> None:
    tested: set[str] = set()
    for test in yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]:
        tested |= {case["alertname"] for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert tested == {alert["alert"] for alert in ALERTS}
    assert {alert["labels"]["severity"] for alert in ALERTS} == {"page", "ticket"}


@pytest.mark.parametrize(
    "arguments",
    [["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]],
    ids=" ".join,
)
def test_promtool(arguments: list[str]) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not here (Debian: apt-get install prometheus)")
    result = subprocess.run([program, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_list_of_metrics_is_current() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text()
    made = runpy.run_path(str(ROOT / "docs" / "metrics.py"))["document"]()
    assert written == made, "run `python docs/metrics.py > docs/metrics.md`"


def test_the_contract() -> None:
    """The metrics that others rely on, with their labels."""
    there = labels_by_sample()
    contract: dict[str, Any] = {
        "tcm_http_requests_total": {"route", "method", "code"},
        "tcm_http_request_duration_seconds_bucket": {"route", "method"},
        "tcm_queue_depth": set(),
        "tcm_queue_pixels": set(),
        "tcm_queue_wait_seconds_bucket": set(),
        "tcm_requests_rejected_total": {"reason"},
        "tcm_batch_items_bucket": set(),
        "tcm_batch_pixels_bucket": set(),
        "tcm_stage_duration_seconds_bucket": {"op", "stage"},
        "tcm_encoded_bits_per_pixel_bucket": {"model"},
        "tcm_input_bytes_total": set(),
        "tcm_output_bytes_total": set(),
        "tcm_models_loaded": set(),
        "tcm_model_load_duration_seconds_bucket": set(),
        "tcm_device_memory_bytes": {"device"},
    }
    for name, labels in contract.items():
        assert there[name] == labels, name
    assert {"version", "python"} <= there["tcm_build_info"]


@pytest.fixture
def prometheus(server: Server, tmp_path: Path) -> Iterator[httpx.Client]:
    """A real Prometheus with our rules that scrapes the running service."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not here (Debian: apt-get install prometheus)")
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / "alerts.yml")]
    [job] = [job for job in config["scrape_configs"] if job["job_name"] == "tcm"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [server.url.removeprefix("http://")]}]
    config["scrape_configs"] = [job]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = [
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}",
        f"--web.listen-address={address}",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
    with httpx.Client(base_url=f"http://{address}/api/v1", timeout=30) as client:
        yield client
    process.terminate()
    process.wait(60)


def test_a_real_prometheus_answers_every_panel(
    server: Server, prometheus: httpx.Client, photo_file: bytes, bitstream: bytes
) -> None:
    def result(expression: str) -> list[dict[str, Any]]:
        answer = prometheus.get("/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def up() -> bool:
        with contextlib.suppress(httpx.TransportError):
            answer = prometheus.get("/query", params={"query": "up == 1"})
            return answer.is_success and answer.json()["data"]["result"] != []
        return False

    wait_for(up, 60)
    traffic = "sum(rate(tcm_reconstructions_total[1m])) > 0"

    def served() -> bool:  # again and again: a series rises only after it was first seen
        server.client.post("/v1/encode", content=photo_file)
        server.client.post("/v1/decode", content=bitstream)
        kept = server.client.post("/v1/bitstreams", content=bitstream, headers={"Content-Type": "application/vnd.tcm"})
        server.client.get(kept.headers["location"] + "/image")
        return result(traffic) != []

    wait_for(served, 120)
    for expression in dashboard_expressions():
        concrete = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
        silent = {"tcm_key_requests_total", "tcm_store_failures_total"} & set(re.findall(r"\w+", concrete))  # none here
        assert result(concrete) or silent, concrete
    rules = [rule for group in prometheus.get("/rules").json()["data"]["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in rules if rule["health"] == "err"] == []
    assert {rule["name"] for rule in rules} >= {alert["alert"] for alert in ALERTS}
    paging = [rule["name"] for rule in rules if rule.get("labels", {}).get("severity") == "page" and rule.get("alerts")]
    assert paging == []
