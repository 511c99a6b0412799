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
given, so the errors are larger where their σ are: D grows with the largest σ of the slice before (`drifts`). Only
the writer needs it.

What it costs: a group in which λ elements are expected to be in a way's way has e^λ - 1 ways before the free one on
average, which takes 1.44·λ + 1.44 bits. So few large groups are cheap. Each takes its elements from all over the slice:
then all of them find λ alike, and one geometric distribution suits all their ways.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from model.entropy import Decoder, SymbolMismatch
from model.tables import GUARD_MEANS, LOG_STEP, SCALE_LEVELS, SCALE_MAX, SCALE_MIN

DRIFT, DRIFT_OF_LARGEST, MOST_DRIFT = 1.8e-5, 2.4e-6, 2.5e-3
"""D is the first and, times the largest σ of the slice before (of the first slice, its own), the second, at most the
third."""
WAYS = 1 << 16
"""Placements of the steps that can be told from one another. Part of format version 1."""
ALPHABETS = np.array([0, 4, *range(6, SCALE_LEVELS)], np.int16)
"""The Gaussians that serve y: steps lie between two neighbours in this list. Part of format version 1."""
PLACES = 64
"""Of a step: (97 + p)/256 of the distance between its scales in ln σ, p below this. Part of format version 1."""

SMALLEST_GROUP = 64
"""Elements of a group, at least, where there are two groups or more. Part of format version 1."""

_FIRST_TABLE = SCALE_LEVELS  # where the guard's alphabets stand among the coder's: behind the Gaussians
_NUMBERS, _LOW_BITS, _GEOMETRIC = _FIRST_TABLE, _FIRST_TABLE + 1, _FIRST_TABLE + 2
_GROUPS = _GEOMETRIC + 10  # the number of groups has the geometric alphabet of mean 16
_SPLIT = 12  # from this mean on the six low bits of a way are written apart
_SPLIT_BITS = 6
MEANS = len(GUARD_MEANS) + _SPLIT_BITS
"""Geometric distributions that ways can be written with: mean 2^(k-6), k below this."""

_STEPS = len(ALPHABETS) - 1
_LOG_MIN = math.log(SCALE_MIN)
_ROUNDING = 1e-6  # of σ in float32, in ln σ
_LARGE, _SLOWER = 64.0, 1 / 8  # σ beyond this, which no photograph has but black-and-white pictures, count less for D
_LARGE_Z = 7  # symbols of z beyond this, which only noise and patterns have, make D of the first slice larger
_CROWDED = 8.0  # elements in the way that a group may expect: one way in 3000 is then free


def drift_after(before: NDArray[np.float32]) -> float:
    """D of a slice, given the σ of the one before: its own may differ by D·(1 + σ) between two machines."""
    finite = before[np.isfinite(before)]
    largest = max(float(finite.max(initial=0)), 0)
    counted = min(largest, _LARGE) + max(largest - _LARGE, 0) * _SLOWER
    return min(DRIFT + DRIFT_OF_LARGEST * counted, MOST_DRIFT)


def drifts(z: NDArray[np.int32], sigmas: Sequence[NDArray[np.float32]]) -> list[float]:
    """D of each slice, given the symbols of z and the σ of every slice."""
    first = drift_after(sigmas[0]) * max(1.0, float(np.abs(z).max(initial=0)) / _LARGE_Z)
    return [min(first, MOST_DRIFT), *(drift_after(before) for before in sigmas[:-1])]


@numba.njit("int64(int64, int64)", nogil=True, cache=True)
def place(way, step):  # type: ignore[no-untyped-def]  # numba infers
    """Where a way has a step, 0 … PLACES - 1."""
    if way == 0:
        return 31  # the middle
    low = np.uint64(0xFFFFFFFF)
    h = (np.uint64(way) * np.uint64(0x9E3779B1) + np.uint64(step) * np.uint64(0x85EBCA77)) & low
    h ^= h >> np.uint64(15)
    h = (h * np.uint64(0x2C1B3C6D)) & low
    h ^= h >> np.uint64(12)
    return np.int64(h >> np.uint64(26))


def _scale(above: NDArray[np.float64]) -> NDArray[np.float64]:
    """σ of a place in the table of scales, whole numbers being the scales."""
    return np.asarray(np.exp(_LOG_MIN + LOG_STEP * above))


_places = (97 + np.arange(PLACES)) / 256
_THRESHOLDS = _scale(ALPHABETS[:-1, None] + np.diff(ALPHABETS)[:, None] * _places)
"""σ at each place of each step: (steps, places)."""
_LOWER = _scale(ALPHABETS.astype(np.float64))
_CELL = 17  # bits of a float32 that a cell leaves out: it is narrower than any step
_FIRST_CELL = int(np.float32(SCALE_MIN).view(np.uint32)) >> _CELL
_cells = np.arange(_FIRST_CELL, (int(np.float32(SCALE_MAX).view(np.uint32)) >> _CELL) + 1, dtype=np.uint32) << _CELL
_STEP_OF_CELL = np.clip(np.searchsorted(_LOWER, _cells.view(np.float32), side="right") - 1, 0, _STEPS - 1)
"""The step that each cell begins in."""
_begin = _cells.view(np.float32).astype(np.float64)
_INVERSE_OF_CELL, _ABOVE_OF_CELL = 1 / _begin, (np.log(_begin) - _LOG_MIN) / LOG_STEP
_PLACES_OF_STEP = 256 / np.diff(ALPHABETS).astype(np.float64)
"""Places that the distance between two scales of the table holds, in each step."""


