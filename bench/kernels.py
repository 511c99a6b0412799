"""Where a device's time goes: the kernels of g_a, the slices and g_s, the longest first.

python bench/kernels.py [s] [--batch 8] [--size 768x512] [--rows 12] [--plain] [--device auto]

Of a network of a published size with random weights, as torch's profiler sees one run of each after a warm-up. --plain
computes layer by layer with torch's own kernels, which is what the fused ones are compared with.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from model import fused
from model.benchmark.machine import describe, synchronise
from model.benchmark.untrained import untrained
from model.latents import code_slices
from model.sizes import parse_size
from model.tiles import STRIDE


def kernels(work: Callable[[], object], device: torch.device) -> list[tuple[float, int, str]]:
    """Milliseconds, launches and name of each kernel."""
    work()
    synchronise(device)
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as seen:
        work()
        synchronise(device)
    kind = DeviceType.CUDA if gpu else DeviceType.CPU
    rows = [
        ((one.self_device_time_total if gpu else one.self_cpu_time_total) / 1000, one.count, one.key)
        for one in seen.key_averages()
        if one.device_type == kind
    ]
    return sorted(rows, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="s", help="xs, s, m or l")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=parse_size, default=(768, 512))
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--plain", action="store_true", help="torch's own kernels, layer by layer")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    codec = untrained(options.network, options.device)
    config, device, (width, height) = codec.info.config, codec.device, options.size
    h, w = (-(-side // config.alignment) * config.alignment // STRIDE for side in (height, width))
    print(f"{describe(device)}\n{codec.info.name}, {width}x{height}, batch {options.batch}")
    with torch.inference_mode(), fused.nothing() if options.plain else contextlib.nullcontext():
        x = torch.rand(options.batch, 3, h * STRIDE, w * STRIDE, device=device)
        y = 3 * torch.randn(options.batch, config.M, h, w, device=device)
        z = torch.randn(options.batch, config.hyper_channels, h // 4, w // 4, device=device).round()
        slices = y.chunk(config.slices, dim=1)
        for name, work in {
            "g_a": lambda: codec._transforms.g_a(x),
            "slices": lambda: code_slices(codec._latents._path, z, lambda i, mean, _: slices[i] + mean),
            "g_s": lambda: codec._transforms.g_s(y),
        }.items():
            rows = kernels(work, device)
            print(f"\n{name}: {sum(ms for ms, _, _ in rows):.2f} ms in {sum(count for _, count, _ in rows)} launches")
            for milliseconds, count, kernel in rows[: options.rows]:
                print(f"{milliseconds:9.3f} ms {count:5d} x {kernel[:90]}")


if __name__ == "__main__":
    main()
