"""Symbols and the indexes of their tables <-> bytes: static rANS, compiled, outside the GIL, bounds checked.

A stream is a 48-bit state and 16-bit words. The state starts not at a constant but at 2³² + CRC-32C of the stream's
symbols, so after the last symbol the reader holds the writer's checksum: no byte is spent on it, and a single wrong
symbol or table index shows. Large images are cut into several streams, so that several cores decode one image.

Encoding runs backwards (rANS is last in, first out); decoding runs forwards and can be fed slice by slice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar, cast

import google_crc32c
import numba
import numpy as np
from numpy.typing import NDArray

from model.tables import PRECISION, TOTAL, Tables

LOWER = 1 << 32
"""States lie in [2³², 2⁴⁸) between symbols."""
SYMBOL_LIMIT = 1 << 30
SYMBOLS_PER_STREAM = 1 << 17
MAX_STREAMS = 64
_WORTH_A_THREAD = 1 << 13  # symbols
_STATE_WORDS = 3
_LENGTH_BYTES = 4
_LUT_BITS = 8  # the first eight bits of a slot say where the search in a table starts
_OUT_OF_WORDS, _BAD_ESCAPE = -1, -2

_S = TypeVar("_S")
_T = TypeVar("_T")


class SymbolMismatch(Exception):
    """The stream and the tables do not belong together: it ran out, was not used up, or its checksum differs."""


def stream_count(symbols: int) -> int:
    """Into how many streams the symbols of y and z are cut; part of the format, so that it need not be written."""
    return max(1, min(MAX_STREAMS, symbols // SYMBOLS_PER_STREAM))


def _run(n: int, k: int, streams: int) -> slice:
    """The k-th of nearly equal runs of n elements."""
    return slice(n * k // streams, n * (k + 1) // streams)


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
def _encode(symbols, indexes, cdf, start, low, state, out):  # type: ignore[no-untyped-def]  # numba infers
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
def _decode(words, registers, indexes, cdf, start, low, lut, out):  # type: ignore[no-untyped-def]  # numba infers
    """Read `len(indexes)` symbols into `out`; `registers` keeps state, place and checksum between calls.

    0, or what is wrong.
    """
    state, place, checksum = registers[0], np.int64(registers[1]), np.uint32(registers[2])
    mask = np.uint64(TOTAL - 1)
    for i in range(len(indexes)):
        table = indexes[i]
        first = start[table]
        slot = np.int64(state & mask)
        j = first + lut[(np.int64(table) << _LUT_BITS) + (slot >> (PRECISION - _LUT_BITS))]
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


class Coder:
    """A set of tables, ready to encode and decode with.

    Threads may share one: it holds no state of any stream.
    """

    def __init__(self, tables: Tables) -> None:
        tables.check()
        self.tables = tables
        self._lut = _lookup(tables)

    def encode(self, parts: Sequence[tuple[NDArray[np.int32], NDArray[np.int16]]], streams: int = 1) -> bytes:
        """Symbols and their table indexes, part by part in reading order -> a payload of so many streams.

        Raises:
            ValueError: a symbol beyond ±2³⁰.
        """

        def one(k: int) -> bytes:
            symbols = np.concatenate([s[_run(len(s), k, streams)] for s, _ in parts])
            indexes = np.concatenate([t[_run(len(t), k, streams)] for _, t in parts])
            return self._encode_stream(symbols, indexes)

        return _join(each(one, range(streams)))

    def _encode_stream(self, symbols: NDArray[np.int32], indexes: NDArray[np.int16]) -> bytes:
        if len(symbols) and (symbols.max() >= SYMBOL_LIMIT or symbols.min() <= -SYMBOL_LIMIT):
            raise ValueError("a latent is too large to code: are these the weights of a trained model?")
        t = self.tables
        checksum = google_crc32c.value(symbols.astype("<i4", copy=False).tobytes())
        for words_a_symbol in (1, 5):  # 16 bits a symbol is plenty; the worst escape takes five words
            out = np.empty(words_a_symbol * len(symbols) + 64, np.uint16)
            place, state = _encode(symbols, indexes, t.cdf, t.start, t.low, np.uint64(LOWER + checksum), out)
            if place >= 0:
                break
        head = int(state).to_bytes(2 * _STATE_WORDS, "little")
        return head + out[place:].astype("<u2", copy=False).tobytes()

    def decoder(self, payload: bytes, streams: int = 1) -> Decoder:
        """A reader of a payload of so many streams.

        Raises:
            SymbolMismatch: it is too short to be one.
        """
        return Decoder(self, _split(payload, streams))


class Decoder:
    """Reads symbols in the order in which they were encoded, given their indexes."""

    def __init__(self, coder: Coder, streams: Sequence[memoryview]) -> None:
        self._coder = coder
        self._words: list[NDArray[np.uint16]] = []
        self._registers: list[NDArray[np.uint64]] = []
        for stream in streams:
            if len(stream) < 2 * _STATE_WORDS or len(stream) % 2:
                raise SymbolMismatch("a stream is too short")
            state = int.from_bytes(stream[: 2 * _STATE_WORDS], "little")
            if state < LOWER:
                raise SymbolMismatch("a stream starts with a state that no writer makes")
            self._words.append(np.frombuffer(stream, "<u2", offset=2 * _STATE_WORDS).astype(np.uint16))
            self._registers.append(np.array([state, 0, 0xFFFFFFFF], np.uint64))

    def read(self, indexes: NDArray[np.int16]) -> NDArray[np.int32]:
        """The next `len(indexes)` symbols.

        Raises:
            SymbolMismatch: the streams end before that.
        """
        symbols = np.empty(len(indexes), np.int32)
        jobs = self.jobs(symbols, indexes.__getitem__)
        if not all(each(_call, jobs) if len(symbols) >= _WORTH_A_THREAD else map(_call, jobs)):
            raise SymbolMismatch("a stream ended before its symbols did")
        return symbols

    def jobs(
        self, symbols: NDArray[np.int32], indexes: Callable[[slice], NDArray[np.int16]]
    ) -> list[Callable[[], bool]]:
        """The next symbols in parts that any thread may do, all before the next ones: each says whether it succeeded.

        Args:
            symbols: where they go.
            indexes: gives the tables of a run of them.
        """
        t, lut, streams = self._coder.tables, self._coder._lut, len(self._words)

        def job(k: int, run: slice) -> bool:
            words, registers, out = self._words[k], self._registers[k], symbols[run]
            return int(_decode(words, registers, indexes(run), t.cdf, t.start, t.low, lut, out)) == 0

        runs = [_run(len(symbols), k, streams) for k in range(streams)]
        return [partial(job, k, run) for k, run in enumerate(runs) if run.start < run.stop]

    def finish(self) -> None:
        """Check that everything was read and that the symbols are the writer's.

        Raises:
            SymbolMismatch: they are not.
        """
        for words, (state, place, checksum) in zip(self._words, self._registers, strict=True):
            if int(place) != len(words) or int(state) != LOWER + (int(checksum) ^ 0xFFFFFFFF):
                raise SymbolMismatch("the symbols are not those that were written")


def _join(streams: list[bytes]) -> bytes:
    """Lengths of all streams but the last, four bytes each, then the streams."""
    lengths = b"".join(len(stream).to_bytes(_LENGTH_BYTES, "little") for stream in streams[:-1])
    return lengths + b"".join(streams)


def _split(payload: bytes, count: int) -> list[memoryview]:
    view, place = memoryview(payload), _LENGTH_BYTES * (count - 1)
    if len(view) < place:
        raise SymbolMismatch("the payload ends before its streams")
    streams = []
    for k in range(count - 1):
        length = int.from_bytes(view[_LENGTH_BYTES * k : _LENGTH_BYTES * (k + 1)], "little")
        streams.append(view[place : place + length])
        place += length
    return [*streams, view[place:]]


def _lookup(tables: Tables) -> NDArray[np.int32]:
    """For each alphabet and each leading byte of a slot, the interval that holds the byte's first slot."""
    heads = np.arange(1 << _LUT_BITS) << (PRECISION - _LUT_BITS)
    rows = [
        np.searchsorted(tables.cdf[a:b], heads, side="right") - 1
        for a, b in zip(tables.start[:-1], tables.start[1:], strict=True)
    ]
    lookup: NDArray[np.int32] = np.concatenate(rows).astype(np.int32)
    return lookup


_CORES = os.cpu_count() or 1
_threads = ThreadPoolExecutor(_CORES, thread_name_prefix="entropy")


def each(work: Callable[[_S], _T], items: Sequence[_S]) -> list[_T]:
    """The work on each item, shared out among the cores where there are several; must not be called by such work."""
    shares = min(_CORES, len(items))
    if shares < 2:
        return [work(item) for item in items]

    def some(share: int) -> list[_T]:
        return [work(item) for item in items[share::shares]]

    done: list[_T | None] = [None] * len(items)
    for share, results in enumerate(_threads.map(some, range(shares))):
        done[share::shares] = results
    return cast("list[_T]", done)


def _call(job: Callable[[], _T]) -> _T:
    return job()
