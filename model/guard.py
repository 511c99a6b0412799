"""The guard: writer and reader choose the same table for every element although their σ differ in the last bits.

The choice of the scale index is the one discontinuity between two machines: σ just below a boundary of the scale table
on one is just above it on the other, and the rest of the picture is noise. So the writer moves the boundaries out of
the way. For each group of 2048 elements of a slice it looks for the smallest shift s = 2δ·j, j = 0, 1, 2 …, such that
ln σ - s of no element of the group lies within δ of a boundary, and writes j. Whoever computes ln σ to within δ of the
writer's then finds the same index for every element.

What it costs: a fraction of 2δ/0.123 of the elements stand in the way of any one shift, so j is geometric with a mean
of e^λ - 1 for a group with λ of them, about 1.44 λ + 1.4 bits; nothing is written for single elements, and an element
at either end of the table is in nobody's way. What it loses: a table chosen for σ·e^-s, with s of about a thousandth.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.entropy import Decoder, SymbolMismatch
from model.tables import GUARD_MEANS, LOG_STEP, SCALE_LEVELS, SCALE_MIN

DRIFT = 2.0**-14
"""δ: the largest difference of ln σ between two machines that the format forgives. Part of format version 1."""
GROUP = 2048
"""Elements that share a shift, in raster order of (channel, row, column). Part of format version 1."""
_SLACK = 2.0**-6  # for the rounding of σ·e^-s in float32, in shifts: 2e-6 in ln σ
FIRST_TABLE = SCALE_LEVELS
"""Where the guard's alphabets stand among the coder's: behind the Gaussians."""
MAX_SHIFT = int(LOG_STEP / (2 * DRIFT)) - 1
"""Shifts stay below one step of the table."""


def groups(elements: int) -> int:
    """Shifts of a slice of so many elements."""
    return -(-elements // GROUP)


def choose_shifts(scales: NDArray[np.float32]) -> NDArray[np.int32]:
    """The writer's choice for the σ of one slice, flattened: j of each group.

    Where every shift is taken, which takes thousands of different σ in one group, j is 0 and the checksum of the
    symbols is all that protects the picture.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        # in steps above the first boundary
        above = (np.log(scales.astype(np.float64)) - math.log(SCALE_MIN)) / LOG_STEP
        group = np.arange(len(scales)) // GROUP
        width = 2 * DRIFT / LOG_STEP  # of a shift, in steps
        # an element stands in the way of the shifts that bring it down to within δ of the boundary below it …
        below = np.minimum(np.floor(above), SCALE_LEVELS - 2)
        place = (above - below) / width
        inside = (above >= 0) & (place <= MAX_SHIFT + 1)
        near, far = np.floor(place[inside] + 0.5 - _SLACK), np.floor(place[inside] + 0.5 + _SLACK)
        # … and of no shift at all if it lies within δ under the boundary above it
        to_next = np.ceil(above) - above
        under = (above > -1) & (above < SCALE_LEVELS - 2) & (to_next <= width * (0.5 + _SLACK))
        taken = np.zeros((groups(len(scales)), MAX_SHIFT + 2), bool)
        for shift in (near, far):
            taken[group[inside], np.clip(shift, 0, MAX_SHIFT + 1).astype(np.int64)] = True
        taken[group[under], 0] = True
    free = ~taken[:, : MAX_SHIFT + 1]
    return np.where(free.any(axis=1), free.argmax(axis=1), 0).astype(np.int32)


def shifted(scales: Tensor, shifts: NDArray[np.int32]) -> Tensor:
    """σ·e^-s for σ (C, h, w) or any shape: what the table index is looked up with."""
    factors = torch.from_numpy(np.exp(-2 * DRIFT * shifts.astype(np.float64)).astype(np.float32))
    each = factors.to(scales.device).repeat_interleave(GROUP)[: scales.numel()]
    return scales * each.view(scales.shape).to(scales.dtype)


def to_parts(shifts: NDArray[np.int32]) -> list[tuple[NDArray[np.int32], NDArray[np.int16]]]:
    """For the coder: which geometric distribution suits the shifts of a slice best, then the shifts in it."""
    mean = max(float(shifts.mean()), GUARD_MEANS[0])
    choice = min(range(len(GUARD_MEANS)), key=lambda k: abs(math.log(GUARD_MEANS[k] / mean)))
    return [
        (np.array([choice], np.int32), np.array([FIRST_TABLE], np.int16)),
        (shifts, np.full(len(shifts), FIRST_TABLE + 1 + choice, np.int16)),
    ]


def read_shifts(decoder: Decoder, elements: int) -> NDArray[np.int32]:
    """The shifts of a slice of so many elements.

    Raises:
        SymbolMismatch: they are not shifts.
    """
    choice = int(decoder.read(np.array([FIRST_TABLE], np.int16))[0])
    if not 0 <= choice < len(GUARD_MEANS):
        raise SymbolMismatch("the guard names a distribution that is not one")
    shifts = decoder.read(np.full(groups(elements), FIRST_TABLE + 1 + choice, np.int16))
    if shifts.min() < 0 or shifts.max() > MAX_SHIFT:
        raise SymbolMismatch("the guard shifts a boundary by more than a step")
    return shifts


def symbol_count(elements: int) -> int:
    """Symbols that the guard of a slice of so many elements takes."""
    return 1 + groups(elements)
