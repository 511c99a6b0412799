"""Hours of encoding, decoding and leaving: whether memory, descriptors and threads stay where they are.

For `resilience.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import time
from statistics import median
from typing import Any

import httpx

from bench.load import Answers, Bar, Client, photograph
from bench.replicas import replicas


async def soak(options: argparse.Namespace) -> dict[str, Any]:
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


def plot_soak(report: dict[str, Any], axes: Any) -> None:
    left, right = axes
    minutes = [s["minutes"] for s in report["samples"]]
    left.plot(minutes, [s["rss"] / 2**20 for s in report["samples"]], label="resident memory")
    left.set(xlabel="minutes", ylabel="MiB", ylim=(0, None))
    for name in ("fds", "threads"):
        right.plot(minutes, [s[name] for s in report["samples"]], label=name)
    right.set(xlabel="minutes", ylim=(0, None))
