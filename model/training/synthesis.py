"""`--part synthesis`: g_s learns behind its first block, and bitstreams stay what they are.

The symbols of a file do not change, so the same bits give a better picture, and what wrote earlier files can be kept
beside the new weights as the few tensors that changed (`model.differences`). The first block, which reads ŷ, has more
than half of g_s's weights and stays as well.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch
from torch import nn

from model.blocks import MixedBlock, SliceAttention
from model.errors import CheckpointMismatch
from model.info import ModelInfo
from model.layers import ResidualBlockUpsample
from model.network import TCM
from model.training.layers import bias_of, conv_of
from model.training.options import Options

_OPENED = 32  # channels at half the resolution; more of them, and the mixed blocks there, cost the decoder time
_WEIGHT = 3e-3  # standard deviation of the opened channels' weights: nothing reads them yet


def check_kept(options: Options, info: ModelInfo | None, *, half: bool) -> None:
    """That the run writes the symbols of the model that it starts from.

    Args:
        options: of the run.
        info: what the model says of itself.
        half: whether it is stored in float16.

    Raises:
        CheckpointMismatch: it would write others.
    """
    if info is None:
        raise CheckpointMismatch(
            f"{options.init_from}: does not say what it was trained for; `tcm import` it, and start from that"
        )
    for option, wanted, given in (
        ("lmbda", info.lmbda, options.lmbda),
        ("metric", info.metric, options.metric),
        ("rounding", info.rounding, options.rounding),
        ("M", info.config.M, options.config.M),
        ("slices", info.config.slices, options.config.slices),
    ):
        if wanted != given:
            hint = "leave it out" if wanted is None else f"--{option} {wanted}"
            raise CheckpointMismatch(f"--part synthesis leaves bitstreams as {options.init_from} writes them: {hint}")
    if half != options.half:  # of every weight, not of those alone that learn
        stored = ("float32", "float16")
        raise CheckpointMismatch(
            f"--part synthesis leaves bitstreams as {options.init_from} writes them: it is stored in {stored[half]}, "
            f"this run would store {stored[options.half]} (--half; always for xs)"
        )


@torch.no_grad()
def open_channels(net: TCM) -> None:
    """Let the last upsampling block say more than the block transform does; the picture stays as it is.

    Its channels beyond that transform's have weights of zero, and so has what reads them: neither would ever learn.
    """
    block = cast("ResidualBlockUpsample", net.g_s[-2 - net.config.depth])
    reader = conv_of(net, f"g_s.{len(net.g_s) - 1}.0")
    conv = conv_of(block, "conv")
    unread = ~reader.weight.any(dim=3).any(dim=2).any(dim=0)
    silent = unread & ~conv.weight.flatten(1).any(dim=1) & (bias_of(conv) == 0)
    silent[_OPENED:] = False
    conv.weight[silent] = _WEIGHT * torch.randn_like(conv.weight[silent])


def synthesis_view(net: TCM, short: TCM) -> TCM:
    """What is trained: everything but g_s frozen, and g_s without the mixed blocks that add nothing.

    Args:
        net: the network; its parameters are told whether they learn.
        short: a short way through it, whose g_s is replaced.
    """
    net.requires_grad_(False)
    net.g_s[1:].requires_grad_(True)
    spoken = {
        name: layer
        for name, layer in net.g_s.named_children()
        if not (isinstance(layer, MixedBlock) and layer.adds_nothing())
    }
    short.g_s = nn.Sequential(OrderedDict(spoken))
    for attention in (*net.atten_mean, *net.atten_scale):
        cast("SliceAttention", attention[0]).find_shut()
    return short
