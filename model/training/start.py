"""A start that already compresses: the network set to a block transform (`--start-from block-transform`).

From the usual random start an hour of CPU steps leaves the transforms at the level of block means (21 dB). Here every
stride-2 stage of g_a is set to the principal components of the 2x2 blocks of its input, g_s to their transposes:

    x ── 2x2 PCA ──> 12 ── 2x2 PCA ──> 48 ── 2x2 PCA ──> 64 ── 2x2 PCA, /Δ ──> y     (channels of xs)

which together is nearly the Karhunen-Loève transform of 16x16 blocks: the first two stages lose nothing, the third is
that of 8x8 blocks cut to 2N channels, the last cut to M. Every residual branch ends in zeros, so that the network *is*
linear, and learns its way out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import MixedBlock
from model.borrowed import layers
from model.network import TCM
from model.training.layers import bias_of, conv_of

LEAST_DEVIATION = 0.3
"""Channels of y that vary less, in quantiser steps, are treated as if they varied by this much."""

_ORDER = 0.25  # standard deviation of the strongest feature of every stage: what default initial weights expect
_GAMMA = 1e-4  # of the GDNs: next to none, yet with a gradient to grow by
GATE = -4.0  # sigmoid 0.018: the branch hardly speaks until it has learnt something
_HEADROOM = 1.5  # keeps the signal positive through LeakyReLU on images wilder than the sample
_LEAST_LIFT = 0.1  # of an orthonormal coefficient, where the sample is flat


@dataclass(frozen=True)
class _Stage:
    """One 2x2 block transform.

    Attributes:
        components: (out, 4·in), orthonormal rows; columns ordered as (in, row, column), like pixel_unshuffle.
        gain: (out,), what a coefficient is multiplied by to become a feature of order 0.25.
    """

    components: Tensor
    gain: Tensor


def quantiser_step(lmbda: float) -> float:
    """Δ of an orthonormal coefficient at which λ·255²·MSE + bpp is least: Δ² = 18 / (ln 2 · λ · 255²).

    At high rate a coefficient costs -½·log2 D bits and D = Δ²/12; the loss counts D with λ·255²/768 (three colours
    of 256 pixels) and bits with 1/256.
    """
    return math.sqrt(18 / (math.log(2) * lmbda * 255**2))


@torch.no_grad()
def block_transform(net: TCM, images: Tensor, lmbda: float) -> None:
    """Set a network to the block transform, in place.

    Args:
        net: freshly initialised; what is not named here keeps its initial weights.
        images: (n, 3, H, W) in [0, 1], sides multiples of 16; a hundred crops of 256 are plenty.
        lmbda: λ for MSE; y is scaled so that a step of 1 is this λ's quantiser step.
    """
    depth = net.config.depth
    downs = [net.g_a[i * (depth + 1)] for i in range(4)]
    ups = [net.g_s[i * (depth + 1)] for i in range(4)]
    mean = images.mean(dim=(0, 2, 3))
    signal = images - mean.view(1, -1, 1, 1)
    gain = torch.ones(3)
    for i, down in enumerate(downs):
        width = net.config.M if i == 3 else 2 * net.config.N
        stage = _principal(signal, width, last_step=quantiser_step(lmbda) if i == 3 else None)
        signal = F.conv2d(F.pixel_unshuffle(signal, 2), stage.components[:, :, None, None])
        if i < 3:
            _set_down(down, stage, gain, signal, offset=mean if i == 0 else None)
        else:
            _set_conv(conv_of(net, f"g_a.{3 * (depth + 1)}"), _kernel(stage, gain))
        _set_up(ups[3 - i], stage, gain, offset=mean if i == 0 else None)
        gain = stage.gain
    for block in (*net.g_a.modules(), *net.g_s.modules()):
        if isinstance(block, MixedBlock):
            _clear(block.conv1_2)
    set_priors(net, signal * gain.view(1, -1, 1, 1))


def _principal(signal: Tensor, width: int, last_step: float | None) -> _Stage:
    """The strongest `width` components of the 2x2 blocks of a zero-mean signal (n, C, H, W)."""
    vectors = F.pixel_unshuffle(signal, 2).transpose(0, 1).flatten(1).double()
    values, basis = torch.linalg.eigh(vectors @ vectors.T / vectors.shape[1])
    values, basis = values.flip(0)[:width], basis.flip(1)[:, :width]
    deviation = values.clamp(min=1e-12).sqrt()
    if last_step is not None:
        gain = torch.full_like(deviation, 1 / last_step)
    else:  # halfway to whitening: fine detail is not lost in the layer norms, nor does noise in it grow
        gain = _ORDER / (deviation * deviation[0]).sqrt()
    return _Stage(basis.T.float().contiguous(), gain.float())


def _kernel(stage: _Stage, gain_in: Tensor) -> Tensor:
    """The analysis of a stage on features, as (out, in, 2, 2)."""
    out, channels = stage.components.shape[0], len(gain_in)
    return stage.components.view(out, channels, 2, 2) * stage.gain.view(-1, 1, 1, 1) / gain_in.view(1, -1, 1, 1)


def _set_conv(conv: nn.Conv2d, kernel: Tensor, bias: Tensor | None = None) -> None:
    """Write a 2x2 kernel (out, in, 2, 2) into a 3x3 convolution of stride 2; its other inputs and taps to zero.

    Rows beyond the kernel's (spare channels) keep their initial weights, as features to learn from.
    """
    out, channels = kernel.shape[:2]
    conv.weight[:out] = 0
    conv.weight[:out, :channels, 1:, 1:] = kernel  # padding 1: output p sees the rows 2p-1, 2p, 2p+1
    bias_of(conv)[:out] = 0 if bias is None else bias


def _set_down(
    block: layers.ResidualBlockWithStride, stage: _Stage, gain_in: Tensor, signal: Tensor, offset: Tensor | None
) -> None:
    """conv1 = the block transform, lifted above zero; conv2 = identity, lowered again; GDN next to none; skip zero."""
    kernel = _kernel(stage, gain_in)
    lift = stage.gain * (-_HEADROOM * signal.amin(dim=(0, 2, 3))).clamp(min=_LEAST_LIFT)
    mean = torch.zeros_like(lift) if offset is None else (kernel.sum(dim=(2, 3)) @ offset)
    _set_conv(block.conv1, kernel, lift - mean)
    out = len(lift)
    block.conv2.weight[:out] = 0
    block.conv2.weight[range(out), range(out), 1, 1] = 1
    block.conv2.bias[:out] = -lift
    _set_gdn(block.gdn)
    if block.skip is not None:
        _clear(block.skip)


def _set_gdn(gdn: layers.GDN) -> None:
    gdn.beta.copy_(gdn.beta_reparam.init(torch.ones_like(gdn.beta)))
    gdn.gamma.copy_(gdn.gamma_reparam.init(torch.full_like(gdn.gamma, _GAMMA)))


def _set_up(block: nn.Module, stage: _Stage, gain_in: Tensor, offset: Tensor | None) -> None:
    """The transpose, in the sub-pixel skip of an upsampling block or in the last sub-pixel convolution."""
    if isinstance(block, layers.ResidualBlockUpsample):
        _clear(block.conv)
        _set_gdn(block.igdn)
        subpel = block.upsample[0]
    else:
        assert isinstance(block, nn.Sequential)  # noqa: S101  # subpel_conv3x3
        subpel = block[0]
    coefficients, channels = stage.components.shape[0], len(gain_in)
    synthesis = stage.components.T * gain_in.repeat_interleave(4)[:, None] / stage.gain
    _clear(subpel)
    subpel.weight[: 4 * channels, :coefficients, 1, 1] = synthesis
    if offset is not None:
        subpel.bias[: 4 * channels] = offset.repeat_interleave(4)


def set_priors(net: TCM, y: Tensor) -> None:
    """Fit the entropy model to the scale of y, whose channels range from a fraction of a step to dozens.

    What reads y sees every channel at unit scale; μ and σ start at each channel's mean (zero) and deviation; the
    gates are all but shut, the refinement adds nothing.
    """
    deviation = y.std(dim=(0, 2, 3)).clamp(min=LEAST_DEVIATION)
    slices = deviation.chunk(net.config.slices)
    for name in ("h_a.0.conv1", "h_a.0.skip"):
        conv_of(net, name).weight /= deviation.view(1, -1, 1, 1)
    for i, wanted in enumerate(slices):
        support = net.config.slice_channels * net.config.support(i)
        for kind in ("mean", "scale"):
            reader = conv_of(net, f"atten_{kind}.{i}.0.in_conv")
            reader.weight[:, net.config.M :] /= deviation[:support].view(1, -1, 1, 1)
            bias_of(conv_of(net, f"atten_{kind}.{i}.0.conv_b.3")).fill_(GATE)
            writer = conv_of(net, f"cc_{kind}_transforms.{i}.4")
            writer.weight *= wanted.view(-1, 1, 1, 1)
            bias_of(writer).copy_(wanted if kind == "scale" else torch.zeros_like(wanted))
        conv_of(net, f"lrp_transforms.{i}.0").weight[:, -len(wanted) :] /= wanted.view(1, -1, 1, 1)
        _clear(conv_of(net, f"lrp_transforms.{i}.4"))


def _clear(conv: nn.Conv2d) -> None:
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(bias_of(conv))
