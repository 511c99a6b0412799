"""Exponential moving average of the weights: what is validated and shipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_EVERY = 4


class Average:
    """A moving average of those parameters of a network that learn; all others keep their bits.

    Args:
        net: whose parameters are followed.
        decay: 0.998 remembers about 500 steps; early on the average follows faster, so that the start is forgotten.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = {name: value for name, value in net.named_parameters() if value.requires_grad}
        self.weights = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step` (from 0); only every fourth does, which costs a quarter."""
        if step % _EVERY:
            return
        decay = min(self.decay, (step + 1) / (step + 20)) ** _EVERY
        torch._foreach_lerp_(list(self.weights.values()), [p.detach() for p in self._live.values()], 1 - decay)

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Take over stored averages."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network with the average as its weights, for as long as the context lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, live in self._live.items():
            kept = live.detach().clone()
            live.copy_(self.weights[name])
            self.weights[name].copy_(kept)
