"""The entropy coder: whatever goes in comes out, close to its entropy, and damage never passes or crashes."""

from __future__ import annotations

import itertools
import math

import google_crc32c
import numpy as np
import pytest
import torch
from compressai.entropy_models import EntropyBottleneck
from hypothesis import given, settings
from hypothesis import strategies as st

from model.entropy import Coder, SymbolMismatch, stream_count
from model.tables import (
    SCALE_LEVELS,
    TOTAL,
    Tables,
    bottleneck_tables,
    gaussian_tables,
    scale_table,
)
from model.threads import each

CODER = Coder(gaussian_tables())


def round_trip(parts, streams=1):
    payload = CODER.encode(parts, streams)
    decoder = CODER.decoder(payload, streams)
    decoded = [decoder.read(indexes) for _, indexes in parts]
    decoder.finish()
    return payload, decoded


def gaussian_symbols(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    indexes = np.clip(rng.normal(14, 9, count), 0, 63).astype(np.int16)
    return np.rint(rng.standard_normal(count) * scale_table()[indexes]).astype(np.int32), indexes


parts_strategy = st.lists(
    st.lists(
        st.tuples(
            st.one_of(st.integers(-3, 3), st.integers(-2000, 2000), st.integers(-(2**30) + 1, 2**30 - 1)),
            st.integers(0, SCALE_LEVELS - 1),
        ),
        max_size=60,
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=200)
@given(parts_strategy)
def test_any_symbols_come_back(parts):
    arrays = [(np.array([s for s, _ in part], np.int32), np.array([t for _, t in part], np.int16)) for part in parts]
    _, decoded = round_trip(arrays)
    for (symbols, _), back in zip(arrays, decoded, strict=True):
        np.testing.assert_array_equal(symbols, back)


@pytest.mark.parametrize("streams", [1, 2, 7])
def test_several_streams(streams):
    symbols, indexes = gaussian_symbols(10_000)
    cuts = [0, 13, 5000, 5001, 10_000]
    parts = [(symbols[a:b], indexes[a:b]) for a, b in itertools.pairwise(cuts)]
    _, decoded = round_trip(parts, streams)
    np.testing.assert_array_equal(np.concatenate(decoded), symbols)


def test_size_is_close_to_the_entropy_and_to_compressais():
    from compressai import ans

    symbols, indexes = gaussian_symbols(200_000)
    payload, _ = round_trip([(symbols, indexes)])
    t = CODER.tables
    place = t.start[indexes] + symbols - t.low[indexes]
    inside = (symbols >= t.low[indexes]) & (place < t.start[indexes + 1] - 2)
    frequency = (t.cdf[place[inside] + 1] - t.cdf[place[inside]]) / TOTAL
    assert 8 * len(payload) <= -np.log2(frequency).sum() * 1.0005 + 64 + 48 * (~inside).sum()

    size = int(np.diff(t.start).max())
    cdfs = [t.cdf[a:b].tolist() + [0] * (size - b + a) for a, b in zip(t.start[:-1], t.start[1:], strict=True)]
    theirs = ans.RansEncoder().encode_with_indexes(
        symbols.tolist(), indexes.tolist(), cdfs, np.diff(t.start).tolist(), t.low.tolist()
    )
    assert len(payload) <= 1.005 * len(theirs)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300), st.integers(1, 400), st.integers(0, 63))
def test_random_bytes_never_pass(data, count, index):
    with pytest.raises(SymbolMismatch):
        decoder = CODER.decoder(data)
        decoder.read(np.full(count, index, np.int16))
        decoder.finish()


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 10**6), st.integers(1, 255), st.integers(0, 3))
def test_a_flipped_byte_never_passes(place, flip, seed):
    symbols, indexes = gaussian_symbols(500, seed)
    data = bytearray(CODER.encode([(symbols, indexes)]))
    data[place % len(data)] ^= flip
    with pytest.raises(SymbolMismatch):
        decoder = CODER.decoder(bytes(data))
        decoder.read(indexes)
        decoder.finish()


