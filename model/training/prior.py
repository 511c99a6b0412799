"""Training the entropy model alone: g_a answers without a gradient and g_s is not asked at all."""

from __future__ import annotations

import torch
from torch import Tensor

from model.network import TCM
from model.training.loss import Loss, bits_per_pixel
from model.training.start import quantiser_step


def prior_loss(net: TCM, x: Tensor, lmbda: float) -> Loss:
    """Bits per pixel, and the squared error of ŷ in place of the picture's.

    With y in units of the λ's own quantiser step the error of an orthonormal transform's picture follows from that of
    y whatever λ is: λ·255²·MSE = 18/ln 2 · Σ(ŷ - y)²/768 for each block of 256 pixels. It trains the refinement.

    Args:
        net: in training mode.
        x: images (B, 3, H, W), sides multiples of the network's alignment.
        lmbda: λ that the network's y is scaled for.

    Returns:
        A loss whose `mse` is that of quantisation alone, without what the transform leaves out.
    """
    with torch.no_grad():
        y = net.g_a(x)
    latents, likelihoods = net.code(y)
    bpp = bits_per_pixel(likelihoods, x.shape[0] * x.shape[2] * x.shape[3])
    error = (latents.y_hat - y).square().sum(dim=1).mean()
    mse = quantiser_step(lmbda) ** 2 / 768 * error
    return Loss(bpp + lmbda * 255**2 * mse, bpp.detach(), mse.detach())
