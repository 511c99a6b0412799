"""What training minimises: λ · distortion + rate (TCM paper, equation 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pytorch_msssim import ms_ssim
from torch import Tensor

from model.network import TCMOutput


@dataclass(frozen=True)
class Loss:
    """One batch's loss and its parts, all scalars.

    Attributes:
        total: λ · distortion + bpp.
        bpp: estimated bits per pixel of y and z.
        mse: mean squared error of values in [0, 1].
        ms_ssim: MS-SSIM, where that is the metric; otherwise None.
    """

    total: Tensor
    bpp: Tensor
    mse: Tensor
    ms_ssim: Tensor | None = None

    @property
    def psnr(self) -> float:
        """In dB, of the batch's mean squared error."""
        return -10 * math.log10(max(float(self.mse), 1e-10))


def bits_per_pixel(likelihoods: Mapping[str, Tensor], pixels: int) -> Tensor:
    """-Σ log2 likelihood of everything in a batch, over its number of pixels."""
    bits = [-torch.log2(likelihood.float()).sum() for likelihood in likelihoods.values()]
    return torch.stack(bits).sum() / pixels


def rate_distortion(out: TCMOutput, x: Tensor, lmbda: float, metric: str) -> Loss:
    """λ·255²·MSE + bpp, or λ·(1 - MS-SSIM) + bpp.

    Args:
        out: the network's answer to x.
        x: images (B, 3, H, W) in [0, 1]; for MS-SSIM with sides above 160 pixels.
        lmbda: λ.
        metric: "mse" or "ms-ssim".
    """
    x_hat = out.x_hat.float()
    bpp = bits_per_pixel(out.likelihoods, x.shape[0] * x.shape[2] * x.shape[3])
    mse = (x_hat - x).square().mean()
    if metric == "mse":
        return Loss(lmbda * 255**2 * mse + bpp, bpp.detach(), mse.detach())
    similarity = ms_ssim(x_hat, x, data_range=1.0)
    return Loss(lmbda * (1 - similarity) + bpp, bpp.detach(), mse.detach(), similarity.detach())
