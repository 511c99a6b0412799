"""The guard: writer and reader choose the same alphabet for every element although their σ differ in the last digits.

The choice of the alphabet is the one discontinuity between two machines: σ just below a step from one alphabet to the
next on one is just above it on the other, and the rest of the picture is noise. So the writer puts the steps where no
element is. There are many ways to place them, numbered j = 0, 1, 2 …: way 0 has each step in the middle between two
scales, every other way has it at one of 64 pseudo-random places about the middle. For each group of elements of a
slice the writer takes the first way in which no element's σ lies within the tolerance of a step, and writes j. Whoever
computes every σ to within the tolerance then finds the same alphabet for every element.

The tolerance is D·(1 + σ): σ is a sum of terms of about the same size whatever its value, so its error is nearly
constant where σ is small. In ln σ, where the scales are 0.123 apart, that is D·(1 + 1/σ). The smallest scales, where
that is widest and the choice matters least, are served by fewer alphabets. The terms are what the slices before have
given, so the errors are larger where their σ are: D grows with the largest σ of the slice before. Only the writer
needs it (model/guard_choice.py).

What it costs: a group in which λ elements are expected to be in a way's way has e^λ - 1 ways before the free one on
average, which takes 1.44·λ + 1.44 bits. So few large groups are cheap. Each takes its elements from all over the slice:
then all of them find λ alike, and one geometric distribution suits all their ways.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from model import steps, tables
from model.compiled import compiled
from model.entropy import Decoder, SymbolMismatch
from model.steps import (
    ALPHABETS,
    STEPS,
    THRESHOLDS,
    WAYS,
    cell_and_step,
    place,
)
from model.tables import GUARD_MEANS, SCALE_LEVELS, SCALE_MAX, SCALE_MIN

SMALLEST_GROUP = 64
"""Elements of a group, at least, where there are two groups or more. Part of format version 1."""

_FIRST_TABLE = SCALE_LEVELS  # where the guard's alphabets stand among the coder's: behind the Gaussians
_NUMBERS, _LOW_BITS, _GEOMETRIC = _FIRST_TABLE, _FIRST_TABLE + 1, _FIRST_TABLE + 2
_GROUPS = _GEOMETRIC + 10  # the number of groups has the geometric alphabet of mean 16
_SPLIT = 12  # from this mean on the six low bits of a way are written apart
_SPLIT_BITS = 6
MEANS = len(GUARD_MEANS) + _SPLIT_BITS
"""Geometric distributions that ways can be written with: mean 2^(k-6), k below this."""


_njit = compiled(steps, tables)


@_njit("int16[::1](float32[::1], uint32[::1], int32[::1], int64)")
def _indexes(scales, bits, ways, g):  # type: ignore[no-untyped-def]
    out = np.empty(len(scales), np.int16)
    groups = len(ways)
    at = np.empty((groups, STEPS), np.float32)
    for i in range(groups):
        for step in range(STEPS):
            at[i, step] = THRESHOLDS[step, place(ways[i], step)]
    for e in range(len(scales)):
        if scales[e] > np.float32(SCALE_MIN):
            sigma = min(scales[e], np.float32(SCALE_MAX))
            _, k = cell_and_step(sigma, bits[e])
            out[e] = ALPHABETS[k + np.uint64(sigma > at[np.uint64(g), k])]
        else:
            out[e] = ALPHABETS[0]
        g = 0 if g == groups - 1 else g + 1
    return out


def scale_indexes(scales: NDArray[np.float32], ways: NDArray[np.int32], run: slice | None = None) -> NDArray[np.int16]:
    """σ of one slice, flattened -> the alphabet of each element, of all or of a run, given the way of each group.

    Element e belongs to group e mod len(ways). σ that is no number, or below the first scale, has alphabet 0.
    """
    first = 0 if run is None else run.start
    part = np.ascontiguousarray(scales if run is None else scales[run])
    found: NDArray[np.int16] = _indexes(part, part.view(np.uint32), ways, first % len(ways))
    return found


def most_groups(elements: int) -> int:
    """Of a slice of so many elements; bounds what a hostile file can make a reader allocate."""
    return max(1, elements // SMALLEST_GROUP)


def to_parts(ways: NDArray[np.int32]) -> list[tuple[NDArray[np.int32], NDArray[np.int16]]]:
    """For the coder: how many groups, the geometric distribution that suits their ways best, and the ways in it."""
    mean = math.log2(max(float(ways.mean()), GUARD_MEANS[0]))
    number = min(round(mean) + 6, MEANS - 1)
    head = np.array([len(ways) - 1, number], np.int32), np.array([_GROUPS, _NUMBERS], np.int16)
    if number < _SPLIT:
        return [head, (ways, _table(number, ways))]
    high, low = ways >> _SPLIT_BITS, ways & ((1 << _SPLIT_BITS) - 1)
    return [head, (high, _table(number, ways)), (low, np.full(len(ways), _LOW_BITS, np.int16))]


def is_guard(tables: NDArray[np.int16]) -> bool:
    """Whether a part that was made for the coder, of these tables, is the guard's."""
    return bool(len(tables)) and _FIRST_TABLE <= tables[0] < _GEOMETRIC + len(GUARD_MEANS)


def _table(number: int, ways: NDArray[np.int32] | int) -> NDArray[np.int16]:
    count = ways if isinstance(ways, int) else len(ways)
    return np.full(count, _GEOMETRIC + (number if number < _SPLIT else number - _SPLIT_BITS), np.int16)


def read(decoder: Decoder, elements: int) -> NDArray[np.int32]:
    """What the writer chose for a slice of so many elements.

    Raises:
        SymbolMismatch: the stream says nothing of the kind.
    """
    groups, number = (int(s) for s in decoder.read(np.array([_GROUPS, _NUMBERS], np.int16)))
    groups += 1
    if not (1 <= groups <= most_groups(elements) and 0 <= number < MEANS):
        raise SymbolMismatch("the guard names a distribution or a number of groups that is none")
    ways = decoder.read(_table(number, groups)).astype(np.int64)
    if number >= _SPLIT:
        low = decoder.read(np.full(groups, _LOW_BITS, np.int16))
        if low.min() < 0 or low.max() >= 1 << _SPLIT_BITS:
            raise SymbolMismatch("the guard's low bits are none")
        ways = ways * (1 << _SPLIT_BITS) + low
    if ways.min() < 0 or ways.max() >= WAYS:
        raise SymbolMismatch("the guard places steps in a way that is none")
    return ways.astype(np.int32)