def stream_of(symbol: int, table: int) -> bytes:
    """A stream of one escaped symbol, however large: no bound is looked at, and no integer has one."""
    a = CODER.alphabets
    first, escape, zero = (int(place) for place in a.places[table])
    above = symbol + zero - escape
    excess = 2 * above if above >= 0 else 2 * (first - symbol - zero) - 1
    bits = [(excess.bit_length(), 5)]
    for place in range(0, excess.bit_length() - 1, 16):
        count = min(16, excess.bit_length() - 1 - place)
        bits.append((excess >> place & ((1 << count) - 1), count))
    interval = int(a.intervals[escape])
    steps = [(interval & 0xFFFF, interval >> 48), *((value << 16 - count, 1 << 16 - count) for value, count in bits)]
    state, words = (1 << 32) + google_crc32c.value(np.array([symbol], "<i4").tobytes()), []
    for begin, frequency in reversed(steps):
        if state >= frequency << 32:
            words.insert(0, state & 0xFFFF)
            state >>= 16
        state = (state // frequency << 16) + begin + state % frequency
    return state.to_bytes(6, "little") + np.array(words, "<u2").tobytes()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_symbol_and_the_one_beyond(sign):
    """Found by breaking the code: no encoder writes what a reader has to refuse."""
    index, largest = np.array([7], np.int16), sign * ((1 << 30) - 1)
    data = stream_of(largest, 7)
    assert data == CODER.encode([(np.array([largest], np.int32), index)])
    decoder = CODER.decoder(data)
    assert decoder.read(index).tolist() == [largest]
    decoder.finish()
    with pytest.raises(SymbolMismatch):
        CODER.decoder(stream_of(largest + sign, 7)).read(index)


def test_one_index_read_differently_shows():
    symbols, indexes = gaussian_symbols(5000)
    payload = CODER.encode([(symbols, indexes)])
    other = indexes.copy()
    other[2500] += 1
    with pytest.raises(SymbolMismatch):
        decoder = CODER.decoder(payload)
        decoder.read(other)
        decoder.finish()


@pytest.mark.parametrize(("symbols", "streams"), [(1, 1), (200_000, 1), (262_144, 2), (491_520, 3), (10**9, 64)])
def test_stream_count(symbols, streams):
    assert stream_count(symbols) == streams


@pytest.mark.parametrize("cut", [0, 1, 5, 6, 7, 100])
def test_truncation_never_passes(cut):
    symbols, indexes = gaussian_symbols(5000)
    payload = CODER.encode([(symbols, indexes)])
    with pytest.raises(SymbolMismatch):
        decoder = CODER.decoder(payload[:cut])
        decoder.read(indexes)
        decoder.finish()


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(st.integers(-(2**20), 2**20), st.lists(st.integers(1, 6000), min_size=2, max_size=9)), min_size=1
    ),
    st.data(),
)
def test_alphabets_of_any_place_and_shape(alphabets, data):
    """Those of z need not hold 0."""
    cdfs = [np.append(np.cumsum([0, *sizes]), TOTAL).astype(np.int32) for _, sizes in alphabets]
    lows = np.array([low for low, _ in alphabets], np.int32)
    tables = Tables(np.concatenate(cdfs), np.cumsum([0, *map(len, cdfs)]).astype(np.int32), lows)
    indexes = np.array(data.draw(st.lists(st.integers(0, len(cdfs) - 1), max_size=50)), np.int16)
    near = np.array(data.draw(st.lists(st.integers(-3, 12), min_size=len(indexes), max_size=len(indexes))), np.int32)
    coder, symbols = Coder(tables), lows[indexes] + near
    decoder = coder.decoder(coder.encode([(symbols, indexes)]))
    np.testing.assert_array_equal(decoder.read(indexes), symbols)
    decoder.finish()


def test_too_large_a_symbol_is_refused():
    with pytest.raises(ValueError, match="too large"):
        CODER.encode([(np.array([2**30], np.int32), np.array([0], np.int16))])


