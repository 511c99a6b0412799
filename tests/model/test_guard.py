"""The guard: whoever computes σ to within D·(1 + σ) of the writer's finds the writer's alphabet for every element."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.ways import guard_share
from model import Codec, Zoo, guard, guard_choice, steps
from model.entropy import Coder, SymbolMismatch
from model.guard import MEANS, SMALLEST_GROUP
from model.pixels import from_pil
from model.steps import ALPHABETS, PLACES, WAYS
from model.tables import LOG_STEP, gaussian_tables, guard_tables, scale_table

CODER = Coder(gaussian_tables() + guard_tables())
EMBEDDED = [entry.name for entry in Zoo().entries() if entry.embedded]


def drifted(scales: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another machine's σ: every one off by as much as the format forgives."""
    return (scales + rng.choice([-1, 1], len(scales)) * guard_choice.drift_after(scales) * (1 + scales) * 0.98).astype(
        np.float32
    )


def some_scales(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    table = scale_table()
    if kind == "spread":
        scales = np.exp(rng.uniform(np.log(0.05), np.log(400), count))
    elif kind == "low":  # where the tolerance is widest
        scales = rng.uniform(0.05, 0.2, count)
    elif kind == "near":  # every element close to a scale of the table, or in the middle between two
        scales = rng.choice(table, count) * np.exp(rng.choice([0, 0.0615], count) + rng.normal(0, 1e-3, count))
    elif kind == "ends":
        scales = rng.choice([table[0], table[1], table[-2], table[-1]], count) * np.exp(rng.normal(0, 0.05, count))
    else:
        scales = np.full(count, rng.uniform(0.11, 3))
    return scales.astype(np.float32)


def chosen(scales: np.ndarray) -> np.ndarray:
    """For a slice that follows one like it."""
    return guard_choice.choose(scales, guard_choice.drift_after(scales))


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5000), st.sampled_from(["spread", "low", "near", "ends", "flat"]))
def test_drift_changes_no_index(seed, count, kind):
    rng = np.random.default_rng(seed)
    scales = some_scales(kind, count, rng)
    ways = chosen(scales)
    ours = guard.scale_indexes(scales, ways)
    np.testing.assert_array_equal(ours, guard.scale_indexes(drifted(scales, rng), ways))
    # the alphabet is one of the two whose scales lie around σ
    assert np.isin(ours, ALPHABETS).all()
    scale_of, place = scale_table()[ALPHABETS], np.searchsorted(ALPHABETS, ours)
    above, below = scale_of[np.minimum(place + 1, len(ALPHABETS) - 1)], scale_of[np.maximum(place - 1, 0)]
    assert ((scales <= above * 1.001) | (place == len(ALPHABETS) - 1)).all()
    assert ((scales >= below * 0.999) | (place == 0)).all()


def test_tolerance_grows_with_what_a_slice_is_computed_from():
    small, large, vast = (np.full(100, sigma, np.float32) for sigma in (1, 50, 1e5))
    z = np.array([0, -3, 2], np.int32)
    alone, after = guard_choice.drifts(z, [small, large, vast, small])[:2], guard_choice.drifts(z, [large, small])[1]
    assert alone == [guard_choice.drift_after(small), guard_choice.drift_after(small)]
    assert after == guard_choice.drift_after(large) > 3 * alone[1]
    assert guard_choice.drifts(z, [small, large, vast, small])[3] == guard_choice.MOST_DRIFT
    assert guard_choice.drifts(7 * z, [small, small]) == [3 * alone[0], alone[1]]
    assert guard_choice.drifts(10_000 * z, [vast])[0] == guard_choice.MOST_DRIFT
    beyond = np.array([np.nan, np.inf, -np.inf, 50, -1], np.float32)  # which no file comes of
    assert guard_choice.drift_after(beyond) == guard_choice.drift_after(large)


def test_the_writer_guards_each_slice_with_its_own_tolerance(photo):
    codec = Codec.load(EMBEDDED[0], "cpu")
    (analysis,) = codec.analyse([from_pil(photo)])
    sigmas = [scales for _, scales in analysis.y]
    drifts = guard_choice.drifts(analysis.z, sigmas)
    assert len(set(drifts)) > 3
    expected = [guard_choice.choose(scales, drift) for scales, drift in zip(sigmas, drifts, strict=True)]
    indexes = [tables for _, tables in analysis.parts() if not guard.is_guard(tables)][1:]
    for scales, ways, found in zip(sigmas, expected, indexes, strict=True):
        np.testing.assert_array_equal(found, guard.scale_indexes(scales, ways))


