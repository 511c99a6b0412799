"""The service under load, on this machine only: throughput, latency, batch sizes reached, and what the service adds.

python -m bench.service_load [--op encode decode] [--image FILE] [--size 768x512] [--model NAME] [--concurrency 1 2 4 8]
                             [--requests 24] [--rates 0.5 0.8] [--seconds 60] [--json FILE] [--no-codec]
                             [--url http://127.0.0.1:8000] [-- settings of `tcm serve`]

Closed loop: so many clients, each sends its next request when it has its answer. Open loop: requests arrive at random
(Poisson) at a share of the best closed-loop rate, whatever has been answered, and latency counts from the moment a
request was due. The client runs beside the service and takes its part of the same processor.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import ipaddress
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import httpx
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from bench.load import Answer, Client, percentile
from model.benchmark.machine import describe
from model.devices import pick_device

HOST_STAGES = {
    "encode": {"read_image", "model", "guard", "entropy", "container"},
    "decode": {"read_bitstream", "model", "write_image"},
}
MOST_REQUESTS, MOST_CLIENTS = 20_000, 256
ROOT = Path(__file__).parents[1]
Send = Callable[[float], Coroutine[None, None, None]]
"""Sends one request that was due at that moment."""


@dataclass
class Answers:
    """Milliseconds of what was answered with 200, and the other answers by status."""

    total: list[float] = field(default_factory=list)
    queue: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)  # all but queue and device
    service: list[float] = field(default_factory=list)  # all but queue and the stages of the codec
    failed: dict[str, int] = field(default_factory=dict)

    def add(self, op: str, answer: Answer) -> None:
        if answer.status != 200:
            return self.fail(str(answer.status))
        milliseconds = answer.milliseconds
        parts = (part.split(";dur=") for part in answer.server_timing.split(", "))
        stages = {name: float(duration) for name, duration in parts if not name.endswith("_wait")}  # the service's
        queue = stages.pop("queue")
        self.total.append(milliseconds)
        self.queue.append(queue)
        device = sum(duration for name, duration in stages.items() if name not in HOST_STAGES[op])
        self.host.append(milliseconds - queue - device)
        self.service.append(milliseconds - queue - sum(stages.values()))
        return None

    def fail(self, reason: str) -> None:
        self.failed[reason] = self.failed.get(reason, 0) + 1


@dataclass
class Row:
    """One point of the table; times in milliseconds."""

    op: str
    load: str
    answered: int
    per_second: float
    p50: float
    p99: float
    queue_p50: float
    host_p50: float
    service_p50: float
    service_p99: float
    batch_items: float
    failed: dict[str, int]

    COLUMNS = ("op", "load", "n", "1/s", "p50", "p99", "queue", "host", "service", "s. p99", "batch", "failed")

    def cells(self) -> list[str]:
        numbers = (self.p50, self.p99, self.queue_p50, self.host_p50, self.service_p50, self.service_p99)
        failed = " ".join(f"{count}x{reason}" for reason, count in self.failed.items()) or "-"
        return [self.op, self.load, str(self.answered), f"{self.per_second:.2f}", *(f"{n:.1f}" for n in numbers),
                f"{self.batch_items:.2f}", failed]  # fmt: skip


class Load:
    """Sends one file to one address, over and over."""

    def __init__(self, url: str, op: str, body: bytes, parameters: dict[str, str], seconds: float) -> None:
        self.url, self.op, self.body, self.parameters, self.seconds = url, op, body, parameters, seconds

    async def closed(self, clients: int, requests: int) -> Row:
        left = iter(range(requests))

        async def client(send: Send, end: float) -> None:
            while time.perf_counter() < end and next(left, None) is not None:
                await send(time.perf_counter())

        async def run(send: Send) -> None:
            end = time.perf_counter() + self.seconds
            await asyncio.gather(*(client(send, end) for _ in range(clients)))

        return await self._measure(f"{clients} clients", run)

    async def open(self, rate: float, requests: int) -> Row:
        randomness = random.Random(0)

        async def run(send: Send) -> None:
            due = start = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(requests):
                    due += randomness.expovariate(rate)
                    if due - start > self.seconds:
                        break
                    await asyncio.sleep(due - time.perf_counter())
                    group.create_task(send(due))

        return await self._measure(f"{rate:.2f}/s", run)

    async def _measure(self, load: str, run: Callable[[Send], Coroutine[None, None, None]]) -> Row:
        answers = Answers()
        client = Client(self.url, self.body, f"/v1/{self.op}?{urlencode(self.parameters)}")

        async def send(due: float) -> None:
            answers.add(self.op, await client.send(due))

        await send(time.perf_counter())  # connects, and loads the model
        answers = Answers()
        before = await _batches(self.url)
        start = time.perf_counter()
        await run(send)
        seconds = time.perf_counter() - start
        client.close()
        count, items = (b - a for a, b in zip(before, await _batches(self.url), strict=True))
        return Row(
            op=self.op,
            load=load,
            answered=len(answers.total),
            per_second=len(answers.total) / seconds,
            p50=percentile(answers.total, 50),
            p99=percentile(answers.total, 99),
            queue_p50=percentile(answers.queue, 50),
            host_p50=percentile(answers.host, 50),
            service_p50=percentile(answers.service, 50),
            service_p99=percentile(answers.service, 99),
            batch_items=items / max(count, 1),
            failed=answers.failed,
        )


async def _batches(url: str) -> tuple[float, float]:
    """How many batches there were, and how many items in them."""
    async with httpx.AsyncClient(base_url=url) as client:
        families = text_string_to_metric_families((await client.get("/metrics")).text)
    samples = {s.name: s.value for f in families if f.name == "tcm_batch_items" for s in f.samples}
    return samples["tcm_batch_items_count"], samples["tcm_batch_items_sum"]


@contextmanager
def served(arguments: Sequence[str], no_codec: bool) -> Iterator[str]:
    """The address of a service of our own, on a free port."""
    program = [str(Path(__file__).with_name("no_codec.py"))] if no_codec else ["-m", "service"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, *program, "--port", "0", *arguments], stdout=log, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        )  # fmt: skip
        try:
            yield _ready(process, log)
        finally:
            process.terminate()
            process.wait(60)


def _ready(process: subprocess.Popen[bytes], log: io.TextIOBase) -> str:
    end, url = time.monotonic() + 120, ""
    while time.monotonic() < end and process.poll() is None:
        log.seek(0)
        for line in log.read().rpartition("\n")[0].splitlines():
            entry = json.loads(line)
            url = str(entry["url"]) if entry["event"] == "listening" else url
        if url and httpx.get(f"{url}/readyz").is_success:
            return url
        time.sleep(0.1)
    log.seek(0)
    raise SystemExit(f"the service did not start:\n{log.read()}")


async def measure(url: str, options: argparse.Namespace) -> list[Row]:
    width, height = map(int, options.size.split("x"))
    out = io.BytesIO()
    Image.open(options.image).convert("RGB").resize((width, height)).save(out, "PNG")
    image, parameters = out.getvalue(), {"model": options.model} if options.model else {}
    rows = []
    for op in options.op:
        body = image
        if op == "decode":
            async with httpx.AsyncClient(base_url=url, timeout=120) as client:
                encoded = await client.post("/v1/encode", content=image, params=parameters)
            body = encoded.raise_for_status().content
        load = Load(url, op, body, parameters if op == "encode" else {}, options.seconds)
        best = 0.0
        for clients in options.concurrency:
            rows.append(await load.closed(clients, options.requests))
            best = max(best, rows[-1].per_second)
            _print(rows)
        for share in options.rates:
            rows.append(await load.open(share * best, options.requests))
            _print(rows)
    return rows


def _print(rows: Sequence[Row]) -> None:
    """The newest row, under a head if it is the first."""
    widths = (7, 12, 6, 9, 9, 9, 9, 9, 9, 9, 7, 8)
    for cells in ([Row.COLUMNS] if len(rows) == 1 else []) + [rows[-1].cells()]:
        print(*(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)), flush=True)


def bounded(most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"1 to {most}")
        return int(text)

    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="+", choices=list(HOST_STAGES), default=list(HOST_STAGES))
    parser.add_argument("--image", type=Path, default=ROOT / "tests" / "data" / "photo.png")
    parser.add_argument("--size", default="768x512", help="to which it is resized")
    parser.add_argument("--model", help="by default the service's")
    parser.add_argument("--concurrency", nargs="*", type=bounded(MOST_CLIENTS), default=[1, 2, 4, 8])
    parser.add_argument("--requests", type=bounded(MOST_REQUESTS), default=24, help="at each point")
    parser.add_argument("--rates", nargs="*", type=float, default=[0.5, 0.8], help="of the best closed-loop rate")
    parser.add_argument("--seconds", type=float, default=60, help="after which a point sends no more")
    parser.add_argument("--json", type=Path, help="where the numbers go, too")
    parser.add_argument("--no-codec", action="store_true", help="a codec that does nothing: the service's own time")
    parser.add_argument("--url", help="of a running service on this machine, instead of one of our own")
    parser.add_argument("settings", nargs="*", help="of `tcm serve`, after --")
    options = parser.parse_args()
    if options.url and not _loopback(options.url):
        parser.error("--url is for this machine only")
    machine = describe(pick_device())
    print(f"{machine}\n{options.size}, milliseconds")
    if options.url:
        rows = asyncio.run(measure(options.url, options))
    else:
        with served(options.settings, options.no_codec) as url:
            rows = asyncio.run(measure(url, options))
    if options.json:
        document = {"machine": machine, "size": options.size, "codec": not options.no_codec,
                    "settings": options.settings, "rows": [asdict(row) for row in rows]}  # fmt: skip
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    main()
