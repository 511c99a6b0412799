"""Cumulative frequency tables: the probabilities that the entropy coder counts with, as integers.

A bitstream is readable only by someone with the very same integers, so they never depend on the machine: those of y
follow from the format alone (64 Gaussians, the same for every model) and are checked against a known CRC; those of z
follow from a model's weights, are computed once in float64 at import and travel with the weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import google_crc32c
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.borrowed import EntropyBottleneck

PRECISION = 16
TOTAL = 1 << PRECISION
SCALE_MIN, SCALE_MAX, SCALE_LEVELS = 0.11, 256.0, 64
LOG_STEP = (math.log(SCALE_MAX) - math.log(SCALE_MIN)) / (SCALE_LEVELS - 1)
"""Distance of two neighbouring scales of the table in ln σ: 0.123."""

GUARD_NUMBERS, GUARD_LOWS = 20, 64
"""Sizes of the guard's two uniform alphabets."""
GUARD_MEANS = tuple(2.0 ** (k - 6) for k in range(14))
"""Means of the geometric distributions that the guard's numbers are written with, 1/64 to 128."""

_GAUSSIAN_REACH = 5.0  # symbols beyond ±5σ are rarer than one count in 65536: they are escaped
_Z_REACH = 1024
_Z_TAIL = 0.5 / TOTAL
_GAUSSIAN_CRC = 0x45D0BBC9  # of the tables as little-endian int32; part of format version 1
_GUARD_CRC = 0xA167CDA6


@dataclass(frozen=True)
class Tables:
    """Several alphabets of consecutive integers, each closed by an escape.

    Attributes:
        cdf: int32, all alphabets one after another: alphabet t is cdf[start[t]:start[t+1]], rising strictly from 0
            to 65536. Its last interval is the escape.
        start: int32 (alphabets + 1).
        low: int32 (alphabets), the symbol of each alphabet's first interval.
    """

    cdf: NDArray[np.int32]
    start: NDArray[np.int32]
    low: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.low)

    def __add__(self, other: Tables) -> Tables:
        """Both sets; the alphabets of `other` follow."""
        return Tables(
            np.concatenate([self.cdf, other.cdf]),
            np.concatenate([self.start, other.start[1:] + self.start[-1]]),
            np.concatenate([self.low, other.low]),
        )

    def check(self) -> None:
        """Raise ValueError unless every alphabet is sound, so that the coder can walk them unchecked."""
        starts = self.start.astype(np.int64)
        if len(starts) != len(self.low) + 1 or starts[0] != 0 or starts[-1] != len(self.cdf) or len(self.low) == 0:
            raise ValueError("the tables' parts do not fit each other")
        sizes = np.diff(starts)
        if sizes.min() < 3:
            raise ValueError("an alphabet has at least one symbol and the escape")
        first, last = starts[:-1], starts[1:] - 1
        rises = np.diff(self.cdf.astype(np.int64)) > 0
        rises[last[:-1]] = True  # from the end of one alphabet to the start of the next
        if not rises.all() or (self.cdf[first] != 0).any() or (self.cdf[last] != TOTAL).any():
            raise ValueError("a cumulative table does not rise from 0 to 65536")
        if np.abs(self.low.astype(np.int64)).max() > 1 << 20:
            raise ValueError("an alphabet starts too far from zero")


def _quantise(mass: NDArray[np.float64]) -> NDArray[np.int32]:
    """Lower edges of n intervals as probability mass, rising from 0 -> n + 1 integers from 0 to 65536.

    Every interval gets one count, the rest is shared out by mass: edge i is i + round(mass_i · (65536 - n)).
    """
    n = len(mass)
    edges = np.arange(n) + np.floor(mass * (TOTAL - n) + 0.5).astype(np.int64)
    return np.append(edges, TOTAL).astype(np.int32)


