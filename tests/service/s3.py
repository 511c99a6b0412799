"""A real S3 server: SeaweedFS, which comes as a package."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.service.conftest import wait_for

ACCESS = {"accessKey": "tests", "secretKey": "no-secret-at-all"}


@dataclass
class S3:
    """A running server, and the variables that lead a client to it."""

    process: subprocess.Popen[bytes]
    variables: dict[str, str]

    def hang(self) -> None:
        """It still takes connections, and answers none."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


def weed() -> str | None:
    """The program, if the package is installed."""
    return shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@contextmanager
def s3_server(folder: Path, seconds: float = 60) -> Iterator[S3]:
    """Started on free ports of 127.0.0.1, and killed in the end."""
    program = weed()
    assert program
    access = folder / "access.json"
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    access.write_text(json.dumps({"identities": [{"name": "tests", "credentials": [ACCESS], "actions": actions}]}))
    command = [
        program,
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3",
        f"-s3.config={access}",
    ]
    command += ["-master.telemetry=false", "-volume.max=8", "-master.volumeSizeLimitMB=64"]
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    command += [f"-{name}={port}" for name, port in ports.items()]
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)

    def answers() -> bool:
        assert process.poll() is None, (folder / "weed.log").read_text()[-2000:]
        try:
            socket.create_connection(("127.0.0.1", ports["s3.port"]), 1).close()
        except OSError:
            time.sleep(0.1)
            return False
        return True

    try:
        wait_for(answers, seconds)
        yield S3(
            process,
            {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
                "AWS_ACCESS_KEY_ID": ACCESS["accessKey"],
                "AWS_SECRET_ACCESS_KEY": ACCESS["secretKey"],
                "AWS_REGION": "us-east-1",
            },
        )
    finally:
        process.kill()
        process.wait()
