"""The guard: writer and reader choose the same table for every element although their σ differ in the last digits.

The choice of the scale index is the one discontinuity between two machines: σ just below a boundary of the scale table
on one is just above it on the other, and the rest of the picture is noise. So the writer puts the boundaries where no
element is. There are many ways to place them, numbered j = 0, 1, 2 …: way 0 has each boundary in the middle between
two scales of the table, every other way has it at a pseudo-random place between them. For each group of elements of a
slice the writer takes the first way in which no element's σ lies within the tolerance of a boundary, and writes j.
Whoever computes every σ to within the tolerance then finds the same index for every element.

The tolerance is D·(1 + σ): σ is a sum of terms of about the same size whatever its value, so its error is nearly
constant where σ is small. In ln σ, where the scales are 0.123 apart, that is D·(1 + 1/σ).

What it costs: an element is in a way's way with a chance of 2·D·(1 + 1/σ)/0.123. With λ such elements expected in a
group, j is geometric with a mean of e^λ - 1: 1.44·λ + 1.4 bits, so that large groups are cheap; the writer chooses the
size of the groups by slice. What it loses: nothing; a boundary between two scales suits the elements better than one
at the upper scale.
"""

from __future__ import annotations

import functools
import math

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.entropy import Decoder, SymbolMismatch
from model.tables import GUARD_MEANS, LOG_STEP, SCALE_LEVELS, scale_boundaries, scale_table

DRIFT = 4e-5
"""D: σ may differ by D·(1 + σ) between two machines. Part of format version 1."""
WAYS = 4096
"""Placements of the boundaries that can be told from one another. Part of format version 1."""
SMALLEST_GROUP = 64
GROUP_SIZES = len(GUARD_MEANS)
"""A slice's groups have 64·2^g elements, g below this, in raster order of (channel, row, column)."""
FIRST_TABLE = SCALE_LEVELS
"""Where the guard's alphabets stand among the coder's: behind the Gaussians."""

_BOUNDARIES = SCALE_LEVELS - 1
_ROUNDING = 1e-6  # of a boundary in float32, in ln σ
_CROWDED = 4.0  # elements in the way that a group may expect: one way in 55 is then free


@functools.cache
def places() -> NDArray[np.float64]:
    """Where way j has boundary k, as a part of the distance from scale k to scale k + 1: (WAYS, 63) in [0, 1)."""
    j, k = np.meshgrid(np.arange(WAYS, dtype=np.uint64), np.arange(_BOUNDARIES, dtype=np.uint64), indexing="ij")
    low = np.uint64(0xFFFFFFFF)
    h = (j * np.uint64(0x9E3779B1) + k * np.uint64(0x85EBCA77)) & low
    h ^= h >> np.uint64(15)
    h = (h * np.uint64(0x2C1B3C6D)) & low
    h ^= h >> np.uint64(12)
    place = (h >> np.uint64(16)).astype(np.float64) / 65536
    place[0] = 0.5
    return place


@functools.cache
def _boundaries() -> Tensor:
    """σ at each boundary of each way, (WAYS, 63), float32."""
    logs = math.log(scale_table()[0]) + LOG_STEP * (np.arange(_BOUNDARIES) + places())
    return torch.from_numpy(np.exp(logs).astype(np.float32))


def choose(scales: NDArray[np.float32]) -> tuple[int, NDArray[np.int32]]:
    """The writer's choice for the σ of one slice, flattened: the exponent g of the groups' size, and j of each group.

    Where no way is free, which happens to no photograph, j is 0 and the checksum of the symbols is all that protects
    the picture.
    """
    smallest, sigma = scale_table()[0], scales.astype(np.float64)
    reach = np.flatnonzero(sigma + DRIFT * (1 + sigma) >= smallest * (1 - _ROUNDING))  # may pass the first boundary
    sigma = sigma[reach]
    above = np.log(sigma / smallest) / LOG_STEP
    tolerance = (DRIFT * (1 + 1 / sigma) + _ROUNDING) / LOG_STEP
    near = above <= _BOUNDARIES + tolerance
    active, above, tolerance = reach[near], above[near], tolerance[near]
    boundary = np.clip(np.floor(above), 0, _BOUNDARIES - 1)
    place = above - boundary
    # groups as large as the average allows; smaller ones if some of them find no way
    for exponent in range(_largest(2 * tolerance, len(scales)), -1, -1):
        count = groups(len(scales), exponent)
        starts = np.searchsorted(active, np.arange(count + 1) * (SMALLEST_GROUP << exponent))
        ways = _first_free(starts, boundary.astype(np.int64), place, tolerance, places())
        if ways.min() >= 0:
            break
    return exponent, np.maximum(ways, 0)


