"""Adam's state by the names of its parameters, so that a run goes on whatever groups their rates make of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from model.errors import CheckpointMismatch


def named_state(adam: Adam, net: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Of each parameter of `net` that has taken steps: both moments and their number."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in net.named_parameters()}
    return {names[parameter]: dict(state) for parameter, state in adam.state.items()}


def load_named_state(adam: Adam, net: nn.Module, stored: dict[str, Any]) -> None:
    """Take over what `named_state` gave; rates and groups stay as they are.

    Raises:
        CheckpointMismatch: it is of other parameters.
    """
    parameters = dict(net.named_parameters())
    if not stored.keys() <= parameters.keys():
        raise CheckpointMismatch("the checkpoint's optimiser is of another network, or version: start a run of its own")
    for name, state in stored.items():
        like = parameters[name]
        adam.state[like] = {
            key: torch.empty_like(like).copy_(value) if value.shape == like.shape else value.to(like.device)
            for key, value in state.items()
        }
