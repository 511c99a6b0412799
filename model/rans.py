"""The loops of the entropy coder, compiled: static rANS with a 48-bit state and 16-bit words, outside the GIL.

rANS is Duda's (2013, arXiv:1311.2540). Every read and every write is checked against its buffer: a damaged stream ends
in a status, never beyond it.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from model.tables import PRECISION, TOTAL

LOWER = 1 << 32
"""States lie in [2³², 2⁴⁸) between symbols."""
SYMBOL_LIMIT = 1 << 30
LUT_BITS = 8
"""The first bits of a slot, which say where the search in a table starts."""
FRESH = 0xFFFFFFFF
"""The checksum's register before the first symbol; CRC-32C is its complement."""
_OUT_OF_WORDS, _BAD_ESCAPE = -1, -2


def _crc_tables() -> NDArray[np.uint32]:
    """CRC-32C of a byte, of a byte and one, two or three zeros behind it: (4, 256), for four bytes a step."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    tables = [table]
    for _ in range(3):
        tables.append((tables[-1] >> 8) ^ table[tables[-1] & 0xFF])
    return np.stack(tables)


_CRC = _crc_tables()


@numba.njit("Tuple((int64, uint64))(int32[::1], int16[::1], int32[::1], int32[::1], int32[::1], uint64, uint16[::1])",
            nogil=True, cache=True)  # fmt: skip
def encode(symbols, indexes, cdf, start, low, state, out):  # type: ignore[no-untyped-def]  # numba infers
    """Write words backwards from the end of `out`; gives the place of the first word, or -1 when `out` is too short."""
    place = len(out)
    raw = np.empty(4, np.uint64)
    bits = np.empty(4, np.uint64)
    for i in range(len(symbols) - 1, -1, -1):
        if place < 8:
            return -1, state
        table = indexes[i]
        first = start[table]
        escape = start[table + 1] - first - 2
        interval = np.int64(symbols[i]) - low[table]
        if interval < 0 or interval >= escape:
            excess = np.uint64(-2 * interval - 1) if interval < 0 else np.uint64(2 * (interval - escape))
            length = 0
            while excess >> np.uint64(length):
                length += 1
            # in reading order: the bit length, then the bits below the leading one, low part first
            raw[0], bits[0], count = np.uint64(length), np.uint64(5), 1
            rest, left = excess, length - 1
            while left > 0:
                take = min(left, 16)
                raw[count] = rest & np.uint64((1 << take) - 1)
                bits[count] = np.uint64(take)
                rest >>= np.uint64(take)
                left -= take
                count += 1
            for j in range(count - 1, -1, -1):
                shift = np.uint64(PRECISION) - bits[j]
                if state >= np.uint64(1) << (np.uint64(32) + shift):
                    place -= 1
                    out[place] = np.uint16(state & np.uint64(0xFFFF))
                    state >>= np.uint64(16)
                state = (
                    ((state >> shift) << np.uint64(PRECISION))
                    | (raw[j] << shift)
                    | (state & ((np.uint64(1) << shift) - np.uint64(1)))
                )
            interval = np.int64(escape)
        lower = np.uint64(cdf[first + interval])
        frequency = np.uint64(cdf[first + interval + 1]) - lower
        if state >= frequency << np.uint64(32):
            place -= 1
            out[place] = np.uint16(state & np.uint64(0xFFFF))
            state >>= np.uint64(16)
        quotient = state // frequency
        state = (quotient << np.uint64(PRECISION)) + lower + (state - quotient * frequency)
    return place, state


@numba.njit("int64(uint16[::1], uint64[::1], int16[::1], int32[::1], int32[::1], int32[::1], int32[::1], int32[::1])",
            nogil=True, cache=True)  # fmt: skip
def decode(words, registers, indexes, cdf, start, low, lut, out):  # type: ignore[no-untyped-def]  # numba infers
    """Read `len(indexes)` symbols into `out`; `registers` keeps state, place and checksum between calls.

    0, or what is wrong.
    """
    state, place, checksum = registers[0], np.int64(registers[1]), np.uint32(registers[2])
    mask = np.uint64(TOTAL - 1)
    for i in range(len(indexes)):
        table = indexes[i]
        first = start[table]
        slot = np.int64(state & mask)
        j = first + lut[(np.int64(table) << LUT_BITS) + (slot >> (PRECISION - LUT_BITS))]
        while cdf[j + 1] <= slot:
            j += 1
        lower = cdf[j]
        state = np.uint64(cdf[j + 1] - lower) * (state >> np.uint64(PRECISION)) + np.uint64(slot - lower)
        if state < np.uint64(LOWER):
            if place >= len(words):
                return _OUT_OF_WORDS
            state = (state << np.uint64(16)) | np.uint64(words[place])
            place += 1
        interval = np.int64(j - first)
        escape = np.int64(start[table + 1] - first - 2)
        if interval == escape:
            excess, position, left, length = np.int64(0), np.int64(0), np.int64(5), np.int64(-1)
            while left > 0:
                take = min(left, np.int64(16))
                shift = np.uint64(PRECISION - take)
                value = np.int64((state & mask) >> shift)
                state = ((state >> np.uint64(PRECISION)) << shift) | (state & ((np.uint64(1) << shift) - np.uint64(1)))
                if state < np.uint64(LOWER):
                    if place >= len(words):
                        return _OUT_OF_WORDS
                    state = (state << np.uint64(16)) | np.uint64(words[place])
                    place += 1
                if length < 0:
                    length, left = value, max(value - 1, np.int64(0))
                else:
                    excess |= value << position
                    position += take
                    left -= take
            if length > 0:
                excess |= np.int64(1) << (length - 1)
            interval = -((excess + 1) >> 1) if excess & 1 else escape + (excess >> 1)
            if interval + low[table] >= SYMBOL_LIMIT or interval + low[table] <= -SYMBOL_LIMIT:
                return _BAD_ESCAPE
        symbol = np.int32(interval + low[table])
        out[i] = symbol
        mixed = checksum ^ np.uint32(symbol)  # four bytes at once, beside the decoding, which waits for itself
        checksum = (
            _CRC[3, mixed & np.uint32(0xFF)]
            ^ _CRC[2, (mixed >> np.uint32(8)) & np.uint32(0xFF)]
            ^ _CRC[1, (mixed >> np.uint32(16)) & np.uint32(0xFF)]
            ^ _CRC[0, mixed >> np.uint32(24)]
        )
    registers[0], registers[1], registers[2] = state, np.uint64(place), np.uint64(checksum)
    return 0
