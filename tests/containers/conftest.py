"""A real Docker engine with Compose, where the tool that starts one lies beside the checkout; else these tests skip.

The images that the project's files name come from no registry here: stand-ins of the same names are made of Debian's
packages, so that docker/Dockerfile, docker-compose.yml and the configurations are run as they are. A pass proves the
project's files, not the upstream images. Grafana is in no Debian package, and is left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.containers.stack import IMAGE, ROOT, Stack, say

ENGINE = ROOT.parent / "shared" / "tools" / "container-engine"
NGINX, PROMETHEUS, PYTHON = "nginx:1.28", "prom/prometheus:v3.5.0", "python:3.12-slim"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = [item for item in items if "engine" in getattr(item, "fixturenames", ())]
    reason = (
        "brings up the whole stack: give --containers"
        if not config.getoption("--containers")
        else "no container engine: ../shared/tools/container-engine is not beside this checkout"
        if not ENGINE.exists()
        else "no container engine: it needs root"
        if os.geteuid() != 0
        else None
    )
    for item in here if reason else []:
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def engine() -> Iterator[dict[str, str]]:
    """The environment in which `docker` works."""
    running = subprocess.run([ENGINE, "up"], capture_output=True, text=True, timeout=600, check=False)
    if running.returncode != 0:
        pytest.skip(f"no container engine: {running.stderr.strip().splitlines()[-1:]}")
    exports = dict(re.findall(r"(DOCKER_\w+)=(\S+)", running.stdout))
    environment = os.environ | exports | {"DOCKER_BUILDKIT": "1"}
    say("stand-ins of the base images")
    for command in (
        ["base", PYTHON],
        ["with", NGINX, "nginx", "curl"],
        ["with", "local/prometheus", "prometheus", "wget"],
    ):
        subprocess.run([ENGINE, *command], check=True, timeout=600, env=environment)
    # as upstream's image has it: a folder of the user that runs it
    owned = "FROM local/prometheus\nRUN install -d -o 65534 -g 65534 /prometheus\n"
    subprocess.run(
        ["docker", "build", "-q", "-t", PROMETHEUS, "-"], input=owned.encode(), check=True, timeout=120, env=environment
    )
    yield environment
    subprocess.run([ENGINE, "down"], check=True, timeout=120)


@pytest.fixture(scope="session")
def image(engine: dict[str, str]) -> str:
    """The cpu target, built."""
    begin = time.monotonic()
    say(f"building {IMAGE}")
    build = ["docker", "build", "--progress=plain", "--target", "cpu", "-t", IMAGE, "-f", "docker/Dockerfile", "."]
    done = subprocess.run(build, cwd=ROOT, env=engine, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    say(f"built in {time.monotonic() - begin:.0f} s")
    return IMAGE


@pytest.fixture(scope="session")
def stack(engine: dict[str, str], image: str) -> Iterator[Stack]:
    """Two replicas behind nginx, and Prometheus."""
    stack = Stack(engine)
    begin = time.monotonic()
    try:
        stack.compose("up", "-d", "--no-build", "nginx", "tcm-1", "tcm-2", "prometheus")
        for service in ("tcm-1", "tcm-2", "nginx"):
            stack.wait_healthy(service)
        say(f"two replicas healthy after {time.monotonic() - begin:.0f} s")
        yield stack
    finally:
        stack.compose("down", "--volumes", "--timeout", "20")
        stack.close()
