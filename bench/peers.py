"""Our networks against CompressAI's models of like quality, from pixels to bytes and back.

python bench/peers.py [--size 768x512] [--runs 3] [--ours tcm-xs-mse-0.013 xs s] [--peers mbt2018-mean cheng2020-attn]
                      [--json FILE]

Ours are installed models by name, or sizes (xs, s, m, l) with random weights; CompressAI's have random weights. Times
depend on weights through the symbols alone: random ones give other rates than trained ones, and entropy coding takes
its part of the time accordingly. `cheng2020-attn` and `mbt2018` code symbol after symbol on the CPU, which takes most
of their time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from compressai.zoo import image_models

from model.benchmark.command import _load
from model.benchmark.machine import describe
from model.benchmark.speed import measure, picture
from model.zoo import Zoo

QUALITY = {"mbt2018-mean": 5, "mbt2018": 5, "cheng2020-attn": 5}
"""The width that CompressAI gives its models at the rates that the embedded models reach."""


def timed(work: Callable[[], object], runs: int) -> float:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def peer(name: str, width: int, height: int, runs: int) -> tuple[float, float]:
    """Seconds to encode and to decode, in float32 as CompressAI runs them."""
    torch.manual_seed(0)
    net = image_models[name](QUALITY[name], pretrained=False).eval()
    net.update()
    pixels = torch.from_numpy(picture(width, height).rgb).permute(2, 0, 1)[None]
    with torch.inference_mode():
        x = torch.nn.functional.pad(pixels.float() / 255, (0, -width % 64, 0, -height % 64), mode="replicate")
        coded = net.compress(x)  # also the warm-up
        encode = timed(lambda: net.compress(x), runs)
        return encode, timed(lambda: net.decompress(coded["strings"], coded["shape"]), runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="768x512")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ours", nargs="*", default=["tcm-xs-mse-0.013", "xs", "s"])
    parser.add_argument("--peers", nargs="*", choices=list(QUALITY), default=["mbt2018-mean", "cheng2020-attn"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    machine = describe(torch.device("cpu"))
    print(f"{machine}\n{options.size}, one picture at a time, milliseconds\n{'':28}{'encode':>9}{'decode':>9}")
    rows = {}
    for size in options.ours:
        name = size if size.startswith("tcm-") else f"untrained {size}"
        speed = measure(_load(name, "cpu", "auto", Zoo()), width, height, 1, 2.0)
        rows[f"{name}, {speed.precision}"] = speed.encode_s, speed.decode_s
        _print(rows)
    for name in options.peers:
        rows[f"{name}, float32"] = peer(name, width, height, options.runs)
        _print(rows)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "size": options.size, "seconds": rows}, indent=1))


def _print(rows: dict[str, tuple[float, float]]) -> None:
    name, (encode, decode) = list(rows.items())[-1]
    print(f"{name:28}{1000 * encode:9.0f}{1000 * decode:9.0f}", flush=True)


if __name__ == "__main__":
    main()
