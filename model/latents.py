"""The latent y, slice by slice: the step that training, encoding and decoding share (paper, section 3.3).

    ẑ ──> h_mean_s ──┐                            ┌──> μ_i ──> code ──> ŷ_i ──> + LRP ──> ŷ_i ─┐
                     ├─ cat(·, ŷ_<i) ─ attention ─┤                                           │
    ẑ ──> h_scale_s ─┘                            └──> σ_i                 ŷ_<i  <────────────┘

`SlicePass` predicts μ_i and σ_i, its caller makes ŷ_i of them, and it refines that. Three loops drive it: here
`code_slices`, where `code` makes ŷ_i (in training by rounding straight through), and in `latent_coder` the encoder's,
which rounds and keeps the symbols, and the decoder's, which reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.config import TCMConfig
from model.devices import side_by_side

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


class SlicePass:
    """The slice loop, a half step at a time: first μ_i and σ_i are predicted, then ŷ_i is taken in and refined.

    Everything here must agree between the machine that writes and the machine that reads: it runs in the precision of
    the weights, which the codec keeps at float32 or wider.

    Args:
        net: the modules.
        z_hat: ẑ (B, hyper_channels, h/4, w/4).
    """

    def __init__(self, net: TCM | SharedPath, z_hat: Tensor) -> None:
        self._net = net
        self._latent_means, self._latent_scales = side_by_side(
            z_hat.device, lambda: net.h_mean_s(z_hat), lambda: net.h_scale_s(z_hat)
        )
        self._decoded: list[Tensor] = []
        self._mean_support: Tensor | None = None

    def predict(self) -> tuple[Tensor, Tensor]:
        """μ and σ of the next slice, each (B, M/slices, h, w)."""
        net, i = self._net, len(self._decoded)
        before = self._decoded[: net.config.support(i)]

        def mean() -> tuple[Tensor, Tensor]:
            support = net.atten_mean[i](torch.cat([self._latent_means, *before], dim=1))
            return support, net.cc_mean_transforms[i](support)

        def scale() -> Tensor:
            support = net.atten_scale[i](torch.cat([self._latent_scales, *before], dim=1))
            return net.cc_scale_transforms[i](support)  # type: ignore[no-any-return]

        (self._mean_support, means), scales = side_by_side(self._latent_means.device, mean, scale)
        return means, scales

    def refine(self, y_hat: Tensor) -> None:
        """Take in ŷ of that slice, symbols + μ."""
        support, self._mean_support = self._mean_support, None
        assert support is not None  # noqa: S101 - it was predicted first
        lrp = self._net.lrp_transforms[len(self._decoded)](torch.cat([support, y_hat], dim=1))
        self._decoded.append(y_hat + 0.5 * torch.tanh(lrp))

    def y_hat(self) -> Tensor:
        """All slices that were taken in, refined: (B, M, h, w) in the end."""
        return torch.cat(self._decoded, dim=1)


def code_slices(net: TCM | SharedPath, z_hat: Tensor, code: CodeSlice) -> Latents:
    """Run the slice loop over ẑ (B, hyper_channels, h/4, w/4)."""
    through = SlicePass(net, z_hat)
    means: list[Tensor] = []
    scales: list[Tensor] = []
    for i in range(net.config.slices):
        mean, scale = through.predict()
        through.refine(code(i, mean, scale))
        means.append(mean)
        scales.append(scale)
    return Latents(through.y_hat(), torch.cat(means, dim=1), torch.cat(scales, dim=1))


def round_through(x: Tensor) -> Tensor:
    """round(x) forward, the identity backward (straight-through)."""
    return x + (torch.round(x) - x).detach() if torch.is_grad_enabled() else torch.round(x)
