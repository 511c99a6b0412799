"""Open loop at 0.5, 1, 2 and 5 times what the service can bear: goodput, and how fast refusals come.

For `resilience.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

from bench.load import Answers, Bar, Client, closed_loop, open_loop, percentile, photograph
from bench.replicas import replicas

LOADS = (0.5, 1, 2, 5)
WARM_UP = 3.0  # seconds in which the queue fills


@dataclass
class Overload:
    """One load; times in milliseconds."""

    load: str
    offered: float
    goodput: float
    p50: float
    p99: float
    refused: int
    refused_p50: float
    refused_p99: float
    retry_after: float
    failed: dict[str, int]

    HEAD = ("load", "offered/s", "goodput/s", "p50", "p99", "refused", "ref. p50", "ref. p99", "retry s", "failed")

    def cells(self) -> list[str]:
        failed = " ".join(f"{n}x{kind}" for kind, n in self.failed.items()) or "-"
        numbers = (self.p50, self.p99, self.refused, self.refused_p50, self.refused_p99, self.retry_after)
        return [self.load, f"{self.offered:.1f}", f"{self.goodput:.2f}", *(f"{n:.4g}" for n in numbers), failed]


@dataclass
class Pass:
    """The answers of one load, and the seconds of it that count."""

    answers: Answers
    skipped: float
    seconds: float

    @property
    def goodput(self) -> float:
        start = self.answers.start
        return self.answers.per_second(start + self.skipped, start + self.seconds)


def overload_row(load: str, passes: Sequence[Pass]) -> Overload:
    everything = Answers()
    for one in passes:
        everything.extend(one.answers)
    served, refused = everything.milliseconds(200), everything.milliseconds(503)
    return Overload(
        load=load,
        offered=len(everything) / sum(one.seconds for one in passes),
        goodput=mean(one.goodput for one in passes),
        p50=percentile(served, 50),
        p99=percentile(served, 99),
        refused=len(refused),
        refused_p50=percentile(refused, 50),
        refused_p99=percentile(refused, 99),
        retry_after=median([a.retry_after for a in everything if a.retry_after] or [float("nan")]),
        failed={kind: count for kind, count in everything.failures().items() if "saturated" not in kind},
    )


async def overload(options: argparse.Namespace) -> dict[str, Any]:
    """Each load twice, the second time in the opposite order: what the machine does meanwhile happens to all alike."""
    body, seconds = photograph(options.size), options.seconds or 12
    settings = ["--max-queue-items", "16", *options.settings]
    passes: dict[float, list[Pass]] = {load: [] for load in (0, *LOADS)}  # 0: eight patient clients
    with replicas(1, settings, options.cores) as (service,):
        client = Client(service.url, body)
        for _ in range(3):
            await client.send()
        for load in (*passes, *reversed(passes)):
            answers = Answers()
            capacity = passes[0][0].goodput if load else 0
            with Bar(f"{load:g} x {capacity:.1f}/s" if load else "8 patient clients", seconds) as tick:
                if load:
                    await open_loop(client, load * capacity, seconds, answers, tick)
                else:
                    await closed_loop(client, 8, seconds, answers, tick)
            passes[load].append(Pass(answers, WARM_UP, seconds))
        client.close()
    rows: list[Overload] = []
    for load, some in passes.items():
        rows.append(overload_row(f"{load:g}x" if load else "8 clients", some))
        show(rows)
    best = max(row.goodput for row in rows)
    print(f"goodput at {LOADS[-1]:g} times capacity: {rows[-1].goodput / best - 1:+.1%} of the best, "
          f"{rows[-1].goodput / rows[0].goodput - 1:+.1%} of that of patient clients; "
          f"refusals there: p50 {rows[-1].refused_p50:.1f} ms, p99 {rows[-1].refused_p99:.1f} ms")  # fmt: skip
    return {"rows": [asdict(row) for row in rows]}


def plot_overload(report: dict[str, Any], axes: Any) -> None:
    rows = report["rows"][1:]
    loads = [row["load"] for row in rows]
    left, right = axes
    left.bar(loads, [row["offered"] for row in rows], color="#dddddd", label="offered")
    left.bar(loads, [row["goodput"] for row in rows], color="#4c9f70", label="answered with 200")
    left.set(xlabel="load, of capacity", ylabel="requests a second")
    refused = [row for row in rows if row["refused"]]
    for key, name in (("refused_p50", "median"), ("refused_p99", "99 of 100")):
        right.plot([row["load"] for row in refused], [row[key] for row in refused], marker="o", label=name)
    right.axhline(20, color="#999999", linestyle="--", label="20 ms")
    right.set(xlabel="load, of capacity", ylabel="milliseconds until a refusal", yscale="log")


def show(rows: Sequence[Overload]) -> None:
    """The newest row, under a head if it is the first."""
    for cells in ([Overload.HEAD] if len(rows) == 1 else []) + [rows[-1].cells()]:
        print(*(cell.rjust(10) for cell in cells), flush=True)
