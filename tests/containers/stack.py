"""What the tests do with the running stack: ask it, look into its containers, keep it under load."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx

ROOT = Path(__file__).parents[2]
IMAGE = "tcm-service:cpu"
PROJECT = "tcm-test"
NGINX_PORT, PROMETHEUS_PORT = 18080, 19090
FILES = ("-f", "docker-compose.yml", "-f", "tests/containers/override.yml")

T = TypeVar("T")

_ASK = """
import sys, http.client
method, path, accept = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=100)
connection.request(method, path, sys.stdin.buffer.read(), {"Accept": accept})
answer = connection.getresponse()
sys.stderr.write(str(answer.status))
sys.stdout.buffer.write(answer.read())
"""


def say(what: str) -> None:
    """Progress, past pytest's capture."""
    sys.__stderr__.write(f"  containers: {what}\n")
    sys.__stderr__.flush()


class Stack:
    """The compose project, in an engine."""

    def __init__(self, engine: dict[str, str]) -> None:
        self.environment = engine | {
            "COMPOSE_PROJECT_NAME": PROJECT,
            "TCM_IMAGE": IMAGE,
            "TCM_PUBLISH": f"127.0.0.1:{NGINX_PORT}",
            "PROMETHEUS_PUBLISH": str(PROMETHEUS_PORT),
        }
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{NGINX_PORT}", timeout=100)
        self.prometheus = httpx.Client(base_url=f"http://127.0.0.1:{PROMETHEUS_PORT}", timeout=10)

    def close(self) -> None:
        self.client.close()
        self.prometheus.close()

    def docker(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            ["docker", *arguments], cwd=ROOT, env=self.environment, input=stdin, capture_output=True, timeout=400,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr.decode()[-2000:]}"
        return done

    def compose(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return self.docker("compose", *FILES, *arguments, stdin=stdin)

    def state(self, service: str) -> dict:
        """What `docker inspect` says of a service's container."""
        return json.loads(self.docker("inspect", f"{PROJECT}-{service}-1").stdout)[0]

    def wait_healthy(self, service: str, seconds: float = 600) -> None:
        def healthy() -> bool:
            state = self.state(service)["State"]
            return state["Status"] == "running" and state["Health"]["Status"] == "healthy"

        try:
            wait_for(healthy, seconds, every=2)
        except AssertionError:
            raise AssertionError(f"{service} is not healthy: {self.logs(service)[-3000:]}") from None

    def logs(self, service: str) -> str:
        done = self.docker("logs", f"{PROJECT}-{service}-1")
        return (done.stdout + done.stderr).decode()

    def replica_of(self, request_id: str) -> str:
        """Which replica answered a request, from nginx's log."""

        def line() -> dict | None:
            lines = [entry for entry in self.logs("nginx").splitlines() if request_id in entry]
            return json.loads(lines[-1]) if lines else None

        address = wait_for(line, 10)["replica"].rpartition(",")[2].strip()
        return {"11": "tcm-1", "12": "tcm-2"}[address.partition(":")[0].rpartition(".")[2]]

    def run(self, replica: str, *command: str) -> str:
        """A command inside a replica's container."""
        return self.docker("exec", f"{PROJECT}-{replica}-1", *command).stdout.decode()

    def ask(self, replica: str, method: str, path: str, body: bytes = b"", accept: str = "*/*") -> bytes:
        """A request from inside a replica's container, past nginx."""
        command = ["exec", "-i", f"{PROJECT}-{replica}-1", "python", "-c", _ASK, method, path, accept]
        done = self.docker(*command, stdin=body)
        assert done.stderr.decode().startswith("2"), (done.stderr, done.stdout[:500])
        return done.stdout

    def crash(self, service: str) -> None:
        """The process dies at once; the engine is to start it again."""
        os.kill(self.state(service)["State"]["Pid"], signal.SIGKILL)


@dataclass
class Load:
    """What clients saw who never stopped asking."""

    answers: Counter[int] = field(default_factory=Counter)
    retried: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    stored: set[str] = field(default_factory=set)

    def wait_for_answers(self, more: int, seconds: float = 300) -> None:
        enough = self.answers.total() + more
        wait_for(lambda: self.answers.total() >= enough, seconds)


@contextmanager
def load(stack: Stack, photographs: list[bytes], clients: int = 3) -> Iterator[Load]:
    """Clients that store photographs one after another, each a new picture; a 502 or 503 is sent again, as it asks."""
    seen, stop = Load(), threading.Event()

    def client(number: int) -> None:
        with httpx.Client(base_url=stack.client.base_url, timeout=100) as http:
            turn = 0
            while not stop.is_set():
                photograph = photographs[(number + turn) % len(photographs)]
                _store(http, photograph, seen, 1 + (turn + number) % 6)
                turn += 1

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client, number) for number in range(clients)]
        try:
            yield seen
        finally:
            stop.set()
    for one in running:
        one.result()


def _store(http: httpx.Client, photograph: bytes, seen: Load, quality: int) -> None:
    for attempt in range(10):
        try:
            answer = http.post("/v1/bitstreams", params={"quality": quality}, content=photograph)
        except httpx.TransportError as error:  # nginx itself never goes
            seen.failed.append(repr(error))
            return
        seen.answers[answer.status_code] += 1
        if answer.status_code == 201:
            seen.stored.add(answer.json()["id"])
            return
        if answer.status_code not in (502, 503):
            seen.failed.append(f"{answer.status_code} {answer.text[:300]}")
            return
        seen.retried.append(f"{answer.status_code} {answer.json()['code']}")
        time.sleep(min(float(answer.headers.get("retry-after", "1")), 2) if attempt else 0.1)
    seen.failed.append("given up after ten times")


def wait_for(probe: Callable[[], T], seconds: float, every: float = 0.1) -> T:
    """The first truthy answer."""
    end = time.monotonic() + seconds
    while not (value := probe()):
        assert time.monotonic() < end, f"it did not happen within {seconds} s"
        time.sleep(every)
    return value
