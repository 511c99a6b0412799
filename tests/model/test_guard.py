"""The guard: whoever computes σ to within D·(1 + σ) of the writer's finds the writer's table for every element."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import Codec, guard
from model.entropy import Coder, SymbolMismatch
from model.guard import DRIFT, GROUP_SIZES, SMALLEST_GROUP, WAYS
from model.tables import gaussian_tables, guard_tables, scale_table

CODER = Coder(gaussian_tables() + guard_tables())


def indexes(scales: np.ndarray, exponent: int, ways: np.ndarray) -> np.ndarray:
    return guard.scale_indexes(torch.from_numpy(scales), exponent, ways).numpy()


def drifted(scales: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another machine's σ: every one off by as much as the format forgives."""
    return (scales + rng.choice([-1, 1], len(scales)) * DRIFT * (1 + scales) * 0.98).astype(np.float32)


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


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5000), st.sampled_from(["spread", "low", "near", "ends", "flat"]))
def test_drift_changes_no_index(seed, count, kind):
    rng = np.random.default_rng(seed)
    scales = some_scales(kind, count, rng)
    exponent, ways = guard.choose(scales)
    assert ways.shape == (guard.groups(count, exponent),)
    ours = indexes(scales, exponent, ways)
    np.testing.assert_array_equal(ours, indexes(drifted(scales, rng), exponent, ways))
    # the index stays next to what the scale table alone says
    plain = np.clip(np.searchsorted(scale_table(), scales), 0, 63)
    assert (ours >= plain - 1).all()
    assert (ours <= plain).all()


def test_it_is_needed():
    """With the boundaries where they always are the same drift flips indexes: one is enough to lose the picture."""
    rng = np.random.default_rng(0)
    scales = some_scales("spread", 50_000, rng)
    always = 0, np.zeros(guard.groups(len(scales), 0), np.int32)
    assert (indexes(scales, *always) != indexes(drifted(scales, rng), *always)).sum() > 10


def test_groups_grow_where_nothing_is_in_the_way():
    far = np.full(20_000, 0.01, np.float32)
    exponent, ways = guard.choose(far)
    assert (SMALLEST_GROUP << exponent) >= len(far)
    assert ways.tolist() == [0]
    crowded, _ = guard.choose(some_scales("low", 20_000, np.random.default_rng(0)))
    assert crowded < exponent


def test_impossible_scales_cost_nothing():
    scales = np.array([0, -1, np.nan, np.inf, -np.inf, 1e-30, 1e30, 0.01, 300], np.float32)
    exponent, ways = guard.choose(scales)
    assert ways.tolist() == [0]
    assert indexes(scales, exponent, ways)[[0, 1, 5, 7]].tolist() == [0, 0, 0, 0]


def test_ways_are_spread_evenly_and_start_in_the_middle():
    place = guard.places()
    assert place.shape == (WAYS, 63)
    assert (place[0] == 0.5).all()
    assert place.min() >= 0
    assert place.max() < 1
    assert np.abs(np.histogram(place[1:], bins=16, range=(0, 1))[0] / place[1:].size - 1 / 16).max() < 0.002
    # the ways are part of the format
    assert (place[1, :4] * 65536).tolist() == FIRST_PLACES


FIRST_PLACES = [51213, 53629, 31978, 25407]


@given(st.integers(0, GROUP_SIZES - 1), st.lists(st.integers(0, WAYS - 1), min_size=1, max_size=40))
def test_ways_come_back(exponent, values):
    ways = np.array(values, np.int32)
    elements = (SMALLEST_GROUP << exponent) * len(values) - 5
    decoder = CODER.decoder(CODER.encode(guard.to_parts(exponent, ways)))
    size, back = guard.read(decoder, elements)
    decoder.finish()
    assert size == exponent
    np.testing.assert_array_equal(back, ways)


@pytest.mark.parametrize(("exponent", "choice", "way"), [(0, 15, 0), (15, 0, 0), (-1, 0, 0), (0, -1, 0), (0, 0, -1),
                                                         (0, 0, WAYS), (0, 3, 2**29)])  # fmt: skip
def test_hostile_guards_are_refused(exponent, choice, way):
    parts = [
        (np.array([exponent, choice], np.int32), np.full(2, guard.FIRST_TABLE, np.int16)),
        (np.array([way], np.int32), np.array([guard.FIRST_TABLE + 1 + max(0, choice) % 15], np.int16)),
    ]
    with pytest.raises(SymbolMismatch):
        guard.read(CODER.decoder(CODER.encode(parts)), 10)


@pytest.mark.parametrize("name", ["tcm-xs-mse-0.0035", "tcm-xs-mse-0.05"])
def test_it_costs_less_than_one_per_cent(monkeypatch, photo, name):
    codec = Codec.load(name, "cpu")
    spent, written = [], guard.to_parts

    def counted(*choice):
        parts = written(*choice)
        spent.extend(parts)
        return parts

    monkeypatch.setattr(guard, "to_parts", counted)
    size = len(codec.encode(photo.resize((768, 512))))
    assert len(codec._latents._coder.encode(spent)) <= 0.01 * size
