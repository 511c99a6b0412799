"""The network is the authors', number by number, and works where theirs crashes."""

from __future__ import annotations

import json
import math
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model import TCM, TCMConfig, Zoo
from model.attention import TransformerBlock, WindowAttention
from model.checkpoint import load
from model.config import SIZES
from model.entropy import Coder
from model.errors import CheckpointMismatch
from model.state_dict import fill
from model.tables import bottleneck_tables, gaussian_tables, scale_table
from tests.conftest import DATA, TINY, make_tiny


def seeded(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray | None:
    """The recipe that the reference's weights were made by: a value from the parameter's name, or None to keep it."""
    draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.startswith("entropy_bottleneck."):
        return draw.uniform(-0.5, 0.5, shape).astype(np.float32) if ".biases." in name else None
    if name.endswith("gamma"):
        return None
    if name.endswith("relative_position_params"):
        value = 0.5 * draw.standard_normal(shape)
    elif len(shape) >= 2:
        value = 0.6 * draw.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        value *= {"g_a.9.weight": 6, "h_a.3.weight": 8}.get(name, 1)
    elif ".ln" in name and name.endswith("weight"):
        value = 1 + 0.1 * draw.standard_normal(shape)
    elif name.endswith("beta"):
        value = 1 + 0.1 * np.abs(draw.standard_normal(shape))
    else:
        value = 0.1 * draw.standard_normal(shape)
    if name.startswith("cc_") and name.endswith(".4.weight"):
        value = value * 8
    if name.startswith("cc_scale") and name.endswith(".4.bias"):
        value = value + 0.5
    return value.astype(np.float32)


@pytest.fixture(scope="module")
def published() -> dict[str, dict[str, list]]:
    return json.loads((DATA / "tcm_state_dict.json").read_text())


@pytest.mark.parametrize("n", [64, 96, 128])
def test_names_and_shapes_are_the_published_ones(published, n):
    ours = {name: list(value.shape) for name, value in TCM(TCMConfig(N=n)).state_dict().items()}
    assert ours == {name: shape for name, (shape, _) in published[str(n)].items()}


@pytest.mark.parametrize("n", [64, 96, 128])
def test_widths_follow_from_shapes(published, n):
    shapes = {name: tuple(shape) for name, (shape, _) in published[str(n)].items()}
    assert TCMConfig.from_shapes(shapes) == TCMConfig(N=n)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        SIZES["xs"],
        TCMConfig(N=16, M=24, hyper_channels=12, head_dim=(8, 16, 4, 2, 8, 16), hyper_head_dim=8, slices=3, depth=1,
                  slice_widths=(9, 7), attention_width=8, attention_head_dim=4, window=4, hyper_window=2),
        TCMConfig(N=8, M=42, hyper_channels=8, head_dim=(8,) * 6, hyper_head_dim=8, slices=7, depth=3,
                  slice_widths=(8, 8), attention_width=8, attention_head_dim=8),
    ],
)  # fmt: skip
def test_any_width_is_recovered_from_a_state_dict(config):
    net = make_tiny(1, config)
    again = fill(net.state_dict())
    assert again.config == config
    x = torch.rand(1, 3, 100, 140)
    with torch.no_grad():
        assert torch.equal(net(x).x_hat, again(x).x_hat)


def test_a_state_dict_of_something_else_is_refused():
    with pytest.raises(CheckpointMismatch, match="g_a"):
        fill({"weight": torch.zeros(3, 3)})


def test_numbers_equal_the_authors_network():
    reference = np.load(DATA / "tcm_n64_256x384.npz")
    net = TCM(TCMConfig(N=64)).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            value = seeded(name, tuple(parameter.shape), int(reference["seed"]))
            if value is not None:
                parameter.copy_(torch.from_numpy(value))
        out = net(torch.from_numpy(reference["x"]))
        z = net.h_a(out.y)
    ours = {"y": out.y, "z": z, "means": out.means, "scales": out.scales, "x_hat": out.x_hat}
    for name, value in ours.items():
        expected = reference[name]
        assert np.abs(value.numpy() - expected).max() <= 1e-5 * np.abs(expected).max(), name
    for name in ("y", "z"):
        bits = -out.likelihoods[name].log2().sum().item()
        assert bits == pytest.approx(float(reference[f"bits_{name}"]), rel=1e-4)
    # our coder against the one that the authors use, on the same symbols (with many outliers: these weights are random)
    symbols = torch.round(out.y - out.means).flatten().int().numpy()
    indexes = np.clip(np.searchsorted(scale_table(), out.scales.flatten().numpy()), 0, 63).astype(np.int16)
    assert len(Coder(gaussian_tables()).encode([(symbols, indexes)])) <= 1.005 * float(reference["bytes_y"])
    symbols = torch.round(z - net.medians()).flatten().int().numpy()
    indexes = np.repeat(np.arange(192, dtype=np.int16), z[0, 0].numel())
    coder = Coder(bottleneck_tables(net.entropy_bottleneck))
    assert len(coder.encode([(symbols, indexes)])) <= 1.005 * float(reference["bytes_z"])


