"""How good the network is on photographs kept out of training."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.evaluation.metrics import MS_SSIM_SIDE
from model.network import TCM
from model.training.data import UNREADABLE, read_rgb
from model.training.device import Place
from model.training.loss import rate_distortion

log = logging.getLogger(__name__)

_LARGEST = 512  # pixels a side: a validation takes seconds, also on a CPU


@dataclass(frozen=True)
class Validation:
    """Averages over the photographs: bits per pixel (estimated, of rounded latents), PSNR in dB, loss."""

    bpp: float
    psnr: float
    loss: float


def load_validation(paths: Sequence[Path], alignment: int, metric: str = "mse") -> list[Tensor]:
    """The top left corner of each photograph, cut to whole tiles of `alignment`: (1, 3, H, W) in [0, 1].

    One that is damaged, or too small for a tile or for the metric, is named in the log and left out.
    """
    least = math.ceil((MS_SSIM_SIDE if metric == "ms-ssim" else 1) / alignment) * alignment
    images = []
    for path in paths:
        try:
            pixels = read_rgb(path)
            if min(pixels.shape[:2]) < least:
                raise ValueError(f"{pixels.shape[1]}x{pixels.shape[0]} is smaller than {least}")
        except UNREADABLE as error:
            log.warning("%s skipped: %s", path, error)
            continue
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        height, width = (min(side, _LARGEST) // alignment * alignment for side in image.shape[-2:])
        images.append(image[..., :height, :width])
    return images


@torch.no_grad()
def validate(net: TCM, images: Sequence[Tensor], lmbda: float, metric: str, place: Place) -> Validation:
    """Rate and distortion of a network, put back into training mode afterwards."""
    net.eval()
    figures = []
    for image in images:
        x = place.put(image)
        loss = rate_distortion(net(x), x, lmbda, metric)
        figures.append((float(loss.bpp), loss.psnr, float(loss.total)))
    net.train()
    return Validation(*(sum(column) / len(column) for column in zip(*figures, strict=True)))
