"""Noise like that of another machine's arithmetic, at the output of every module that writer and reader share.

The error of a sum of products does not shrink with the sum: it is relative to the magnitudes of its terms, Σ|w·a|
(Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). So that is what drift and noise are relative to
here, with the terms of a module's last layer. A module's number then says what its arithmetic is worth, whatever
cancels in its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import fused
from model.blocks import SliceAttention
from model.latents import SharedPath
from model.network import TCM

Modules = dict[str, nn.Module]


def shared_modules(net: TCM | SharedPath) -> Modules:
    """Every module whose output writer and reader must agree on."""
    found: Modules = {"h_mean_s": net.h_mean_s, "h_scale_s": net.h_scale_s}
    kinds = ["cc_mean_transforms", "cc_scale_transforms", "lrp_transforms"]
    if isinstance(net, TCM):  # where it is folded, nothing is as wide as what an attention gives
        kinds += ["atten_mean", "atten_scale"]
    for name in kinds:
        found |= {f"{name}.{i}": module for i, module in enumerate(getattr(net, name))}
    return found


@contextmanager
def watched_terms(net: TCM) -> Iterator[dict[str, Tensor]]:
    """Σ|w·a| of each shared module's last layer, as the module works; nothing is fused meanwhile."""
    terms: dict[str, Tensor] = {}

    def keep(name: str, after: nn.Module) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(layer: nn.Module, given: tuple[Tensor]) -> None:
            weight, bias, padding = (cast("Any", getattr(layer, part)) for part in ("weight", "bias", "padding"))
            terms[name] = after(F.conv2d(given[0].abs(), weight.abs(), bias.abs(), padding=padding))

        return hook

    handles = []
    for name, module in shared_modules(net).items():
        layer, after = _last(module)
        handles.append(layer.register_forward_pre_hook(keep(name, after)))
    try:
        with fused.nothing():
            yield terms
    finally:
        for handle in handles:
            handle.remove()


def _last(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The last layer of a shared module, and what moves its output about."""
    last = module[-1] if isinstance(module, nn.Sequential) else module
    if isinstance(last, SliceAttention):
        return last.out_conv, nn.Identity()
    return (last[0], last[1]) if isinstance(last, nn.Sequential) else (last, nn.Identity())


@contextmanager
def disturbed(net: TCM, relative: dict[str, float], least: float, seed: int) -> Iterator[None]:
    """Disturb the output of every shared module while the network itself computes, in float32.

    Each element changes by a random part of `relative` times its terms, or of `least` times its own size (itself and
    the output's median, added) where that is more.
    """
    generator = torch.Generator().manual_seed(seed)

    def disturb(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(_: nn.Module, __: object, output: Tensor) -> Tensor:
            if output.dtype == torch.float64:  # machines differ in float32, and copies of a module keep its hooks
                return output
            noise = torch.rand(output.shape, generator=generator).mul_(2).sub_(1).to(output)
            size = output.abs() + output.abs().median()
            return output + noise * torch.maximum(relative[name] * terms[name], least * size)

        return hook

    with watched_terms(net) as terms:
        handles = [module.register_forward_hook(disturb(name)) for name, module in shared_modules(net).items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
