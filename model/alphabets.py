"""Tables as rANS reads them (model/rans.py): the next symbol waits for as few loads as can be, and from near memory.

An interval is one number: where it begins (16 bits), its place among all (32), its frequency (16). The look-up table
holds intervals themselves, not where they are: mostly one load says all of a symbol.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.rans import FREQUENCY, LUT_BITS, PLACE
from model.tables import PRECISION, Tables


@dataclass(frozen=True)
class Alphabets:
    """A set of tables, checked.

    Attributes:
        intervals: uint64, of all alphabets one after another.
        places: int32 (alphabets, 3), in columns `rans.FIRST`, `ESCAPE` and `ZERO`: the places of its first interval, of
            its escape, and of symbol 0, which may lie outside.
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
