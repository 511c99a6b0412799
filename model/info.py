"""What a weights file says of itself, read from its metadata alone. Nothing here needs torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import safetensors

from model.config import TCMConfig
from model.errors import CheckpointUnreadable

FINGERPRINT_BYTES = 6
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
Metric = Literal["mse", "ms-ssim"]
METRICS = get_args(Metric)

_FINGERPRINT = re.compile(rf"[0-9a-f]{{{2 * FINGERPRINT_BYTES}}}")
_STANDARD_NAME = re.compile(r"tcm-(?P<size>[a-z]+)-(?P<metric>mse|ms-ssim)-(?P<lmbda>\d+(\.\d+)?)")


@dataclass(frozen=True)
class ModelInfo:
    """What a weights file says of itself; ValueError where no model can be so.

    Attributes:
        name: as in `tcm models` and in every bitstream made with it.
        lmbda: λ, the weight of the distortion in the training loss.
        metric: what was optimised, "mse" or "ms-ssim".
        config: every width.
        parameters: number of learned parameters.
        rounding: the weight that the model's symbols are chosen with (`model.rounding`), or None: to the nearest.
        fingerprint: first bytes of the SHA-256 over every tensor, in hex: which weights, whatever their name.
        differs_from: None, or the fingerprint of the later weights beside it that the file lacks what it shares with
            (`model.differences`); it is for reading what the earlier ones wrote.
    """

    name: str
    lmbda: float
    metric: str
    config: TCMConfig
    parameters: int
    fingerprint: str
    rounding: float | None = None
    differs_from: str | None = None

    def __post_init__(self) -> None:
        check_claims(self.name, self.lmbda, self.metric, self.rounding)
        if self.parameters < 1 or not _FINGERPRINT.fullmatch(self.fingerprint):
            raise ValueError(f"no model has {self.parameters} parameters and weights {self.fingerprint!r}")
        if self.differs_from is not None and not _FINGERPRINT.fullmatch(self.differs_from):
            raise ValueError(f"no weights are called {self.differs_from!r}")


def standard_name(name: str) -> tuple[float, str] | None:
    """λ and metric of a name like tcm-s-mse-0.013, or None."""
    match = _STANDARD_NAME.fullmatch(name)
    return (float(match["lmbda"]), match["metric"]) if match else None


def check_name(name: str, lmbda: float, metric: str) -> None:
    """Raise ValueError where a name says another λ or metric."""
    said = standard_name(name)
    if said and not (math.isclose(said[0], lmbda, rel_tol=1e-3) and said[1] == metric):
        raise ValueError(f"{name} says λ={said[0]:g} for {said[1]}, not λ={lmbda:g} for {metric}: call it otherwise")


def check_claims(name: str, lmbda: float, metric: str, rounding: float | None) -> None:
    """Raise ValueError where no model can be called so, or be trained for that."""
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(f"{name!r} is no model name: lower-case letters, digits, '.', '_' and '-', at most 63")
    if not 0 < lmbda <= 1e6 or metric not in METRICS:
        raise ValueError(f"λ={lmbda} with metric {metric!r}: λ is positive, metrics are {', '.join(METRICS)}")
    if rounding is not None and not 0 < rounding < math.inf:
        raise ValueError(f"a rounding weight is a positive number, not {rounding}")


def info_of(path: Path) -> ModelInfo | None:
    """As `read_info`; None of a file that says nothing of the kind."""
    try:
        return read_info(path)
    except CheckpointUnreadable:
        return None


def read_info(path: Path) -> ModelInfo:
    """What a weights file says of itself, without reading the weights.

    Raises:
        CheckpointUnreadable: it is damaged, was not written by `save`, or says what no model can be.
    """
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
        return ModelInfo(
            name=metadata["name"],
            lmbda=float(metadata["lmbda"]),
            metric=metadata["metric"],
            config=TCMConfig.from_json(metadata["config"]),
            parameters=int(metadata["parameters"]),
            fingerprint=metadata["fingerprint"],
            rounding=float(metadata["rounding"]) if "rounding" in metadata else None,
            differs_from=metadata.get("differs_from"),
        )
    except KeyError as error:
        raise CheckpointUnreadable(
            f"{path}: has no {error.args[0]!r} in its metadata; run `tcm import {path} --name NAME` first"
        ) from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointUnreadable(f"{path}: damaged or not a weights file ({error})") from None
