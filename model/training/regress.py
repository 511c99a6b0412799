"""The synthesis by least squares: what g_s can know of a block from its neighbours, without a single SGD step.

A block transform's synthesis looks at one block at a time and shows its borders. Given the decoded latents of some
crops, the best 3x3 sub-pixel convolutions in their place follow from normal equations: first ŷ to the features at an
eighth of the resolution, then those to the features at a quarter. (Fitting the random features of the branches beside
them in the same way gained nothing, and left a network that Adam shook apart.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.borrowed import layers
from model.network import TCM
from model.training.layers import bias_of

_RIDGE = 1e-4  # of the mean squared input: keeps what the sample says little about near zero


@torch.no_grad()
def fit_synthesis(net: TCM, crops: Iterable[Tensor]) -> None:
    """Fit the two inner upsampling blocks of g_s, in place.

    Args:
        net: a network after a block-transform start, short-cut or not, whose entropy model has learnt.
        crops: batches (B, 3, H, W) in [0, 1], sides multiples of 128; a few hundred crops of 256 in all.
    """
    depth = net.config.depth
    batches = list(crops)
    quarter, eighth, latents = [], [], []
    for x in batches:
        quarter.append(net.g_a[: -depth - 2](x))
        eighth.append(net.g_a[-depth - 2 : -1](quarter[-1]))
        latents.append(net.code(net.g_a[-1](eighth[-1]))[0].y_hat)
    inputs = _fit_block(net.g_s[0], latents, eighth)
    inputs = [net.g_s[1 : depth + 1](x) for x in inputs]
    _fit_block(net.g_s[depth + 1], inputs, quarter)


def _fit_block(block: layers.ResidualBlockUpsample, inputs: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
    """Fit the skip to what the branch beside it leaves; returns the block's answers."""
    skip = block.upsample[0]
    pairs = zip(inputs, wanted, strict=True)
    _fit_conv(skip, inputs, [F.pixel_unshuffle(w - _branch(block, x), 2) for x, w in pairs])
    return [block(x) for x in inputs]


def _branch(block: layers.ResidualBlockUpsample, x: Tensor) -> Tensor:
    return block.igdn(block.conv(block.leaky_relu(block.subpel_conv(x))))  # type: ignore[no-any-return]


def _fit_conv(conv: nn.Conv2d, inputs: list[Tensor], wanted: list[Tensor]) -> None:
    """Least squares for a 3x3 convolution: conv(inputs) = wanted."""
    columns: Callable[[Tensor], Tensor] = lambda x: F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)  # noqa: E731
    size = conv.weight[0].numel() + 1
    normal = torch.zeros(size, size, dtype=torch.float64)
    moment = torch.zeros(size, conv.out_channels, dtype=torch.float64)
    for x, w in zip(inputs, wanted, strict=True):
        a = columns(x)
        a = torch.cat([a, torch.ones(1, a.shape[1])])
        normal += (a @ a.T).double()
        moment += (a @ w.transpose(0, 1).flatten(1).T).double()
    scale = normal.diagonal().clamp(min=1e-12).sqrt()  # whatever the units of an input
    correlation = normal / scale / scale[:, None] + _RIDGE * torch.eye(size, dtype=torch.float64)
    solution = torch.linalg.solve(correlation, moment / scale[:, None]) / scale[:, None]
    conv.weight.copy_(solution[:-1].T.reshape(conv.weight.shape))
    bias_of(conv).copy_(solution[-1])
