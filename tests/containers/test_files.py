"""What docker/ and docker-compose.yml say, held against the settings and the documentation that they repeat."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from service.errors import PROBLEMS
from service.settings import Settings
from tests.containers.stack import ROOT

DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SECONDS = {"s": 1, "m": 60}


def default(name: str) -> float:
    return float(Settings.model_fields[name].default)


def seconds(text: str) -> float:
    return float(text[:-1]) * SECONDS[text[-1]]


def locked() -> list[tuple[Requirement, list[str]]]:
    text = (DOCKER / "requirements.lock").read_text()
    entries = re.split(r"\n(?=\w)", text)[1:]
    return [
        (Requirement(entry.split("\\\n")[0].strip()), re.findall(r"--hash=sha256:([0-9a-f]{64})\b", entry))
        for entry in entries
    ]


def test_the_lock_pins_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {requirement.name: requirement for requirement, _ in locked()}
    for wanted in map(Requirement, project["dependencies"]):
        [pin] = pins[wanted.name.lower()].specifier
        assert pin.operator == "=="
        assert wanted.specifier.contains(pin.version), f"{wanted} changed: make lock"
    assert all(hashes for _, hashes in locked())
    assert not re.search(r"https?:|index-url|find-links", (DOCKER / "requirements.lock").read_text())


def test_nginx_lets_through_what_the_service_takes_and_waits_as_long() -> None:
    nginx = (DOCKER / "nginx" / "nginx.conf").read_text()

    def told(directive: str, where: str = "server {") -> str:
        return str(re.findall(rf"^\s*{directive} ([^;]+);", nginx.partition(where)[2], re.MULTILINE)[0])

    assert default("max_body_bytes") < int(told("client_max_body_size").removesuffix("m")) << 20
    assert default("timeout_ms") / 1000 < seconds(told("proxy_read_timeout", "location /v1/ {"))
    assert told("proxy_connect_timeout") == "1s"
    assert "non_idempotent" not in told("proxy_next_upstream")
    maps = r'^\s*map \$request \$asked_method .*$|^\s*map \$request_uri \$asked_path .*"~\^\(\?<place>\[\^\?#\]\*\)".*$'
    rest, cut = re.subn(maps, "", nginx, flags=re.MULTILINE)  # which take a method and a path of it, and no query
    assert cut == 2
    assert not re.search(r"\$(args|request_uri|request|query_string)\b", rest), "a signed URL is a secret"


def test_nginx_calls_problems_what_the_service_calls_them() -> None:
    answers = re.findall(r"return (\d+) '(\{.*\})';", (DOCKER / "nginx" / "nginx.conf").read_text())
    problems = [json.loads(answer) for _, answer in answers]
    assert [problem["status"] for problem in problems] == [int(status) for status, _ in answers]
    ours = [problem for problem in problems if problem["type"] != "about:blank"]
    assert len(ours) > 4
    for problem in ours:
        meant = PROBLEMS[problem["code"]]
        assert problem["type"] == f"/problems/{meant.code}"
        assert (problem["title"], problem["status"]) == (meant.title(), meant.status)


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_every_container_is_confined(service: str) -> None:
    told = COMPOSE["services"][service]
    assert told["read_only"] is True
    assert told["cap_drop"] == ["ALL"]
    assert told["security_opt"] == ["no-new-privileges:true"]
    assert not told["user"].startswith("0")
    assert "latest" not in told["image"]
    assert ":" in told["image"]


def test_replicas_have_time_to_finish() -> None:
    for service in ("tcm-1", "tcm-2", "tcm-gpu", "tool"):
        grace = seconds(COMPOSE["services"][service]["stop_grace_period"])
        assert grace > default("timeout_ms") / 1000 + default("drain_seconds")
        known = {"TCM_" + name.upper() for name in Settings.model_fields}
        set_here = COMPOSE["services"][service].get("environment", {}).keys()
        assert set_here <= known
        assert "TCM_STORE" not in set_here, "it would win over tcm.env"


def test_what_is_mounted_is_there() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                assert Path(ROOT, volume.split(":")[0]).exists(), volume


def test_every_alert_has_a_section_of_the_operators_guide() -> None:
    guide = (ROOT / "docs" / "operations.md").read_text()
    anchors = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
               for title in re.findall(r"^#+ (.+)$", guide, re.MULTILINE)}  # fmt: skip
    groups = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert alerts
    for alert in alerts:
        assert alert["annotations"]["runbook_url"] == f"docs/operations.md#{alert['alert'].lower()}"
        assert alert["alert"].lower() in anchors, f"docs/operations.md says nothing of {alert['alert']}"


def test_every_problem_is_in_the_operators_guide() -> None:
    from service.errors import PROBLEMS

    guide = (ROOT / "docs" / "operations.md").read_text()
    assert not [code for code in PROBLEMS if f"`{code}`" not in guide]
