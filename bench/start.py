"""How long `tcm encode` takes for one picture from the shell, and what a server at rest holds in memory.

python bench/start.py

Each is run as it is, and with all of CompressAI and SciPy's statistics loaded first (model/borrowed.py), in turn.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

PASSES = 5
PROGRAM = "from model.cli import main; main()"
WAYS = {"as it is": "", "with all of CompressAI": "import compressai, scipy.stats; "}


def main() -> None:
    import torch
    from PIL import Image

    from model import environment
    from model.benchmark.machine import describe
    from model.benchmark.speed import picture

    environment.prepare()
    print(describe(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(picture(768, 512).rgb).save(Path(folder, "picture.png"))
        best: dict[str, tuple[float, float, float]] = {}
        for _ in range(PASSES):  # in turn, and of each the best, since others use the machine, too
            for way, before in WAYS.items():
                found = (encode(before, folder), *serve(before))
                best[way] = tuple(min(pair) for pair in zip(found, best.get(way, found), strict=True))
    print("                        tcm encode, s  ready after, s  memory of its own, MB")
    for way, (encoded, ready, memory) in best.items():
        print(f"{way:24}{encoded:13.2f}{ready:16.2f}{memory / 1e6:23.0f}")


def command(before: str, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-c", before + PROGRAM, *arguments]


def encode(before: str, folder: str) -> float:
    start = time.perf_counter()
    subprocess.run(command(before, "encode", f"{folder}/picture.png", f"{folder}/out.tcm", "--force"), check=True)
    return time.perf_counter() - start


def serve(before: str) -> tuple[float, float]:
    """Seconds until it is ready, and bytes of memory that no other process shares."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"TCM_STORE": "none"}
    start = time.perf_counter()
    arguments = ("serve", "--port", str(port))
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command(before, *arguments), env=environment, **silent) as server:
        while not is_ready(port):
            if server.poll() is not None:
                raise SystemExit(f"the service has ended with code {server.returncode}")
            time.sleep(0.05)
        took = time.perf_counter() - start
        status = Path(f"/proc/{server.pid}/status").read_text()
        own = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))
        server.terminate()
    return took, own * 1024.0


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
            return answer.status == 200
    except OSError:
        return False


if __name__ == "__main__":
    main()
