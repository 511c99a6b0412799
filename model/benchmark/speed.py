"""Encode and decode the same pictures again and again, and report the medians."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from model import fused
from model.benchmark.machine import peak_memory, synchronise
from model.codec import Codec
from model.container import read_container
from model.pixels import Picture

_T = TypeVar("_T")


@dataclass(frozen=True)
class Speed:
    """Medians over `runs`, for batches of `batch` pictures of `width` x `height`.

    Attributes:
        encode_s: seconds a batch, from pixels to files.
        decode_s: seconds a batch, from files to pixels.
        encode_stages: seconds of each stage, in the run of the median.
        decode_stages: likewise.
        flop: of one encode and one decode of one picture; what is left out or folded is not counted.
        peak_bytes: most memory taken so far.
    """

    model: str
    precision: str
    width: int
    height: int
    batch: int
    runs: int
    encode_s: float
    decode_s: float
    bits_per_pixel: float
    flop: float
    peak_bytes: int
    encode_stages: dict[str, float] = field(default_factory=dict)
    decode_stages: dict[str, float] = field(default_factory=dict)

    @property
    def flop_rate(self) -> float:
        """FLOP/s over encode and decode together."""
        return self.flop * self.batch / (self.encode_s + self.decode_s)


def picture(width: int, height: int) -> Picture:
    """Waves of many lengths and some grain: about as many bits as a photograph, and the same at every call."""
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(0)
    planes = []
    for _ in range(3):
        plane = np.zeros((height, width))
        for octave in range(7):
            angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
            plane += 0.5**octave * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2**octave / 90 + phase)
        planes.append(plane + rng.normal(0, 0.03, plane.shape))
    return Picture(np.ascontiguousarray(np.clip(np.stack(planes, axis=-1) * 55 + 128, 0, 255).astype(np.uint8)))


def measure(codec: Codec, width: int, height: int, batch: int, seconds: float) -> Speed:
    """Time encode and decode for about `seconds` each, after one warm-up."""
    from model.stages import Stages

    pictures = [picture(width, height)] * batch

    def encode(stages: Stages) -> list[bytes]:
        parts = codec.analyse(pictures, stages=stages)
        return [codec.pack(p, part, stages=stages) for p, part in zip(pictures, parts, strict=True)]

    def decode(stages: Stages) -> None:
        containers = [read_container(data) for data in files]
        for container, padded in zip(containers, codec.synthesise(containers, stages=stages), strict=True):
            if isinstance(padded, Exception):
                raise padded
            codec.unpack(container, padded)

    files = encode(Stages())
    encoded = _repeat(encode, seconds, codec.device)
    decode(Stages())
    decoded = _repeat(decode, seconds, codec.device)
    return Speed(
        model=codec.info.name,
        precision=str(codec.dtype).removeprefix("torch."),
        width=width,
        height=height,
        batch=batch,
        runs=min(len(encoded), len(decoded)),
        encode_s=median(s for s, _ in encoded),
        decode_s=median(s for s, _ in decoded),
        bits_per_pixel=8 * len(files[0]) / (width * height),
        flop=_flop(codec, pictures[0]),
        peak_bytes=peak_memory(codec.device),
        encode_stages=dict(sorted(encoded, key=lambda run: run[0])[len(encoded) // 2][1]),
        decode_stages=dict(sorted(decoded, key=lambda run: run[0])[len(decoded) // 2][1]),
    )


def _repeat(work: Callable[..., object], seconds: float, device: torch.device) -> list[tuple[float, dict[str, float]]]:
    from model.stages import Stages

    runs: list[tuple[float, dict[str, float]]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(runs) < 3:
        stages = Stages()
        synchronise(device)
        start = time.perf_counter()
        work(stages)
        synchronise(device)
        runs.append((time.perf_counter() - start, stages))
    return runs


def _flop(codec: Codec, drawn: Picture) -> float:
    """Multiplications and additions of convolutions and matrix products, as torch counts them."""
    with fused.nothing(), FlopCounterMode(display=False) as counted:  # what is fused, torch does not count
        codec.decode_container(read_container(codec.encode_picture(drawn)))
    return float(counted.get_total_flops())
