"""How long threads that wait for work had better spin: the default model's decoder alone, and twice at once.

python bench/spinning.py

GOMP_SPINCOUNT is what GNU's OpenMP is told, 100 to the microsecond or so; 300000 is what it takes by itself.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

COUNTS = (0, 1000, 10_000, 300_000)
PASSES, ROUNDS = 3, 8


def main() -> None:
    import torch

    from model.benchmark.machine import describe

    print(describe(torch.device("cpu")))
    print("GOMP_SPINCOUNT  one process, ms  each of two, ms")
    ways = [(count, processes) for count in COUNTS for processes in (1, 2)]
    times: dict[tuple[int, int], float] = {}
    for _ in range(PASSES):  # in turn, and of each the best, since others use the machine, too
        for count, processes in ways:
            took = statistics.mean(at_once(processes, count))
            times[count, processes] = min(took, times.get((count, processes), took))
    for count in COUNTS:
        print(f"{count:14}  {times[count, 1]:15.0f}  {times[count, 2]:15.0f}")


def at_once(processes: int, count: int) -> list[float]:
    """The median of each process."""
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(count)}
    command, pipe = [sys.executable, __file__, "decode"], subprocess.PIPE
    running = [subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe) for _ in range(processes)]
    for one in running:
        one.stdout.readline()
    for one in running:  # only now, when all are loaded
        one.stdin.write("\n")
        one.stdin.flush()
    return [float(one.communicate()[0]) for one in running]


def decode() -> None:
    from model import Codec, Zoo
    from model.benchmark.speed import picture

    codec = Codec.load(Zoo().default(), "cpu")
    data = codec.encode_picture(picture(768, 512))
    for _ in range(2):
        codec.decode(data)
    print("ready", flush=True)
    sys.stdin.readline()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        codec.decode(data)
        times.append(1e3 * (time.perf_counter() - start))
    print(statistics.median(times))


if __name__ == "__main__":
    decode() if sys.argv[1:] == ["decode"] else main()