def test_it_is_needed():
    """With the steps where they always are the same drift flips indexes: one is enough to lose the picture."""
    rng = np.random.default_rng(0)
    scales = some_scales("spread", 50_000, rng)
    always = np.zeros(1, np.int32)
    changed = guard.scale_indexes(scales, always) != guard.scale_indexes(drifted(scales, rng), always)
    assert changed.sum() > 10


def test_groups_are_few_where_nothing_is_in_the_way():
    assert chosen(np.full(20_000, 0.01, np.float32)).tolist() == [0]
    crowded = chosen(some_scales("spread", 20_000, np.random.default_rng(0)))
    assert 1 < len(crowded) < 100


def test_impossible_scales_cost_nothing():
    scales = np.array([0, -1, np.nan, np.inf, -np.inf, 1e-30, 1e30, 0.01, 300], np.float32)
    ways = chosen(scales)
    assert ways.tolist() == [0]
    assert guard.scale_indexes(scales, ways).tolist() == [0, 0, 0, 63, 0, 0, 63, 0, 63]


def test_where_no_way_is_free_the_writer_says_way_0():
    low, high = np.log(scale_table()[[10, 11]])
    every_place = np.exp(low + (97 + np.arange(PLACES)) / 256 * (high - low)).astype(np.float32)
    assert chosen(every_place).tolist() == [0]


