"""The entropy coder against compressai.ans, and constriction if installed, on the same symbols, in the same run.

python bench/entropy_coder.py [SYMBOLS]

Then ours alone, on the symbols of a photograph with each of the embedded models.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from compressai.entropy_models import GaussianConditional
from numpy.typing import NDArray
from PIL import Image

from model import Codec, Zoo, guard
from model.benchmark.machine import describe
from model.entropy import Coder, stream_count
from model.pixels import from_pil
from model.tables import gaussian_tables, scale_table
from model.threads import each

PHOTO = Path(__file__).parents[1] / "tests" / "data" / "photo.png"


def timed(*works: Callable[[], object], runs: int = 15) -> list[float]:
    """Median seconds of each, run in turn: what else the machine does meets all of them."""
    seconds: list[list[float]] = [[] for _ in works]
    for run in range(runs + 1):  # the first one warms up
        for work, kept in zip(works, seconds, strict=True):
            start = time.perf_counter()
            work()
            if run:
                kept.append(time.perf_counter() - start)
    return [median(kept) for kept in seconds]


def main(count: int = 491_520) -> None:
    rng = np.random.default_rng(0)
    table = scale_table()
    indexes = np.clip(rng.normal(12, 9, count), 0, 63).astype(np.int16)
    symbols = np.rint(rng.standard_normal(count) * table[indexes]).astype(np.int32)

    coder = Coder(gaussian_tables())
    streams = stream_count(count)
    payload = coder.encode([(symbols, indexes)], streams)

    def decode() -> None:
        decoder, read = coder.decoder(payload, streams), np.empty(count, np.int32)
        assert all(each(lambda job: job(), decoder.jobs(read, indexes.__getitem__), urgent=True))
        assert (read == symbols).all()
        decoder.finish()

    theirs = GaussianConditional(table.tolist())
    theirs.update()
    y, i = (torch.from_numpy(a.astype(np.float32)).view(1, 1, 1, -1) for a in (symbols, indexes))
    string = theirs.compress(y, i.int())
    encodes = timed(lambda: coder.encode([(symbols, indexes)], streams), lambda: theirs.compress(y, i.int()))
    decodes = timed(decode, lambda: theirs.decompress(string, i.int()))
    ours, rows = zip(encodes, decodes, strict=True)
    sizes = {"compressai.ans": len(string[0])}
    others = {"compressai.ans": rows} | _constriction(symbols, indexes, table, sizes)
    print(f"{describe(torch.device('cpu'))}\n{count:,} symbols in {streams} streams")
    print(f"ours: encode {1000 * ours[0]:.2f} ms, decode {1000 * ours[1]:.2f} ms, {len(payload):,} bytes")
    for name, (encode, read) in others.items():
        slower = f"{encode / ours[0]:.1f} and {read / ours[1]:.1f} times as long"
        fewer = f"{len(payload) / sizes[name] - 1:+.3%} bytes in ours"
        print(f"{name}: encode {1000 * encode:.2f} ms, decode {1000 * read:.2f} ms: {slower}, {fewer}")
    for entry in Zoo().entries():
        if entry.embedded:
            _of_a_photograph(entry.name)


def _of_a_photograph(model: str) -> None:
    (analysis,) = Codec.load(model, "cpu").analyse([from_pil(Image.open(PHOTO))])
    of_y = [part for part in analysis.parts()[1:] if not guard.is_guard(part[1])]
    symbols, indexes = (np.concatenate(arrays) for arrays in zip(*of_y, strict=True))
    coder = Coder(gaussian_tables())
    payload = coder.encode([(symbols, indexes)])

    def decode() -> None:
        decoder = coder.decoder(payload)
        decoder.read(indexes)
        decoder.finish()

    seconds = timed(lambda: coder.encode([(symbols, indexes)]), decode, runs=41)
    encoding, decoding = (1e9 * each / len(symbols) for each in seconds)
    bits = f"{8 * len(payload) / len(symbols):.2f} bits a symbol"
    print(f"a photograph with {model}, {bits}, one stream: encode {encoding:.1f} ns a symbol, decode {decoding:.1f}")


def _constriction(
    symbols: NDArray[np.int32], indexes: NDArray[np.int16], table: NDArray[np.float64], sizes: dict[str, int]
) -> dict[str, tuple[float, ...]]:
    """Two ways to use constriction: a Gaussian for each symbol, or ready tables, symbols of one table at a time."""
    try:
        import constriction
    except ImportError:
        return {}
    stack, models = constriction.stream.stack, constriction.stream.model
    reach = int(np.abs(symbols).max()) + 1
    gaussian, means, deviations = models.QuantizedGaussian(-reach, reach), np.zeros(len(symbols)), table[indexes]

    def each() -> NDArray[np.uint32]:
        coder = stack.AnsCoder()
        coder.encode_reverse(symbols, gaussian, means, deviations)
        return coder.get_compressed()

    ready = [models.QuantizedGaussian(-reach, reach, 0.0, float(scale)) for scale in table]
    groups = [np.flatnonzero(indexes == k) for k in range(len(table))]  # a decoder that knew all σ at once could, too

    def grouped() -> NDArray[np.uint32]:
        coder = stack.AnsCoder()
        for k in reversed(range(len(table))):
            coder.encode_reverse(symbols[groups[k]], ready[k])
        return coder.get_compressed()

    words, by_table = each(), grouped()

    def decode_each() -> None:
        assert (stack.AnsCoder(words).decode(gaussian, means, deviations) == symbols).all()

    def decode_grouped() -> None:
        coder, out = stack.AnsCoder(by_table), np.empty_like(symbols)
        for k in range(len(table)):
            out[groups[k]] = coder.decode(ready[k], len(groups[k]))
        assert (out == symbols).all()

    one, many = "constriction, a Gaussian each", "constriction, sorted by σ"
    sizes |= {one: words.nbytes, many: by_table.nbytes}
    return {
        one: tuple(timed(each, decode_each, runs=3)),
        many: tuple(timed(grouped, decode_grouped, runs=3)),
    }


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
