"""What the heap costs: resident memory after many batches of many shapes, by allocator.

python bench/allocators.py [--batches 70]

The same random sequence of 20 shapes, encoded and decoded with the default model in a process for each allocator.
"""

from __future__ import annotations

import argparse
import ctypes.util
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from model import Codec
from model.benchmark.machine import describe
from model.benchmark.speed import picture
from model.container import Container, read_container

SIZES = ((384, 256), (256, 384), (384, 384), (512, 384), (640, 512))
JEMALLOC = "libjemalloc.so.2"
ALLOCATORS = {
    "glibc": {},
    "glibc, blocks of 1 MiB given back": {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
    "jemalloc": {"LD_PRELOAD": JEMALLOC},
}


def work(batches: int) -> None:
    """What each process does: prints MiB and seconds."""
    codec, files, start = Codec.load("tcm-xs-mse-0.013", "cpu"), dict[tuple[int, int], Container](), time.perf_counter()
    random.seed(0)
    for k in range(batches):
        size, count = random.choice(SIZES), random.randint(1, 4)
        if k % 2 == 0 or size not in files:
            drawn = picture(*size)
            written = codec.analyse([drawn] * count)
            files[size] = read_container(codec.pack(drawn, written[0]))
        else:
            codec.synthesise([files[size]] * count)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    print(pages * resource.getpagesize() >> 20, time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=70)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.batches)
    print(describe(torch.device("cpu")))
    for name, environment in ALLOCATORS.items():
        if name == "jemalloc" and not ctypes.util.find_library("jemalloc"):
            print(f"{name}: {JEMALLOC} is not here (Debian: libjemalloc2)")
            continue
        command = [sys.executable, __file__, "--work", "--batches", str(options.batches)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
        mebibytes, seconds = done.stdout.split()
        print(f"{name}: {mebibytes} MiB, {float(seconds):.0f} s")
    return None


if __name__ == "__main__":
    main()
