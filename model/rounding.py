"""The writer's choice of symbols: the nearest integer, or one nearer zero where that saves more than it costs.

A symbol s of a residual r = y - μ costs `weight`·(r - s)² + bits(s | σ): the cheapest is taken of round(r), its
neighbour towards zero, and zero itself, which a tiny σ may make best: rate-distortion optimised quantisation (RDOQ), as
video coders call it. The reader never knows: it is told symbols, not
how they were chosen. Models trained with a weight have σ and their refinement fitted to the symbols that it gives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.tables import SCALE_MIN


def choose_symbols(residual: Tensor, scale: Tensor, weight: float | None) -> Tensor:
    """Integers for residuals y - μ.

    Args:
        residual: y - μ, any shape.
        scale: σ, the same shape.
        weight: bits that a squared error of one quantiser step is worth; None rounds to the nearest.
    """
    nearest = torch.round(residual)
    if weight is None:
        return nearest
    if residual.device.type != "cpu":  # finding the others would make the device wait
        return _cheapest(residual, nearest, scale, weight)
    flat = [t.reshape(-1) for t in (residual, nearest, scale)]
    others = flat[1].nonzero()[:, 0]  # zero stays zero, and most are
    return (
        flat[1]
        .index_copy(0, others, _cheapest(flat[0][others], flat[1][others], flat[2][others], weight))
        .view_as(nearest)
    )


def _cheapest(residual: Tensor, nearest: Tensor, scale: Tensor, weight: float) -> Tensor:
    chosen, least = nearest, weight * (residual - nearest).square() + bits(nearest, scale)
    for other in (nearest - nearest.sign(), torch.zeros_like(nearest)):
        cost = weight * (residual - other).square() + bits(other, scale)
        chosen, least = torch.where(cost < least, other, chosen), torch.minimum(cost, least)
    return chosen


def bits(symbols: Tensor, scale: Tensor) -> Tensor:
    """What integers cost under a Gaussian of mean zero and deviation σ, each taking its unit interval."""
    return -torch.log2(likelihood(symbols, scale))


def likelihood(symbols: Tensor, scale: Tensor) -> Tensor:
    """The mass of each integer's unit interval, at least 1e-9."""
    inverse = -math.sqrt(0.5) / scale.clamp(min=SCALE_MIN)
    magnitude = symbols.abs()
    upper, lower = torch.erfc(inverse * (0.5 - magnitude)), torch.erfc(inverse * (-0.5 - magnitude))
    return (0.5 * (upper - lower)).clamp(min=1e-9)
