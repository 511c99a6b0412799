"""The guard: whoever computes ln σ to within δ of the writer's finds the writer's table for every element."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import Codec, guard
from model.entropy import Coder, SymbolMismatch
from model.guard import DRIFT, GROUP, MAX_SHIFT
from model.tables import gaussian_tables, guard_tables, scale_boundaries, scale_indexes, scale_table

CODER = Coder(gaussian_tables() + guard_tables())


def indexes(scales: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    return scale_indexes(guard.shifted(torch.from_numpy(scales), shifts), scale_boundaries()).numpy()


def drifted(scales: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another machine's σ: every ln σ off by as much as the format forgives."""
    return (scales * np.exp(rng.choice([-1, 1], len(scales)) * DRIFT * 0.999)).astype(np.float32)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3 * GROUP), st.sampled_from(["spread", "near", "ends", "flat"]))
def test_drift_changes_no_index(seed, count, kind):
    rng = np.random.default_rng(seed)
    boundaries = scale_table()
    if kind == "spread":
        scales = np.exp(rng.uniform(np.log(0.05), np.log(400), count))
    elif kind == "near":  # every element within a few δ of a boundary: the hardest there is
        scales = rng.choice(boundaries, count) * np.exp(rng.normal(0, 4 * DRIFT, count))
    elif kind == "ends":
        scales = rng.choice([boundaries[0], boundaries[-2], boundaries[-1]], count) * np.exp(rng.normal(0, 0.05, count))
    else:
        scales = np.full(count, rng.uniform(0.11, 3))
    scales = scales.astype(np.float32)
    shifts = guard.choose_shifts(scales)
    assert shifts.shape == (guard.groups(count),)
    np.testing.assert_array_equal(indexes(scales, shifts), indexes(drifted(scales, rng), shifts))


def test_it_is_needed():
    """Without shifts the same drift flips indexes: one is enough to lose the picture."""
    rng = np.random.default_rng(0)
    scales = np.exp(rng.uniform(np.log(0.05), np.log(400), 50_000)).astype(np.float32)
    none = np.zeros(guard.groups(len(scales)), np.int32)
    assert (indexes(scales, none) != indexes(drifted(scales, rng), none)).sum() > 10


def test_impossible_scales_cost_nothing():
    scales = np.array([0, -1, np.nan, np.inf, -np.inf, 1e-30, 1e30, 0.01, 300], np.float32)
    assert guard.choose_shifts(scales).tolist() == [0]


def test_a_group_with_no_way_out_is_left_to_the_checksum():
    scales = np.exp(np.log(0.11) + np.arange(GROUP) / GROUP * 0.1230).astype(np.float32)
    assert 0 <= guard.choose_shifts(scales)[0] <= MAX_SHIFT


@given(st.lists(st.integers(0, MAX_SHIFT), min_size=1, max_size=40))
def test_shifts_come_back(values):
    shifts = np.array(values, np.int32)
    elements = GROUP * len(values) - 5
    parts = guard.to_parts(shifts)
    assert sum(len(symbols) for symbols, _ in parts) == guard.symbol_count(elements)
    decoder = CODER.decoder(CODER.encode(parts), guard.symbol_count(elements))
    np.testing.assert_array_equal(guard.read_shifts(decoder, elements), shifts)
    decoder.finish()


@pytest.mark.parametrize(("choice", "shift"), [(15, 0), (-1, 0), (0, -1), (0, MAX_SHIFT + 1), (3, 2**29)])
def test_hostile_shifts_are_refused(choice, shift):
    parts = [
        (np.array([choice], np.int32), np.array([guard.FIRST_TABLE], np.int16)),
        (np.array([shift], np.int32), np.array([guard.FIRST_TABLE + 1 + max(0, choice) % 15], np.int16)),
    ]
    with pytest.raises(SymbolMismatch):
        guard.read_shifts(CODER.decoder(CODER.encode(parts), 2), 10)


def test_it_costs_less_than_half_a_per_cent(photo):
    codec = Codec.load("tcm-xs-mse-0.0035", "cpu")
    spent, written = [], guard.to_parts
    coder = codec._coder

    def counted(shifts):
        parts = written(shifts)
        spent.extend(parts)
        return parts

    guard.to_parts = counted
    try:
        size = len(codec.encode(photo.resize((768, 512))))
    finally:
        guard.to_parts = written
    assert len(coder.encode(spent)) <= 0.005 * size
