"""The steps from one alphabet of y to the next in σ: where they may be placed, and where a σ lies among them.

Where they may be placed is part of format version 1 (docs/bitstream.md). All of it is compiled into the loops of
guard.py and guard_choice.py.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from model import tables
from model.compiled import compiled
from model.tables import LOG_STEP, SCALE_LEVELS, SCALE_MAX, SCALE_MIN

MIDDLE = 31
"""The place of each step in way 0."""
WAYS = 1 << 16
"""Placements of the steps that can be told from one another."""
ALPHABETS = np.array([0, 4, *range(6, SCALE_LEVELS)], np.int16)
"""The Gaussians that serve y: steps lie between two neighbours in this list."""
PLACES = 64
"""Of a step: (97 + p)/256 of the distance between its scales in ln σ, p below this."""

STEPS = len(ALPHABETS) - 1
LOG_MIN = math.log(SCALE_MIN)


_njit = compiled(tables)


@_njit("int64(int64, int64)")
def drawn(way, step):  # type: ignore[no-untyped-def]  # numba infers
    """A pseudo-random place."""
    low = np.uint64(0xFFFFFFFF)
    h = (np.uint64(way) * np.uint64(0x9E3779B1) + np.uint64(step) * np.uint64(0x85EBCA77)) & low
    h ^= h >> np.uint64(15)
    h = (h * np.uint64(0x2C1B3C6D)) & low
    h ^= h >> np.uint64(12)
    return np.int64(h >> np.uint64(26))


@_njit("int64(int64, int64)")
def place(way, step):  # type: ignore[no-untyped-def]
    """Where a way has a step, 0 … PLACES - 1."""
    return MIDDLE if way == 0 else drawn(way, step)


def _scale(above: NDArray[np.float64]) -> NDArray[np.float64]:
    """σ of a place in the table of scales, whole numbers being the scales."""
    return np.asarray(np.exp(LOG_MIN + LOG_STEP * above))


def _below(exact: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 not above each."""
    nearest = exact.astype(np.float32)
    return np.where(nearest > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)


_places = (97 + np.arange(PLACES)) / 256
THRESHOLDS = _below(_scale(ALPHABETS[:-1, None] + np.diff(ALPHABETS)[:, None] * _places))
"""σ at each place of each step: (steps, places); a float32 is above one of these where it is above the exact place."""
EDGES = _scale(ALPHABETS.astype(np.float64))
"""σ of the scales that steps lie between."""

# Which step a σ belongs to is found by the first bits of its float32.
_CELL = 17  # bits that a cell leaves out: it is narrower than any step
_FIRST_CELL = int(np.float32(SCALE_MIN).view(np.uint32)) >> _CELL
_LAST_CELL = int(np.float32(SCALE_MAX).view(np.uint32)) >> _CELL
CELLS = (np.arange(_FIRST_CELL, _LAST_CELL + 1, dtype=np.uint32) << _CELL).view(np.float32)
"""σ that each cell begins with."""
_STEP_OF_CELL = np.clip(np.searchsorted(EDGES, CELLS, side="right") - 1, 0, STEPS - 1)
_NEXT_OF_CELL = -_below(-np.append(EDGES[1:-1], np.inf))[_STEP_OF_CELL]
"""Where the next step begins: the smallest float32 that is in it."""


@_njit("UniTuple(uint64, 2)(float32, uint32)")
def cell_and_step(sigma, bits):  # type: ignore[no-untyped-def]
    """Of a σ from the first scale on and below infinity, and its bits; without a branch that may be guessed wrong."""
    cell = np.uint64(min(bits >> np.uint32(_CELL), np.uint32(_LAST_CELL)) - np.uint32(_FIRST_CELL))
    return cell, np.uint64(_STEP_OF_CELL[cell]) + np.uint64(sigma >= _NEXT_OF_CELL[cell])
