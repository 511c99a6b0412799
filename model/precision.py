"""Which precision the transforms run in. What writer and reader must agree on never changes: it stays in float32.

g_a, h_a and g_s are continuous: a rounding error in them is a little noise in y or in the picture. They may run in
bfloat16 or float16 where the hardware has it. Their last layer stays in float32: its output is rounded to integers
(y, z) or to 8 bits (x̂), and bfloat16 has steps of 1 from 128 on, and of 1/256 under 1.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.network import TCM

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_precision(precision: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device computes in it natively, else float32.

    A CPU without native support emulates bfloat16, up to 80 times slower than float32.

    Raises:
        ValueError: no such precision.
    """
    if precision == "auto":
        return torch.bfloat16 if _native_bfloat16(device) else torch.float32
    if precision not in PRECISIONS:
        raise ValueError(f"{precision!r} is no precision: auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@dataclass(frozen=True)
class Transforms:
    """g_a, h_a and g_s as the codec runs them: float32 in, float32 out."""

    g_a: Lowered
    h_a: Lowered
    g_s: Lowered

    @classmethod
    def of(cls, net: TCM, dtype: torch.dtype) -> Transforms:
        """Those of a network, in channels-last memory; the network itself is left as it is in any other precision."""
        return cls(*(Lowered(transform, dtype) for transform in (net.g_a, net.h_a, net.g_s)))

    def own_tensors(self) -> list[Tensor]:
        """Weights beside the network's."""
        return [t for transform in (self.g_a, self.h_a, self.g_s) for t in transform.own_tensors()]


class Lowered:
    """A transform whose inner layers run in another precision."""

    def __init__(self, transform: nn.Sequential, dtype: torch.dtype) -> None:
        self.dtype = dtype
        inner, last = transform[:-1], transform[-1]
        if dtype != torch.float32:
            inner = copy.deepcopy(inner).to(dtype)
        self.inner = inner.to(memory_format=torch.channels_last)
        self.last = last.to(memory_format=torch.channels_last)

    def own_tensors(self) -> list[Tensor]:
        """Weights that are not the network's."""
        return [] if self.dtype == torch.float32 else [*self.inner.parameters(), *self.inner.buffers()]

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to float32, in any memory format."""
        x = x.to(self.dtype, memory_format=torch.channels_last)
        return self.last(self.inner(x).float())  # type: ignore[no-any-return]
