"""Tables as rANS reads them (model/rans.py): one symbol takes few loads, and all of them little of the cache.

An interval is one number, and all places are those in one array. A reader tries the likeliest interval of an alphabet
first: where that is right, as it mostly is, the processor has gone on before the slot was known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.tables import PRECISION, Tables

LUT_BITS = 8
"""The first bits of a slot, which say where the search in an alphabet starts."""
FIRST, ESCAPE, LIKELIEST, ZERO = range(4)


@dataclass(frozen=True)
class Alphabets:
    """A set of tables, checked.

    Attributes:
        intervals: uint32, of all alphabets one after another: where each begins, and in the high half its frequency.
        places: int32 (alphabets, 4), among the intervals: its FIRST one, its ESCAPE, its LIKELIEST, and that of symbol
            ZERO, which may lie outside.
        lut: uint32, for each alphabet and each leading byte of a slot the place of the interval of the byte's first
            slot.
    """

    intervals: NDArray[np.uint32]
    places: NDArray[np.int32]
    lut: NDArray[np.uint32]

    @classmethod
    def of(cls, tables: Tables) -> Alphabets:
        """Raises ValueError where the tables are not sound."""
        tables.check()
        first, end = tables.start[:-1].astype(np.int64), tables.start[1:].astype(np.int64)
        begin = tables.cdf[:-1].astype(np.int64)
        frequency = np.diff(tables.cdf.astype(np.int64))
        # the entry behind an escape is no interval, and nobody gets there
        begin[end[:-1] - 1] = frequency[end[:-1] - 1] = 0
        likeliest = [a + int(frequency[a : b - 1].argmax()) for a, b in zip(first, end, strict=True)]
        heads = np.arange(1 << LUT_BITS) << (PRECISION - LUT_BITS)
        lut = [a + np.searchsorted(tables.cdf[a:b], heads, side="right") - 1 for a, b in zip(first, end, strict=True)]
        return cls(
            (frequency << PRECISION | begin).astype(np.uint32),
            np.stack([first, end - 2, likeliest, first - tables.low], axis=1).astype(np.int32),
            np.concatenate(lut).astype(np.uint32),
        )
