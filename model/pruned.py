"""Channels that nobody reads are not computed: the same picture, from smaller layers.

What is trained for a short time leaves most of the wide maps at half the resolution unused: the embedded models' last
layer reads 32 of 64 channels, all others have weights of zero there. A block whose output goes straight into such a
layer needs to give those alone, and what its normalisation (GDN) divides them by.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from model.layers import ResidualBlockUpsample, ResidualBlockWithStride

_LANES = 16  # channels come in multiples of what a vector holds


@torch.no_grad()
def prune(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The same layers of a network that is served; those that change are copies.

    Each changed layer gives and takes fewer channels, so they work one after another only.
    """
    pruned = list(layers)
    for i, (block, reader) in enumerate(pairwise(layers)):
        readers = _readers(reader)
        if isinstance(block, ResidualBlockWithStride | ResidualBlockUpsample) and readers:
            kept = _kept(block, torch.stack([_used(conv) for conv in readers]).any(0))
            if len(kept) < readers[0].in_channels:
                pruned[i] = _giving(cast("_Block", pruned[i]), kept)
                pruned[i + 1] = _taking(reader, kept)
    return pruned


_Block = ResidualBlockWithStride | ResidualBlockUpsample


def _readers(layer: nn.Module) -> list[nn.Conv2d]:
    """The convolutions that read what a layer is given; none where something else does."""
    if isinstance(layer, nn.Conv2d):
        found: list[nn.Module] = [layer]
    elif isinstance(layer, ResidualBlockWithStride):
        found = [layer.conv1, layer.skip]
    elif isinstance(layer, ResidualBlockUpsample):
        found = [layer.subpel_conv[0], layer.upsample[0]]
    elif isinstance(layer, nn.Sequential) and isinstance(layer[0], nn.Conv2d):
        found = [layer[0]]
    else:
        found = []
    convs = [conv for conv in found if isinstance(conv, nn.Conv2d) and conv.groups == 1]
    return convs if len(convs) == len(found) else []


def _used(conv: nn.Conv2d) -> Tensor:
    """Which input channels have any weight: (in,)."""
    return conv.weight.abs().amax(dim=(0, 2, 3)) > 0


def _parts(block: _Block) -> tuple[nn.Conv2d, nn.Module, nn.Conv2d, int]:
    """The last convolution, what normalises it, the skip's convolution, and its outputs for each of the block's."""
    if isinstance(block, ResidualBlockUpsample):
        skip, shuffle = block.upsample
        return block.conv, block.igdn, skip, shuffle.upscale_factor**2
    return block.conv2, block.gdn, block.skip, 1


def _kept(block: _Block, read: Tensor) -> Tensor:
    """The channels that are read or that normalise those, and others up to whole vectors; rising indexes."""
    conv, gdn, _, _ = _parts(block)
    silent = (conv.weight.abs().amax(dim=(1, 2, 3)) == 0) & (cast("Tensor", conv.bias) == 0)
    gamma = cast("Tensor", gdn.gamma_reparam(gdn.gamma))  # type: ignore[operator]
    needed = read | (~silent & (gamma[read] > 0).any(0))
    order = torch.argsort(~needed, stable=True)  # needed ones first
    count = -(-int(needed.sum()) // _LANES) * _LANES
    return order[: max(count, _LANES)].sort().values


def _giving(block: _Block, kept: Tensor) -> _Block:
    """A copy that gives these channels only."""
    block = copy.deepcopy(block)
    conv, gdn, skip, each = _parts(block)
    _select(conv, kept)
    _select(skip, (kept[:, None] * each + torch.arange(each, device=kept.device)).flatten())
    gdn.beta = nn.Parameter(cast("Tensor", gdn.beta)[kept], requires_grad=False)
    gdn.gamma = nn.Parameter(cast("Tensor", gdn.gamma)[kept][:, kept], requires_grad=False)
    return block


def _taking(layer: nn.Module, kept: Tensor) -> nn.Module:
    """A copy that takes these channels only."""
    layer = copy.deepcopy(layer)
    for conv in _readers(layer):
        conv.weight = nn.Parameter(conv.weight[:, kept], requires_grad=False)
        conv.in_channels = len(kept)
    return layer


def _select(conv: nn.Conv2d, outputs: Tensor) -> None:
    conv.weight = nn.Parameter(conv.weight[outputs], requires_grad=False)
    conv.bias = nn.Parameter(cast("Tensor", conv.bias)[outputs], requires_grad=False)
    conv.out_channels = len(outputs)
