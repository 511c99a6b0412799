"""Short cuts through the outer stages while they are still linear: the coarse stages learn several times faster.

After a block-transform start the stages of g_a and g_s at half and a quarter of the resolution are linear maps of
single blocks and lose nothing, yet they take nine tenths of the time. One strided convolution does the same work;
the stages inside, the entropy model included, train with it, and the outer ones join when the coarse ones have learnt.
"""

from __future__ import annotations

import copy
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network import TCM
from model.training.layers import conv_of

_STEP = 1e-2  # of the impulses that find the linear map, around a grey image
_TOLERANCE = 5e-3  # how far a short cut may be from the stages it stands for


class _Map(Protocol):
    def __call__(self, x: Tensor, /) -> Tensor: ...


class _Shortcut(nn.Module):
    """One linear map of blocks: (B, 3, H, W) -> (B, 2N, H/side, W/side), or back when `up`."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        side = self.weight.shape[-1]
        if self.up:
            return F.conv_transpose2d(x, self.weight, stride=side) + self.bias
        return F.conv2d(x, self.weight, stride=side) + self.bias


@torch.no_grad()
def shorten(net: TCM, stages: int, *, attention: bool = True, synthesis: bool = True) -> TCM:
    """The same network, sharing its parameters, with the outer `stages` (0, 1 or 2) of g_a and g_s short-cut.

    Args:
        stages: how many.
        attention: False leaves the gated branch out of the slice attentions (two thirds of the entropy model's time).
        synthesis: False leaves g_s as it is.

    Raises:
        ValueError: these stages are no linear map of blocks (any more), so that no short cut can stand for them.
    """
    short = copy.copy(net)
    short._modules = dict(net._modules)
    if not attention:
        short.atten_mean, short.atten_scale = _ungated(net.atten_mean), _ungated(net.atten_scale)
    if stages == 0:
        return short
    cut = stages * (net.config.depth + 1)
    x = _nearly_grey(2 ** (stages + 1) * net.config.window)
    outer_down = net.g_a[:cut]
    down = _analysis(outer_down, 2**stages, net.config.window)
    features, used = down(x), slice(3 * down.weight.shape[-1] ** 2)
    _check(features[:, used], outer_down(x)[:, used])
    short.g_a = nn.Sequential(down, *net.g_a[cut:])
    if synthesis:
        outer_up = net.g_s[-cut:]
        up = _synthesis(outer_up, 2**stages, net.config.window, 2 * net.config.N)
        _check(up(features), outer_up(features))
        short.g_s = nn.Sequential(*net.g_s[:-cut], up)
    return short


def shortest(net: TCM, *, attention: bool = True, synthesis: bool = True) -> TCM:
    """The shortest way through a network that its outer stages allow: those that are still linear are short-cut."""
    ways = [(stages, both) for stages in (2, 1) for both in (True, False) if synthesis or not both]
    for stages, both in ways:  # g_s may have learnt on where g_a has not
        try:
            return shorten(net, stages, attention=attention, synthesis=both)
        except ValueError:
            continue
    return shorten(net, 0, attention=attention)


def _ungated(attentions: nn.ModuleList) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Sequential(conv_of(block, "0.in_conv"), conv_of(block, "0.out_conv")) for block in attentions
    )


@torch.no_grad()
def _analysis(stage: _Map, side: int, window: int) -> _Shortcut:
    """Read the map off the answers to impulses in one block of a grey image."""
    size, at = side * window, side * (window // 2)
    grey = torch.full((1, 3, size, size), 0.5)
    inputs = grey.repeat(3 * side * side, 1, 1, 1)
    inputs[:, :, at : at + side, at : at + side] += _STEP * torch.eye(3 * side * side).view(-1, 3, side, side)
    middle = window // 2
    rest = stage(grey)[..., middle : middle + 1, middle : middle + 1]
    answers = torch.cat([stage(part) for part in torch.split(inputs, 48)])[..., middle, middle]
    weight = ((answers - rest[..., 0, 0]) / _STEP).T.reshape(-1, 3, side, side).contiguous()
    weight[3 * side * side :], rest[:, 3 * side * side :] = 0, 0  # spare channels: features that nothing reads yet
    return _Shortcut(weight, rest - 0.5 * weight.sum(dim=(1, 2, 3)).view(1, -1, 1, 1), up=False)


@torch.no_grad()
def _synthesis(stage: _Map, side: int, window: int, channels: int) -> _Shortcut:
    at = window // 2
    flat = torch.zeros(1, channels, window, window)
    inputs = flat.repeat(channels, 1, 1, 1)
    inputs[:, :, at, at] += torch.eye(channels)
    rest = stage(flat)
    answers = torch.cat([stage(part) for part in torch.split(inputs, 16)])
    block = slice(at * side, (at + 1) * side)
    return _Shortcut(
        (answers - rest)[..., block, block].contiguous(),
        rest[..., block, block].mean(dim=(2, 3), keepdim=True),
        up=True,
    )


def _nearly_grey(size: int) -> Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 0.02 + 0.49


def _check(found: Tensor, expected: Tensor) -> None:
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error < _TOLERANCE:
        raise ValueError(
            f"the outer stages are not the linear block transform of a fresh start (off by {error:.2g}): "
            "train all of it (--part all)"
        )
