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
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.load import Answers, Bar, Client, closed_loop, open_loop, percentile, photograph
from bench.overload import WARM_UP, overload, plot_overload
from bench.replicas import NGINX, Replica, nginx, replicas, wait_for
from bench.soak import plot_soak, soak
from model.benchmark.machine import describe
from model.devices import pick_device

Report = dict[str, Any]


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
    if not 0 < options.minutes <= 24 * 60 or not WARM_UP < (options.seconds or 10) <= 600:
        parser.error(f"{WARM_UP:g} to 600 seconds a load, and at most a day of soak")
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