def _largest(chances: NDArray[np.float64], elements: int) -> int:
    """The exponent of the groups' size at which a group of this slice expects not too many elements in the way."""
    expected = float(chances.sum()) / elements * SMALLEST_GROUP
    for exponent in range(1, GROUP_SIZES):
        if expected * (1 << exponent) > _CROWDED or groups(elements, exponent - 1) == 1:
            return exponent - 1
    return GROUP_SIZES - 1


@numba.njit("int32[:](int64[::1], int64[::1], float64[::1], float64[::1], float64[:, ::1])",
            nogil=True, cache=True)  # fmt: skip
def _first_free(starts, boundary, inside, tolerance, place):  # type: ignore[no-untyped-def]  # numba infers
    """For each group the first way that has no boundary near any of its elements; -1 where there is none.

    An element lies at `inside` (about 0 to 1) between scale `boundary` and the next.
    """
    chosen = np.full(len(starts) - 1, -1, np.int32)
    last = place.shape[1] - 1
    for group in range(len(chosen)):
        for way in range(place.shape[0]):
            free = True
            for e in range(starts[group], starts[group + 1]):
                k, x, t = boundary[e], inside[e], tolerance[e]
                if (
                    abs(x - place[way, k]) <= t
                    or (k > 0 and x <= t and abs(x + 1 - place[way, k - 1]) <= t)
                    or (k < last and 1 - x <= t and abs(x - 1 - place[way, k + 1]) <= t)
                ):
                    free = False
                    break
            if free:
                chosen[group] = way
                break
    return chosen


def groups(elements: int, exponent: int) -> int:
    """Groups of a slice of so many elements."""
    return -(-elements // (SMALLEST_GROUP << exponent))


def scale_indexes(scales: Tensor, exponent: int, ways: NDArray[np.int32]) -> Tensor:
    """σ of one slice -> the table index of each element, flattened, int16 in 0..63."""
    flat = scales.flatten()
    between = torch.bucketize(flat, scale_boundaries().to(flat))  # how many scales of the table lie below σ
    boundary = (between - 1).clamp_(min=0)
    group = torch.arange(len(flat), device=flat.device) // (SMALLEST_GROUP << exponent)
    each = _boundaries()[torch.from_numpy(ways.astype(np.int64))].to(flat)
    indexes = boundary + (flat > each[group, boundary])
    return torch.where(between > 0, indexes, 0).to(torch.int16)


def to_parts(exponent: int, ways: NDArray[np.int32]) -> list[tuple[NDArray[np.int32], NDArray[np.int16]]]:
    """For the coder: the groups' size, the geometric distribution that suits the ways best, and the ways in it."""
    mean = max(float(ways.mean()), GUARD_MEANS[0])
    choice = min(range(len(GUARD_MEANS)), key=lambda k: abs(math.log(GUARD_MEANS[k] / mean)))
    return [
        (np.array([exponent, choice], np.int32), np.full(2, FIRST_TABLE, np.int16)),
        (ways, np.full(len(ways), FIRST_TABLE + 1 + choice, np.int16)),
    ]


def read(decoder: Decoder, elements: int) -> tuple[int, NDArray[np.int32]]:
    """What `choose` chose for a slice of so many elements.

    Raises:
        SymbolMismatch: the stream says nothing of the kind.
    """
    exponent, choice = (int(s) for s in decoder.read(np.full(2, FIRST_TABLE, np.int16)))
    if not (0 <= exponent < GROUP_SIZES and 0 <= choice < len(GUARD_MEANS)):
        raise SymbolMismatch("the guard names a distribution or a group size that is none")
    ways = decoder.read(np.full(groups(elements, exponent), FIRST_TABLE + 1 + choice, np.int16))
    if ways.min() < 0 or ways.max() >= WAYS:
        raise SymbolMismatch("the guard places boundaries in a way that is none")
    return exponent, ways
