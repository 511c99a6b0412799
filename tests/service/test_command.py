"""`tcm serve` as a process: what goes wrong is one line and an exit code."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.service.conftest import start


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TCM_")} | variables
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--port", "many"], "--port (TCM_PORT)"),
        (["--prot", "80"], "--prot"),
        (["--preload", "[x"], "--preload (TCM_PRELOAD)"),
        (["--default-model", "tcm-none"], "tcm-none"),
        (["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_wrong_settings(arguments: list[str], named: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert named in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_default_model_whose_file_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "shop.safetensors").write_bytes(b"cut short")
    result = run("--model-dir", str(tmp_path), "--default-model", "shop", "--device", "cpu")
    assert result.returncode == 2
    assert "shop.safetensors: damaged or not a weights file" in result.stderr


@pytest.mark.parametrize("text", ["127.0.0.1/8", "10.0.0.1, nginx", "10.0.0.1;10.0.0.2", "*, 10.0.0.1", "::1/129"])
def test_networks_that_are_none(text: str) -> None:
    """uvicorn takes them for names that no address has: all clients of the proxy shared one quota, without a word."""
    result = run("--port", "0", "--device", "cpu", FORWARDED_ALLOW_IPS=text, TCM_STORE="none")
    assert result.returncode == 2
    assert "FORWARDED_ALLOW_IPS" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc to see descriptors in")
def test_a_standard_error_that_is_closed(tmp_path: Path, photo_file: bytes) -> None:
    """Its number went to the file that images are read through, and every image was damaged."""
    closing = "import os, sys; os.close(2); os.execv(sys.executable, [sys.executable, '-m', 'service', *sys.argv[1:]])"
    server = start(tmp_path, program=("-c", closing), model_dir=tmp_path)
    assert Path(f"/proc/{server.process.pid}/fd/2").readlink() == Path(os.devnull)
    assert server.client.post("/v1/encode", content=photo_file).status_code == 200
    assert server.stop() == 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to see handlers in")
def test_it_can_be_stopped_while_it_starts() -> None:
    """As the first process of a container it gets no signal that it has no handler for: one from the very start."""

    def handled(pid: int) -> bool:
        [mask] = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
        return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)

    process = subprocess.Popen(
        [sys.executable, "-m", "service", "--port", "0", "--device", "cpu"], stdout=subprocess.PIPE, text=True
    )
    with process:
        while not handled(process.pid):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "ready" not in said


def test_a_wrong_variable_is_named() -> None:
    result = run(TCM_MAX_PIXELS="none")
    assert result.returncode == 2
    assert "TCM_MAX_PIXELS" in result.stderr


def test_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run("--port", str(port), "--device", "cpu")
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"tcm serve: error: cannot listen on 127.0.0.1:{port}: Address already in use"
    ]


def test_help_lists_the_settings() -> None:
    result = run("--help")
    assert result.returncode == 0
    for text in ("--max-body-bytes", "TCM_MEMORY_BUDGET"):
        assert text in result.stdout


def test_it_says_where_it_listens_and_stops_cleanly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    server = start(tmp_path, model_dir=tmp_path, preload="none", prot=80)
    [line] = [e for e in server.log() if e["event"] == "listening"]
    assert "tcm-xs-mse-0.05" in line["models"]
    assert line["device"] == "cpu"
    assert [e["variable"] for e in server.log() if e["event"] == "unknown setting"] == ["TCM_PROT"]
    assert server.stop() == 0
