"""The two blocks that TCM adds to CompressAI's layers: the mixed Transformer-CNN block and the slice attention."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from model import fused
from model.attention import TransformerBlock
from model.layers import ResidualBlock, ResidualUnit

_SHUT = math.log(1e-9)  # of a gate's bias; float32 cannot tell it from closed


class MixedBlock(nn.Module):
    """TCM block (paper, figure 4): one half of the channels through residual convolutions, the other through attention.

    Args:
        width: N, the channels of one half; the block takes and gives 2N.
        head_dim: width of an attention head.
        window: side of an attention window.
        shifted: whether the windows are shifted by half their side.
    """

    def __init__(self, width: int, head_dim: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        self.width = width
        self.trans_block = TransformerBlock(width, head_dim, window, shifted=shifted)
        self.conv1_1 = nn.Conv2d(2 * width, 2 * width, 1)
        self.conv1_2 = nn.Conv2d(2 * width, 2 * width, 1)
        self.conv_block = ResidualBlock(width, width)

    def adds_nothing(self) -> bool:
        """Whether the block gives back what it is given, as it does where it was never trained."""
        return not self.conv1_2.weight.any() and not cast("Tensor", self.conv1_2.bias).any()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2N, H, W) -> the same shape and precision; H and W multiples of the window."""
        low = x.to(self.conv1_1.weight.dtype)
        if self.trans_block.fuses(low.permute(0, 2, 3, 1)):
            low, skip = (t.permute(0, 2, 3, 1).contiguous() for t in (low, x))
            return self._fused(low, skip).permute(0, 3, 1, 2)
        local, windowed = self.conv1_1(low).split(self.width, dim=1)
        local = self.conv_block(local) + local
        windowed = self.trans_block(windowed)
        return x + self.conv1_2(torch.cat((local, windowed), dim=1))  # type: ignore[no-any-return]

    def _fused(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, H, W, 2N) twice -> the same shape; both halves are written where the last layer reads them."""
        (first, last), (add_first, add_last) = (
            self.conv1_1.weight.flatten(1).chunk(2),
            cast("Tensor", self.conv1_1.bias).chunk(2),
        )
        local, windowed = fused.linear(x, first, add_first), fused.linear(x, last, add_last)
        both = torch.empty_like(x)
        branch = self.conv_block.branch(local.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.add(branch, local, alpha=2, out=both[..., : self.width])  # the block's own skip and this one
        self.trans_block.into(windowed, both[..., self.width :])
        return fused.linear(both, self.conv1_2.weight.flatten(1), self.conv1_2.bias, plus=skip)


class _WindowPair(nn.Module):
    """A plain transformer block, then a shifted one."""

    def __init__(self, width: int, head_dim: int, window: int) -> None:
        super().__init__()
        self.block_1 = TransformerBlock(width, head_dim, window, shifted=False)
        self.block_2 = TransformerBlock(width, head_dim, window, shifted=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))  # type: ignore[no-any-return]


class SliceAttention(nn.Module):
    """SWAtten (paper, figure 5): attention over the support of one slice.

    Args:
        channels: channels in and out: those of the latent and of the slices decoded so far.
        width: channels inside.

    Attributes:
        shut: the gated branch is left out (`find_shut`).
    """

    def __init__(self, channels: int, width: int, head_dim: int, window: int) -> None:
        super().__init__()
        self.conv_a = nn.Sequential(*(ResidualUnit(width) for _ in range(3)))
        self.conv_b = nn.Sequential(*(ResidualUnit(width) for _ in range(3)), nn.Conv2d(width, width, 1))
        self.non_local_block = _WindowPair(width, head_dim, window)
        self.in_conv = nn.Conv2d(channels, width, 1)
        self.out_conv = nn.Conv2d(width, channels, 1)
        self.shut = False

    def find_shut(self) -> None:
        """Leave the gated branch out of a network that is served, where it says nothing: gates at 1e-9 whatever x."""
        last = cast("nn.Conv2d", self.conv_b[-1])
        self.shut = not last.weight.any() and bool((cast("Tensor", last.bias) < _SHUT).all())

    def drop_shut(self) -> None:
        """Give back the memory of a branch that is left out; it cannot be opened any more."""
        if self.shut and hasattr(self, "conv_b"):
            del self.conv_a, self.conv_b, self.non_local_block

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> the same shape; h and w multiples of the window."""
        x = fused.conv(self.in_conv, x)
        if not self.shut:
            gate = torch.sigmoid(self.conv_b(self.non_local_block(x)))
            x = self.conv_a(x) * gate + x
        return fused.conv(self.out_conv, x)
