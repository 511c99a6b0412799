"""Convolutions by fewer products are those by all of them, on any processor, in any batch, by any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model import Codec, fused, vectors, winograd
from model.vectors import LANES
from model.winograd_steps import PANEL

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.01),
    "gelu": F.gelu,
}


def exactly(x, layer, activation, plus):
    """As the layers say, in float64; and the sum of the magnitudes of the terms, which errors are relative to."""
    bias = None if layer.bias is None else layer.bias.double()
    y = F.conv2d(x.double(), layer.weight.double(), bias, padding=1)
    terms = F.conv2d(x.double().abs(), layer.weight.double().abs(), padding=1) + y.abs()
    return ACTIVATIONS[activation](y if plus is None else y + plus.double()), terms


def layer_of(channels, given, *, bias=True):
    return nn.Conv2d(channels, given, 3, padding=1, bias=bias).requires_grad_(False)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 3),
    st.sampled_from(list(ACTIVATIONS)), st.booleans(), st.sampled_from(["nothing", "one", "each"]), st.integers(0, 9),
)  # fmt: skip
def test_it_is_the_convolution(batch, rows, columns, channels, given, activation, bias, added, seed):
    torch.manual_seed(seed)
    layer = layer_of(channels * LANES, given * PANEL, bias=bias)
    x = torch.randn(batch, channels * LANES, 2 * rows, 2 * columns)
    shape = (1 if added == "one" else batch, given * PANEL, 2 * rows, 2 * columns)
    plus = None if added == "nothing" else torch.randn(shape)
    expected, terms = exactly(x, layer, activation, plus)
    with torch.no_grad():
        result = fused.conv(layer, x, activation=activation, plus=plus)
    assert fused.kept([layer]), "it went another way"
    assert ((result - expected).abs() <= 2e-6 * terms + 1e-6).all()


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_and_batches_change_not_a_bit(monkeypatch, threads):
    monkeypatch.setattr(winograd, "_FEW", 1)
    layer, x = layer_of(64, 96), torch.randn(5, 64, 10, 14)
    before = torch.get_num_threads()
    with torch.no_grad():
        alone = torch.cat([fused.conv(layer, one[None], activation="gelu") for one in x])
        torch.set_num_threads(threads)
        try:
            assert torch.equal(fused.conv(layer, x, activation="gelu"), alone)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_no_number_stays_none(activation):
    layer, x = layer_of(16, 32), torch.randn(1, 16, 8, 8)
    x[0, 3, 4, 4] = torch.nan
    with torch.no_grad():
        assert fused.conv(layer, x, activation=activation)[0, :, 4, 4].isnan().all()


@numba.njit
def all_gelu(x):
    return np.array([vectors.gelu(value) for value in x], np.float32)


def test_gelu_is_exact_from_end_to_end():
    x = torch.cat([torch.linspace(-30, 30, 100001), torch.tensor([0.0, 1e-40, -1e-40, 3e38, -3e38])])
    expected = F.gelu(x.double())
    errors = (torch.from_numpy(all_gelu(x.numpy())) - expected).abs()
    assert (errors <= 1e-7 + 6e-8 * expected.abs()).all()


@pytest.mark.parametrize(
    ("layer", "height", "width"),
    [
        (nn.Conv2d(32, 32, 3, padding=1), 7, 8),
        (nn.Conv2d(32, 32, 3, padding=1), 8, 7),
        (nn.Conv2d(24, 32, 3, padding=1), 8, 8),
        (nn.Conv2d(32, 20, 3, padding=1), 8, 8),
        (nn.Conv2d(32, 32, 3, padding=1, stride=2), 8, 8),
        (nn.Conv2d(32, 32, 3), 8, 8),
        (nn.Conv2d(32, 32, 3, padding=2, dilation=2), 8, 8),
        (nn.Conv2d(32, 32, 3, padding=1, groups=2), 8, 8),
        (nn.Conv2d(32, 32, 1), 8, 8),
        (nn.Conv2d(32, 32, 3, padding=1).bfloat16(), 8, 8),
    ],
)
def test_others_go_another_way(layer, height, width):
    layer.requires_grad_(False)
    x = torch.randn(2, layer.in_channels, height, width).to(layer.weight.dtype)
    with torch.no_grad():
        result = fused.conv(layer, x)
    assert not fused.kept([layer])
    torch.testing.assert_close(result, layer(x), rtol=1e-2 if x.dtype == torch.bfloat16 else 1e-5, atol=1e-2)


def test_layers_in_training_are_looked_at_anew_each_time():
    layer, x = nn.Conv2d(32, 32, 3, padding=1), torch.randn(1, 32, 8, 8)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(fused.conv(layer, x), layer(x), rtol=1e-4, atol=1e-5)
            layer.weight.mul_(-2)


def test_weights_that_change_are_seen():
    layer, x = layer_of(32, 32), torch.randn(1, 32, 8, 8)
    with torch.no_grad():
        before = fused.conv(layer, x)
        layer.weight.mul_(2)
        layer.bias.mul_(2)
        torch.testing.assert_close(fused.conv(layer, x), 2 * before)


@pytest.mark.parametrize(
    ("name", "features", "taken"),
    [
        ("generic", "", False),
        ("nehalem", "+sse4.2", False),
        ("haswell", "+sse4.2,+avx,+avx2", False),
        ("haswell", "+sse4.2,+avx,+avx2,+fma", True),
    ],
)
@pytest.mark.skipif(not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="another processor")
def test_older_processors_do_as_well_or_go_another_way(name, features, taken):
    program = f"""if True:
        import torch
        from model import fused, winograd

        layer = torch.nn.Conv2d(48, 96, 3, padding=1).requires_grad_(False)
        x = torch.randn(1, 48, 10, 14)
        with torch.no_grad():
            torch.testing.assert_close(fused.conv(layer, x), layer(x), rtol=1e-4, atol=1e-5)
        assert bool(fused.kept([layer])) == {taken}
    """
    older = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | older, timeout=120)


def test_what_is_kept_is_counted_once(photo):
    codec = Codec.load("tcm-xs-mse-0.013", device="cpu")
    before = codec.memory_bytes
    codec.decode(codec.encode(photo))
    kept = {t.data_ptr(): t.nbytes for t in codec._tensors()}
    assert codec.memory_bytes == sum(kept.values()) > before


def refused(layer, x, plus=None):
    """Whether what torch's own layer refuses is refused."""
    with torch.no_grad(), pytest.raises(RuntimeError):
        fused.conv(layer, x, plus=plus)
    return True


