"""The slices of a network whose slice attentions are shut, in fewer operations: the same sums in another order.

With its gate shut a slice attention is two 1x1 convolutions, in to `attention_width` channels and out to as many as the
slice looks at (up to M and all slices before). The three transforms behind it begin with a 3x3 convolution of what
comes out. So those can read the narrow map, with weights that are the product of both: for the embedded models, 64
channels instead of 256 to 480. What that changes in the last digits is one of the ways that docs/drift.md compares.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import fused
from model.blocks import SliceAttention
from model.latents import SharedPath
from model.layers import ConvGELU
from model.network import TCM

_KEPT = 1 << 18  # elements of a map that is kept for the next picture of its size: those of 0.7 megapixels


@torch.no_grad()
def fold(net: TCM) -> TCM | SharedPath:
    """The shared path of a network that is served: the network itself where a gate is open.

    The weights of folded layers are its own; those of all others are the network's.
    """
    attentions = [cast("SliceAttention", one[0]) for one in (*net.atten_mean, *net.atten_scale)]
    if not all(attention.shut for attention in attentions):
        return net
    of_mean, of_scale = attentions[: net.config.slices], attentions[net.config.slices :]
    return SharedPath(
        config=net.config,
        h_mean_s=net.h_mean_s,
        h_scale_s=net.h_scale_s,
        atten_mean=[_Narrow(attention.in_conv) for attention in of_mean],
        atten_scale=[_Narrow(attention.in_conv) for attention in of_scale],
        cc_mean_transforms=_fold_all(of_mean, net.cc_mean_transforms),
        cc_scale_transforms=_fold_all(of_scale, net.cc_scale_transforms),
        lrp_transforms=_fold_all(of_mean, net.lrp_transforms),
    )


def _fold_all(attentions: list[SliceAttention], transforms: nn.ModuleList) -> list[nn.Module]:
    pairs = zip(attentions, transforms, strict=True)
    return [FoldedTransform(attention.out_conv, cast("nn.Sequential", transform)) for attention, transform in pairs]


class _Narrow(nn.Module):
    """A 1x1 convolution, into channels-last memory, where all that follows is faster."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, attention width, h, w)."""
        x = x.permute(0, 2, 3, 1).contiguous()
        return fused.linear(x, self.conv.weight.flatten(1), self.conv.bias).permute(0, 3, 1, 2)


class FoldedTransform(nn.Module):
    """A slice transform that reads what goes into `out_conv`, not what comes out of it.

    Channels that `out_conv` does not give (ŷ of the slice itself, for the LRP) follow it, as in the transform.
    """

    border: Tensor

    def __init__(self, out_conv: nn.Conv2d, transform: nn.Sequential) -> None:
        super().__init__()
        first = cast("nn.Conv2d", transform[0])
        weight, out = first.weight.double(), out_conv.weight.double().flatten(1)
        through, beside = weight[:, : out_conv.out_channels], weight[:, out_conv.out_channels :]
        inner = torch.einsum("omyx,mi->oiyx", through, out)
        folded = torch.cat((inner, beside), dim=1)
        self.first = nn.Conv2d(folded.shape[1], first.out_channels, 3, padding=1, bias=False, device="meta")
        self.first.weight, self.first.bias = nn.Parameter(folded.to(first.weight), requires_grad=False), first.bias
        # the bias of `out_conv` is not there beyond the edge of the map, where the transform pads with zeros
        bias = torch.einsum("omyx,m->oyx", through, cast("Tensor", out_conv.bias).double())
        self.register_buffer("border", bias[:, None].to(first.weight))
        self.rest = ConvGELU(*list(transform)[2:])
        self._added: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, attention width and what is beside it, h, w) -> (B, M/slices, h, w)."""
        added = self._added
        if added is None or added.shape[-2:] != x.shape[-2:]:
            added = F.conv2d(x.new_ones(1, 1, *x.shape[-2:]), self.border, padding=1)
            added = added.contiguous(memory_format=torch.channels_last)
            # a recorded program must not read what may be gone when it is replayed
            self._added = added if added.numel() <= _KEPT and not x.is_cuda else None
        return cast("Tensor", self.rest(fused.conv(self.first, x, activation="gelu", plus=added)))

    def own_tensors(self) -> list[Tensor]:
        """Weights that are not the network's."""
        return [self.first.weight, self.border]

    def forget(self) -> None:
        """Give the kept map's memory back."""
        self._added = None
