"""The most memory that encoding and decoding one large picture takes, each in a process of its own.

python bench/memory.py [--pixels 50] [--model NAME] [--op encode decode] [--limit GB]

Prints the peak of each process's resident memory, libraries and weights included, and the seconds it took. With
`--limit` it fails where a peak is above that.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path


def work(op: str, model: str | None, width: int, height: int, file: Path) -> tuple[float, float, float]:
    """Seconds, and GB at the peak: before the work, and after it."""
    from model.benchmark.machine import peak_memory
    from model.benchmark.speed import picture
    from model.codec import Codec
    from model.container import read_container
    from model.zoo import Zoo

    codec = Codec.load(Zoo().get(model) if model else Zoo().default())
    before = peak_memory(codec.device)
    if op == "encode":
        import numpy as np

        from model.pixels import Picture

        tile = picture(1024, 1024).rgb  # the drawing of a large picture would take more memory than its coding
        rows, columns = -(-height // 1024), -(-width // 1024)
        drawn = Picture(np.ascontiguousarray(np.tile(tile, (rows, columns, 1))[:height, :width]))
        start = time.perf_counter()
        file.write_bytes(codec.encode_picture(drawn))
    else:
        start = time.perf_counter()
        codec.decode_container(read_container(file.read_bytes(), width * height))
    return time.perf_counter() - start, before / 1e9, peak_memory(codec.device) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=float, default=50, help="millions, at 3:2")
    parser.add_argument("--model", help="by default the default one")
    parser.add_argument("--op", nargs="+", choices=["encode", "decode"], default=["encode", "decode"])
    parser.add_argument("--limit", type=float, help="GB")
    options = parser.parse_args()
    import torch

    from model.benchmark.machine import describe

    print(describe(torch.device("cpu")))
    height = round((options.pixels * 1e6 * 2 / 3) ** 0.5)
    width = round(options.pixels * 1e6 / height)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for op in dict.fromkeys(["encode", *options.op]):  # something must be there to decode
            with multiprocessing.get_context("spawn").Pool(1) as one:
                seconds, before, after = one.apply(work, (op, options.model, width, height, Path(folder, "large.tcm")))
            if op in options.op:
                print(f"{op} {width}x{height}: peak {after:.2f} GB, {before:.2f} GB of it at rest, {seconds:.0f} s")
                worst = max(worst, after)
    if options.limit and worst > options.limit:
        raise SystemExit(f"more than {options.limit} GB")


if __name__ == "__main__":
    main()