def _assemble(alphabets: list[tuple[int, NDArray[np.int32]]]) -> Tables:
    sizes = [len(cdf) for _, cdf in alphabets]
    tables = Tables(
        cdf=np.concatenate([cdf for _, cdf in alphabets]),
        start=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32),
        low=np.array([low for low, _ in alphabets], dtype=np.int32),
    )
    tables.check()
    return tables


def scale_table() -> NDArray[np.float64]:
    """The 64 scales exp(linspace(ln 0.11, ln 256, 64)) that σ is rounded up to (CompressAI's table)."""
    scales: NDArray[np.float64] = np.exp(np.linspace(math.log(SCALE_MIN), math.log(SCALE_MAX), SCALE_LEVELS))
    return scales


@functools.cache
def gaussian_tables() -> Tables:
    """One alphabet for each scale of the table, for symbols round(y - μ)."""
    alphabets = []
    for scale in scale_table():
        reach = math.ceil(_GAUSSIAN_REACH * scale)
        lower = [(v - 0.5) / scale for v in range(-reach, reach + 2)]
        mass = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in lower])
        alphabets.append((-reach, _quantise(mass - mass[0])))
    return _checked(_assemble(alphabets), _GAUSSIAN_CRC)


@functools.cache
def guard_tables() -> Tables:
    """Two uniform alphabets, then one geometric distribution for each mean."""
    alphabets = [(0, _quantise(np.linspace(0, 1, size + 1, dtype=np.float64))) for size in (GUARD_NUMBERS, GUARD_LOWS)]
    for mean in GUARD_MEANS:
        size = max(2, math.ceil(8 * mean))
        stays = mean / (1 + mean)  # the chance that a way is taken, so that the next is looked at
        alphabets.append((0, _quantise(1 - np.array([math.pow(stays, j) for j in range(size + 1)], np.float64))))
    return _checked(_assemble(alphabets), _GUARD_CRC)


def _checked(tables: Tables, expected: int) -> Tables:
    """Tables that every machine must agree on to the last count."""
    crc = google_crc32c.value(tables.cdf.astype("<i4").tobytes())
    if crc != expected:
        raise RuntimeError(f"this machine's arithmetic gives other tables (CRC {crc:#010x}): no file could be read")
    return tables


@torch.no_grad()
def bottleneck_tables(bottleneck: EntropyBottleneck) -> Tables:
    """One alphabet for each channel of z, for symbols round(z - median), from the factorised prior's weights."""
    cumulative = _float64_cumulative(bottleneck)
    medians = bottleneck.quantiles.detach()[:, :, 1:2].double()
    edges = torch.arange(-_Z_REACH, _Z_REACH + 2, dtype=torch.float64) - 0.5  # lower edge of each symbol
    mass = torch.sigmoid(cumulative(medians + edges)).squeeze(1).numpy()
    alphabets = []
    for below in mass:
        inside = np.flatnonzero((below[1:] > _Z_TAIL) & (below[:-1] < 1 - _Z_TAIL))
        low = min(int(inside[0]) if len(inside) else _Z_REACH, _Z_REACH)
        high = max(int(inside[-1]) if len(inside) else _Z_REACH, _Z_REACH)
        edge = below[low : high + 2]
        alphabets.append((low - _Z_REACH, _quantise(np.maximum.accumulate(edge - edge[0]))))
    return _assemble(alphabets)


def _float64_cumulative(bottleneck: EntropyBottleneck) -> Callable[[Tensor], Tensor]:
    """The bottleneck's cumulative logits (Ballé et al. 2018, appendix 6.1) in float64 on the CPU."""
    matrices = [F.softplus(m.detach().double().cpu()) for m in bottleneck.matrices]
    biases = [b.detach().double().cpu() for b in bottleneck.biases]
    factors = [torch.tanh(f.detach().double().cpu()) for f in bottleneck.factors]

    def cumulative(x: Tensor) -> Tensor:
        for i, (matrix, bias) in enumerate(zip(matrices, biases, strict=True)):
            x = matrix @ x + bias
            if i < len(factors):
                x = x + factors[i] * torch.tanh(x)
        return x

    return cumulative
