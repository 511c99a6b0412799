"""The latent y, slice by slice: the one loop that training, encoding and decoding share (paper, section 3.3).

    ẑ ──> h_mean_s ──┐                            ┌──> μ_i ──> code ──> ŷ_i ──> + LRP ──> ŷ_i ─┐
                     ├─ cat(·, ŷ_<i) ─ attention ─┤                                           │
    ẑ ──> h_scale_s ─┘                            └──> σ_i                 ŷ_<i  <────────────┘

The three callers differ only in `code`, which is given μ_i and σ_i and answers with ŷ_i before its refinement: training
rounds straight through, the encoder rounds and keeps the symbols, the decoder reads the symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.config import TCMConfig

if TYPE_CHECKING:
    from model.network import TCM

CodeSlice = Callable[[int, Tensor, Tensor], Tensor]
"""(i, μ_i, σ_i) -> ŷ_i = symbols + μ_i; all (B, M/slices, h, w)."""


@dataclass(frozen=True)
class Latents:
    """y_hat, means and scales, each (B, M, h, w) with h, w a sixteenth of the padded image."""

    y_hat: Tensor
    means: Tensor
    scales: Tensor


@dataclass(frozen=True)
class SharedPath:
    """The modules that writer and reader must agree on: a network's own, or others that compute the same."""

    config: TCMConfig
    h_mean_s: nn.Module
    h_scale_s: nn.Module
    atten_mean: Sequence[nn.Module]
    atten_scale: Sequence[nn.Module]
    cc_mean_transforms: Sequence[nn.Module]
    cc_scale_transforms: Sequence[nn.Module]
    lrp_transforms: Sequence[nn.Module]


def code_slices(net: TCM | SharedPath, z_hat: Tensor, code: CodeSlice) -> Latents:
    """Run the slice loop over ẑ (B, hyper_channels, h/4, w/4).

    Everything here must agree between the machine that writes and the machine that reads: it runs in the precision of
    the weights, which the codec keeps at float32 or wider.
    """
    latent_means, latent_scales = net.h_mean_s(z_hat), net.h_scale_s(z_hat)
    decoded: list[Tensor] = []
    means: list[Tensor] = []
    scales: list[Tensor] = []
    for i in range(net.config.slices):
        before = decoded[: net.config.support(i)]
        mean_support = net.atten_mean[i](torch.cat([latent_means, *before], dim=1))
        scale_support = net.atten_scale[i](torch.cat([latent_scales, *before], dim=1))
        mean = net.cc_mean_transforms[i](mean_support)
        scale = net.cc_scale_transforms[i](scale_support)
        y_hat = code(i, mean, scale)
        y_hat = y_hat + 0.5 * torch.tanh(net.lrp_transforms[i](torch.cat([mean_support, y_hat], dim=1)))
        decoded.append(y_hat)
        means.append(mean)
        scales.append(scale)
    return Latents(torch.cat(decoded, dim=1), torch.cat(means, dim=1), torch.cat(scales, dim=1))


def round_through(x: Tensor) -> Tensor:
    """round(x) forward, the identity backward (straight-through)."""
    return x + (torch.round(x) - x).detach() if torch.is_grad_enabled() else torch.round(x)