def test_what_does_not_fit_together_is_refused():
    """Found by review: compiled loops believe every shape."""
    layer = layer_of(32, 32)
    assert refused(layer, torch.randn(1, 64, 8, 8))
    assert refused(layer, torch.randn(1, 16, 8, 8))
    assert refused(layer, torch.randn(4, 32, 8, 8), plus=torch.randn(3, 32, 8, 8))
    assert refused(layer, torch.randn(1, 32, 8, 8), plus=torch.randn(1, 32, 8, 6))


@pytest.mark.parametrize("shape", [(1, 32, 1, 1), (1, 1, 8, 10), (2, 32, 1, 10)])
def test_what_is_added_may_be_spread(shape):
    layer, x, plus = layer_of(32, 32), torch.randn(2, 32, 8, 10), torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(fused.conv(layer, x, plus=plus), layer(x) + plus, rtol=1e-4, atol=1e-5)


def test_every_other_bias_is_a_bias():
    layer, x = layer_of(32, 32), torch.randn(1, 32, 8, 8)
    layer.bias = nn.Parameter(torch.randn(64)[::2], requires_grad=False)
    with torch.no_grad():
        torch.testing.assert_close(fused.conv(layer, x), layer(x), rtol=1e-4, atol=1e-5)


def test_another_layer_s_weights_at_the_same_place_are_seen():
    layer, x = layer_of(32, 32), torch.randn(1, 32, 8, 8)
    weight = layer.weight.detach().clone()
    with torch.no_grad():
        before = fused.conv(layer, x)
        for factor in range(2, 12):
            layer.weight = nn.Parameter(weight * factor, requires_grad=False)
            result = fused.conv(layer, x)
            torch.testing.assert_close(result - before, (factor - 1) * (before - layer.bias[:, None, None]))
