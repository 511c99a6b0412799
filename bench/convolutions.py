"""3x3 convolutions in float32 on this CPU: ours (model/winograd.py) beside oneDNN's, as the networks have them.

python bench/convolutions.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from model import fused, winograd
from model.benchmark.machine import describe

SHAPES = [  # height, width, channels in and out of 768x512's maps
    (32, 48, 64, 96),
    (32, 48, 96, 64),
    (32, 48, 64, 32),
    (32, 48, 640, 224),
    (32, 48, 224, 128),
    (32, 48, 128, 64),
    (16, 24, 128, 1280),
    (64, 96, 128, 128),
    (128, 192, 64, 64),
    (256, 384, 128, 128),
]
ROUNDS = 15


def main() -> None:
    print(describe(torch.device("cpu")))
    print("      map   channels  oneDNN ms  ours ms      times   largest error, oneDNN / ours")
    with torch.no_grad():
        for height, width, channels, given in SHAPES:
            compare(height, width, channels, given)


def compare(height: int, width: int, channels: int, given: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, given, 3, padding=1).requires_grad_(False)
    x = torch.randn(1, channels, height, width).contiguous(memory_format=torch.channels_last)
    if not winograd.suits(channels, given, height, width):
        print(f"{height}x{width}: not on this processor")
        return
    exact = layer.double()(x.double())
    layer.float()
    ways = (lambda: layer(x), lambda: fused.conv(layer, x))
    errors = [float((way() - exact).abs().max()) for way in ways]
    theirs, ours = timed(ways)
    print(
        f"{f'{height}x{width}':>9}  {f'{channels}>{given}':>9}  {theirs:9.2f}  {ours:7.2f}  {theirs / ours:9.2f}"
        f"   {errors[0]:.1e} / {errors[1]:.1e}"
    )


def timed(ways: tuple[Callable[[], Tensor], Callable[[], Tensor]]) -> tuple[float, float]:
    """Medians in milliseconds; one after the other, so that both have the same neighbours."""
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for way, found in zip(ways, times, strict=True):
            start = time.perf_counter()
            way()
            found.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