# ---- attention, against the form in which the paper writes it


def naive_attention(attention: WindowAttention, x: torch.Tensor, *, shifted: bool) -> torch.Tensor:
    """Pixel by pixel pairs over the whole (B, H, W, C) map: which window, which side of the roll, which bias."""
    b, height, width, c = x.shape
    w, heads = attention.window, attention.heads
    if shifted:
        x = x.roll((-(w // 2), -(w // 2)), (1, 2))
    q, k, v = attention.embedding_layer(x).view(b, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    row, column = row.flatten(), column.flatten()
    same = (row[:, None] // w == row[None] // w) & (column[:, None] // w == column[None] // w)
    if shifted:
        for place, length in ((row, height), (column, width)):
            wrapped = place >= length - w // 2
            same &= wrapped[:, None] == wrapped[None]
    above = (row[:, None] - row[None] + w - 1).clamp(0, 2 * w - 2)
    left = (column[:, None] - column[None] + w - 1).clamp(0, 2 * w - 2)
    scores = q @ k.transpose(-1, -2) * attention.head_dim**-0.5 + attention.relative_position_params[:, above, left]
    weights = scores.masked_fill(~same, float("-inf")).softmax(-1)
    out = attention.linear((weights @ v).transpose(1, 2).reshape(b, height, width, c))
    return out.roll((w // 2, w // 2), (1, 2)) if shifted else out


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("window", "height", "width"), [(8, 8, 8), (8, 16, 8), (8, 24, 32), (4, 4, 12), (4, 8, 8)])
def test_attention_is_the_naive_one(shifted, window, height, width):
    torch.manual_seed(3)
    block = TransformerBlock(16, 8, window, shifted=shifted)
    torch.nn.init.normal_(block.msa.relative_position_params)
    x = torch.randn(2, 16, height, width)
    with torch.no_grad():
        channels_last = x.permute(0, 2, 3, 1)
        y = channels_last + naive_attention(block.msa, block.ln1(channels_last), shifted=shifted)
        y = (y + block.mlp(block.ln2(y))).permute(0, 3, 1, 2)
        torch.testing.assert_close(block(x), y, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(block(x), y, rtol=1e-5, atol=1e-5)  # with cached masks


def test_cached_masks_follow_the_weights():
    block = TransformerBlock(8, 8, 4, shifted=True).eval()
    x = torch.randn(1, 8, 8, 8)
    with torch.no_grad():
        before = block(x)
        block.msa.relative_position_params.add_(torch.randn_like(block.msa.relative_position_params))
        after = block(x)
    assert not torch.allclose(before, after)
    fresh = TransformerBlock(8, 8, 4, shifted=True).eval()
    fresh.load_state_dict(block.state_dict())
    with torch.no_grad():
        assert torch.equal(after, fresh(x))


# ---- the whole


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (127, 129), (128, 128), (40, 300)])
def test_any_side_works(size):
    net = make_tiny()
    with torch.no_grad():
        out = net(torch.rand(1, 3, *size))
    assert out.x_hat.shape == (1, 3, *size)
    padded = [side + -side % 128 for side in size]
    assert out.y.shape == out.means.shape == out.scales.shape == (1, TINY.M, padded[0] // 16, padded[1] // 16)
    assert torch.isfinite(out.x_hat).all()


def test_an_item_of_a_batch_is_what_it_is_alone():
    net, x = make_tiny(), torch.rand(3, 3, 130, 70)
    with torch.no_grad():
        together = net(x)
        for i in range(3):
            torch.testing.assert_close(together.x_hat[i : i + 1], net(x[i : i + 1]).x_hat, rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter():
    net = make_tiny().train()
    out = net(torch.rand(1, 3, 128, 128))
    bits = sum(-v.log2().sum() for v in out.likelihoods.values())
    (bits + F.mse_loss(out.x_hat, torch.rand(1, 3, 128, 128)) + net.aux_loss()).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None]
    assert without == []


def test_a_shut_gate_is_left_out_without_a_trace() -> None:
    """The embedded models' gates were never trained: their branch is two thirds of the slices' work for nothing."""
    attention = load(Zoo().get("tcm-xs-mse-0.013").path).net.atten_scale[3][0]
    assert attention.shut
    x = torch.randn(1, attention.in_conv.in_channels, 16, 24)
    with torch.no_grad():
        short = attention(x)
        attention.shut = False
        assert torch.equal(attention(x), short)
        attention.conv_b[-1].bias[0] = -3
        attention.find_shut()
    assert not attention.shut