@pytest.mark.parametrize(("low", "symbol"), [(-1024, 2**30 - 1), (1 << 20, -(2**30) + 1)])
def test_too_far_from_its_alphabet_is_refused(low, symbol):
    """Found by review: its distance took 32 bits, which the format cannot say, and the stream was no one's to read."""
    coder = Coder(Tables(np.array([0, 5, TOTAL], np.int32), np.array([0, 3], np.int32), np.array([low], np.int32)))
    with pytest.raises(ValueError, match="too large"):
        coder.encode([(np.array([symbol], np.int32), np.zeros(1, np.int16))])


# ---- the tables


def test_gaussian_tables_owe_nothing_to_the_last_bit_of_erfc():
    closest = 1.0
    for scale in scale_table():
        reach = math.ceil(5 * scale)
        n = 2 * reach + 2
        first = 0.5 * math.erfc((reach + 0.5) / scale / math.sqrt(2))
        for v in range(-reach + 1, reach + 2):
            edge = (0.5 * math.erfc(-(v - 0.5) / scale / math.sqrt(2)) - first) * (TOTAL - n) + 0.5
            closest = min(closest, abs(edge - round(edge)))
    assert closest > 1e-6  # a libm is wrong by 1e-11 here at most


def test_tables_of_z_are_the_bottlenecks_likelihoods():
    torch.manual_seed(5)
    bottleneck = EntropyBottleneck(4)
    tables = bottleneck_tables(bottleneck)
    with torch.no_grad():
        medians = bottleneck.quantiles[:, :, 1:2]
        for channel in range(4):
            cdf = tables.cdf[tables.start[channel] : tables.start[channel + 1]]
            symbols = tables.low[channel] + np.arange(len(cdf) - 2)
            values = (medians + torch.from_numpy(symbols).float()).expand(4, 1, -1)
            likelihood = bottleneck._likelihood(values)[0][channel, 0].numpy()
            np.testing.assert_allclose(
                np.diff(cdf)[:-1] / TOTAL, likelihood, atol=2.5 / TOTAL + 3e-3 * likelihood.max()
            )


@pytest.mark.parametrize(
    "broken",
    [
        Tables(np.array([0, 5, 5, TOTAL], np.int32), np.array([0, 4], np.int32), np.array([0], np.int32)),
        Tables(np.array([1, 5, TOTAL], np.int32), np.array([0, 3], np.int32), np.array([0], np.int32)),
        Tables(np.array([0, 5, TOTAL - 1], np.int32), np.array([0, 3], np.int32), np.array([0], np.int32)),
        Tables(np.array([0, 5, TOTAL], np.int32), np.array([0, 4], np.int32), np.array([0], np.int32)),
        Tables(np.array([0, TOTAL], np.int32), np.array([0, 2], np.int32), np.array([0], np.int32)),
        Tables(np.array([0, 5, TOTAL], np.int32), np.array([0, 3], np.int32), np.array([2**29], np.int32)),
        Tables(np.array([0, 5, TOTAL], np.int32), np.array([0, 3], np.int32), np.array([-(2**31)], np.int32)),
    ],
)
def test_unsound_tables_are_refused(broken):
    with pytest.raises(ValueError):
        Coder(broken)


@pytest.mark.parametrize("urgent", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_work_shared_out_comes_back_in_order(count, urgent):
    assert each(lambda n: n * n, range(count), urgent=urgent) == [n * n for n in range(count)]


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(5)), st.integers(5, 500), st.integers(0, 5))
def test_the_parts_of_a_read_may_be_done_in_any_order(order, count, seed):
    streams = len(order)
    parts = [gaussian_symbols(count, seed + k) for k in range(3)]
    decoder = CODER.decoder(CODER.encode(parts, streams), streams)
    for symbols, indexes in parts:
        out = np.full(count, 77, np.int32)
        jobs = decoder.jobs(out, indexes.__getitem__)
        assert all(jobs[k]() for k in order)
        np.testing.assert_array_equal(out, symbols)
    decoder.finish()
