"""Distortion between two 8-bit RGB images."""

from __future__ import annotations

import math

import torch
from pytorch_msssim import ms_ssim as _ms_ssim

from model.pixels import Pixels

MS_SSIM_SIDE = 161
"""Pixels that it needs: five scales of an 11-pixel window."""


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio over all three channels together, dB; infinite for equal images."""
    error = float(((a.astype("f4") - b.astype("f4")) ** 2).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def ms_ssim(a: Pixels, b: Pixels) -> float | None:
    """Multi-scale structural similarity (Wang et al. 2003), 0 to 1; None for images too small to have five scales."""
    if min(a.shape[:2]) < MS_SSIM_SIDE:
        return None
    x, y = (torch.from_numpy(image).permute(2, 0, 1)[None].float() for image in (a, b))
    return float(_ms_ssim(x, y, data_range=255))


def ms_ssim_db(value: float) -> float:
    """-10·log10(1 - MS-SSIM), as the field plots it."""
    return -10 * math.log10(max(1 - value, 1e-12))
