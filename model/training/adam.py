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
        CheckpointMismatch: a state of the older form, by groups, and today's are others.
    """
    if "param_groups" in stored:
        _load_by_groups(adam, stored)
        return
    parameters = dict(net.named_parameters())
    for name, state in stored.items():
        like = parameters[name]
        adam.state[like] = {
            key: torch.empty_like(like).copy_(value) if value.shape == like.shape else value.to(like.device)
            for key, value in state.items()
        }


def _load_by_groups(adam: Adam, stored: dict[str, Any]) -> None:
    groups = adam.state_dict()["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in stored["param_groups"]]:
        raise CheckpointMismatch("a checkpoint of an earlier version goes on with the --lr and --balance that it had")
    adam.load_state_dict({**stored, "param_groups": groups})
