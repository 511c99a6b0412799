"""A layer together with what follows it, in one pass over memory, without gradients.

On CPUs these are oneDNN's fused forms, which torch has for its compiler; called directly they need none; and for most
convolutions in float32 our own (model/winograd.py). On NVIDIA's GPUs they are the matrix products of cuBLAS, the
convolutions of cuDNN and kernels of our own (model/kernels.py), on maps in channels-last memory. Everywhere else, and
where this build of torch lacks them, the same is computed singly.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import kernels, winograd
from model.kernels import Activation

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
    """Whether layers of the precision of `x` can be fused where it lies, a CPU, now."""
    return x.device.type == "cpu" and _fuses(x) and x.dtype in _dtypes()


def on_gpu(x: Tensor) -> bool:
    """Whether they can be fused where it lies, a GPU, now."""
    return x.is_cuda and _fuses(x) and kernels.available(x)


def _fuses(x: Tensor) -> bool:
    return not (torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type)) and _wanted.get()


def wanted() -> bool:
    """Whether layers may be fused at all, now."""
    return _wanted.get()


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
    """activation(x·weightᵀ + bias), or x·weightᵀ + bias + plus, in the wider precision of both.

    x is (..., in), contiguous, and (B, H, W, in) where something is added to it; weight is (out, in). On a GPU the GELU
    of bfloat16 is that by tanh, which comes with the matrix product: it differs by less than bfloat16's own steps.
    """
    if available(x) and weight.dtype == x.dtype:
        scalars, algorithm = _SCALARS.get(activation, []), _ALGORITHM.get(activation, "")
        done: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, scalars, algorithm)
        if plus is None or plus.dtype != done.dtype:
            return done if plus is None else plus + done
        return done.add_(plus)  # oneDNN's own sum with another tensor takes longer
    if activation == "gelu" and bias is not None and x.dtype == torch.bfloat16 and on_gpu(x):
        y = torch._addmm_activation(bias, x.reshape(-1, x.shape[-1]), weight.t(), use_gelu=True)
        return y.view(*x.shape[:-1], -1)
    if plus is not None and on_gpu(x):
        return kernels.finish(F.linear(x, weight), bias, plus=plus, out=torch.empty_like(plus))
    y = F.linear(x, weight, bias)
    if plus is not None:
        return y.add_(plus) if plus.dtype == y.dtype and not torch.is_grad_enabled() else y + plus
    return _activate(y, activation)


def conv(layer: nn.Conv2d, x: Tensor, *, activation: Activation = "none", plus: Tensor | None = None) -> Tensor:
    """activation(layer(x) + plus), x (B, C, H, W), plus (B or 1, K, H, W), in the precision of the layer."""
    if not torch.is_autocast_enabled(x.device.type):
        x = x.to(layer.weight.dtype)
    if _on_gpu(layer, x):
        return _gpu_conv(layer, x, activation, plus)
    if not available(x):
        y = layer(x) if type(layer) is nn.Conv2d else nn.Conv2d.forward(layer, x)  # others come from their own
        return _activate(y if plus is None else y + plus, activation)
    if _suits_cpu_winograd(layer, x, plus):
        pixels, added = _pixels(x), None if plus is None else _pixels(plus)
        return winograd.conv3x3(pixels, _winograd(layer), layer.bias, activation, added).permute(0, 3, 1, 2)
    now: Activation = activation if plus is None else "none"
    y = torch.ops.mkldnn._convolution_pointwise(
        x, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups,
        now, _SCALARS.get(now, []), _ALGORITHM.get(now, ""),
    )  # fmt: skip
    return y if plus is None else _activate(y.add_(plus), activation)


def subpel(layer: nn.Conv2d, x: Tensor, *, activation: Activation = "none") -> Tensor:
    """activation(layer(x)) with four channels each spread over 2x2 pixels: (B, C, H, W) -> (B, K/4, 2H, 2W)."""
    low = x.to(layer.weight.dtype)
    if layer.bias is not None and _on_gpu(layer, low):
        products = _pixels(_gpu_products(layer, low))
        return kernels.shuffle(products, layer.bias, activation).permute(0, 3, 1, 2)
    return F.pixel_shuffle(conv(layer, x, activation=activation), 2)


def allow_tf32(layers: nn.Module) -> None:
    """Let these layers' float32 convolutions round their factors to 11 bits on a GPU: tensor cores do them then.

    Never those that writer and reader must agree on.
    """
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d):
            layer.rounds_factors = True  # type: ignore[assignment]


def kept(modules: Iterable[nn.Module]) -> list[Tensor]:
    """What layers have made of their weights, and keep."""
    layers = [layer for module in modules for layer in module.modules()]
    return [layer.__dict__["_winograd"][-1] for layer in layers if "_winograd" in layer.__dict__]


def _on_gpu(layer: nn.Conv2d, x: Tensor) -> bool:
    return on_gpu(x) and layer.groups == 1 and layer.out_channels % kernels.VECTOR == 0


def _gpu_conv(layer: nn.Conv2d, x: Tensor, activation: Activation, plus: Tensor | None) -> Tensor:
    if plus is not None:
        plus = _pixels(plus)
    if _suits_gpu_winograd(layer, x):
        return kernels.conv3x3(_pixels(x), _winograd(layer), layer.bias, activation, plus).permute(0, 3, 1, 2)
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and activation == "none" and plus is None:
        return F.linear(_pixels(x), layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)
    products = _pixels(_gpu_products(layer, x))
    return kernels.finish(products, layer.bias, activation, plus, out=products).permute(0, 3, 1, 2)


def _gpu_products(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The layer without its bias."""
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1):
        return F.linear(_pixels(x), layer.weight.flatten(1)).permute(0, 3, 1, 2)
    if _suits_gpu_winograd(layer, x):
        return kernels.conv3x3(_pixels(x), _winograd(layer), None).permute(0, 3, 1, 2)
    return torch.cudnn_convolution(
        x.contiguous(memory_format=torch.channels_last),
        layer.weight.contiguous(memory_format=torch.channels_last),
        cast("tuple[int, int]", layer.padding), layer.stride, layer.dilation, 1,
        benchmark=False, deterministic=False, allow_tf32=hasattr(layer, "rounds_factors"),
    )  # fmt: skip


