"""The entropy coder against compressai.ans, on the same symbols, in the same run.

python bench/entropy_coder.py [SYMBOLS]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from compressai.entropy_models import GaussianConditional

from model.benchmark.machine import describe
from model.entropy import Coder, stream_count
from model.tables import gaussian_tables, scale_table


def timed(work: Callable[[], object], runs: int = 9) -> float:
    work()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def main(count: int = 491_520) -> None:
    rng = np.random.default_rng(0)
    table = scale_table()
    indexes = np.clip(rng.normal(12, 9, count), 0, 63).astype(np.int16)
    symbols = np.rint(rng.standard_normal(count) * table[indexes]).astype(np.int32)

    coder = Coder(gaussian_tables())
    streams = stream_count(count)
    payload = coder.encode([(symbols, indexes)], streams)

    def decode() -> None:
        decoder = coder.decoder(payload, streams)
        assert (decoder.read(indexes) == symbols).all()
        decoder.finish()

    theirs = GaussianConditional(table.tolist())
    theirs.update()
    y, i = (torch.from_numpy(a.astype(np.float32)).view(1, 1, 1, -1) for a in (symbols, indexes))
    string = theirs.compress(y, i.int())
    rows = {
        "encode": (
            timed(lambda: coder.encode([(symbols, indexes)], streams)),
            timed(lambda: theirs.compress(y, i.int())),
        ),
        "decode": (timed(decode), timed(lambda: theirs.decompress(string, i.int()))),
    }
    print(f"{describe(torch.device('cpu'))}\n{count:,} symbols in {streams} streams")
    for what, (ours, others) in rows.items():
        ratio = f"{others / ours:.1f} times faster"
        print(f"{what}: {1000 * ours:.2f} ms, compressai.ans {1000 * others:.2f} ms: {ratio}")
    print(f"bytes: {len(payload):,}, compressai.ans {len(string[0]):,}: {len(payload) / len(string[0]) - 1:+.3%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
