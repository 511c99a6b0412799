"""Services and nginx of our own on free ports of this machine, for `resilience.py` and the tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[1]
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Replica:
    """A service that can be stopped and started again on its port.

    Args:
        arguments: settings of `tcm serve`.
        cores: that it may use; None for all.
    """

    def __init__(self, arguments: Sequence[str], cores: set[int] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._arguments, self._cores = arguments, cores
        self.log = Path(tempfile.mkstemp(prefix="tcm-", suffix=".jsonl")[1])
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service", "--port", str(self.port), *self._arguments],
                stdout=log, stderr=log, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        if self._cores:
            os.sched_setaffinity(self.process.pid, self._cores)

    def ready(self) -> bool:
        if self.process.poll() is not None:
            raise SystemExit(f"the service did not start:\n{self.log.read_text()}")
        try:
            return httpx.get(f"{self.url}/readyz").is_success
        except httpx.HTTPError:
            return False

    def metric(self, sample: str, **labels: str) -> float:
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics", timeout=60).text)
        return sum(
            s.value for f in families for s in f.samples if s.name == sample and labels.items() <= s.labels.items()
        )

    def fds(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def rss(self) -> int:
        """Bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))

    def stop(self, sig: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(sig)


@contextmanager
def replicas(count: int, arguments: Sequence[str], cores: set[int] | None = None) -> Iterator[list[Replica]]:
    """So many ready services."""
    running: list[Replica] = []
    try:
        running += [Replica(arguments, cores) for _ in range(count)]
        wait_for(running)
        yield running
    finally:
        for replica in running:
            replica.stop(signal.SIGKILL)
            replica.process.wait(60)
            replica.log.unlink(missing_ok=True)


def wait_for(some: Sequence[Replica], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not all(replica.ready() for replica in some):
        if time.monotonic() > end:
            raise SystemExit("the services did not become ready in time")
        time.sleep(0.1)


@contextmanager
def nginx(ports: Sequence[int], folder: Path, *, proxied: bool = False) -> Iterator[str]:
    """The address of docker/nginx/nginx.conf in front of services on these ports of this machine.

    With `proxied` it believes this machine's X-Forwarded-For, as its comment says.
    """
    assert NGINX
    folder.chmod(0o755)  # its workers are another user's
    port = free_port()
    text = (ROOT / "docker" / "nginx" / "nginx.conf").read_text()
    servers = "".join(f"server 127.0.0.1:{p} max_fails=0;\n" for p in ports)
    text = re.sub(r"(\s*server tcm-\d+:8000 [^;]*;)+", "\n" + servers, text)
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};").replace("/tmp/", f"{folder}/")
    text = text.replace("access_log /dev/stdout", f"access_log {folder}/access.log")
    if proxied:
        text = text.replace("#   set_real_ip_from ADDRESS_OR_NETWORK;", "set_real_ip_from 127.0.0.1;")
    assert servers in text
    configuration = folder / "nginx.conf"
    configuration.write_text(text)
    command = [NGINX, "-e", "stderr", "-p", str(folder), "-c", str(configuration), "-g", "daemon off;"]
    with (folder / "error.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 20
        while True:
            try:
                httpx.get(f"{url}/nginx-health")
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"nginx did not start: {(folder / 'error.log').read_text()}") from None
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def proxied(folder: Path) -> list[dict[str, object]]:
    """nginx' access log."""
    return [json.loads(line) for line in (folder / "access.log").read_text().splitlines()]
