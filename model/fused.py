"""A layer together with what follows it, in one pass over memory: oneDNN's fused forms, on CPUs and without gradients.

torch has them for its compiler; called directly they need none. Everywhere else, and where this build of torch lacks
them, the same is computed one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["none", "relu", "leaky_relu", "gelu"]

_wanted = ContextVar("fused", default=True)
_SLOPE = 0.01  # nn.LeakyReLU's
_SCALARS: dict[str, list[float]] = {"leaky_relu": [_SLOPE]}
_ALGORITHM = {"gelu": "none"}  # exact: by erf


@functools.cache
def _dtypes() -> frozenset[torch.dtype]:
    ops = torch.ops.mkldnn
    if not hasattr(ops, "_linear_pointwise"):
        return frozenset()
    native = hasattr(ops, "_is_mkldnn_bf16_supported") and ops._is_mkldnn_bf16_supported()
    return frozenset({torch.float32, torch.bfloat16} if native else {torch.float32})


def available(x: Tensor) -> bool:
    """Whether layers of the precision of `x` can be fused where it lies, now."""
    plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not _wanted.get()
    return x.device.type == "cpu" and not plain and x.dtype in _dtypes()


@contextmanager
def nothing() -> Iterator[None]:
    """Compute one by one, as other machines do: for measurements."""
    before = _wanted.set(False)
    try:
        yield
    finally:
        _wanted.reset(before)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, activation: Activation = "none", plus: Tensor | None = None
) -> Tensor:
    """activation(x·weightᵀ + bias), or x·weightᵀ + bias + plus; x (..., in), contiguous, weight (out, in)."""
    if not available(x) or weight.dtype != x.dtype:
        y = F.linear(x, weight, bias)
        return _activate(y, activation) if plus is None else y + plus
    scalars, algorithm = _SCALARS.get(activation, []), _ALGORITHM.get(activation, "")
    done: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, scalars, algorithm)
    return done if plus is None else done.add_(plus)  # oneDNN's own sum with another tensor takes longer


def conv(layer: nn.Conv2d, x: Tensor, *, activation: Activation = "none", plus: Tensor | None = None) -> Tensor:
    """activation(layer(x) + plus), x (B, C, H, W), in the precision of the layer."""
    if not torch.is_autocast_enabled(x.device.type):
        x = x.to(layer.weight.dtype)
    if not available(x):
        y = layer(x)
        return _activate(y if plus is None else y + plus, activation)
    now: Activation = activation if plus is None else "none"
    y = torch.ops.mkldnn._convolution_pointwise(
        x, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups,
        now, _SCALARS.get(now, []), _ALGORITHM.get(now, ""),
    )  # fmt: skip
    return y if plus is None else _activate(y.add_(plus), activation)


def _activate(x: Tensor, activation: Activation) -> Tensor:
    if activation == "gelu":
        return F.gelu(x)
    if activation == "relu":
        return F.relu(x)
    return F.leaky_relu(x, _SLOPE) if activation == "leaky_relu" else x
