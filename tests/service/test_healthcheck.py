"""`tcm healthcheck`: one exit code and, when it is not 0, one line."""

from __future__ import annotations

import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from inspect import signature
from threading import Thread

import pytest

from service import errors
from service.commands.healthcheck import healthcheck as command
from service.settings import Settings
from tests.service.conftest import Server

RUN = "from model.cli import main; import sys; sys.argv[0] = 'tcm'; main()"


def healthcheck(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-c", RUN, "healthcheck", *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)


def said(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stderr.splitlines() if not line.startswith("import time:")]


@pytest.mark.parametrize("options", [[], ["--live"]])
def test_a_server_that_is_ready(server: Server, options: list[str]) -> None:
    port = server.url.rpartition(":")[2]
    result = healthcheck(*options, TCM_PORT=port, TCM_HOST="0.0.0.0")
    assert (result.returncode, said(result), result.stdout) == (0, [], "")
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "http.client" in imported
    assert not imported & {"torch", "numpy", "service.settings", "rich.progress"}, (
        "what runs every few seconds imports little"
    )


def test_nobody_listens() -> None:
    result = healthcheck("--port", "1")
    assert result.returncode == 1
    assert said(result) == ["tcm healthcheck: 127.0.0.1:1/readyz: [Errno 111] Connection refused"]


def test_it_asks_where_the_service_listens_by_default() -> None:
    defaults = {name: parameter.default for name, parameter in signature(command).parameters.items()}
    for name in ("host", "port"):
        assert defaults[name] == Settings.model_fields[name].default


class NotYet(BaseHTTPRequestHandler):
    """What a service answers while its models load."""

    def do_GET(self) -> None:
        problem = errors.NotReady("the models are being loaded").document("r1")
        self.send_response(503)
        self.end_headers()
        self.wfile.write(problem)


def test_not_ready_yet() -> None:
    with HTTPServer(("127.0.0.1", 0), NotYet) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        result = healthcheck("--port", str(server.server_port))
        server.shutdown()
    assert result.returncode == 1
    assert said(result) == ["tcm healthcheck: /readyz is 503: the models are being loaded"]