@numba.njit("int16[::1](float32[::1], uint32[::1], int32[::1], int64)", nogil=True, cache=True)
def _indexes(scales, bits, ways, g):  # type: ignore[no-untyped-def]
    out = np.empty(len(scales), np.int16)
    groups = len(ways)
    at = np.empty((groups, _STEPS), np.float64)
    for i in range(groups):
        for k in range(_STEPS):
            at[i, k] = _THRESHOLDS[k, place(ways[i], k)]
    for e in range(len(scales)):
        sigma = np.float64(scales[e])
        if not scales[e] > np.float32(SCALE_MIN):
            out[e] = ALPHABETS[0]
        elif scales[e] >= np.float32(SCALE_MAX):
            out[e] = ALPHABETS[_STEPS]
        else:
            k = _STEP_OF_CELL[(bits[e] >> np.uint32(_CELL)) - np.uint32(_FIRST_CELL)]
            if k + 1 < _STEPS and sigma >= _LOWER[k + 1]:
                k += 1
            out[e] = ALPHABETS[k + (sigma > at[g, k])]
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


@numba.njit("Tuple((int64[::1], int16[::1], uint64[::1], int64))(float32[::1], uint32[::1], float64)",
            nogil=True, cache=True)  # fmt: skip
def _in_the_way(scales, bits, drift):  # type: ignore[no-untyped-def]
    """The elements in the way of a step at some place: the element, the step, a bit for each place; all their bits."""
    elements = np.empty(len(scales), np.int64)
    steps = np.empty(len(scales), np.int16)
    blocked = np.empty(len(scales), np.uint64)
    count, places = 0, 0
    for e in range(len(scales)):
        if not (scales[e] > np.float32(SCALE_MIN) and scales[e] < np.float32(SCALE_MAX)):
            continue
        sigma = np.float64(scales[e])
        cell = (bits[e] >> np.uint32(_CELL)) - np.uint32(_FIRST_CELL)
        k = _STEP_OF_CELL[cell]
        if k + 1 < _STEPS and sigma >= _LOWER[k + 1]:
            k += 1
        # most are far from every place: that shows without a division or a logarithm, to a thousandth of a place
        inverse = _INVERSE_OF_CELL[cell]
        x = sigma * inverse - 1
        near = (_ABOVE_OF_CELL[cell] + x * (1 - x * (0.5 - x / 3)) / LOG_STEP - ALPHABETS[k]) * _PLACES_OF_STEP[k] - 97
        reach = (drift * (1 + inverse) + _ROUNDING) / LOG_STEP * _PLACES_OF_STEP[k] + 1e-3
        if max(math.ceil(near - reach), 0) > min(math.floor(near + reach), PLACES - 1):
            continue
        centre = ((math.log(sigma) - _LOG_MIN) / LOG_STEP - ALPHABETS[k]) * _PLACES_OF_STEP[k] - 97
        tolerance = (drift * (1 + 1 / sigma) + _ROUNDING) / LOG_STEP * _PLACES_OF_STEP[k]
        first, last = max(math.ceil(centre - tolerance), 0), min(math.floor(centre + tolerance), PLACES - 1)
        if first > last:
            continue
        elements[count], steps[count] = e, k
        # bits first … last
        blocked[count] = (~np.uint64(0) >> np.uint64(63 - (last - first))) << np.uint64(first)
        places += last - first + 1
        count += 1
    return elements[:count], steps[:count], blocked[:count], places


@numba.njit("boolean(int64[::1], int16[::1], uint64[::1], int32[::1])", nogil=True, cache=True)
def _first_free(elements, steps, blocked, ways):  # type: ignore[no-untyped-def]
    """Fill in the first free way of each group; False where a group has none."""
    groups = len(ways)
    taken = np.zeros((groups, _STEPS), np.uint64)
    for c in range(len(elements)):
        taken[elements[c] % groups, steps[c]] |= blocked[c]
    busy, crowds = np.empty(_STEPS, np.int64), np.empty(_STEPS, np.int64)
    for g in range(groups):
        count = 0
        for k in range(_STEPS):
            if taken[g, k] == ~np.uint64(0):
                return False
            if taken[g, k]:
                bits, rest = 0, taken[g, k]
                while rest:
                    rest &= rest - np.uint64(1)
                    bits += 1
                j = count  # the most crowded steps first: they turn most ways down
                while j > 0 and crowds[j - 1] < bits:
                    busy[j], crowds[j] = busy[j - 1], crowds[j - 1]
                    j -= 1
                busy[j], crowds[j] = k, bits
                count += 1
        way = 0
        while way < WAYS:
            free = True
            for b in range(count):
                k = busy[b]
                if (taken[g, k] >> np.uint64(place(way, k))) & np.uint64(1):
                    free = False
                    break
            if free:
                break
            way += 1
        if way == WAYS:
            return False
        ways[g] = way
    return True


def choose(scales: NDArray[np.float32], drift: float | None = None) -> NDArray[np.int32]:
    """The writer's choice for the σ of one slice, flattened: the way of each group, as few groups as find one.

    `drift` is the slice's D (`drifts`); by default that of a slice that follows one like it.

    Where no way is free, which happens to no photograph, it is way 0, and the checksum of the symbols is all that
    protects the picture.
    """
    drift = drift_after(scales) if drift is None else drift
    scales = np.ascontiguousarray(scales)
    elements, steps, blocked, places = _in_the_way(scales, scales.view(np.uint32), drift)
    expected = places / PLACES
    groups = max(1, math.ceil(expected / _CROWDED))
    while groups <= most_groups(len(scales)):
        ways = np.zeros(groups, np.int32)
        if _first_free(elements, steps, blocked, ways):
            return ways
        groups += 1 + groups // 4
    return np.zeros(1, np.int32)


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
    """What `choose` chose for a slice of so many elements.

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