@pytest.mark.parametrize("way", [0, 1, 63, 64, 65, WAYS // 2 + 3, WAYS - 64, WAYS - 2, WAYS - 1])
def test_any_way_may_be_the_first_that_is_free(way):
    """All places of some steps are taken but those of one way."""
    busy = np.arange(20, 29)
    elements = np.zeros(len(busy), np.int64)
    free = np.array([documented_place(way, int(k)) for k in busy], np.uint64)
    blocked = ~(np.uint64(1) << free)
    ways = np.full(1, -1, np.int32)
    assert guard_choice._first_free(elements, busy.astype(np.int16), blocked, ways)
    assert ways[0] == way


def documented_place(way: int, step: int) -> int:
    """As docs/bitstream.md has it."""
    if way == 0:
        return 31
    h = (way * 0x9E3779B1 + step * 0x85EBCA77) % 2**32
    h ^= h >> 15
    h = h * 0x2C1B3C6D % 2**32
    h ^= h >> 12
    return h >> 26


def test_ways_are_those_of_the_format():
    rng = np.random.default_rng(0)
    for way, step in zip(
        [0, 1, WAYS - 1, *rng.integers(0, WAYS, 500)], [7, 0, 59, *rng.integers(0, 60, 500)], strict=True
    ):
        assert steps.place(way, step) == documented_place(int(way), int(step))
    drawn = [steps.place(way, step) for way in range(1, 2000) for step in range(59)]
    assert np.abs(np.bincount(drawn, minlength=PLACES) * PLACES / len(drawn) - 1).max() < 0.1


def test_steps_are_where_the_format_has_them():
    """An element just below a documented step has the lower alphabet, one just above it the upper one."""
    table, rng = scale_table(), np.random.default_rng(0)
    for way in [0, *rng.integers(0, WAYS, 20).tolist()]:
        low, high = np.log(table[ALPHABETS[:-1]]), np.log(table[ALPHABETS[1:]])
        part = np.array([(97 + documented_place(way, k)) / 256 for k in range(len(ALPHABETS) - 1)])
        step = low + part * (high - low)
        for side, expected in ((-1e-6, ALPHABETS[:-1]), (1e-6, ALPHABETS[1:])):
            found = guard.scale_indexes(np.exp(step + side).astype(np.float32), np.array([way], np.int32))
            np.testing.assert_array_equal(found, expected)


def test_a_float32_beside_a_step_is_on_its_side():
    """Steps are numbers in double precision: the σ that lies closest to one is compared with all of its digits."""
    table, rng = scale_table(), np.random.default_rng(1)
    for way in [0, *rng.integers(0, WAYS, 20).tolist()]:
        part = np.array([(97 + documented_place(way, k)) / 256 for k in range(len(ALPHABETS) - 1)])
        at = ALPHABETS[:-1] + part * np.diff(ALPHABETS)
        step = np.exp(np.log(table[0]) + (np.log(table[-1]) - np.log(table[0])) / (len(table) - 1) * at)
        for scales in (step, np.nextafter(step.astype(np.float32), 0), np.nextafter(step.astype(np.float32), 1e9)):
            sigmas = scales.astype(np.float32)
            expected = ALPHABETS[np.arange(len(step)) + (sigmas.astype(np.float64) > step)]
            np.testing.assert_array_equal(guard.scale_indexes(sigmas, np.array([way], np.int32)), expected)


@pytest.mark.parametrize(("count", "drift"), [(100, 2e-3), (3000, 3e-4), (20_000, 1e-4)])
def test_the_first_way_that_is_free_is_taken(count, drift):
    scales = some_scales("spread", count, np.random.default_rng(count))
    ways = guard_choice.choose(scales, drift)
    assert ways.max() > 100
    for group, way in enumerate(ways):
        sigma = scales[group :: len(ways)].astype(np.float64)
        sigma = sigma[(sigma > scale_table()[0]) & (sigma < scale_table()[-1])]
        above = np.log(sigma / scale_table()[0]) / LOG_STEP
        step = np.searchsorted(ALPHABETS, above, side="right") - 1
        distance = np.diff(ALPHABETS)[step]
        at = (above - ALPHABETS[step]) / distance * 256 - 97
        tolerance = (drift * (1 + 1 / sigma) + 1e-6) / LOG_STEP / distance * 256
        places = np.array([[documented_place(w, k) for k in range(len(ALPHABETS) - 1)] for w in range(way + 1)])
        free = (np.abs(places[:, step] - at) > tolerance).all(axis=1)
        assert free.tolist() == [False] * way + [True]


@settings(deadline=None)
@given(st.lists(st.integers(0, WAYS - 1), min_size=1, max_size=40), st.sampled_from([1, 100, WAYS]))
def test_ways_come_back(values, limit):
    ways = np.array(values, np.int32) % limit
    decoder = CODER.decoder(CODER.encode(guard.to_parts(ways)))
    back = guard.read(decoder, len(ways) * SMALLEST_GROUP)
    decoder.finish()
    np.testing.assert_array_equal(back, ways)


def hostile(groups: int, number: int, first: int, second: int | None = None) -> list:
    def table(k: int) -> int:
        return 66 + (k if k < 12 else k - 6)

    parts = [
        (np.array([groups - 1, number], np.int32), np.array([76, 64], np.int16)),
        (np.full(1, first, np.int32), np.array([table(min(max(number, 0), MEANS - 1))], np.int16)),
    ]
    if second is not None:
        parts.append((np.array([second], np.int32), np.array([65], np.int16)))
    return parts


@pytest.mark.parametrize(("groups", "number", "way"), [(0, 0, (0,)), (-5, 0, (0,)), (11, 0, (0,)), (2**29, 0, (0,)),
                         (1, 20, (0, 0)), (1, -1, (0,)), (1, 0, (-1,)), (1, 3, (2**29,)), (1, 11, (WAYS,)),
                         (1, 19, (WAYS // 64, 0)), (1, 19, (-1, 0)), (1, 12, (0, 64)), (1, 12, (0, -1)),
                         (1, 12, (2**29, 63))])  # fmt: skip
def test_hostile_guards_are_refused(groups, number, way):
    with pytest.raises(SymbolMismatch):
        guard.read(CODER.decoder(CODER.encode(hostile(groups, number, *way))), 10 * SMALLEST_GROUP)
    # the same with nothing wrong is read
    assert guard.read(CODER.decoder(CODER.encode(hostile(1, 19, WAYS // 64 - 1, 63))), 640).tolist() == [WAYS - 1]


@pytest.mark.parametrize("name", EMBEDDED)
def test_it_costs_less_than_half_a_per_cent(photo, name):
    assert guard_share(Codec.load(name, "cpu"), photo.resize((768, 512))) <= 0.005
