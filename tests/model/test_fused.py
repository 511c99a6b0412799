"""What is fused on CPUs is what the layers say one by one, in float32 and in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model import fused, windows
from model.blocks import MixedBlock, SliceAttention
from model.layers import ConvGELU, ResidualBlockUpsample, ResidualBlockWithStride

BLOCKS = {
    "mixed": lambda: MixedBlock(16, 8, 8, shifted=False),
    "mixed, shifted": lambda: MixedBlock(16, 16, 8, shifted=True),
    "mixed, windows of 4": lambda: MixedBlock(16, 8, 4, shifted=True),
    "slice attention": lambda: SliceAttention(32, 16, 8, 8),
    "slice transform": lambda: ConvGELU(nn.Conv2d(32, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 4, 3, padding=1)),
    "down": lambda: ResidualBlockWithStride(32, 16),
    "up": lambda: ResidualBlockUpsample(32, 16),
}


@pytest.mark.parametrize("last", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("name", BLOCKS)
def test_fused_is_one_by_one(name, last):
    torch.manual_seed(5)
    block = BLOCKS[name]().eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 32, 24, 16).contiguous(memory_format=last)
    with torch.no_grad():
        given = x.clone()
        result = block(x)
        with fused.nothing():
            assert not fused.available(x)
            expected = block(x)
    assert torch.equal(x, given), "the input has changed"
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["mixed", "mixed, shifted", "up"])
def test_bfloat16_is_as_near_to_float32_fused_as_one_by_one(name):
    torch.manual_seed(6)
    block = BLOCKS[name]().eval()
    x = torch.randn(1, 32, 16, 24)
    with torch.no_grad():
        exact = block(x)
        block, x = block.bfloat16(), x.bfloat16()
        result = block(x).float()
        with fused.nothing():
            expected = block(x).float()
    assert (result - exact).abs().mean() <= 1.2 * (expected - exact).abs().mean()


def test_training_never_fuses():
    x = torch.randn(1, 32, 16, 16)
    assert not fused.available(x)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert not fused.available(x)


@pytest.mark.parametrize("bands", [1, 8])
@pytest.mark.parametrize("threads", [1, 3])
def test_bands_and_threads_change_nothing(monkeypatch, bands, threads):
    block = MixedBlock(16, 8, 8, shifted=True).eval()
    x = torch.randn(2, 32, 64, 48)
    before = torch.get_num_threads()
    with torch.no_grad():
        expected = block(x)
        monkeypatch.setattr("model.attention._BAND", 4 * 16 * 48 * 64 // bands)
        monkeypatch.setattr("model.windows._FEW", 0)
        torch.set_num_threads(threads)
        try:
            torch.testing.assert_close(block(x), expected)
        finally:
            torch.set_num_threads(before)


def test_scores_beyond_any_exponent_neither_overflow_nor_vanish():
    qkv = torch.zeros(8, 8, 24)
    qkv[..., :16] = 1e4  # every score is 1e8·√8
    qkv[..., 16:] = torch.arange(8.0)
    bias = torch.zeros(1, 1, 64, 64).numpy()
    torch.testing.assert_close(windows.attend(qkv, bias, shift=0, last=False), qkv[..., 16:])
