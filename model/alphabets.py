"""Tables as rANS reads them (model/rans.py): the next symbol waits for as few loads as can be, and from near memory.

An interval is one number: where it begins (16 bits), its place among all (32), its frequency (16). The look-up table
holds intervals themselves, not where they are: mostly one load says all of a symbol.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.tables import PRECISION, Tables

LUT_BITS = 7
"""The first bits of a slot, which say where the search in an alphabet starts: more of them would fill the cache."""
PLACE, FREQUENCY = 16, 48
"""The lowest bits of an interval's place and of its frequency."""
FIRST, ESCAPE, ZERO = range(3)


@dataclass(frozen=True)
class Alphabets:
    """A set of tables, checked.

    Attributes:
        intervals: uint64, of all alphabets one after another.
        places: int32 (alphabets, 3): the places of its FIRST interval, of its ESCAPE, and of symbol ZERO, which may lie
            outside.
        lut: uint64, for each alphabet and each of the first bits of a slot the interval of the first such slot.
    """

    intervals: NDArray[np.uint64]
    places: NDArray[np.int32]
    lut: NDArray[np.uint64]

    @classmethod
    def of(cls, tables: Tables) -> Alphabets:
        """Raises ValueError where the tables are not sound."""
        tables.check()
        first, end = tables.start[:-1].astype(np.int64), tables.start[1:].astype(np.int64)
        begin, frequency = tables.cdf[:-1].astype(np.uint64), np.diff(tables.cdf).astype(np.uint64)
        between = end[:-1] - 1  # an escape and the next alphabet: no interval, and nobody gets there
        begin[between] = frequency[between] = 0
        place = np.arange(len(begin), dtype=np.uint64)
        intervals = frequency << np.uint64(FREQUENCY) | place << np.uint64(PLACE) | begin
        heads = np.arange(1 << LUT_BITS) << (PRECISION - LUT_BITS)
        lut = [a + np.searchsorted(tables.cdf[a:b], heads, side="right") - 1 for a, b in zip(first, end, strict=True)]
        places = np.stack([first, end - 2, first - tables.low], axis=1).astype(np.int32)
        return cls(intervals, places, intervals[np.concatenate(lut)])
