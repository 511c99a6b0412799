"""A client that costs little: HTTP/1.1 on bare sockets, open and closed loops. For `resilience.py`
and `service_load.py`.

A client library takes a millisecond or more of the processor for each request; beside the service, on the same cores,
that would be measured instead of the service.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlsplit

from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

TIMEOUT = 130.0
_ROOT = Path(__file__).parents[1]
_IDLE_SECONDS = 2.0  # less than any server keeps an idle connection


@dataclass(frozen=True)
class Answer:
    """One request's end.

    Attributes:
        due: when it was to be sent.
        end: when its answer was there.
        status: of HTTP, or the name of what went wrong on the connection.
        code: of a problem.
        retry_after: seconds.
        server_timing: the header of that name.
    """

    due: float
    end: float
    status: int | str
    code: str = ""
    retry_after: int | None = None
    server_timing: str = ""

    @property
    def milliseconds(self) -> float:
        return 1000 * (self.end - self.due)


@dataclass
class Answers(list[Answer]):
    """All of a run."""

    start: float = field(default_factory=time.perf_counter)

    def milliseconds(self, *statuses: int) -> list[float]:
        return sorted(answer.milliseconds for answer in self if answer.status in statuses)

    def per_second(self, begin: float, end: float) -> float:
        """Answers with 200 that came between two moments."""
        return sum(answer.status == 200 and begin <= answer.end < end for answer in self) / (end - begin)

    def kinds(self) -> dict[str, int]:
        return dict(Counter(f"{a.status} {a.code}".strip() for a in self))

    def failures(self) -> dict[str, int]:
        return {kind: count for kind, count in self.kinds().items() if kind != "200"}


def photograph(size: str) -> bytes:
    width, height = map(int, size.split("x"))
    out = io.BytesIO()
    Image.open(_ROOT / "tests" / "data" / "photo.png").convert("RGB").resize((width, height)).save(out, "PNG")
    return out.getvalue()


def percentile(values: Sequence[float], percent: int) -> float:
    if len(values) < 2:
        return values[0] if values else float("nan")
    return quantiles(values, n=100, method="inclusive")[percent - 1]


class Client:
    """Sends one file to one address, each request on an idle connection or a new one."""

    def __init__(self, url: str, body: bytes, path: str = "/v1/encode") -> None:
        self.host, self.port = urlsplit(url).hostname or "", urlsplit(url).port or 80
        head = f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.request = head.encode() + body
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, due: float | None = None) -> Answer:
        """Latency counts from the moment a request was due."""
        due = time.perf_counter() if due is None else due
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._send(due)
        except (OSError, EOFError, TimeoutError) as error:
            return Answer(due, time.perf_counter(), type(error).__name__)

    async def _send(self, due: float) -> Answer:
        reader, writer = self._fresh() or await self.connect()
        writer.write(self.request)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        except BaseException:
            writer.close()
            raise
        end = time.perf_counter()
        if headers.get("connection") == "close":
            writer.close()
        else:
            self._idle.append((end, reader, writer))
        problem = json.loads(body) if "problem+json" in headers.get("content-type", "") else {}
        retry_after = headers.get("retry-after")
        return Answer(
            due,
            end,
            int(head.split(" ")[1]),
            problem.get("code", ""),
            int(retry_after) if retry_after else None,
            headers.get("server-timing", ""),
        )

    def _fresh(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """An idle connection that the other side may not have closed meanwhile, as it does with those idle for long."""
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.perf_counter() - since < _IDLE_SECONDS and not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port, limit=1 << 20)

    def close(self) -> None:
        for _, _, writer in self._idle:
            writer.close()
        self._idle.clear()


async def closed_loop(client: Client, clients: int, seconds: float, answers: Answers, bar: Callable[[], None]) -> None:
    """So many clients, each sends its next request when it has its answer."""
    end = time.perf_counter() + seconds

    async def one() -> None:
        while time.perf_counter() < end:
            answers.append(await client.send())
            bar()

    await asyncio.gather(*(one() for _ in range(clients)))


async def open_loop(client: Client, rate: float, seconds: float, answers: Answers, bar: Callable[[], None]) -> None:
    """Requests come at random (Poisson), whatever has been answered; ends when all are answered."""
    randomness = random.Random(0)

    async def one(due: float) -> None:
        answers.append(await client.send(due))

    due = start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        while (due := due + randomness.expovariate(rate)) - start < seconds:
            await asyncio.sleep(max(0, due - time.perf_counter()))
            group.create_task(one(due))
            bar()


class Bar:
    """A progress bar by the clock: `with Bar("soak", 60) as tick:`, then call `tick()` now and then."""

    def __init__(self, what: str, seconds: float) -> None:
        columns = (TextColumn("{task.description:<24}"), BarColumn(40), TimeRemainingColumn())
        self._progress = Progress(*columns, transient=True)
        self._task = self._progress.add_task(what, total=seconds)
        self._start = time.perf_counter()

    def __call__(self) -> None:
        self._progress.update(self._task, completed=time.perf_counter() - self._start)

    def __enter__(self) -> Bar:
        self._start = time.perf_counter()
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
