"""The writer's choice of symbols: never worse than rounding, free to differ, unknown to the reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model import Codec
from model.checkpoint import load, save
from model.rounding import bits, choose_symbols
from tests.conftest import make_tiny, psnr


@given(st.floats(-300, 300), st.floats(0.01, 300), st.floats(0.01, 100))
def test_no_other_symbol_costs_less(residual: float, scale: float, weight: float) -> None:
    r, s = torch.tensor([residual]), torch.tensor([scale])
    chosen = choose_symbols(r, s, weight)
    nearest = torch.round(r)
    candidates = torch.cat([nearest, nearest - nearest.sign(), torch.zeros(1), nearest + nearest.sign()])

    def cost(symbols: torch.Tensor) -> torch.Tensor:
        return weight * (r - symbols).square() + bits(symbols, s)

    assert cost(chosen) <= cost(candidates).min() * (1 + 1e-4) + 1e-3


def test_bits_are_those_of_the_mass_of_each_interval() -> None:
    symbols = torch.arange(-40, 41).float()
    for scale in (0.11, 0.5, 3.0):
        assert (2 ** -bits(symbols, torch.full_like(symbols, scale))).sum() == pytest.approx(1, abs=1e-5)


def test_without_a_weight_symbols_are_the_nearest() -> None:
    r = torch.linspace(-5, 5, 1001)
    assert torch.equal(choose_symbols(r, torch.ones_like(r), None), torch.round(r))


def test_a_model_that_rounds_by_rate_writes_smaller_files_for_every_reader(tmp_path: Path, photo: Image.Image) -> None:
    """The same weights with and without: less bits, less quality, and either reads the other's files exactly."""
    plain, by_rate = tmp_path / "plain.safetensors", tmp_path / "rate.safetensors"
    save(make_tiny(), plain, name="tcm-tiny-mse-0.01", lmbda=0.01, metric="mse")
    save(make_tiny(), by_rate, name="tcm-tiny-mse-0.01", lmbda=0.01, metric="mse", rounding=3.0)
    assert (load(plain).info.rounding, load(by_rate).info.rounding) == (None, 3.0)
    nearest, thrifty = (Codec.load(path, device="cpu") for path in (plain, by_rate))
    small, large = thrifty.encode(photo), nearest.encode(photo)
    assert len(small) < len(large)
    np.testing.assert_array_equal(np.asarray(nearest.decode(small)), np.asarray(thrifty.decode(small)))
    assert psnr(thrifty.decode(large), nearest.decode(large)) > 80
