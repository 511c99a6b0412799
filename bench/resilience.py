"""The service under loads and faults that it must bear, on this machine only. Each run prints a table.

python -m bench.resilience overload     open loop at 0.5, 1, 2 and 5 times capacity: goodput, how fast refusals come
python -m bench.resilience soak         --minutes 30 of encoding, decoding and leaving: memory, descriptors, threads
python -m bench.resilience disconnects  a storm of clients that leave, beside one that stays
python -m bench.resilience restart      two replicas behind nginx, replaced one by one under load: what is lost
python -m bench.resilience kill         the same, one killed: what is lost, and until when

Options: [--size 384x256] [--seconds N] [--json FILE] [--plot FILE] [--apart] [-- settings of `tcm serve`]
`--apart` gives the client a core of its own, which the service then may not use. Needs matplotlib for `--plot`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import httpx
from PIL import Image

from bench.load import Answers, Bar, Client, closed_loop, open_loop, percentile
from bench.replicas import NGINX, ROOT, Replica, nginx, replicas, wait_for
from model.benchmark.machine import describe
from model.devices import pick_device

Report = dict[str, Any]
LOADS = (0.5, 1, 2, 5)
WARM_UP = 3.0  # seconds in which the queue fills


def photograph(size: str) -> bytes:
    width, height = map(int, size.split("x"))
    out = io.BytesIO()
    Image.open(ROOT / "tests" / "data" / "photo.png").convert("RGB").resize((width, height)).save(out, "PNG")
    return out.getvalue()


# ---- overload


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


async def overload(options: argparse.Namespace) -> Report:
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


def plot_overload(report: Report, axes: Any) -> None:
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


# ---- soak


async def soak(options: argparse.Namespace) -> Report:
    seconds = 60 * options.minutes
    every = max(1.0, seconds / 360)
    samples: list[dict[str, float]] = []
    answers, body = Answers(), photograph(options.size)
    sizes = [photograph(f"{w}x{h}") for w, h in ((384, 256), (256, 384), (300, 200), (512, 384), (640, 427))]
    with replicas(1, ["--preload", "all", *options.settings], options.cores) as (service,):
        async with httpx.AsyncClient(timeout=120) as one:
            bitstream = (await one.post(f"{service.url}/v1/encode", content=body)).raise_for_status().content
        end = time.perf_counter() + seconds

        async def work(client: Client) -> None:
            while time.perf_counter() < end:
                answers.append(await client.send())
            client.close()

        async def leave() -> None:
            while time.perf_counter() < end:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(random.uniform(0.01, 0.5)):
                        await Client(service.url, body).send()
                await asyncio.sleep(0.5)

        async def watch(tick: Bar) -> None:
            while time.perf_counter() < end:
                samples.append({"minutes": (time.perf_counter() - answers.start) / 60, "rss": service.rss(),
                                "fds": service.fds(), "threads": service.threads()})  # fmt: skip
                tick()
                await asyncio.sleep(every)

        clients = [Client(service.url, b) for b in sizes] + [Client(service.url, bitstream, "/v1/decode")] * 2
        with Bar(f"soak, {options.minutes:g} minutes", seconds) as tick:
            await asyncio.gather(*(work(client) for client in clients), leave(), watch(tick))
    # the allocator has its arenas after a while: the first fifth is not looked at
    settled = samples[len(samples) // 5 :]
    half = len(settled) // 2
    print(f"{len(answers)} answers {answers.kinds()}")
    print(f"{'':<10}{'at first':>12}{'then':>12}{'at last':>12}{'growth':>9}")
    growth = {}
    for name, unit in (("rss", 2**20), ("fds", 1), ("threads", 1)):
        early, late = (median([s[name] / unit for s in part]) for part in (settled[:half], settled[half:]))
        growth[name] = late / early - 1
        label = "RSS, MiB" if name == "rss" else name
        print(f"{label:<10}{samples[0][name] / unit:>12.0f}{early:>12.0f}{late:>12.0f}{growth[name]:>+9.1%}")
    return {"answers": answers.kinds(), "samples": samples, "growth": growth}


def plot_soak(report: Report, axes: Any) -> None:
    left, right = axes
    minutes = [s["minutes"] for s in report["samples"]]
    left.plot(minutes, [s["rss"] / 2**20 for s in report["samples"]], label="resident memory")
    left.set(xlabel="minutes", ylabel="MiB", ylim=(0, None))
    for name in ("fds", "threads"):
        right.plot(minutes, [s[name] for s in report["samples"]], label=name)
    right.set(xlabel="minutes", ylim=(0, None))


# ---- disconnects


async def disconnects(options: argparse.Namespace) -> Report:
    seconds, body = options.seconds or 20, photograph(options.size)
    with replicas(1, options.settings, options.cores) as (service,):
        patient = Client(service.url, body)
        alone = [(await patient.send()).milliseconds for _ in range(6)][2:]
        fds, abandoned = service.fds(), service.metric("tcm_batches_abandoned_total")
        batches = service.metric("tcm_batch_items_sum")
        answers, sent, end = Answers(), 0, time.perf_counter() + seconds

        async def stay(tick: Bar) -> None:
            while time.perf_counter() < end:
                answers.append(await patient.send())
                tick()

        async def leave() -> None:
            nonlocal sent
            while time.perf_counter() < end:
                with contextlib.suppress(OSError, EOFError, TimeoutError):
                    client = Client(service.url, body)
                    reader, writer = await client.connect()
                    try:
                        writer.write(client.request[: random.choice((20, len(client.request) // 2, None))])
                        sent += 1
                        async with asyncio.timeout(random.uniform(0, 0.3)):
                            await reader.read(1)
                    finally:
                        writer.transport.abort()

        with Bar("50 clients that leave", seconds) as tick:
            await asyncio.gather(stay(tick), *(leave() for _ in range(50)))
        patient.close()
        for _ in range(100):
            if not service.metric("tcm_requests_inside"):
                break
            await asyncio.sleep(0.1)
        report = {
            "requests left": sent,
            "per second": sent / seconds,
            "of them done on the device": service.metric("tcm_batch_items_sum") - batches - len(answers),
            "batches given up": service.metric("tcm_batches_abandoned_total") - abandoned,
            "who stays, alone, p50 ms": percentile(sorted(alone), 50),
            "who stays, in the storm, p50 ms": percentile(answers.milliseconds(200), 50),
            "its failures": answers.failures(),
            "afterwards: places taken": service.metric("tcm_requests_inside"),
            "afterwards: queue": service.metric("tcm_queue_depth"),
            "afterwards: descriptors more": service.fds() - fds,
        }
    print_facts(report)
    return report


# ---- restart and kill


async def behind_nginx(
    options: argparse.Namespace, act: Callable[[list[Replica], list[Any]], Any], what: str
) -> Report:
    if not NGINX:
        raise SystemExit("nginx is not installed")
    events: list[Any] = []
    with (
        tempfile.TemporaryDirectory(prefix="tcm-") as name,
        replicas(2, options.settings, options.cores) as two,
        nginx([replica.port for replica in two], Path(name)) as url,
    ):
        client, body = Client(url, photograph(options.size)), Answers()
        with Bar("capacity", 5) as tick:
            await closed_loop(client, 4, 5, body, tick)
        capacity = body.per_second(body.start + 1, body.start + 5)
        answers = Answers()
        rate = 0.4 * capacity  # one of two replicas has to bear it for a while, on the same processor
        task = asyncio.create_task(act(two, events))
        with Bar(what, options.seconds or 60) as tick:
            while not task.done():
                await open_loop(client, rate, 2, answers, tick)
            await open_loop(client, rate, 2, answers, tick)
        await task
        client.close()
    report = {
        "load, requests a second": rate,
        "sent": len(answers),
        "answered with 200": answers.kinds().get("200", 0),
        "lost": answers.failures(),
        "p50 ms": percentile(answers.milliseconds(200), 50),
        "p99 ms": percentile(answers.milliseconds(200), 99),
        "events": [f"{moment - answers.start:.1f} s: {text}" for moment, text in events],
    }
    print_facts(report)
    return report


async def _replace(replica: Replica, number: int, events: list[Any], sig: int) -> None:
    events.append((time.perf_counter(), f"replica {number}: {signal.Signals(sig).name}"))
    replica.stop(sig)
    code = await asyncio.to_thread(replica.process.wait, 180)
    events.append((time.perf_counter(), f"replica {number}: has ended with {code}"))
    replica.start()
    await asyncio.to_thread(wait_for, [replica])
    events.append((time.perf_counter(), f"replica {number}: is ready again"))


async def restart(options: argparse.Namespace) -> Report:
    async def act(two: list[Replica], events: list[Any]) -> None:
        await asyncio.sleep(2)
        for number, replica in enumerate(two, 1):
            await _replace(replica, number, events, signal.SIGTERM)

    return await behind_nginx(options, act, "rolling restart")


async def kill(options: argparse.Namespace) -> Report:
    async def act(two: list[Replica], events: list[Any]) -> None:
        await asyncio.sleep(2)
        await _replace(two[0], 1, events, signal.SIGKILL)

    return await behind_nginx(options, act, "kill")


# ---- what they share

COMMANDS = {"overload": overload, "soak": soak, "disconnects": disconnects, "restart": restart, "kill": kill}
PLOTS: dict[str, Callable[[Report, Any], None]] = {"overload": plot_overload, "soak": plot_soak}


def show(rows: Sequence[Overload]) -> None:
    """The newest row, under a head if it is the first."""
    for cells in ([Overload.HEAD] if len(rows) == 1 else []) + [rows[-1].cells()]:
        print(*(cell.rjust(10) for cell in cells), flush=True)


def print_facts(report: Report) -> None:
    for name, value in report.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        if isinstance(value, list):
            shown = "".join(f"\n  {line}" for line in value)
        print(f"{name:<34}{shown or '-' if shown != 0 else 0}")


def draw(command: str, report: Report, machine: str, out: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    PLOTS[command](report, axes)
    for one in axes:
        one.grid(alpha=0.3)
        one.legend()
    figure.suptitle(f"{command}: {machine}", fontsize=9)
    figure.savefig(out, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=list(COMMANDS))
    parser.add_argument("--size", default="384x256", help="of the photograph that is sent")
    parser.add_argument("--seconds", type=float, help="of each load")
    parser.add_argument("--minutes", type=float, default=30, help="of the soak")
    parser.add_argument("--json", type=Path, help="where the numbers go, too")
    parser.add_argument("--plot", type=Path, help="where the picture goes (overload, soak)")
    parser.add_argument("--apart", action="store_true", help="a core for the client, the others for the service")
    parser.add_argument("settings", nargs="*", help="of `tcm serve`, after --")
    options = parser.parse_args()
    if options.plot and options.command not in PLOTS:
        parser.error(f"--plot draws {' and '.join(PLOTS)} only")
    if not 0 < options.minutes <= 24 * 60 or not 0 < (options.seconds or 1) <= 600:
        parser.error("at most 600 seconds a load and a day of soak")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    options.cores = None
    if options.apart:
        *others, last = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {last})
        options.cores = set(others)
    machine = describe(pick_device()) + (", the client on a core of its own" if options.apart else "")
    print(f"{machine}\n{options.command}, {options.size}, settings: {' '.join(options.settings) or '-'}", flush=True)
    report = asyncio.run(COMMANDS[options.command](options))
    if options.json:
        document = {"command": " ".join(sys.argv[1:]), "machine": machine, **report}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.plot:
        draw(options.command, report, machine, options.plot)


if __name__ == "__main__":
    main()
