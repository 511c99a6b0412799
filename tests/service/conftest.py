"""Real server processes, started once a session: one as it comes, one with tight limits."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from model import Codec, Zoo

DATA = Path(__file__).parent.parent / "data"
MODEL = "tcm-xs-mse-0.013"
T = TypeVar("T")
BUDGET_FOR_TWO = 16 * Zoo().get(MODEL).info.parameters
"""Room for two of the embedded models and what is made of their weights, not for three."""


@dataclass
class Server:
    """A running service."""

    process: subprocess.Popen[bytes]
    log_file: Path
    url: str
    client: httpx.Client
    first_answers: dict[str, httpx.Response] = field(default_factory=dict)

    def log(self) -> list[dict[str, object]]:
        """What is written so far: lines may come a moment after what they tell of."""
        complete, _, _ = self.log_file.read_text().rpartition("\n")
        return [json.loads(line) for line in complete.splitlines()]

    def lines(self, event: str) -> list[dict[str, object]]:
        """Those of an event, of which there is at least one."""
        return wait_for(lambda: [line for line in self.log() if line["event"] == event])

    def requests(self, request_id: str) -> list[dict[str, object]]:
        """The access lines of a request; it is written just after the answer."""
        return wait_for(lambda: [e for e in self.log() if e["event"] == "request" and e["request_id"] == request_id])

    def metric(self, sample: str, **labels: str) -> float:
        """The sum of the samples of that name that have these labels."""
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        return sum(
            s.value for f in families for s in f.samples if s.name == sample and labels.items() <= s.labels.items()
        )

    def stop(self) -> int:
        self.client.close()
        self.process.terminate()
        return self.process.wait(60)


def wait_for(probe: Callable[[], T], seconds: float = 30) -> T:
    """The first truthy answer."""
    end = time.monotonic() + seconds
    while not (value := probe()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return value


def start(
    folder: Path, *, program: Sequence[str] = ("-m", "service"), ready: bool = True, **settings: object
) -> Server:
    """A server on a free port, as soon as it is ready (or listens); told to stop, it waits for no load balancer."""
    settings = {"drain_seconds": 0} | settings
    variables = {key: value for key, value in os.environ.items() if not key.startswith("TCM_")}
    variables["PYTHONPATH"] = os.pathsep.join([str(DATA.parents[1]), variables.get("PYTHONPATH", "")])
    variables["TCM_STORE"] = (folder / "store").as_uri()  # never the user's own
    variables |= {f"TCM_{name.upper()}": str(value) for name, value in settings.items()}
    log_file = folder / "log.jsonl"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *program, "--port", "0", "--device", "cpu"], stdout=log, env=variables
        )

    def listening() -> str | None:
        assert process.poll() is None, log_file.read_text()
        complete = log_file.read_text().rpartition("\n")[0].splitlines()
        return next((e["url"] for e in map(json.loads, complete) if e["event"] == "listening"), None)

    try:
        url = wait_for(listening, 300)  # importing torch takes its time on a busy machine
    except BaseException:
        process.kill()
        raise
    server = Server(process, log_file, url, httpx.Client(base_url=url, timeout=120))
    for path in ("/livez", "/readyz", "/startupz", "/v2/health/ready"):
        server.first_answers[path] = server.client.get(path)
    if ready:
        wait_for(lambda: server.client.get("/readyz").is_success, 300)
    return server


@dataclass
class Faults:
    """What is to go wrong with a server of `faulty.py`: a file a fault."""

    folder: Path

    def cause(self, fault: str) -> None:
        (self.folder / fault).touch()

    def end(self, fault: str) -> None:
        (self.folder / fault).unlink(missing_ok=True)

    @contextmanager
    def during(self, fault: str) -> Iterator[None]:
        self.cause(fault)
        try:
            yield
        finally:
            self.end(fault)


StartFaulty = Callable[..., tuple[Server, Faults]]


@pytest.fixture(scope="module")
def start_faulty(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Iterator[StartFaulty]:
    """Starts servers with the tiny model and faults on demand; settings as keywords."""
    running: list[Server] = []

    def start_one(faults: Sequence[str] = (), *, wait: bool = True, **settings: object) -> tuple[Server, Faults]:
        folder = tmp_path_factory.mktemp("faulty")
        (folder / "models").mkdir()
        (folder / "models" / tiny_file.name).write_bytes(tiny_file.read_bytes())
        caused = Faults(folder)
        for fault in faults:
            caused.cause(fault)
        os.environ["FAULTS"] = str(folder)
        settings = {"default_model": "tcm-tiny-mse-0.01", "preload": "none"} | settings
        program = [str(Path(__file__).with_name("faulty.py"))]
        server = start(folder, program=program, ready=wait, model_dir=folder / "models", **settings)
        running.append(server)
        return server, caused

    yield start_one
    for server in running:
        server.client.close()
        server.process.kill()
        server.process.wait(60)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As it comes, with nothing but the embedded models."""
    folder = tmp_path_factory.mktemp("server")
    running = start(folder, model_dir=folder / "models", max_batch_pixels=4_000_000)
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="session")
def tight(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path, tiny_codec: Codec) -> Iterator[Server]:
    """Small limits, no store, room for two of the embedded models, a tiny model, and one whose file is damaged."""
    tiny_codec.warm_up(128, 128)  # what is compiled for the first time takes longer than a request may here
    folder = tmp_path_factory.mktemp("tight")
    models = folder / "models"
    models.mkdir()
    (models / tiny_file.name).write_bytes(tiny_file.read_bytes())
    broken = bytearray(tiny_file.read_bytes().replace(b"tcm-tiny-mse-0.01", b"tcm-sick-mse-0.01"))
    broken[-1] ^= 1
    (models / "broken.safetensors").write_bytes(broken)
    running = start(
        folder,
        model_dir=models,
        preload="none",
        memory_budget=BUDGET_FOR_TWO,
        max_body_bytes="300kB",
        max_pixels=200_000,
        timeout_ms=20_000,
        max_batch_items=2,
        store="none",
    )
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="session")
def photo_file() -> bytes:
    return (DATA / "photo.png").read_bytes()


@pytest.fixture(scope="session")
def bitstream(server: Server, photo_file: bytes) -> bytes:
    response = server.client.post("/v1/encode", params={"model": MODEL}, content=photo_file)
    assert response.status_code == 200, response.text
    return response.content


def image_file(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def open_image(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, object]:
    """It is an RFC 9457 problem, whole and consistent."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, object] = response.json()
    assert problem["code"] == code
    assert problem["status"] == status
    assert problem["type"] == f"/problems/{code}"
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


@pytest.fixture(scope="session")
def large(photo: Image.Image) -> bytes:
    """Keeps a CPU busy for seconds."""
    return image_file(photo.resize((2304, 1536)), "JPEG")


@contextmanager
def busy(server: Server, large: bytes) -> Iterator[Future[httpx.Response]]:
    """The device works on a large image."""
    before = server.metric("tcm_queue_wait_seconds_count")
    with ThreadPoolExecutor(1) as client:
        work = client.submit(httpx.post, f"{server.url}/v1/encode", content=large, timeout=120)
        wait_for(lambda: server.metric("tcm_queue_wait_seconds_count") > before)
        yield work
        assert work.result().status_code == 200