def _pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C)."""
    return x.permute(0, 2, 3, 1).contiguous()


def _suits_winograd(layer: nn.Conv2d, x: Tensor) -> bool:
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    return x.dtype == torch.float32 and shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1)


def _suits_cpu_winograd(layer: nn.Conv2d, x: Tensor, plus: Tensor | None) -> bool:
    served = not layer.weight.requires_grad  # in training weights change, and with them what is made of them
    if not (served and x.dim() == 4 and x.shape[1] == layer.in_channels and _suits_winograd(layer, x)):
        return False
    b, _, height, width = x.shape
    shapes = [(n, layer.out_channels, height, width) for n in (1, b)]
    added = plus is None or (plus.dtype == torch.float32 and tuple(plus.shape) in shapes)
    biased = layer.bias is None or layer.bias.dtype == torch.float32
    return added and biased and winograd.suits(layer.in_channels, layer.out_channels, height, width)


def _suits_gpu_winograd(layer: nn.Conv2d, x: Tensor) -> bool:
    exact = _suits_winograd(layer, x) and not hasattr(layer, "rounds_factors")
    return exact and not (x.shape[1] % kernels.VECTOR or x.shape[2] % 2 or x.shape[3] % 2)


def _winograd(layer: nn.Conv2d) -> Tensor:
    """The layer's weights as `conv3x3` of its device wants them, made once for a network that is served."""
    make = kernels.winograd_weights if layer.weight.is_cuda else winograd.weights_of
    if layer.weight.requires_grad:  # it may be in training, where weights change in place
        return make(layer.weight)
    changes = 0 if layer.weight.is_inference() else layer.weight._version
    state = (layer.weight.data_ptr(), layer.weight.device, changes)
    weight, then, made = layer.__dict__.get("_winograd", (None, None, None))
    if weight is not layer.weight or then != state:
        with torch.inference_mode(False), torch.no_grad():
            made = make(layer.weight)
        layer.__dict__["_winograd"] = (layer.weight, state, made)
    return cast("Tensor", made)


def _activate(x: Tensor, activation: Activation) -> Tensor:
    if activation == "gelu":
        return F.gelu(x)
    if activation == "relu":
        return F.relu(x)
    return F.leaky_relu(x, _SLOPE) if activation == "leaky_relu" else x
