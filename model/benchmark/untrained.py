"""Networks of the published sizes with random weights: as slow as trained ones, and nobody has to download them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from model.checkpoint import Weights
from model.codec import Codec
from model.config import SIZES
from model.devices import pick_device
from model.info import ModelInfo
from model.network import TCM
from model.tables import bottleneck_tables


def untrained(size: str, device: str = "auto", precision: str = "auto") -> Codec:
    """A codec of such a size: xs, s (N=64), m (N=96) or l (N=128).

    Raises:
        ValueError: no such size, device or precision.
    """
    if size not in SIZES:
        raise ValueError(f"{size!r} is no size: {', '.join(SIZES)}")
    torch.manual_seed(0)
    net = TCM(SIZES[size]).eval()
    _make_plausible(net)
    parameters = sum(p.numel() for p in net.parameters())
    info = ModelInfo(f"untrained-{size}", 1.0, "mse", net.config, parameters, "00" * 6)
    return Codec(Weights(info, net, bottleneck_tables(net.entropy_bottleneck)), pick_device(device), precision)


@torch.no_grad()
def _make_plausible(net: TCM) -> None:
    """Give σ the size of the residuals, 0.3, as training does; else nearly every symbol would be a rare one."""
    for transform in net.cc_scale_transforms:
        last = cast("nn.Conv2d", cast("nn.Sequential", transform)[-1])
        last.weight.mul_(24)
        cast("Tensor", last.bias).fill_(0.3)
