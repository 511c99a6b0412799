"""The TCM network (Liu, Sun, Katto, CVPR 2023), with the parameter names and shapes of the published checkpoints.

    x ── g_a ──> y ── h_a ──> z ──> ẑ ── latents.code_slices ──> ŷ ── g_s ──> x̂

Windows must tile every map, so an image is padded at its right and bottom edge, by repeating that edge, to a multiple
of `config.alignment` (128) pixels. Any size works; the published code crashes at 128 pixels and below because it pads
an 8-wide map to 9.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import MixedBlock, SliceAttention
from model.borrowed import EntropyBottleneck, GaussianConditional, layers
from model.config import TCMConfig
from model.latents import Latents, code_slices, round_through
from model.layers import ConvGELU, ResidualBlockUpsample, ResidualBlockWithStride, StridedConv, SubpelConv
from model.rounding import choose_symbols
from model.rounding import likelihood as written_likelihood


@dataclass(frozen=True)
class TCMOutput:
    """What a forward pass gives.

    Attributes:
        x_hat: reconstruction (B, 3, H, W), not clamped.
        likelihoods: of y (B, M, h, w) and z (B, hyper_channels, h/4, w/4), h and w a sixteenth of the padded sides.
        means: μ of each element of y.
        scales: σ of each element of y, before the lower bound of the scale table.
        y: the latent before rounding.
    """

    x_hat: Tensor
    likelihoods: dict[str, Tensor]
    means: Tensor
    scales: Tensor
    y: Tensor


def pad_to(x: Tensor, alignment: int) -> Tensor:
    """Pad (B, C, H, W) at the right and bottom, repeating the edge, to multiples of `alignment`."""
    height, width = x.shape[-2:]
    below, right = -height % alignment, -width % alignment
    return F.pad(x, (0, right, 0, below), mode="replicate") if below or right else x


def _slice_transform(channels: int, widths: tuple[int, int], out: int) -> nn.Sequential:
    inner, narrow = widths
    conv = layers.conv3x3
    return ConvGELU(conv(channels, inner), nn.GELU(), conv(inner, narrow), nn.GELU(), conv(narrow, out))


class TCM(nn.Module):
    """Mixed Transformer-CNN image compression network.

    Args:
        config: every width.

    Attributes:
        rounding: the weight of `choose_symbols`, for estimates and training; None rounds to the nearest.
    """

    def __init__(self, config: TCMConfig) -> None:
        super().__init__()
        c = self.config = config
        self.rounding: float | None = None
        n2, depth = 2 * c.N, c.depth

        def mixed(head_dim: int, window: int) -> list[nn.Module]:
            return [MixedBlock(c.N, head_dim, window, shifted=i % 2 == 1) for i in range(depth)]

        def hyper_synthesis() -> nn.Sequential:
            return nn.Sequential(
                ResidualBlockUpsample(c.hyper_channels, n2, 2),
                *mixed(c.hyper_head_dim, c.hyper_window),
                SubpelConv(n2, c.M),
            )

        self.g_a = nn.Sequential(
            ResidualBlockWithStride(3, n2, 2),
            *mixed(c.head_dim[0], c.window),
            ResidualBlockWithStride(n2, n2, 2),
            *mixed(c.head_dim[1], c.window),
            ResidualBlockWithStride(n2, n2, 2),
            *mixed(c.head_dim[2], c.window),
            StridedConv(n2, c.M),
        )
        self.g_s = nn.Sequential(
            ResidualBlockUpsample(c.M, n2, 2),
            *mixed(c.head_dim[3], c.window),
            ResidualBlockUpsample(n2, n2, 2),
            *mixed(c.head_dim[4], c.window),
            ResidualBlockUpsample(n2, n2, 2),
            *mixed(c.head_dim[5], c.window),
            SubpelConv(n2, 3),
        )
        self.h_a = nn.Sequential(
            ResidualBlockWithStride(c.M, n2, 2),
            *mixed(c.hyper_head_dim, c.hyper_window),
            StridedConv(n2, c.hyper_channels),
        )
        self.h_mean_s = hyper_synthesis()
        self.h_scale_s = hyper_synthesis()

        supports = [c.M + c.slice_channels * c.support(i) for i in range(c.slices)]

        def attentions() -> nn.ModuleList:
            return nn.ModuleList(
                nn.Sequential(SliceAttention(s, c.attention_width, c.attention_head_dim, c.window)) for s in supports
            )

        def transforms(extra: int = 0) -> nn.ModuleList:
            return nn.ModuleList(_slice_transform(s + extra, c.slice_widths, c.slice_channels) for s in supports)

        self.atten_mean = attentions()
        self.atten_scale = attentions()
        self.cc_mean_transforms = transforms()
        self.cc_scale_transforms = transforms()
        self.lrp_transforms = transforms(extra=c.slice_channels)
        self.entropy_bottleneck = EntropyBottleneck(c.hyper_channels)
        self.gaussian_conditional = GaussianConditional(None)

    def forward(self, x: Tensor) -> TCMOutput:
        """Estimate rate and reconstruction of images (B, 3, H, W) in [0, 1], any H and W.

        In training mode the likelihoods are those of the latents with uniform noise; otherwise of the rounded ones.
        """
        height, width = x.shape[-2:]
        y = self.g_a(pad_to(x, self.config.alignment))
        latents, likelihoods = self.code(y)
        x_hat = self.g_s(latents.y_hat)[..., :height, :width]
        return TCMOutput(x_hat, likelihoods, latents.means, latents.scales, y)

    def code(self, y: Tensor) -> tuple[Latents, dict[str, Tensor]]:
        """What lies between g_a and g_s: ŷ, μ and σ of y (B, M, h, w), and the likelihoods of y and z."""
        z = self.h_a(y)
        _, of_z = self.entropy_bottleneck(z)
        medians = self.medians()
        parts, of_y = y.chunk(self.config.slices, dim=1), list[Tensor]()

        def code(i: int, mean: Tensor, scale: Tensor) -> Tensor:
            y_hat, likelihood = self.quantise(parts[i], mean, scale)
            of_y.append(likelihood)
            return y_hat

        latents = code_slices(self, round_through(z - medians) + medians, code)
        return latents, {"y": torch.cat(of_y, dim=1), "z": of_z}

    def quantise(self, y: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """ŷ of a slice, straight through, and the likelihood of each element, all of one shape.

        Where the writer chooses symbols by their rate (`rounding`), σ learns from the symbols that are written, y and μ
        from noisy ones as elsewhere.
        """
        noisy = self.gaussian_conditional(y, scale.detach() if self.rounding else scale, mean)[1]
        symbols = choose_symbols((y - mean).detach(), scale.detach(), self.rounding)
        y_hat = y + (symbols + mean - y).detach() if torch.is_grad_enabled() else symbols + mean
        if self.rounding is None:
            return y_hat, noisy
        return y_hat, written_likelihood(symbols, scale) * (noisy / noisy.detach())

    def medians(self) -> Tensor:
        """The medians of z by channel, (1, hyper_channels, 1, 1)."""
        return self.entropy_bottleneck.quantiles[:, 0, 1].detach().view(1, -1, 1, 1)  # type: ignore[no-any-return]

    def aux_loss(self) -> Tensor:
        """The loss of the entropy bottleneck's quantiles, for an optimiser of its own."""
        return self.entropy_bottleneck.loss()  # type: ignore[no-any-return]
