"""Another λ from the weights of this one: the same network with y in units of the new quantiser step."""

from __future__ import annotations

import math

import torch

from model.network import TCM
from model.training.layers import bias_of, conv_of


def rescale_for(net: TCM, old: float, new: float) -> None:
    """Start for λ = `new` from weights trained for λ = `old`: Δ² ∝ 1/λ, so y grows with √(new/old)."""
    rescale_latents(net, math.sqrt(new / old))


@torch.no_grad()
def rescale_latents(net: TCM, ratio: float) -> None:
    """Multiply y, μ and σ by `ratio`, in place, leaving every continuous function of the image as it was.

    Only what is in units of a quantiser step changes: rounding and the refinement (at most half a step) become finer
    or coarser against the signal.
    """
    c = net.config
    writers = [conv_of(net, f"g_a.{len(net.g_a) - 1}")]
    for name in ("g_s.0.subpel_conv.0", "g_s.0.upsample.0", "h_a.0.conv1", "h_a.0.skip"):
        conv_of(net, name).weight /= ratio
    for i in range(c.slices):
        for kind in ("mean", "scale"):
            conv_of(net, f"atten_{kind}.{i}.0.in_conv").weight[:, c.M :] /= ratio
            writers.append(conv_of(net, f"cc_{kind}_transforms.{i}.4"))
        conv_of(net, f"lrp_transforms.{i}.0").weight[:, -c.slice_channels :] /= ratio
    for conv in writers:
        conv.weight *= ratio
        bias_of(conv).mul_(ratio)
