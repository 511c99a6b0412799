"""`tcm healthcheck`: what a container engine asks from inside the container, every few seconds.

One request, one exit code, and next to nothing imported: not even the settings.
"""

from __future__ import annotations

import http.client
import json
import signal
import sys
from typing import Annotated

import typer

UNSPECIFIED = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  # what it listens on: where it is asked


def healthcheck(
    live: Annotated[bool, typer.Option("--live", help="Ask whether it is alive, not whether it is ready.")] = False,
    host: Annotated[str, typer.Option(envvar="TCM_HOST", help="As of the service.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TCM_PORT", help="As of the service.")] = 8000,
    timeout: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds in all.")] = 3.0,
) -> None:
    """Ask the service of this machine whether it is ready. Exit code 0: it is; 1: it is not, and one line says why."""
    signal.signal(signal.SIGALRM, _late)  # the socket's own time begins anew with every byte
    signal.setitimer(signal.ITIMER_REAL, timeout)
    reason = ask(UNSPECIFIED.get(host, host), port, "/livez" if live else "/readyz", timeout)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if reason is not None:
        sys.stderr.write(f"tcm healthcheck: {reason}\n")
        raise typer.Exit(1)


def _late(*_: object) -> None:
    raise TimeoutError("timed out")


def ask(host: str, port: int, path: str, timeout: float) -> str | None:
    """None where the probe answers 200, else why not."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(1 << 16)
    except (OSError, http.client.HTTPException) as error:
        return f"{host}:{port}{path}: {error or type(error).__name__}"
    finally:
        connection.close()
    return None if answer.status == http.HTTPStatus.OK else f"{path} is {answer.status}: {_detail(body)}"


def _detail(body: bytes) -> str:
    """What a problem says."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
