"""The tails and medians of z's prior, solved instead of learnt."""

from __future__ import annotations

import math

import torch

from model.borrowed import EntropyBottleneck

_REACH = 2.0**14
_HALVINGS = 40


@torch.no_grad()
def settle_quantiles(bottleneck: EntropyBottleneck) -> None:
    """Set the quantiles to where the auxiliary Adam would take them in the end, in place.

    The cumulative distribution of each channel rises strictly, so each quantile is found by bisection. Needed where a
    start makes z spread faster than quantiles move at 1e-3 a step: z is rounded around its medians.
    """
    tail = math.log(2 / bottleneck.tail_mass - 1)  # the logits CompressAI's own loss aims at
    wanted = torch.tensor([-tail, 0.0, tail], device=bottleneck.quantiles.device)
    low = torch.full_like(bottleneck.quantiles, -_REACH)
    high = torch.full_like(bottleneck.quantiles, _REACH)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = bottleneck._logits_cumulative(middle, stop_gradient=True) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    bottleneck.quantiles.copy_((low + high) / 2)
