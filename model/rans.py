"""The loops of the entropy coder, compiled: static rANS with a 48-bit state and 16-bit words, outside the GIL.

rANS is Duda's (2013, arXiv:1311.2540). Every read and every write is checked against its buffer: a damaged stream ends
in a status, never beyond it. Places are unsigned, since numba asks of every signed one whether it counts from the end.
"""

from __future__ import annotations

import numpy as np

from model import crc32c, tables
from model.compiled import compiled
from model.tables import PRECISION, TOTAL

LOWER = 1 << 32
"""States lie in [2³², 2⁴⁸) between symbols."""
SYMBOL_LIMIT = 1 << 30
OUT_OF_WORDS, BAD_ESCAPE = -1, -2

# How model/alphabets.py lays tables out. It stands here, since numba's cache looks at this file alone: loops compiled
# for another layout would read beyond their arrays.
LUT_BITS = 7
"""The first bits of a slot, which say where the search in an alphabet starts."""
PLACE, FREQUENCY = 16, 48
"""The lowest bits of an interval's place and of its frequency."""
FIRST, ESCAPE, ZERO = range(3)

_MASK, _PRECISION, _ONE, _WORD = np.uint64(TOTAL - 1), np.uint64(PRECISION), np.uint64(1), np.uint64(16)
_checksum = crc32c.update


_njit = compiled(crc32c, tables)


@_njit("Tuple((int64, uint64))(int32[::1], int16[::1], uint64[::1], int32[:,::1], uint64, uint16[::1])")  # fmt: skip
def encode(symbols, indexes, intervals, places, state, out):  # type: ignore[no-untyped-def]  # numba infers
    """Write words backwards from the end of `out`; gives where the first word is, or what is wrong."""
    at = np.uint64(len(out))
    raw = np.empty(4, np.uint64)
    bits = np.empty(4, np.uint64)
    for behind in range(len(symbols)):
        if at < np.uint64(8):
            return OUT_OF_WORDS, state
        i = np.uint64(len(symbols) - 1 - behind)
        table = np.uint64(indexes[i])
        first, escape = np.int64(places[table, FIRST]), np.int64(places[table, ESCAPE])
        j = np.int64(symbols[i]) + places[table, ZERO]
        if j < first or j >= escape:
            excess = np.uint64(2 * (first - j) - 1) if j < first else np.uint64(2 * (j - escape))
            length = 0
            while excess >> np.uint64(length):
                length += 1
            # five bits hold no more, and a reader takes no larger one
            if length > 31 or symbols[i] >= SYMBOL_LIMIT or symbols[i] <= -SYMBOL_LIMIT:
                return BAD_ESCAPE, state
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
            for part in range(count - 1, -1, -1):
                shift = _PRECISION - bits[part]
                if state >= _ONE << (np.uint64(32) + shift):
                    at -= _ONE
                    out[at] = np.uint16(state & np.uint64(0xFFFF))
                    state >>= _WORD
                state = ((state >> shift) << _PRECISION) | (raw[part] << shift) | (state & ((_ONE << shift) - _ONE))
            j = escape
        interval = intervals[np.uint64(j)]
        frequency = interval >> np.uint64(FREQUENCY)
        if state >= frequency << np.uint64(32):
            at -= _ONE
            out[at] = np.uint16(state & np.uint64(0xFFFF))
            state >>= _WORD
        quotient = state // frequency
        state = (quotient << _PRECISION) + (interval & _MASK) + (state - quotient * frequency)
    return np.int64(at), state


@_njit("int64(uint16[::1], uint64[::1], int16[::1], uint64[::1], int32[:,::1], uint64[::1], int32[::1])")  # fmt: skip
def decode(words, registers, indexes, intervals, places, lut, out):  # type: ignore[no-untyped-def]  # numba infers
    """Read `len(indexes)` symbols into `out`; `registers` keeps state, place and checksum between calls.

    0, or what is wrong.
    """
    state, at, checksum = registers[0], registers[1], np.uint32(registers[2])
    end = np.uint64(len(words))
    for i in range(len(indexes)):
        table = np.uint64(indexes[i])
        slot = state & _MASK
        interval = lut[(table << np.uint64(LUT_BITS)) + (slot >> np.uint64(PRECISION - LUT_BITS))]
        j = (interval >> np.uint64(PLACE)) & np.uint64(0xFFFFFFFF)
        above, frequency = slot - (interval & _MASK), interval >> np.uint64(FREQUENCY)
        while above >= frequency:
            j += _ONE
            interval = intervals[j]
            above, frequency = slot - (interval & _MASK), interval >> np.uint64(FREQUENCY)
        state = frequency * (state >> _PRECISION) + above
        if state < np.uint64(LOWER):
            if at >= end:
                return OUT_OF_WORDS
            state = (state << _WORD) | np.uint64(words[at])
            at += _ONE
        zero, symbol = np.int64(places[table, ZERO]), np.int64(j) - places[table, ZERO]
        if j == np.uint64(places[table, ESCAPE]):
            excess, position, left, length = np.int64(0), np.int64(0), np.int64(5), np.int64(-1)
            while left > 0:
                take = min(left, np.int64(16))
                shift = np.uint64(PRECISION - take)
                value = np.int64((state & _MASK) >> shift)
                state = ((state >> _PRECISION) << shift) | (state & ((_ONE << shift) - _ONE))
                if state < np.uint64(LOWER):
                    if at >= end:
                        return OUT_OF_WORDS
                    state = (state << _WORD) | np.uint64(words[at])
                    at += _ONE
                if length < 0:
                    length, left = value, max(value - 1, np.int64(0))
                else:
                    excess |= value << position
                    position += take
                    left -= take
            if length > 0:
                excess |= np.int64(1) << (length - 1)
            symbol = places[table, FIRST] - zero - ((excess + 1) >> 1) if excess & 1 else symbol + (excess >> 1)
            if symbol >= SYMBOL_LIMIT or symbol <= -SYMBOL_LIMIT:
                return BAD_ESCAPE
        out[i] = np.int32(symbol)
        checksum = _checksum(checksum, np.uint32(symbol))
    registers[0], registers[1], registers[2] = state, at, np.uint64(checksum)
    return 0
