"""What is measured: a TCM model, or one setting of a codec that Pillow speaks."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import PIL
import torch
from PIL import Image, features

from model.codec import Codec
from model.devices import memory_errors
from model.info import standard_name
from model.pixels import Picture, Pixels


class Coder(Protocol):
    """An image into a file and back.

    Attributes:
        name: of the curve that its points belong to.
        setting: of this point.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def setting(self) -> str: ...  # noqa: D102
    def encode(self, picture: Picture) -> bytes: ...  # noqa: D102
    def decode(self, data: bytes) -> Pixels: ...  # noqa: D102


@dataclass(frozen=True)
class TCMCoder:
    """One model of this installation."""

    codec: Codec

    @property
    def name(self) -> str:
        """Models that differ only in λ, as their names say, share a curve: tcm-xs-mse."""
        name = self.codec.info.name
        return name.rsplit("-", 1)[0] if standard_name(name) else name

    @property
    def setting(self) -> str:
        """Name, weights and device, so that what others gave, or took, is not taken for theirs."""
        device = "" if self.codec.device.type == "cpu" else f"@{self.codec.device.type}"
        return f"{self.codec.info.name}@{self.codec.info.fingerprint}{device}"

    def encode(self, picture: Picture) -> bytes:
        """A whole .tcm file."""
        return self.codec.encode_picture(picture)

    def decode(self, data: bytes) -> Pixels:
        """Its pixels, of greys in three channels."""
        return np.array(self.codec.decode(data).convert("RGB"))

    @torch.inference_mode()
    def estimate(self, pixels: Pixels) -> float:
        """Bits that the network's likelihoods promise, for comparison with those of the real file."""
        with memory_errors(self.codec.device):
            x = torch.from_numpy(pixels).to(self.codec.device).permute(2, 0, 1)[None].float() / 255
            nats: float = sum(-v.log().sum().item() for v in self.codec.net(x).likelihoods.values())
        return nats / math.log(2)


@dataclass(frozen=True)
class PillowCoder:
    """One quality of a codec of Pillow's."""

    name: str
    file_format: str
    quality: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def setting(self) -> str:
        """The quality, and the version that measurements are of."""
        return f"q{self.quality}@{PIL.__version__}"

    def encode(self, picture: Picture) -> bytes:
        """A whole file."""
        out = io.BytesIO()
        samples = picture.rgb[..., 0] if picture.grey else picture.rgb
        Image.fromarray(samples).save(out, self.file_format, quality=self.quality, **self.options)
        return out.getvalue()

    def decode(self, data: bytes) -> Pixels:
        """Its pixels."""
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


PEERS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "JPEG": ("JPEG", (8, 15, 25, 40, 55, 70, 80, 90), {"optimize": True, "subsampling": "4:2:0"}),
    "WebP": ("WEBP", (2, 10, 25, 45, 65, 80, 90), {"method": 6}),
    "AVIF": ("AVIF", (15, 25, 35, 45, 55, 65, 75), {"speed": 6}),
    "JPEG XL": ("JXL", (15, 30, 45, 60, 75, 85), {"effort": 7}),
}


def peers() -> Iterator[PillowCoder]:
    """Every codec that this Pillow speaks, at several qualities."""
    with_plugins = {"AVIF": features.check("avif"), "JPEG XL": _has_jxl()}
    for name, (file_format, qualities, options) in PEERS.items():
        if with_plugins.get(name, True):
            for quality in qualities:
                yield PillowCoder(name, file_format, quality, options)


def _has_jxl() -> bool:
    try:
        importlib.import_module("pillow_jxl")
    except ImportError:
        return False
    return True
