"""Which channels of y share a slice: few strong ones first, so that the rest are coded knowing them.

The block transform sorts y by strength. Cut into equal slices in that order, the first slice holds more than half of
the bits and is coded with nothing but the hyper-latent for context. Here the first slice holds a handful of strong
channels, each further one more, and the weak ones, which cost next to nothing wherever they are, fill the places left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.network import TCM
from model.training.layers import bias_of, conv_of
from model.training.start import set_priors

_SHARE = 0.72  # strong channels of a slice, as a part of those of the next one; the last slice holds no others


def spread_order(strength: Tensor, slices: int) -> list[int]:
    """The channels in the order of their places.

    Args:
        strength: of each channel, (M,).
        slices: of M/slices channels each.
    """
    width = len(strength) // slices
    sizes = [max(1, round(width * _SHARE ** (slices - 1 - i))) for i in range(slices)]
    ranked = strength.argsort(descending=True).tolist()
    strong, weak = ranked[: sum(sizes)], ranked[sum(sizes) :]
    order: list[int] = []
    for size in sizes:
        filling, weak = weak[len(weak) - (width - size) :], weak[: len(weak) - (width - size)]
        order += [*strong[:size], *filling]
        strong = strong[size:]
    return order


@torch.no_grad()
def spread_latents(old: TCM, new: TCM, y: Tensor) -> None:
    """Make `new` the transforms and the hyperprior of `old` with y in another order; its slices start anew.

    Args:
        old: trained after a block-transform start.
        new: freshly initialised, of the same widths but for `max_support`.
        y: latents that `old` gives for a hundred crops or so, (n, M, h, w).
    """
    order = spread_order(y.var(dim=(0, 2, 3)), new.config.slices)
    set_priors(new, y[:, order])
    target = dict(new.named_parameters())
    for name, value in old.named_parameters():
        if name.startswith(("g_a", "g_s", "h_", "entropy_bottleneck")):
            target[name].copy_(value)
    last = conv_of(new, f"g_a.{len(new.g_a) - 1}")
    last.weight.copy_(last.weight[order].clone())
    bias_of(last).copy_(bias_of(last)[order].clone())
    for name in ("g_s.0.subpel_conv.0", "g_s.0.upsample.0", "h_a.0.conv1", "h_a.0.skip"):
        reader = conv_of(new, name)
        reader.weight.copy_(reader.weight[:, order].clone())
