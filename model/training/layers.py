"""Convolutions of the network by their name in the state dict."""

from __future__ import annotations

from torch import Tensor, nn


def conv_of(net: nn.Module, name: str) -> nn.Conv2d:
    """The convolution of that name."""
    found = net.get_submodule(name)
    if not isinstance(found, nn.Conv2d):
        raise TypeError(f"{name} is a {type(found).__name__}, not a convolution")
    return found


def bias_of(conv: nn.Conv2d) -> Tensor:
    """Its bias; every convolution of a TCM has one."""
    if conv.bias is None:
        raise TypeError("a convolution of a TCM has a bias")
    return conv.bias
