"""The writer's part of the guard (model/guard.py): which way each group takes, so that no σ lies near a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model import steps, tables
from model.compiled import compiled
from model.guard import most_groups
from model.steps import (
    ALPHABETS,
    CELLS,
    EDGES,
    LOG_MIN,
    MIDDLE,
    PLACES,
    STEPS,
    WAYS,
    cell_and_step,
    drawn,
)
from model.tables import LOG_STEP, SCALE_MAX, SCALE_MIN

DRIFT, DRIFT_OF_LARGEST, MOST_DRIFT = 1.8e-5, 2.4e-6, 2.5e-3
"""D is the first and, times the largest σ of the slice before (of the first slice, its own), the second, at most the
third."""

_ROUNDING = 1e-6  # of σ in float32, in ln σ
_LARGE, _SLOWER = 64.0, 1 / 8  # σ beyond this, which no photograph has but black-and-white pictures, count less for D
_LARGE_Z = 7  # symbols of z beyond this, which only noise and patterns have, make D of the first slice larger
_CROWDED = 8.0  # elements in the way that a group may expect: one way in 3000 is then free

_begin = CELLS.astype(np.float64)
_INVERSE_OF_CELL, _LOG_OF_CELL, _LOG_OF_STEP = 1 / _begin, np.log(_begin), np.log(EDGES)
_PLACES_OF_STEP = 256 / np.diff(ALPHABETS).astype(np.float64)
"""Places that the distance between two scales of the table holds, in each step."""
_PLACES_OF_LOG = _PLACES_OF_STEP / LOG_STEP

_AT_ONCE = 64  # ways


def drift_after(before: NDArray[np.float32]) -> float:
    """D of a slice, given the σ of the one before: its own may differ by D·(1 + σ) between two machines."""
    largest = float(before.max(initial=0))
    if not math.isfinite(largest):
        largest = float(before[np.isfinite(before)].max(initial=0))
    counted = min(largest, _LARGE) + max(largest - _LARGE, 0) * _SLOWER
    return min(DRIFT + DRIFT_OF_LARGEST * counted, MOST_DRIFT)


def drifts(z: NDArray[np.int32], sigmas: Sequence[NDArray[np.float32]]) -> list[float]:
    """D of each slice, given the symbols of z and the σ of every slice."""
    first = drift_after(sigmas[0]) * max(1.0, float(np.abs(z).max(initial=0)) / _LARGE_Z)
    return [min(first, MOST_DRIFT), *(drift_after(before) for before in sigmas[:-1])]


_njit = compiled(steps, tables)


@_njit("Tuple((int64[::1], int16[::1], uint64[::1], int64))(float32[::1], uint32[::1], float64)")  # fmt: skip
def _in_the_way(scales, bits, drift):  # type: ignore[no-untyped-def]
    """The elements in the way of a step at some place: the element, the step, a bit for each place; all their bits."""
    elements = np.empty(len(scales), np.int64)
    steps = np.empty(len(scales), np.int16)
    likely = 0
    for e in range(len(scales)):
        if not (scales[e] > np.float32(SCALE_MIN) and scales[e] < np.float32(SCALE_MAX)):
            continue
        cell, k = cell_and_step(scales[e], bits[e])
        # most are far from every place: that shows without a division or a logarithm, to a thousandth of a place
        inverse = _INVERSE_OF_CELL[cell]
        x = np.float64(scales[e]) * inverse - 1
        near = (_LOG_OF_CELL[cell] - _LOG_OF_STEP[k] + x * (1 - x * (0.5 - x * (1 / 3)))) * _PLACES_OF_LOG[k] - 97
        reach = (drift * (1 + inverse) + _ROUNDING) * _PLACES_OF_LOG[k] + 1e-3
        elements[likely], steps[likely] = e, np.int16(k)
        likely += max(np.ceil(near - reach), 0.0) <= min(near + reach, PLACES - 1.0)  # no branch to be guessed wrong
    blocked = np.empty(likely, np.uint64)
    count, places = 0, 0
    for i in range(likely):
        e, k = elements[i], steps[i]
        sigma = np.float64(scales[e])
        centre = ((math.log(sigma) - LOG_MIN) / LOG_STEP - ALPHABETS[k]) * _PLACES_OF_STEP[k] - 97
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


@_njit("int64(uint64[::1], int64[::1])")
def _by_crowd(taken, busy):  # type: ignore[no-untyped-def]
    """The steps of a group that have taken places, the most crowded first, into `busy`; how many."""
    crowds, count = np.empty(STEPS, np.int64), 0
    for k in range(STEPS):
        if taken[k]:
            bits, rest = 0, taken[k]
            while rest:
                rest &= rest - np.uint64(1)
                bits += 1
            j = count
            while j > 0 and crowds[j - 1] < bits:
                busy[j], crowds[j] = busy[j - 1], crowds[j - 1]
                j -= 1
            busy[j], crowds[j] = k, bits
            count += 1
    return count


@_njit("int64(uint64[::1], int64[::1], uint64[::1])")
def _first_free_of(taken, busy, turned_down):  # type: ignore[no-untyped-def]
    """The first way that has each of the steps `busy` at a place that is not taken; WAYS where there is none.

    Many ways at once, without a branch: the most crowded steps turn most of them down.
    """
    one = np.uint64(1)
    free = True
    for k in busy:
        free = free and not (taken[k] >> np.uint64(MIDDLE)) & one
    if free:
        return 0
    for first in range(0, WAYS, len(turned_down)):
        turned_down[:] = 0
        turned_down[0] = first == 0  # way 0 is none of those that are drawn
        for k in busy:
            all_of_them = one
            for w in range(len(turned_down)):
                turned_down[w] |= (taken[k] >> np.uint64(drawn(first + w, k))) & one
                all_of_them &= turned_down[w]
            if all_of_them:
                break
        for w in range(len(turned_down)):
            if not turned_down[w]:
                return first + w
    return WAYS


@_njit("boolean(int64[::1], int16[::1], uint64[::1], int32[::1])")
def _first_free(elements, steps, blocked, ways):  # type: ignore[no-untyped-def]
    """Fill in the first free way of each group; False where a group has none."""
    groups = len(ways)
    taken = np.zeros((groups, STEPS), np.uint64)
    for c in range(len(elements)):
        taken[elements[c] % groups, steps[c]] |= blocked[c]
    busy, turned_down = np.empty(STEPS, np.int64), np.empty(_AT_ONCE, np.uint64)
    for g in range(groups):
        count = _by_crowd(taken[g], busy)
        way = _first_free_of(taken[g], busy[:count], turned_down)
        if way == WAYS:
            return False
        ways[g] = way
    return True


def choose(scales: NDArray[np.float32], drift: float) -> NDArray[np.int32]:
    """The writer's choice for the σ of one slice, flattened: the way of each group, as few groups as find one.

    `drift` is the slice's D (`drifts`).

    Where no way is free, which happens to no photograph, it is way 0, and the checksum of the symbols is all that
    protects the picture.
    """
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
