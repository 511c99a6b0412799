"""Which precision the transforms run in. What writer and reader must agree on never changes: it stays in float32.

g_a, h_a and g_s are continuous: a rounding error in them is a little noise in y or in the picture. They may run in
bfloat16 or float16 where the hardware has it, but for the places where that noise shows:

- the sums: mixed and upsampling blocks compute their branches in few bits, and add them to float32 (with the sums in
  bfloat16 as well the decoder lost up to 0.08 dB at 35 dB; like this, 0.002);
- the last layer of each: its output is rounded to integers (y, z) or to 8 bits (x̂), and bfloat16 has steps of 1 from
  128 on, and of 1/256 under 1;
- the strided blocks of g_a and h_a, whose skips carry the signal itself: with them the embedded models lose more than
  the 0.3 % of the bits that may be lost, with the mixed blocks alone far less (tests/model/test_codec.py). On a GPU
  their convolutions round their factors to 11 bits (TF32), an eighth of bfloat16's error, and sum in float32.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model import fused
from model.blocks import MixedBlock
from model.layers import ResidualBlockUpsample
from model.network import TCM
from model.pruned import prune

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
        if dtype != torch.float32:
            for transform in (net.g_a, net.h_a, net.g_s):
                fused.allow_tf32(transform)
        return cls(
            g_a=Lowered(net.g_a, dtype, MixedBlock),
            h_a=Lowered(net.h_a, dtype, MixedBlock),
            g_s=Lowered(net.g_s, dtype, nn.Module),
        )

    def layers(self) -> list[nn.Module]:
        """All layers as they are computed."""
        return [*self.g_a.layers, *self.h_a.layers, *self.g_s.layers]

    def own_tensors(self) -> list[Tensor]:
        """Weights beside the network's."""
        return [t for transform in (self.g_a, self.h_a, self.g_s) for t in transform.own_tensors()]


class Lowered:
    """A transform of which some layers compute in another precision; what they add to stays in float32.

    Blocks that add nothing are left out, and channels that nobody reads: the embedded models' outermost stages were
    trained for a short time or never.

    Args:
        transform: the layers.
        dtype: the other precision.
        kind: which layers run in it; never the last.
    """

    def __init__(self, transform: nn.Sequential, dtype: torch.dtype, kind: type[nn.Module]) -> None:
        self.layers: list[nn.Module] = []
        layers = prune([layer for layer in transform if not (isinstance(layer, MixedBlock) and layer.adds_nothing())])
        for i, layer in enumerate(layers):
            if dtype != torch.float32 and i < len(layers) - 1 and isinstance(layer, kind):
                layer = _lower(layer, dtype)
            self.layers.append(layer.to(memory_format=torch.channels_last))
        self._own = [layer for layer in self.layers if not any(layer is one for one in transform)]

    def own_tensors(self) -> list[Tensor]:
        """Weights that are not the network's."""
        return [t for layer in self._own for t in (*layer.parameters(), *layer.buffers())]

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to float32, in any memory format."""
        for layer in self.layers:
            x = layer(x.contiguous(memory_format=torch.channels_last))
        return x


def _lower(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy whose branches compute in `dtype`; an upsampling block's skip carries the signal and keeps its bits."""
    low = copy.deepcopy(layer).to(dtype)
    if isinstance(layer, ResidualBlockUpsample) and isinstance(low, ResidualBlockUpsample):
        low.upsample = copy.deepcopy(layer.upsample)
    return low
