"""A reader of the log that stalls, or is gone, stops nobody else."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from service.log_lines import LogLines
from tests.service.conftest import wait_for


def test_lines_that_nobody_reads_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.log_lines._MOST", 100)
    told: list[dict[str, object]] = []
    monkeypatch.setattr(
        "service.log_lines.structlog.get_logger",
        lambda: type("", (), {"warning": staticmethod(lambda event, **more: told.append({"event": event} | more))}),
    )
    end, begin = os.pipe()
    fcntl.fcntl(begin, fcntl.F_SETPIPE_SZ, 4096)
    lines = LogLines(begin)
    start = time.monotonic()
    for k in range(1000):
        lines.msg(f"{k:0100}")
    lines.settle(0.2)
    assert time.monotonic() - start < 2
    read = bytearray()
    reader = threading.Thread(target=lambda: [read.extend(piece) for piece in iter(lambda: os.read(end, 65536), b"")])
    reader.start()
    lines.settle(10)
    wait_for(lambda: lines.write("more\n") or told)  # with the first line behind which none waits
    lines.settle(10)
    os.close(begin)
    reader.join()
    os.close(end)
    numbers = [int(line) for line in read.splitlines() if line != b"more"]
    assert numbers == sorted(set(numbers))
    assert read.endswith(b"\nmore\n")
    assert told == [{"event": "log lines lost", "lines": 1000 - len(numbers)}]


def test_a_line_that_is_logged_while_one_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finaliser may run anywhere: it deadlocked, or the lines' order broke."""
    end, begin = os.pipe()
    lines, write = LogLines(begin), os.write

    def interrupted(file: int, data: bytes) -> int:
        if b"outer" in data:
            lines.msg("inner")
        return write(file, data)

    monkeypatch.setattr("service.log_lines.os.write", interrupted)
    for _ in range(3):
        lines.msg("outer")
    assert os.read(end, 4096) == b"outer\ninner\n" * 3
    os.close(begin)
    os.close(end)


def test_a_reader_that_is_gone_costs_nothing() -> None:
    end, begin = os.pipe()
    lines = LogLines(begin)
    os.close(end)
    for _ in range(3):
        lines.msg("to nobody")
        lines.settle(10)
    os.close(begin)


FULL = """
import resource, sys
from service.log_lines import LogLines
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
lines = LogLines(int(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (230, hard))
for k in range(6):
    lines.msg(f"{k}" * 49)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
for k in range(6, 8):
    lines.msg(f"{k}" * 49)
"""


def test_a_disk_that_was_full(tmp_path: Path) -> None:
    """Found by trying: what was lost was not counted, and half a line was one with the next."""
    with (tmp_path / "log").open("wb") as file:
        command = [sys.executable, "-c", FULL, str(file.fileno())]
        told = subprocess.run(command, pass_fds=[file.fileno()], check=True, timeout=60, capture_output=True).stdout
    written = (tmp_path / "log").read_text().splitlines()
    assert written == [*(f"{k}" * 49 for k in range(4)), "4" * 30, "6" * 49, "7" * 49]
    assert b"log lines lost" in told
    assert b"lines=2" in told.replace(b"\x1b[0m=\x1b[35m", b"=")


def test_a_service_whose_log_nobody_reads_goes_on(tmp_path: Path) -> None:
    """Found by trying: its event loop hung, and the watchdog ended it."""
    variables = os.environ | {"TCM_STORE": "none", "TCM_PRELOAD": "none", "TCM_DRAIN_SECONDS": "0"}
    command = [sys.executable, "-m", "service", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=variables) as process:
        assert process.stdout
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        url = next(e["url"] for e in map(json.loads, process.stdout) if e["event"] == "listening")
        with httpx.Client(base_url=url, timeout=10) as client:
            for _ in range(100):  # each has a line of some hundred bytes
                assert client.get("/nowhere").status_code == 404
        process.terminate()
        assert process.wait(30) == 0
