"""Encode and decode the same pictures again and again, and report the medians."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from model import fused
from model.benchmark.machine import forget_peak, peak_memory, synchronise
from model.codec import Codec
from model.container import read_container
from model.latent_coder import Analysis
from model.pixels import Picture, Pixels
from model.stages import Stages
from model.threads import cores

_S = TypeVar("_S")


@dataclass(frozen=True)
class Speed:
    """Medians over `runs`, for batches of `batch` pictures of `width` x `height`.

    Attributes:
        encode_s: seconds a batch, from pixels to files.
        decode_s: seconds a batch, from files to pixels.
        encode_rate: pictures a second where the host's part of a batch is done beside the device's part of the next.
        decode_rate: likewise.
        encode_stages: seconds of each stage, in the run of the median.
        decode_stages: likewise.
        flop: of one encode and one decode of one picture; what is left out or folded is not counted.
        peak_bytes: most memory held meanwhile, the weights' own and what others left included.
    """

    model: str
    precision: str
    width: int
    height: int
    batch: int
    runs: int
    encode_s: float
    decode_s: float
    encode_rate: float
    decode_rate: float
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
    """Time encode and decode for about `seconds` each, after two warm-ups."""
    forget_peak(codec.device)
    one = picture(width, height)
    pictures = [one] * batch

    def analyse(stages: Stages) -> list[Analysis]:
        return codec.analyse(pictures, stages=stages)

    def pack(part: Analysis, stages: Stages) -> bytes:
        return codec.pack(one, part, stages=stages)

    def synthesise(stages: Stages) -> list[Pixels]:
        results = codec.synthesise([read_container(data) for data in files], stages=stages)
        return [_sound(result) for result in results]

    def unpack(padded: Pixels, _: Stages) -> Picture:
        return codec.unpack(read_container(files[0]), padded)

    def encode(stages: Stages) -> list[bytes]:
        return [pack(part, stages) for part in analyse(stages)]

    def decode(stages: Stages) -> list[Picture]:
        return [unpack(padded, stages) for padded in synthesise(stages)]

    for _ in range(2):  # a GPU records the second one
        files = encode(Stages())
        decode(Stages())
    encoded = _repeat(encode, seconds, codec.device)
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
        encode_rate=_rate(analyse, pack, batch, seconds),
        decode_rate=_rate(synthesise, unpack, batch, seconds),
        peak_bytes=peak_memory(codec.device),  # before the operations are counted, which takes more
        bits_per_pixel=8 * len(files[0]) / (width * height),
        flop=_flop(codec, pictures[0]),
        encode_stages=dict(sorted(encoded, key=lambda run: run[0])[len(encoded) // 2][1]),
        decode_stages=dict(sorted(decoded, key=lambda run: run[0])[len(decoded) // 2][1]),
    )


def _repeat(work: Callable[..., object], seconds: float, device: torch.device) -> list[tuple[float, dict[str, float]]]:
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


def _rate(
    on_device: Callable[[Stages], list[_S]], on_host: Callable[[_S, Stages], object], batch: int, seconds: float
) -> float:
    """Pictures a second of both parts in a pipeline, as the service has it."""
    waiting: deque[list[Future[object]]] = deque()
    batches, start = 0, time.perf_counter()
    with ThreadPoolExecutor(cores()) as threads:
        while time.perf_counter() - start < seconds or batches < 3:
            waiting.append([threads.submit(on_host, part, Stages()) for part in on_device(Stages())])
            batches += 1
            if len(waiting) > 2:  # the host may fall behind by so many batches
                wait(waiting.popleft())
    return batches * batch / (time.perf_counter() - start)


def _sound(result: Pixels | Exception) -> Pixels:
    if isinstance(result, Exception):
        raise result
    return result


def _flop(codec: Codec, drawn: Picture) -> float:
    """Multiplications and additions of convolutions and matrix products, as torch counts them."""
    with fused.nothing(), FlopCounterMode(display=False) as counted:  # what is fused, torch does not count
        codec.decode_container(read_container(codec.encode_picture(drawn)))
    return float(counted.get_total_flops())
