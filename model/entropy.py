"""Symbols and the indexes of their tables <-> bytes: static rANS (model/rans.py) in one or more streams.

A stream is a 48-bit state and 16-bit words. The state starts not at a constant but at 2³² + CRC-32C of the stream's
symbols, so after the last symbol the reader holds the writer's checksum: no byte is spent on it, and a single wrong
symbol or table index shows. Large images are cut into several streams, so that several cores decode one image.

Encoding runs backwards (rANS is last in, first out); decoding runs forwards and can be fed slice by slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from model import crc32c
from model.alphabets import Alphabets
from model.rans import BAD_ESCAPE, LOWER, OUT_OF_WORDS, decode, encode
from model.tables import Tables
from model.threads import each

SYMBOLS_PER_STREAM = 1 << 17
MAX_STREAMS = 64
_STATE_WORDS = 3
_LENGTH_BYTES = 4


class SymbolMismatch(Exception):
    """The stream and the tables do not belong together: it ran out, was not used up, or its checksum differs."""


def stream_count(symbols: int) -> int:
    """Into how many streams the symbols of y and z are cut; part of the format, so that it need not be written."""
    return max(1, min(MAX_STREAMS, symbols // SYMBOLS_PER_STREAM))


def _run(n: int, k: int, streams: int) -> slice:
    """The k-th of nearly equal runs of n elements."""
    return slice(n * k // streams, n * (k + 1) // streams)


class Coder:
    """A set of tables, ready to encode and decode with.

    Threads may share one: it holds no state of any stream.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.alphabets = Alphabets.of(tables)

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
        a = self.alphabets
        checksum = google_crc32c.value(symbols.astype("<i4", copy=False).tobytes())
        for words_a_symbol in (1, 5):  # 16 bits a symbol is plenty; the worst escape takes five words
            out = np.empty(words_a_symbol * len(symbols) + 64, np.uint16)
            first, state = encode(symbols, indexes, a.intervals, a.places, np.uint64(LOWER + checksum), out)
            if first != OUT_OF_WORDS:
                break
        if first == BAD_ESCAPE:
            raise ValueError("they give a latent that is too large to code: are they those of a trained model?")
        head = int(state).to_bytes(2 * _STATE_WORDS, "little")
        return head + out[first:].astype("<u2", copy=False).tobytes()

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
            self._registers.append(np.array([state, 0, crc32c.BEFORE], np.uint64))

    def read(self, indexes: NDArray[np.int16]) -> NDArray[np.int32]:
        """The next `len(indexes)` symbols: few, or many that nobody waits for (see `jobs`).

        Raises:
            SymbolMismatch: the streams end before that.
        """
        symbols = np.empty(len(indexes), np.int32)
        if not all(job() for job in self.jobs(symbols, indexes.__getitem__)):
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
        a, streams = self._coder.alphabets, len(self._words)

        def job(k: int, run: slice) -> bool:
            words, registers, out = self._words[k], self._registers[k], symbols[run]
            return int(decode(words, registers, indexes(run), a.intervals, a.places, a.lut, out)) == 0

        runs = [_run(len(symbols), k, streams) for k in range(streams)]
        return [partial(job, k, run) for k, run in enumerate(runs) if run.start < run.stop]

    def finish(self) -> None:
        """Check that everything was read and that the symbols are the writer's.

        Raises:
            SymbolMismatch: they are not.
        """
        for words, (state, place, checksum) in zip(self._words, self._registers, strict=True):
            if int(place) != len(words) or int(state) != LOWER + (int(checksum) ^ crc32c.BEFORE):
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
