"""CompressAI's residual blocks with the same parameters: fused where that is possible, each layer in its own precision.

A block's sum is in the precision of its skip, so that branches may run in fewer bits than what they are added to.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from model import fused, kernels
from model.borrowed import layers


class StridedConv(nn.Conv2d):
    """A 3x3 convolution that halves the sides."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H/2, W/2)."""
        return fused.conv(self, x)


class SubpelConv(nn.Sequential):
    """A 3x3 convolution whose channels are spread over 2x2 pixels each."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(nn.Conv2d(channels, 4 * out, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, 2H, 2W)."""
        return fused.subpel(cast("nn.Conv2d", self[0]), x)


_BAND = 1 << 20  # elements that a pass over a map may take: they stay in the cache


class ResidualBlock(layers.ResidualBlock):  # type: ignore[misc]
    """Two 3x3 convolutions beside a skip."""

    def branch(self, x: Tensor) -> Tensor:
        """What is added to the skip."""
        return fused.conv(self.conv2, fused.conv(self.conv1, x, activation="leaky_relu"), activation="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same height and width."""
        return self.branch(x) + (x if self.skip is None else self.skip(x))


class ResidualBlockWithStride(layers.ResidualBlockWithStride):  # type: ignore[misc]
    """A strided 3x3 convolution, another one and GDN, beside a strided skip."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> a map of half the sides."""
        branch = fused.conv(self.conv2, fused.conv(self.conv1, x, activation="leaky_relu"))
        return _normalise(self.gdn, branch, plus=fused.conv(self.skip, x))


class ResidualBlockUpsample(layers.ResidualBlockUpsample):  # type: ignore[misc]
    """A sub-pixel convolution, another one and inverse GDN, beside a sub-pixel skip."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> a map of twice the sides."""
        (up, _), (skip, _) = self.subpel_conv, self.upsample
        branch = fused.conv(self.conv, fused.subpel(up, x, activation="leaky_relu"))
        return _normalise(self.igdn, branch, plus=fused.subpel(skip, x))


def _normalise(gdn: layers.GDN, x: Tensor, plus: Tensor) -> Tensor:
    """gdn(x) + plus."""
    x = x.to(gdn.beta.dtype)
    if fused.on_gpu(x):
        beta, gamma = _divisors(gdn)
        x, plus = (t.permute(0, 2, 3, 1).contiguous() for t in (x, plus))
        power = fused.linear(x.square(), gamma, beta)
        return kernels.normalise(x, power, plus, inverse=gdn.inverse).permute(0, 3, 1, 2)
    if not fused.available(x):
        return gdn(x) + plus  # type: ignore[no-any-return]
    beta, gamma = gdn.beta_reparam(gdn.beta), gdn.gamma_reparam(gdn.gamma)
    x, plus = x.permute(0, 2, 3, 1).contiguous(), plus.permute(0, 2, 3, 1)
    out = torch.empty_like(plus, memory_format=torch.contiguous_format)
    rows = max(1, _BAND // (x.shape[2] * x.shape[3]))
    for item, added, into in zip(x, plus, out, strict=True):
        for top in range(0, len(item), rows):
            band = slice(top, top + rows)
            power = fused.linear(item[band].square(), gamma, beta)
            factor = power.sqrt_() if gdn.inverse else power.rsqrt_()
            torch.add(added[band], factor.mul_(item[band]), out=into[band])
    return out.permute(0, 3, 1, 2)


def _divisors(gdn: layers.GDN) -> tuple[Tensor, Tensor]:
    """β and γ, from how they are stored; worked out once for a network that is served."""
    if gdn.beta.requires_grad:
        return gdn.beta_reparam(gdn.beta), gdn.gamma_reparam(gdn.gamma)
    state = (gdn.beta.data_ptr(), gdn.gamma.data_ptr())
    if gdn.__dict__.get("_divisors", (None,))[0] != state:
        with torch.inference_mode(False), torch.no_grad():
            gdn.__dict__["_divisors"] = (state, gdn.beta_reparam(gdn.beta), gdn.gamma_reparam(gdn.gamma))
    return cast("tuple[Tensor, Tensor]", gdn.__dict__["_divisors"][1:])


class ResidualUnit(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a skip: a unit of CompressAI's AttentionBlock."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, width // 2, 1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width // 2, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> the same shape."""
        narrow, local, wide = (cast("nn.Conv2d", self.conv[i]) for i in (0, 2, 4))
        inner = fused.conv(local, fused.conv(narrow, x, activation="relu"), activation="relu")
        return fused.conv(wide, inner, activation="relu", plus=x)


class ConvGELU(nn.Sequential):
    """Convolutions with GELU between them, (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Each convolution with the GELU behind it, if there is one."""
        for layer, following in zip(self, [*self[1:], None], strict=True):
            if isinstance(layer, nn.Conv2d):
                x = fused.conv(layer, x, activation="gelu" if isinstance(following, nn.GELU) else "none")
        return x
