"""What is left out of a network that is served, or folded into what follows, changes nothing but last digits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from model import Codec
from model.checkpoint import load
from model.folded import FoldedTransform, fold
from model.latents import code_slices
from model.layers import ResidualBlockUpsample
from model.precision import Lowered
from model.pruned import prune
from model.zoo import Zoo
from tests.conftest import make_tiny

EMBEDDED = [entry.name for entry in Zoo().entries() if entry.embedded]


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 3)])  # pictures, and windows down and across
def test_folded_slices_give_the_same_latents(name, shape):
    net = load(Zoo().get(name).path).net.double().eval().requires_grad_(False)
    batch, rows, columns = shape
    z_hat = torch.randn(batch, net.config.hyper_channels, 2 * rows, 2 * columns, dtype=torch.float64).round()
    folded = fold(net)
    assert folded is not net
    with torch.no_grad():
        plain, short = (code_slices(path, z_hat, lambda _, mean, __: mean.round() + 0.25) for path in (net, folded))
    for found, expected in zip(vars(short).values(), vars(plain).values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_folded_path_serves_maps_of_one_size_after_another():
    net = load(Zoo().get(EMBEDDED[0]).path).net.eval().requires_grad_(False)
    transform = fold(net).cc_mean_transforms[0]
    assert isinstance(transform, FoldedTransform)
    with torch.no_grad():
        for batch, height, width in ((1, 8, 8), (2, 8, 8), (1, 16, 8), (1, 8, 16), (1, 8, 8)):
            narrow = torch.randn(batch, net.config.attention_width, height, width)
            wide = net.atten_mean[0][0].out_conv(narrow)
            torch.testing.assert_close(transform(narrow), net.cc_mean_transforms[0](wide), rtol=1e-4, atol=1e-4)


def test_a_large_picture_leaves_no_large_maps_behind():
    net = load(Zoo().get(EMBEDDED[0]).path).net.eval().requires_grad_(False)
    transform = fold(net).cc_mean_transforms[0]
    with torch.no_grad():
        for side, kept in ((8, True), (128, False), (16, True)):
            transform(torch.zeros(1, net.config.attention_width, side, side))
            assert (transform._added is not None) == kept


def test_an_open_gate_is_not_folded():
    net = make_tiny().eval().requires_grad_(False)
    assert fold(net) is net


@pytest.mark.parametrize("name", EMBEDDED)
def test_channels_that_nobody_reads_are_not_computed(name):
    net = load(Zoo().get(name).path).net.eval().requires_grad_(False)
    y = torch.randn(1, net.config.M, 8, 16)
    with torch.no_grad():
        short = Lowered(net.g_s, torch.float32, nn.Module)
        assert short.layers[-1][0].in_channels < net.g_s[-1][0].in_channels
        torch.testing.assert_close(short(y), net.g_s(y), rtol=1e-5, atol=1e-5)


def test_a_channel_that_another_is_divided_by_is_kept():
    up = ResidualBlockUpsample(32, 64, 2).requires_grad_(False)
    with torch.no_grad():
        last = nn.Sequential(nn.Conv2d(64, 12, 3, padding=1), nn.PixelShuffle(2)).requires_grad_(False)
        last[0].weight[:, 8:] = 0  # channels 0 to 7 are read
        up.igdn.gamma[3, 50] = 0.5  # and 50 divides one of them
        up.igdn.gamma[60, 3] = 0.5  # which says nothing of 60
        block, reader = prune([up, last])
        assert (block.conv.out_channels, reader[0].in_channels) == (16, 16)
        assert torch.equal(block.conv.weight[-1], up.conv.weight[50])
        x = torch.randn(2, 32, 5, 7)
        torch.testing.assert_close(reader(block(x)), last(up(x)), rtol=1e-5, atol=1e-5)
        last[0].weight[:] = 1
        assert prune([up, last]) == [up, last]


def test_blocks_that_add_nothing_are_left_out_without_a_trace():
    codec = Codec.load(EMBEDDED[0], "cpu", "float32")
    short = codec._transforms.g_a
    whole = nn.Sequential(*codec.net.g_a)
    assert len(short.layers) < len(whole)
    x = torch.rand(1, 3, 128, 128)
    with torch.inference_mode():
        torch.testing.assert_close(short(x), whole(x), rtol=1e-5, atol=1e-5)
    trained = copy.deepcopy(whole)
    for block in (trained[1], trained[2]):
        block.conv1_2.bias[0] = 0.5
    longer = Lowered(trained, torch.float32, nn.Module)
    assert len(longer.layers) == len(short.layers) + 2


def test_a_served_model_takes_little_more_memory_than_its_weights():
    """What is folded and lowered is added, and what convolutions make of them; shut branches are given back."""
    codec = Codec.load(EMBEDDED[0], "cpu")
    assert codec.memory_bytes < 1.1 * 4 * codec.info.parameters
    codec.warm_up(128, 128)
    assert codec.memory_bytes < 1.75 * 4 * codec.info.parameters
    assert all(attention[0].shut for attention in codec.net.atten_mean)
    assert not any("non_local_block" in name for name, _ in codec.net.named_parameters())
