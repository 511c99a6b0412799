"""More latent channels for a trained network: what it knows stays, and the new channels start as the block transform.

128 components of 16x16 blocks of three colours leave a floor of 32 dB on photographs with texture, 192 of 35 dB.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.network import TCM
from model.training.layers import bias_of, conv_of


@torch.no_grad()
def widen_latents(old: TCM, new: TCM, deviation: Tensor) -> None:
    """Copy `old` into `new`, in place; new input channels count for nothing yet.

    Args:
        old: trained after a block-transform start.
        new: the same widths but for M and slices, freshly set to the block transform of the same images and λ; with
            slices of as many channels as `old` has.
        deviation: of the channels of `new`'s y, (M,): slices beyond the old ones start from the last old slice, at
            the scale of their own channels.
    """
    a, b, width = old.config, new.config, old.config.slice_channels
    if b.slice_channels != width or b.M <= a.M or b.max_support < a.support(a.slices - 1):
        raise ValueError("only whole slices can be added, and slices must see all that they saw")
    target, source = dict(new.named_parameters()), dict(old.named_parameters())
    for name, value in source.items():
        if target[name].shape == value.shape:
            target[name].copy_(value)
    last = f"g_a.{len(old.g_a) - 1}"
    for end in ("weight", "bias"):
        target[f"{last}.{end}"][: a.M] = source[f"{last}.{end}"]
        for kind in ("mean", "scale"):
            name = f"h_{kind}_s.{len(old.h_mean_s) - 1}.0.{end}"  # the shuffle keeps four rows a channel together
            target[name][: 4 * a.M] = source[name]
    for name in ("g_s.0.subpel_conv.0.weight", "g_s.0.upsample.0.weight", "h_a.0.conv1.weight", "h_a.0.skip.weight"):
        if name.startswith("h_a"):
            target[name].zero_()
        target[name][:, : a.M] = source[name]
    for i in range(b.slices):
        _copy_slice(old, new, i, min(i, a.slices - 1), deviation)


def _copy_slice(old: TCM, new: TCM, i: int, j: int, deviation: Tensor) -> None:
    """Slice `i` of the new network from slice `j` of the old one."""
    width = old.config.slice_channels
    m, old_m = new.config.M, old.config.M
    seen = width * old.config.support(j)
    support = [*range(old_m), *range(m, m + seen)]  # where the old support lies in the new one
    for kind in ("mean", "scale"):
        attention = f"atten_{kind}.{i}.0"
        for name, value in old.get_submodule(f"atten_{kind}.{j}.0").named_parameters():
            if not name.startswith(("in_conv", "out_conv")):
                new.get_parameter(f"{attention}.{name}").copy_(value)
        _place(new, f"{attention}.in_conv", old, f"atten_{kind}.{j}.0.in_conv", columns=support)
        _place(new, f"{attention}.out_conv", old, f"atten_{kind}.{j}.0.out_conv", rows=support)
        for layer in (0, 2, 4):
            name, origin = f"cc_{kind}_transforms.{i}.{layer}", f"cc_{kind}_transforms.{j}.{layer}"
            _place(new, name, old, origin, columns=support if layer == 0 else None)
        if i != j:
            last = conv_of(new, f"cc_{kind}_transforms.{i}.4")
            ratio = deviation[i * width : (i + 1) * width] / deviation[j * width : (j + 1) * width]
            last.weight *= ratio.view(-1, 1, 1, 1) * (1.0 if kind == "scale" else 0.0)
            bias_of(last).mul_(ratio * (1.0 if kind == "scale" else 0.0))
    if i == j:
        own = range(m + seen, m + seen + width)
        _place(new, f"lrp_transforms.{i}.0", old, f"lrp_transforms.{j}.0", columns=[*support, *own])


def _place(
    new: TCM,
    name: str,
    old: TCM,
    origin: str,
    rows: Sequence[int] | None = None,
    columns: Sequence[int] | None = None,
) -> None:
    """Copy a convolution into a larger one; inputs that the old one lacks get zero, such outputs keep their start."""
    conv, source = conv_of(new, name), conv_of(old, origin)
    if rows is not None:
        conv.weight[list(rows)] = source.weight
        bias_of(conv)[list(rows)] = bias_of(source)
        return
    conv.weight.zero_()
    conv.weight[:, list(columns or range(source.in_channels))] = source.weight
    bias_of(conv).copy_(bias_of(source))
